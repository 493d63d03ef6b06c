"""The executor of backend adapters, over a backend that is one worker process: tests/support/line_backend.py."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tests.support.line_backend import LineAdapter, line_executor

import wove
from wove import (
    BackendAdapter,
    BackendAdapterEnvironmentExecutor,
    DeliveryError,
    DeliveryTimeoutError,
    MissingDependencyError,
    WorkerLostError,
    weave,
)
from wove.callback.receiver import ConnectionEnd
from wove.executors.backend.losses import SUSPECT_SECONDS
from wove.integrations.base import JobStatus

pytestmark = [pytest.mark.backend("stdio"), pytest.mark.usefixtures("no_leaks")]

SECRET = {"type": "signed", "secret": "for these tests"}


def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)
    return found


def use(executor: BackendAdapterEnvironmentExecutor | None = None, /, **config: Any) -> None:
    wove.config(
        environments={"line": {"executor": executor or line_executor(), "executor_config": config}}
    )


@pytest.fixture(autouse=True)
def _stopped() -> Iterator[None]:
    yield
    wove.shutdown()
    assert LineAdapter.opened == []


def run(
    fn: Callable[..., Any], /, *, values: Mapping[str, Any] | None = None, **options: Any
) -> Any:
    with weave(**(values or {})) as w:
        w.do(environment="line", **options)(fn)
    return w.result.final


def number() -> int:
    return 7


# ------------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("config", "error", "said"),
    [
        (
            {"sekret": 1},
            ValueError,
            "line has no executor_config key 'sekret'. Did you mean 'secret'?",
        ),
        ({"callback_prot": 1}, ValueError, "Did you mean 'callback_port'?"),
        ({"security": {"type": "bearer", "token": "x"}}, ValueError, "is a bearer token"),
        ({"watch_seconds": 0}, ValueError, "'watch_seconds' must be"),
        ({"callback_retry_seconds": "long"}, TypeError, "'callback_retry_seconds' must be"),
    ],
)
def test_what_is_wrong_with_a_configuration_is_said(
    config: Any, error: type[Exception], said: str
) -> None:
    use(**config)
    with pytest.raises(error, match=said.replace(".", r"\.").replace("?", r"\?")):
        run(number)


def test_a_missing_package_is_named_before_anything_is_submitted() -> None:
    class Needy(LineAdapter):
        required_modules = ("no_such_package.inside", "asyncio")
        install_hint = 'pip install "wove[needy]"'

    use(BackendAdapterEnvironmentExecutor("needy", adapter_class=Needy))
    with pytest.raises(
        MissingDependencyError,
        match=r'needs no_such_package.inside. Install it with: pip install "w',
    ):
        run(number)


def test_an_adapter_class_must_be_one() -> None:
    with pytest.raises(TypeError, match="must be a subclass of BackendAdapter, not <class 'int'>"):
        BackendAdapterEnvironmentExecutor("x", adapter_class=int)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not None"):
        BackendAdapterEnvironmentExecutor("x")


def test_a_start_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wove.concurrency.thread_pool.IDLE_SECONDS", 600.0)

    class Hesitant(LineAdapter):
        tries: ClassVar[list[int]] = []

        def start(self) -> None:
            self.tries.append(1)
            if len(self.tries) == 1:
                raise ConnectionError("the backend is not there")
            super().start()

    use(BackendAdapterEnvironmentExecutor("hesitant", adapter_class=Hesitant))
    with pytest.raises(ConnectionError, match="the backend is not there"):
        run(number)
    until(lambda: "wove-hesitant" not in {thread.name for thread in threading.enumerate()})
    assert run(number) == 7


# ------------------------------------------------------------------------------------------------ payloads


def test_a_small_payload_is_all_there_is() -> None:
    use(callback_retry_seconds=5)
    assert run(lambda left: left + 1, values={"left": 1}) == 2
    [payload] = LineAdapter.opened[0].payloads
    assert (
        payload["version"] == 1
        and payload["adapter"] == "line"
        and payload["task_name"] == payload["task_id"]
    )
    assert "/wove/events/" in payload["callback_url"] and "127.0.0.1" in payload["callback_url"]
    assert payload["retry_seconds"] == 5 and payload["beat_seconds"] == 1.0
    assert {"callable_pickle", "args_pickle", "delivery", "run_id", "python"} <= payload.keys()
    assert "claims" not in payload and "signature" not in payload


def test_a_payload_is_bound_to_its_environment_and_ends() -> None:
    secret = "a secret for payloads that end"
    use(security={"type": "signed", "secret": secret}, secret=secret, payload_max_age=60)
    assert run(lambda left: left + 1, values={"left": 1}) == 2
    [payload] = LineAdapter.opened[0].payloads
    assert payload["environment"] == "line"
    assert payload["valid_until"] == pytest.approx(payload["sent_at"] + 60)


def test_an_end_of_validity_needs_a_signature() -> None:
    use(payload_max_age=60)
    with pytest.raises(ValueError, match="'payload_max_age' needs 'security'"):
        run(lambda: 1)


def test_what_is_large_is_fetched_and_let_go_of() -> None:
    use()
    big = os.urandom(300_000)
    with weave(big=big) as w:

        @w.do(range(4), environment="line")
        def echo(item: int, big: bytes) -> tuple[int, bytes]:
            return item, big

        @w.do(range(4), environment="line")
        def closed(item: int, over: Any = None) -> int:
            return len(big) + item

    assert w.result.echo == [(item, big) for item in range(4)]
    assert w.result.closed == [300_000 + item for item in range(4)]
    payloads = LineAdapter.opened[0].payloads
    claims = [payload["claims"] for payload in payloads]
    assert all(len(str(payload)) < LineAdapter.inline_bytes for payload in payloads)
    assert len({one["callable_pickle"]["id"] for one in claims if "callable_pickle" in one}) == 1
    assert len({one["args_pickle"]["id"] for one in claims if "args_pickle" in one}) == 4


def test_signed_payloads_run_where_the_secret_is_known() -> None:
    use(security=SECRET, secret=SECRET["secret"])
    assert run(number) == 7
    assert LineAdapter.opened[0].payloads[0]["signature"]["value"].startswith("v1=")


def test_a_worker_with_another_secret_refuses_and_the_run_ends_with_its_words() -> None:
    use(security=SECRET, secret="another one")
    with pytest.raises(
        WorkerLostError, match="PermissionError: the signature of the payload is not right"
    ):
        run(number)


def test_a_worker_with_a_secret_refuses_what_is_not_signed() -> None:
    use(secret="a secret")
    with pytest.raises(WorkerLostError, match="PermissionError: the payload is not signed"):
        run(number)


def test_a_worker_without_a_secret_cannot_report_to_who_wants_signatures() -> None:
    use(security=SECRET)
    with pytest.raises(WorkerLostError, match="DeliveryError"):
        run(number)


# -------------------------------------------------------------------------------------------- same key twice


def test_the_result_of_a_key_is_remembered(tmp_path: Path) -> None:
    use()
    marks = str(tmp_path / "marks")

    def work(marks: str) -> str:
        with open(marks, "a") as file:
            file.write("x")
        return "done"

    for _ in range(3):
        assert run(work, values={"marks": marks}, delivery_idempotency_key="a key") == "done"
    assert Path(marks).read_text() == "x"
    assert len(LineAdapter.opened[0].payloads) == 1
    assert run(work, values={"marks": marks}, delivery_idempotency_key="another") == "done"


def test_a_failure_is_not_remembered(tmp_path: Path) -> None:
    use()
    marks = str(tmp_path / "marks")

    def work(marks: str) -> str:
        with open(marks, "a") as file:
            file.write("x")
        if os.path.getsize(marks) < 2:
            raise LookupError("not yet")
        return "done"

    with pytest.raises(LookupError):
        run(work, values={"marks": marks}, delivery_idempotency_key="a key")
    assert run(work, values={"marks": marks}, delivery_idempotency_key="a key") == "done"


# ----------------------------------------------------------------------------------------- what goes wrong


def test_what_submit_raises_is_the_error_of_the_run() -> None:
    class Refusing(LineAdapter):
        def submit(self, payload: dict[str, Any], frame: Mapping[str, Any]) -> Any:
            if len(self.payloads) < 1:
                self.payloads.append(payload)
                raise ConnectionError("the queue is full")
            return super().submit(payload, frame)

    use(BackendAdapterEnvironmentExecutor("refusing", adapter_class=Refusing))
    with pytest.raises(ConnectionError, match="the queue is full") as caught:
        run(number)
    assert any("'line'" in note for note in caught.value.__notes__)
    assert run(number) == 7
    assert run(number, retries=1) == 7


def test_a_submission_that_comes_too_late_is_taken_back() -> None:
    class Slow(LineAdapter):
        hold: ClassVar[threading.Event] = threading.Event()

        def submit(self, payload: dict[str, Any], frame: Mapping[str, Any]) -> Any:
            self.hold.wait(20)
            return super().submit(payload, frame)

    use(BackendAdapterEnvironmentExecutor("slow", adapter_class=Slow), send_timeout=0.2)
    with pytest.raises(DeliveryTimeoutError, match="could not be handed over within 0.2 s"):
        run(number)
    adapter = LineAdapter.opened[0]
    Slow.hold.set()
    assert until(lambda: adapter.cancelled) == [adapter.payloads[0]["run_id"]]


def test_a_job_that_ends_without_a_report_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wove.integrations.common.watcher.FINISHED_SECONDS", 0.5)

    class Forgetful(LineAdapter):
        def submit(self, payload: dict[str, Any], frame: Mapping[str, Any]) -> Any:
            return "a job"

        def watch(self, submissions: Mapping[str, Any]) -> dict[str, JobStatus]:
            assert set(submissions.values()) == {"a job"}
            return dict.fromkeys(submissions, JobStatus("finished", "exit status 0"))

    use(BackendAdapterEnvironmentExecutor("forgetful", adapter_class=Forgetful))
    with pytest.raises(
        WorkerLostError, match=r"its job has ended \(exit status 0\), and no result came back"
    ) as caught:
        run(number)
    assert "/wove/events/<token>" in str(caught.value)


@pytest.mark.parametrize("first_dies", [True, False])
def test_a_payload_that_two_workers_have_runs_in_the_first(
    tmp_path: Path, first_dies: bool
) -> None:
    """Whatever the second one reports does not end the run; nor does its death."""

    class Twice(LineAdapter):
        redelivers = False

        def watch(self, submissions: Mapping[str, Any]) -> dict[str, JobStatus]:
            return {}

    def work(marks: str, leave: str) -> int:
        import os
        import time

        with open(marks, "a") as file:
            file.write("begun ")
        while not os.path.exists(leave):
            time.sleep(0.01)
        return os.getpid()

    def second() -> None:
        adapter = until(lambda: LineAdapter.opened)[0]
        until(lambda: adapter.payloads and adapter.has_started(adapter.payloads[0]["run_id"]))
        until(lambda: marks.exists() and marks.read_text())
        payload, worker = adapter.payloads[0], adapter.worker
        if first_dies:
            worker.kill()
        job = [sys.executable, "-m", "wove.backend_worker"]
        statuses.append(
            subprocess.run(job, input=json.dumps(payload).encode(), timeout=30).returncode
        )
        leave.touch()

    statuses: list[int] = []
    marks, leave = tmp_path / "marks", tmp_path / "leave"
    use(BackendAdapterEnvironmentExecutor("twice", adapter_class=Twice))
    thread = threading.Thread(target=second)
    thread.start()
    values = {"marks": str(marks), "leave": str(leave)}
    if first_dies:
        with pytest.raises(WorkerLostError):
            run(work, values=values)
    else:
        assert run(work, values=values) != 0
    thread.join(30)
    assert statuses == [0] and marks.read_text() == "begun "


@pytest.mark.parametrize("restarts", [True, False])
def test_a_backend_that_starts_a_lost_job_again(tmp_path: Path, restarts: bool) -> None:
    """It does so late, when a run of any other backend has been given up."""
    restarting, told = restarts, tmp_path / "told"

    class Restarting(LineAdapter):
        restarts = restarting
        loss_reason_timeout = 0.2
        died: float | None = None

        def watch(self, submissions: Mapping[str, Any]) -> dict[str, JobStatus]:
            if submissions and all(map(self.has_started, submissions)):
                told.touch()
            now = time.monotonic()
            if (
                self.died is None
                and submissions
                and self.worker is not None
                and self.worker.poll() is not None
            ):
                self.died = now
            given_up = (
                self.died is not None
                and now > self.died + SUSPECT_SECONDS + self.loss_reason_timeout + 1.0
            )
            if given_up and len(self.payloads) == 1:
                self.submit(self.payloads[0], {})
            return {}

    def die_once(path: str, told: str) -> str:
        import os
        import time

        with open(path, "a") as file:
            file.write("x")
            if file.tell() == 1:
                file.flush()
                while not os.path.exists(told):
                    time.sleep(0.01)
                os._exit(1)
        return "survived"

    values = {"path": str(tmp_path / "deaths"), "told": str(told)}
    use(BackendAdapterEnvironmentExecutor("restarting", adapter_class=Restarting))
    if restarts:
        assert run(die_once, values=values) == "survived"
    else:
        with pytest.raises(
            WorkerLostError, match="the connection over which it reported has ended"
        ):
            run(die_once, values=values)


@pytest.mark.parametrize("cut", [True, False])
def test_a_run_outlives_a_cut_of_the_network(
    tmp_path: Path, cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker reports again long after one whose system has closed its connection is given up."""
    monkeypatch.setattr("wove.executors.backend.losses.SUSPECT_SECONDS", 0.05)
    adapters: list[LineAdapter] = []

    class Redelivering(LineAdapter):
        redelivers = True
        loss_reason_timeout = 0.05

        def start(self) -> None:
            super().start()
            adapters.append(self)

        def watch(self, submissions: Mapping[str, Any]) -> dict[str, JobStatus]:
            return {}

    class Executor(BackendAdapterEnvironmentExecutor):
        adapter_class = Redelivering

        def on_connection_lost(
            self, run_ids: Sequence[str], worker: str, end: ConnectionEnd
        ) -> None:
            assert end.by_peer and end.silent_seconds < 30
            end = ConnectionEnd(by_peer=not cut, silent_seconds=40.0 if cut else 0.1)
            super().on_connection_lost(run_ids, worker, end)
            if cut:  # another worker stands for the one that is there again
                (adapter,) = adapters
                later = asyncio.get_running_loop().call_later
                later(0.5, lambda: adapter.submit(adapter.payloads[0], {}))

    def die_once(path: str) -> str:
        import os
        import time

        with open(path, "a") as file:
            file.write("x")
            first = file.tell() == 1
        if first:
            time.sleep(0.3)  # its start is reported
            os._exit(1)
        return "survived"

    use(Executor("redelivering"))
    values = {"path": str(tmp_path / "deaths")}
    if cut:
        assert run(die_once, values=values) == "survived"
    else:
        with pytest.raises(WorkerLostError, match="the connection over which it reported"):
            run(die_once, values=values)


