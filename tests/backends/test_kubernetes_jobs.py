"""Kubernetes Jobs on a cluster whose pods are processes: what goes wrong there, and what it costs to notice."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import wove
from tests.contract.backend_tasks import add_one, block, count_up, die, pid
from tests.contract.test_contract import eventually, lines
from tests.support.elsewhere import ways
from tests.support.kept import free_port
from tests.support.leaks import leak_check
from tests.support.proxy import Proxy
from tests.support.servers import kubernetes_jobs
from tests.support.servers.kubernetes_jobs import KubernetesJobs
from tests.support.volume import volume
from wove import DeliveryTimeoutError, WorkerLostError, weave
from wove.errors import DeliveryError
from wove.integrations.common import withdrawals
from wove.integrations.kubernetes_jobs import adapter
from wove.integrations.kubernetes_jobs.watch import TROUBLE_SECONDS

pytestmark = [pytest.mark.backend("kubernetes_jobs"), pytest.mark.timeout(120)]

ALL = [
    "create jobs",
    "delete jobs",
    "get jobs",
    "list jobs",
    "watch jobs",
    "list pods",
    "watch pods",
    "get pods/log",
]
ALL += ["list events"]
Configure = Callable[..., None]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubernetesJobs]:
    tokens = {
        "reader": [right for right in ALL if not right.startswith("create")],
        "unlisted": [right for right in ALL if right != "list pods"],
        "blind": [right for right in ALL if right != "watch pods"],
        "deaf": [right for right in ALL if right != "list events"],
        "least": ALL,
    }
    with kubernetes_jobs.running(
        tmp_path_factory.mktemp("cluster"), slots=4, tokens=tokens
    ) as found:
        yield found


@pytest.fixture
def client(cluster: KubernetesJobs) -> Iterator[Callable[..., Any]]:
    """Makes clients, as users have them; their connections are closed in the end."""
    made: list[Any] = []

    def make(**options: Any) -> Any:
        made.append(cluster.batch_api(**options))
        return made[-1]

    yield make
    wove.shutdown()
    for api in made:
        api.api_client.rest_client.pool_manager.clear()


@pytest.fixture
def there(
    cluster: KubernetesJobs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> Iterator[Configure]:
    def configure(**more: Any) -> None:
        config = {**cluster.config, **more}
        for key in [key for key, value in config.items() if value is None]:
            del config[key]
        wove.config(
            environments={"there": {"executor": "kubernetes_jobs", "executor_config": config}}
        )

    with leak_check(tmp_path / "temporary", caplog=caplog):
        configure()
        yield configure


there_is, there_will_be, begin = ways("there")


def jobs_of(cluster: KubernetesJobs) -> list[Any]:
    api = cluster.batch_api()
    try:
        return list(api.list_namespaced_job("default").items)
    finally:
        api.api_client.rest_client.pool_manager.clear()


def lost(what: str, fn: Callable[..., Any] = add_one, **values: Any) -> None:
    """*fn* is lost for that reason."""
    began = time.monotonic()
    with pytest.raises(WorkerLostError, match=what) as caught:
        there_is(fn, **(values or {"item": 1}))
    print(f"after {time.monotonic() - began:.1f} s: {caught.value}")


def hog() -> int:
    print("about to take it all", flush=True)
    held = [bytearray(b"x" * (1 << 20)) for _ in range(800)]
    return len(held)


# ------------------------------------------------------------------------------------------ what goes wrong


def test_an_image_that_is_not_there(there: Configure, cluster: KubernetesJobs) -> None:
    there(image="no.such/image:1")
    lost("image 'no.such/image:1' does not start: ErrImagePull: .*pull access denied")
    assert not [
        job
        for job in jobs_of(cluster)
        if job.spec.template.spec.containers[0].image == "no.such/image:1"
    ]


def test_a_secret_that_is_not_there(there: Configure) -> None:
    reference = {"secretKeyRef": {"name": "no-such", "key": "secret"}}
    there(container={"env": [{"name": "WOVE_WORKER_SECRET", "valueFrom": reference}]})
    lost('CreateContainerConfigError: secret "no-such" not found')


def test_more_memory_than_its_limit(there: Configure) -> None:
    there(container={"resources": {"limits": {"memory": "300Mi"}}})
    lost(r"(?s)exit code 137 \(OOMKilled\); the end of its log: .*about to take it all", hog)


def test_the_memory_that_a_task_asks_for_is_its_limit(there: Configure) -> None:
    lost(r"\(OOMKilled\)", hog, options={"resources": {"cpus": 0.1, "memory": "300MiB"}})


def test_a_command_that_fails_says_the_end_of_its_log(there: Configure) -> None:
    there(command=["sh", "-c", "echo no such luck >&2; exit 7"])
    lost(r"(?s)exit code 7; the end of its log: no such luck")
    # Also where the pod's status does not have it.
    there(
        command=["sh", "-c", "echo no such luck; exit 7"],
        container={"terminationMessagePolicy": "File"},
    )
    lost(r"(?s)exit code 7; the end of its log: no such luck")


def test_a_command_that_is_not_there(there: Configure) -> None:
    there(command=["no-such-program"])
    lost("exit code 128 .StartError: .*no-such-program")


def test_a_deadline_of_the_job(there: Configure, tmp_path: Path) -> None:
    there(job_spec={"activeDeadlineSeconds": 1})
    values = {"path": str(tmp_path / "pids"), "until": str(tmp_path / "until")}
    lost("DeadlineExceeded|was stopped", block, **values)


@pytest.mark.parametrize("what", ["evicted", "Job deleted", "pod deleted"])
def test_what_others_do_to_a_running_pod(
    there: Configure, cluster: KubernetesJobs, tmp_path: Path, what: str
) -> None:
    words = {
        "evicted": "Evicted: The node was low on resource",
        "Job deleted": "was deleted",
    }

    async def main() -> None:
        values = {"path": str(tmp_path / "pids"), "until": str(tmp_path / "until")}
        running = begin(block, **values)
        await eventually(lambda: lines(tmp_path / "pids"))
        await asyncio.to_thread(act)
        with pytest.raises(WorkerLostError, match=words.get(what, "was deleted")):
            await running

    def act() -> None:
        from kubernetes import client

        api = cluster.batch_api()
        core = client.CoreV1Api(api.api_client)

        def running() -> list[Any]:
            pods = core.list_namespaced_pod("default", label_selector="job-name").items
            ours = [pod for pod in pods if pod.metadata.name.startswith("wove-block-")]
            return [
                pod
                for pod in ours
                if pod.status.phase == "Running" and not pod.metadata.deletion_timestamp
            ]

        [pod] = asyncio.run(eventually(running))
        if what == "evicted":
            cluster.emulate("evict", namespace="default", name=pod.metadata.name)
        elif what == "Job deleted":
            name = pod.metadata.labels["job-name"]
            api.delete_namespaced_job(name, "default", propagation_policy="Background")
        else:
            core.delete_namespaced_pod(pod.metadata.name, "default")

    asyncio.run(main())
    assert there_is(add_one, item=1) == 2


def test_what_cannot_be_scheduled_waits(
    there: Configure, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "wove")

    async def main() -> None:
        values = {"path": str(tmp_path / "pids"), "until": str(tmp_path / "until")}
        held = [begin(block, **values) for _ in range(4)]
        await eventually(lambda: len(lines(tmp_path / "pids")) == 4)
        waiting = begin(add_one, item=1)
        words = (
            r"\d of its pods cannot be scheduled, and wait: Unschedulable: 0/1 nodes are available"
        )
        await eventually(lambda: re.search(words, caplog.text))
        await asyncio.sleep(TROUBLE_SECONDS + 1.0)
        assert not waiting.done()
        (tmp_path / "until").touch()
        assert await waiting == 2
        await asyncio.gather(*held)

    asyncio.run(main())


@contextmanager
def quota(cluster: KubernetesJobs, of: str, most: int = 0) -> Iterator[None]:
    """So many may exist."""
    cluster.emulate("quota", namespace="default", of=of, most=most)
    try:
        yield
    finally:
        cluster.emulate("quota", namespace="default", of=of, most=1000)


def test_a_service_account_that_is_not_there(there: Configure, cluster: KubernetesJobs) -> None:
    there(pod_spec={"serviceAccountName": "no-such"})
    lost(
        r'no pod is made for Job wove-add-one-\w+: .*forbidden: .*serviceaccount "no-such" not found'
    )
    assert not [
        job for job in jobs_of(cluster) if job.spec.template.spec.service_account_name == "no-such"
    ]


@pytest.mark.parametrize("token", ["least", "deaf"])
def test_a_quota_of_pods_is_waited_for(
    there: Configure,
    cluster: KubernetesJobs,
    client: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
    token: str,
) -> None:
    caplog.set_level("INFO", "wove")
    there(load_config_options=None, batch_api=client(token=token))
    words = {
        "least": "1 Jobs wait for a pod to be made: Error creating: pods .* is forbidden: exceeded quota: pods",
        "deaf": "why some of its Jobs get no pod cannot be seen: .*cannot list resource .events.",
    }

    async def main() -> None:
        waiting = begin(add_one, item=1)
        await eventually(lambda: re.search(words[token], caplog.text))
        assert not waiting.done()
        await asyncio.to_thread(held.close)
        assert await waiting == 2

    with ExitStack() as held:
        held.enter_context(quota(cluster, "pods"))
        asyncio.run(main())


def test_a_quota_of_jobs(there: Configure, cluster: KubernetesJobs) -> None:
    there(submit_patience_seconds=0.2)
    words = r"refused to create Job .* exceeded quota: jobs, .*\(403 Forbidden\) \('workers' of a mapped task bounds"
    with quota(cluster, "jobs"), pytest.raises(DeliveryError, match=words):
        there_is(add_one, item=1)


def test_jobs_of_ended_runs_leave_room_in_a_quota(
    there: Configure, cluster: KubernetesJobs
) -> None:
    """The quota counts finished Jobs, too; so each is deleted when its run has ended."""
    with quota(cluster, "jobs", most=len(jobs_of(cluster)) + 1), weave() as w:
        w.do(range(4), environment="there", workers=1)(add_one)
    assert w.result.add_one == [1, 2, 3, 4]


def test_a_failed_job_stays_for_its_reason(there: Configure, cluster: KubernetesJobs) -> None:
    there(command=["sh", "-c", "exit 9"], labels={"shop": "kept"})
    lost("exit code 9")
    kept = [job for job in jobs_of(cluster) if job.metadata.labels.get("shop") == "kept"]
    assert len(kept) == 1


# ------------------------------------------------------------------------------------------------ preflight


def test_a_namespace_that_is_not_there(there: Configure) -> None:
    there(namespace="nowhere")
    with pytest.raises(
        DeliveryError,
        match=r'create Job wove-add-one-\w+ in namespace .nowhere.: namespaces "nowhere" not',
    ):
        there_is(add_one, item=1)


@pytest.mark.parametrize(
    ("token", "words"),
    [("reader", "create jobs"), ("blind", "watch pods"), ("unlisted", "list pods")],
)
def test_a_right_that_is_missing(
    there: Configure, cluster: KubernetesJobs, client: Callable[..., Any], token: str, words: str
) -> None:
    there(load_config_options=None, batch_api=client(token=token))
    with pytest.raises(PermissionError, match=f"may not {words} in namespace 'default'"):
        there_is(add_one, item=1)


def test_the_least_rights_are_enough(
    there: Configure, cluster: KubernetesJobs, client: Callable[..., Any]
) -> None:
    there(load_config_options=None, batch_api=client(token="least"))
    assert there_is(add_one, item=1) == 2


def test_nobody_knows_the_user(
    there: Configure, cluster: KubernetesJobs, client: Callable[..., Any]
) -> None:
    there(load_config_options=None, batch_api=client(token="who"))
    with pytest.raises(DeliveryError, match=r"401 Unauthorized.*credentials"):
        there_is(add_one, item=1)


def test_a_misspelt_field_is_named(there: Configure) -> None:
    there(pod_spec={"serviceAcountName": "reports"})
    with pytest.raises(
        (DeliveryError, ValueError), match=r"spec\.template\.spec\.serviceAcountName"
    ):
        there_is(add_one, item=1)


def test_a_cluster_that_is_not_there(
    there: Configure, cluster: KubernetesJobs, client: Callable[..., Any]
) -> None:
    port = free_port()
    there(load_config_options=None, batch_api=client(port=port))
    with pytest.raises(DeliveryError, match=f"127.0.0.1:{port} could not be asked to list Jobs"):
        there_is(add_one, item=1)


def test_a_kubeconfig_that_is_not_there(there: Configure) -> None:
    there(load_config_options={"config_file": "/no/such/file"})
    with pytest.raises(ValueError, match="no configuration of a cluster could be loaded"):
        there_is(add_one, item=1)


# ------------------------------------------------------------------------------------------ what users bring


def test_a_client_of_the_users_own(
    there: Configure, cluster: KubernetesJobs, client: Callable[..., Any]
) -> None:
    api = client()
    there(load_config_options=None, batch_api=api)
    assert there_is(add_one, item=1) == 2
    wove.shutdown()
    assert api.list_namespaced_job("default").items is not None


@pytest.mark.parametrize("kind", ["V1Job", "dict"])
def test_a_job_factory(there: Configure, cluster: KubernetesJobs, kind: str) -> None:
    from kubernetes import client

    def make(payload: dict[str, Any], job: dict[str, Any]) -> Any:
        job["metadata"]["labels"]["task"] = payload["task_name"]
        if kind == "dict":
            return job
        [container] = job["spec"]["template"]["spec"]["containers"]
        env = [client.V1EnvVar(name=each["name"], value=each["value"]) for each in container["env"]]
        worker = client.V1Container(
            name="mine", image=container["image"], command=container["command"], env=env
        )
        pod = client.V1PodSpec(containers=[worker], restart_policy="Never")
        template = client.V1PodTemplateSpec(spec=pod)
        metadata = client.V1ObjectMeta(labels={"task": payload["task_name"]})
        return client.V1Job(
            metadata=metadata, spec=client.V1JobSpec(template=template, backoff_limit=0)
        )

    there(job_factory=make, job_spec={"ttlSecondsAfterFinished": 60})
    assert there_is(add_one, item=1) == 2
    assert [job for job in jobs_of(cluster) if (job.metadata.labels or {}).get("task") == "add_one"]

    there(job_factory=lambda payload, job: {**job, "metadata": {"namespace": "other"}})
    with pytest.raises(
        ValueError, match="job_factory returned cannot be submitted: it is for namespace 'other'"
    ):
        there_is(add_one, item=1)


def test_a_job_factory_that_gives_all_jobs_one_name(there: Configure, tmp_path: Path) -> None:
    there(
        job_factory=lambda payload, job: {**job, "metadata": {**job["metadata"], "name": "always"}}
    )

    async def main() -> None:
        first = begin(block, path=str(tmp_path / "pids"), until=str(tmp_path / "until"))
        await eventually(lambda: lines(tmp_path / "pids"))
        with pytest.raises(ValueError, match="cannot have Job always: another run has it"):
            await there_will_be(add_one, item=1)
        (tmp_path / "until").touch()
        assert await first == "done"

    asyncio.run(main())


def test_what_a_shell_or_kubernetes_would_expand(there: Configure, tmp_path: Path) -> None:
    options = {"delivery_idempotency_key": "$(HOME) $$ $(WOVE_BACKEND_PAYLOAD) é"}
    assert there_is(count_up, path=str(tmp_path / "$(HOME)$$"), options=options) == 1


# ---------------------------------------------------------------------------------------- keys and cancels


def test_a_key_that_another_process_uses(
    there: Configure, cluster: KubernetesJobs, tmp_path: Path
) -> None:
    """Another environment is as another process: it does not know of the first one's runs."""
    environment = {"executor": "kubernetes_jobs", "executor_config": cluster.config}
    wove.config(environments={"there": environment, "elsewhere": environment})
    values = {"path": str(tmp_path / "pids"), "until": str(tmp_path / "until")}
    options = {"delivery_idempotency_key": "one"}

    async def one(where: str) -> Any:
        async with weave(**values) as w:
            w.do(environment=where, **options)(block)
        return w.result.final

    async def main() -> None:
        first = asyncio.create_task(one("there"))
        await eventually(lambda: lines(tmp_path / "pids"))
        with pytest.raises(
            DeliveryError, match=r"is already Job wove-block-\w+, created by another process"
        ):
            await one("elsewhere")
        (tmp_path / "until").touch()
        assert await first == "done"
        assert await one("elsewhere") == "done"  # what is over is replaced

    asyncio.run(main())


def test_a_lost_run_with_a_key_is_submitted_again(there: Configure, tmp_path: Path) -> None:
    options = {"delivery_idempotency_key": "again", "delivery_orphan_policy": "requeue"}
    assert (
        there_is(die, path=str(tmp_path / "pids"), times=1, after=0.3, options=options)
        == "survived"
    )


def test_a_cancel_of_what_has_not_begun_is_acknowledged(
    there: Configure, cluster: KubernetesJobs
) -> None:
    there(image="no.such/image:2")
    options = {"delivery_timeout": 1.0, "delivery_cancel_mode": "require_ack"}
    with pytest.raises(DeliveryTimeoutError, match="delivery_timeout"):
        there_is(add_one, item=1, options=options)
    assert not [
        job
        for job in jobs_of(cluster)
        if job.spec.template.spec.containers[0].image == "no.such/image:2"
    ]


# ------------------------------------------------------------------------------- the API server is not there


def test_an_api_server_that_is_away_for_a_while(
    there: Configure, cluster: KubernetesJobs, client: Callable[..., Any], tmp_path: Path
) -> None:
    with Proxy(cluster.port) as proxy:
        there(load_config_options=None, batch_api=client(port=proxy.port))

        async def main() -> None:
            values = {"path": str(tmp_path / "pids"), "until": str(tmp_path / "until")}
            running = begin(block, **values)
            [number] = await eventually(lambda: lines(tmp_path / "pids"))
            proxy.down()
            await asyncio.sleep(2.0)
            cluster.emulate(
                "forget"
            )  # and it has forgotten what changed: a watch from then is answered 410
            proxy.up()
            await asyncio.sleep(1.0)
            assert await there_will_be(pid) != number
            (tmp_path / "until").touch()
            assert await running == "done"

        asyncio.run(main())
        wove.shutdown()