def test_an_adapter_that_exits_while_it_is_checked_ends_the_weave_in_words() -> None:
    class Exiting(LineAdapter):
        def configure(self) -> None:
            sys.exit("no configuration found")

    exiting = BackendAdapterEnvironmentExecutor("exiting", adapter_class=Exiting)
    wove.config(environments={"bad": {"executor": exiting}})
    with pytest.raises(DeliveryError, match="raised SystemExit: no configuration found"):
        with weave(environment="bad") as w:

            @w.do
            def bad() -> None: ...


@pytest.mark.parametrize("where", ["start", "submit", "watch", "coroutine"])
def test_an_adapter_that_exits_ends_its_run_alone(where: str) -> None:
    class Exiting(LineAdapter):
        def leave(self, here: str) -> None:
            if here == where:
                sys.exit("no configuration found")

        def start(self) -> None:
            self.leave("start")
            super().start()

        def submit(self, payload: dict[str, Any], frame: Mapping[str, Any]) -> Any:
            self.leave("submit")
            return self.later() if where == "coroutine" else "a job that no worker gets"

        async def later(self) -> None:
            await asyncio.sleep(0)
            self.leave("coroutine")

        def watch(self, submissions: Mapping[str, Any]) -> dict[str, JobStatus]:
            self.leave("watch")
            return {}

    exiting = BackendAdapterEnvironmentExecutor("exiting", adapter_class=Exiting)
    wove.config(environments={"line": {"executor": line_executor()}, "bad": {"executor": exiting}})
    with weave(error_mode="continue") as w:

        @w.do(environment="line")
        def good() -> int:
            import time

            time.sleep(1)
            return 7

        @w.do(environment="bad")
        def bad() -> int:
            return 1

    assert w.result.good == 7
    assert isinstance(w.result.exception, DeliveryError)
    assert "raised SystemExit: no configuration found" in str(w.result.exception)