def test_a_job_that_is_created_while_the_api_server_is_away(
    there: Configure,
    cluster: KubernetesJobs,
    client: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "wove")
    with Proxy(cluster.port) as proxy:
        there(load_config_options=None, batch_api=client(port=proxy.port))
        assert there_is(add_one, item=1) == 2

        async def main() -> None:
            proxy.down()
            waiting = begin(add_one, item=2)
            await eventually(lambda: "; waiting for it" in caplog.text)
            proxy.up()
            assert await waiting == 3

        asyncio.run(main())
        wove.shutdown()


def test_a_job_whose_creation_was_not_answered_is_created_once(
    there: Configure, client: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from urllib3.exceptions import ReadTimeoutError

    monkeypatch.setattr(adapter, "RETRY_SECONDS", 0.05)
    api = client()
    create, unanswered = api.create_namespaced_job, [True]

    def create_unanswered(*args: Any, **options: Any) -> Any:
        answer = create(*args, **options)
        if unanswered.pop() if unanswered else False:
            raise ReadTimeoutError(None, "url", "Read timed out.")  # type: ignore[arg-type]
        return answer

    api.create_namespaced_job = create_unanswered
    there(load_config_options=None, batch_api=api)
    assert there_is(add_one, item=1) == 2
    assert unanswered == []


def test_a_job_that_is_created_after_it_was_given_up_is_deleted(
    there: Configure,
    cluster: KubernetesJobs,
    client: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from urllib3.exceptions import ReadTimeoutError

    monkeypatch.setattr(adapter, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(withdrawals, "INTERVAL_SECONDS", 0.05)
    monkeypatch.setattr(withdrawals, "MIN_CLEAR_CHECKS", 1_000_000)
    monkeypatch.setattr(withdrawals, "MAX_CHECKS", 1_000_000)
    api = client()
    create, late = api.create_namespaced_job, list[tuple[Any, Any]]()

    def create_later(*args: Any, **options: Any) -> Any:
        late.append((args, options))
        raise ReadTimeoutError(None, "url", "Read timed out.")  # type: ignore[arg-type]

    api.create_namespaced_job = create_later
    there(load_config_options=None, batch_api=api, submit_patience_seconds=0.1)
    with pytest.raises(DeliveryError, match="could not be asked to create Job .*Read timed out"):
        there_is(add_one, item=1)
    args, options = late[0]
    create(*args, **options)
    name = args[1]["metadata"]["name"]
    asyncio.run(eventually(lambda: name not in [job.metadata.name for job in jobs_of(cluster)]))


def test_an_api_server_that_is_too_busy(there: Configure, cluster: KubernetesJobs) -> None:
    assert there_is(add_one, item=1) == 2
    cluster.emulate("busy", requests=2)
    assert there_is(add_one, item=1) == 2


# -------------------------------------------------------------------------------------------------- figures


@pytest.mark.timeout(300)
def test_many_jobs_take_few_calls_to_watch(there: Configure, cluster: KubernetesJobs) -> None:
    def watching() -> int:
        return sum(
            number
            for what, number in cluster.emulate("counts").items()
            if what.split()[0] in LIVENESS
        )

    before, began = watching(), time.monotonic()
    with weave() as w:
        w.do(range(JOBS), environment="there")(add_one)
    assert w.result.add_one == list(range(1, JOBS + 1))
    minutes = max(1.0, (time.monotonic() - began) / 60)
    print(f"{JOBS} jobs in {minutes * 60:.0f} s at most, {watching() - before} calls to watch them")
    assert watching() - before <= 20 * minutes


LIVENESS = ("list", "watch", "get")
JOBS = volume(200, 40)