class Unserved(LineAdapter):
    """A queue that no worker serves until `serve`."""

    served = False
    why = "no worker listens to queue 'reports'"

    def submit(self, payload: dict[str, Any], frame: Mapping[str, Any]) -> Any:
        if self.served:
            return super().submit(payload, frame)
        self.payloads.append(payload)
        return payload

    def watch(self, submissions: Mapping[str, Any]) -> dict[str, JobStatus]:
        return {}

    def waiting(self, submissions: Mapping[str, Any]) -> str:
        assert set(submissions) <= {payload["run_id"] for payload in self.payloads}
        return self.why


@pytest.fixture
def _prompt_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wove.delivery.start_notices.MIN_INTERVAL_SECONDS", 0.05)


@pytest.mark.usefixtures("_prompt_notices")
def test_a_run_that_no_worker_starts_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    use(BackendAdapterEnvironmentExecutor("unserved", adapter_class=Unserved))
    with pytest.raises(
        DeliveryTimeoutError, match=r"\(delivery_timeout\): no worker has reported that it began it"
    ):
        run(number, delivery_timeout=2, delivery_notice_seconds=0.2)
    [warning] = [line for line in caplog.messages if "no worker has begun" in line]
    assert "of task 'number' within 0.2 s of being sent" in warning
    assert warning.endswith(": no worker listens to queue 'reports'")


@pytest.mark.usefixtures("_prompt_notices")
def test_many_runs_that_no_worker_starts_are_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    use(BackendAdapterEnvironmentExecutor("unserved", adapter_class=Unserved))
    with pytest.raises(DeliveryTimeoutError), weave() as w:

        @w.do(range(5), environment="line", delivery_timeout=2, delivery_notice_seconds=0.2)
        def step(i: int) -> int:
            return i

    [warning] = [line for line in caplog.messages if "no worker has begun" in line]
    assert "5 runs, such as run " in warning


def test_a_watch_that_fails_is_a_warning_and_no_more(caplog: pytest.LogCaptureFixture) -> None:
    class Blind(LineAdapter):
        asked: ClassVar[list[int]] = []

        def watch(self, submissions: Mapping[str, Any]) -> dict[str, JobStatus]:
            self.asked.append(len(submissions))
            raise TimeoutError("no answer")

    def patient() -> str:
        import time

        time.sleep(1)
        return "done"

    use(BackendAdapterEnvironmentExecutor("blind", adapter_class=Blind), watch_seconds=0.1)
    assert run(patient) == "done"
    assert len(Blind.asked) > 1
    said = [
        record
        for record in caplog.records
        if record.levelno == logging.WARNING and "could not be asked" in record.msg
    ]
    assert len(said) == 1


# ------------------------------------------------------------------------------------------------- adapters


class Async(BackendAdapter):
    """An adapter of coroutines: the payload is run by `arun` on the loop that it is submitted from."""

    name = "async"

    async def start(self) -> None:
        self.jobs: set[asyncio.Task[None]] = set()
        self.loop = asyncio.get_running_loop()

    async def submit(self, payload: dict[str, Any], frame: Mapping[str, Any]) -> asyncio.Task[None]:
        from wove.integrations.worker import arun

        job = asyncio.create_task(arun(payload))
        self.jobs.add(job)
        job.add_done_callback(self.jobs.discard)
        return job

    async def cancel(
        self, run_id: str, submission: asyncio.Task[None], frame: Mapping[str, Any]
    ) -> None:
        submission.cancel()

    async def close(self) -> None:
        await asyncio.gather(*self.jobs, return_exceptions=True)


def test_methods_may_be_coroutines_and_keys_may_be_any() -> None:
    use(BackendAdapterEnvironmentExecutor(adapter_class=Async), anything=1)

    async def task() -> str:
        await asyncio.sleep(0.01)
        return "done"

    assert run(task) == "done"


def test_an_adapter_learns_of_the_loop_of_an_async_weave() -> None:
    class Curious(LineAdapter):
        found: ClassVar[list[Any]] = []

        def start(self) -> None:
            self.found.append(self.caller_loop)
            super().start()

    async def main() -> bool:
        async with weave() as w:
            w.do(environment="line")(number)
        assert w.result.final == 7
        return Curious.found == [asyncio.get_running_loop()]

    use(BackendAdapterEnvironmentExecutor("curious", adapter_class=Curious))
    assert asyncio.run(main())
    wove.shutdown()
    assert run(number) == 7
    assert Curious.found[1] is None


def test_a_client_of_a_loop_that_does_not_run_is_an_error() -> None:
    from wove.integrations.common.client_loops import on_loop

    other = asyncio.new_event_loop()

    async def main() -> str:
        with pytest.raises(
            DeliveryError, match="its pool belongs to an event loop that is not running"
        ):
            await on_loop(other, lambda: asyncio.sleep(0), label="its pool")
        other.close()
        with pytest.raises(DeliveryError, match="that is closed"):
            await on_loop(other, lambda: asyncio.sleep(0), label="its pool")
        return await on_loop(None, lambda: asyncio.sleep(0, "here"), label="its pool")

    assert asyncio.run(main()) == "here"


def test_two_environments_and_threads_share_one_receiver() -> None:
    wove.config(
        environments={
            name: {"executor": line_executor(), "executor_config": {"callback_port": "9300-9399"}}
            for name in ("a", "b")
        }
    )
    ports: set[str] = set()

    def work() -> None:
        with weave() as w:

            @w.do(range(20), environment="a")
            def first(item: int) -> int:
                return item

            @w.do(range(20), environment="b")
            def second(item: int) -> int:
                return item

        assert w.result.first == w.result.second == list(range(20))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for adapter in LineAdapter.opened:
        ports |= {payload["callback_url"].split("/")[2] for payload in adapter.payloads}
    assert len(ports) == 1
