"""The configuration of the Celery adapter, and what it concludes from what is seen; without a broker."""

from __future__ import annotations

import asyncio
import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from wove.integrations.base import JobStatus
from wove.integrations.celery.adapter import CeleryAdapter, Submission
from wove.integrations.celery.client import Depth, make_app
from wove.integrations.celery.lost import (
    REMEMBERED_SECONDS,
    SILENT_SECONDS,
    YOUNG_SECONDS,
    LostJobDetector,
)
from wove.integrations.celery.states import ResultStates
from wove.integrations.celery.worker import register

TASK = "wove.run_backend_payload"


def configured(**config: Any) -> CeleryAdapter:
    adapter = CeleryAdapter("jobs", config)
    adapter.configure()
    return adapter


# -------------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize("key", ["result_backend", "backend_url"])
def test_a_broker(key: str) -> None:
    adapter = configured(
        broker_url="memory://", app_name="shop", queue="reports", **{key: "cache+memory://"}
    )
    adapter.start()
    try:
        app = adapter._app
        assert (app.main, app.conf.broker_url) == ("shop", "memory://")
        assert app.conf.result_backend == "cache+memory://"
        assert adapter.options["queue"] == "reports"
    finally:
        asyncio.run(adapter.close())


def test_an_app() -> None:
    app = make_app("shop", "memory://", None)
    adapter = configured(app=app, task_name="mine")
    assert adapter.task_name == "mine"
    adapter.start()
    try:
        assert adapter._app is app
    finally:
        asyncio.run(adapter.close())


@pytest.mark.parametrize("key", ["broker_url", "result_backend", "backend_url", "app_name"])
def test_an_app_and_what_it_has(key: str) -> None:
    with pytest.raises(
        ValueError, match=f"environment 'jobs': executor_config has both 'app' and '{key}'"
    ):
        configured(app=make_app("shop", None, None), **{key: "redis://h"})


def test_neither() -> None:
    with pytest.raises(
        ValueError, match="environment 'jobs': executor_config needs 'app' .* or 'broker_url'"
    ):
        configured(queue="reports")


def test_an_app_that_is_none() -> None:
    with pytest.raises(TypeError, match="'app' must be a Celery app, not 'shop:app'"):
        configured(app="shop:app")


def test_two_names_of_one_thing() -> None:
    with pytest.raises(ValueError, match="'result_backend' and 'backend_url' are the same thing"):
        configured(broker_url="redis://h", result_backend="redis://h", backend_url="redis://h")


@pytest.mark.parametrize("key", ["broker_url", "queue", "task_name", "app_name"])
def test_what_must_be_text(key: str) -> None:
    with pytest.raises(TypeError, match=f"'{key}' must be text, not 7"):
        configured(**{"broker_url": "redis://h", key: 7})


def test_a_flag() -> None:
    with pytest.raises(TypeError, match="terminate_on_cancel"):
        configured(broker_url="redis://h", terminate_on_cancel="yes")


def test_options() -> None:
    adapter = configured(
        broker_url="redis://h",
        send_task_options={"priority": 3, "serializer": "msgpack"},
        queue="q",
    )
    assert adapter.options == {"serializer": "msgpack", "retry": False, "priority": 3, "queue": "q"}


@pytest.mark.parametrize("name", ["task_id", "args", "producer", "ignore_result", "connection"])
def test_options_that_are_not_the_users(name: str) -> None:
    with pytest.raises(
        ValueError, match=f"'send_task_options' cannot set '{name}': it is set by Wove itself"
    ):
        configured(broker_url="redis://h", send_task_options={name: 1})


def test_options_that_are_none() -> None:
    with pytest.raises(TypeError, match="'send_task_options' must be a dict"):
        configured(broker_url="redis://h", send_task_options=["priority"])


@pytest.mark.parametrize(
    ("config", "needs_redis"),
    [
        ({"broker_url": "redis://h"}, True),
        ({"broker_url": "sentinel://h;sentinel://i"}, True),
        ({"broker_url": "amqp://h", "result_backend": "rediss://h"}, True),
        ({"broker_url": "amqp://h"}, False),
    ],
)
def test_redis_is_looked_for_where_it_is_needed(config: dict[str, str], needs_redis: bool) -> None:
    adapter = configured(**config)
    assert ("redis" in adapter.required_modules) is needs_redis
    assert adapter.install_hint.endswith(' "celery[redis]"') is needs_redis


def test_two_queues() -> None:
    with pytest.raises(ValueError, match="has a queue, and so has"):
        configured(broker_url="redis://h", queue="a", send_task_options={"queue": "b"})


def test_the_task() -> None:
    app = make_app("shop", "redis://h", None)
    task = register(app, acks_late=True, ignore_result=False)
    assert (
        task.name == TASK
        and task.acks_late
        and not task.ignore_result
        and task.store_errors_even_if_ignored
    )
    assert register(app, name="other").name == "other"


# ------------------------------------------------------------------------------------- the result backend


def statuses(value: dict[str, Any] | None) -> dict[str, JobStatus]:
    """What is made of what a result backend has of one task."""
    app = make_app("shop", "redis://h", "cache+memory://")
    results = ResultStates.of(app, TASK)
    assert results is not None
    if value is not None:
        app.backend.set(app.backend.get_key_for_task("id"), app.backend.encode(value))
    try:
        return results.ended({"run": Submission("id", 0.0, False)})
    finally:
        app.backend.delete(app.backend.get_key_for_task("id"))


@pytest.mark.parametrize(
    "value", [None, {"status": "STARTED"}, {"status": "RETRY"}, {"status": "PENDING"}]
)
def test_results_of_tasks_that_are_not_over(value: dict[str, Any] | None) -> None:
    assert statuses(value) == {}


def test_results_of_tasks_that_are() -> None:
    assert statuses({"status": "SUCCESS", "result": None}) == {
        "run": JobStatus("finished", "Celery says SUCCESS")
    }
    lost = {
        "exc_type": "WorkerLostError",
        "exc_message": ["signal 9 (SIGKILL)"],
        "exc_module": "no.such.module",
    }
    assert statuses({"status": "FAILURE", "result": lost}) == {
        "run": JobStatus("lost", "Celery says FAILURE: WorkerLostError: signal 9 (SIGKILL)")
    }
    assert statuses({"status": "REVOKED", "result": None}) == {
        "run": JobStatus("lost", "Celery says REVOKED")
    }


def test_the_result_of_a_task_that_no_worker_knows() -> None:
    [status] = statuses(
        {"status": "FAILURE", "result": {"exc_type": "NotRegistered", "exc_message": [TASK]}}
    ).values()
    assert f"does not know the task '{TASK}': register it" in status.reason


def test_result_backends_that_cannot_be_asked_for_many() -> None:
    assert ResultStates.of(make_app("shop", "redis://h", None), TASK) is None
    assert ResultStates.of(make_app("shop", "redis://h", "rpc://"), TASK) is None


# ----------------------------------------------------------------------------------------- lost messages


@dataclasses.dataclass
class FakeBroker:
    """A broker with prepared answers."""

    kind: str = "redis"
    depth_: Depth = dataclasses.field(default_factory=lambda: Depth(0, None))
    stuck: dict[str, str] = dataclasses.field(default_factory=dict)
    workers: dict[str, dict[str, tuple[str, str]]] = dataclasses.field(default_factory=dict)
    registered: tuple[str, ...] = (TASK,)
    queue: str = "q"
    answers: bool = True
    dropped: list[str] = dataclasses.field(default_factory=list)

    def depth(self) -> Depth:
        return self.depth_

    def unacknowledged(self) -> dict[str, str]:
        return self.stuck

    def where(self, task_ids: list[str]) -> dict[str, dict[str, tuple[str, str]]]:
        return {
            host: {task: each[task] for task in task_ids if task in each}
            for host, each in self.workers.items()
        }

    def ask(self, command: str, arguments: object) -> dict[str, Any]:
        answers = {"active_queues": [{"name": self.queue}], "registered": list(self.registered)}
        return dict.fromkeys(self.workers, answers[command])

    def drop(self, tag: str) -> None:
        self.dropped.append(tag)

    def visibility_seconds(self) -> float:
        return 3600.0


class Clock:
    """The time that `LostJobDetector` sees."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        clock = SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr("wove.integrations.celery.lost.time", clock)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Watched:
    """One job, and the detector that is asked about it several times."""

    def __init__(self, clock: Clock, answers: FakeBroker, **submission: Any) -> None:
        self.clock, self.broker = clock, answers
        self.jobs = {
            "run": Submission(**{"task_id": "id", "at": clock.now, "kept": False, **submission})
        }
        self.started: set[str] = set()
        broker: Any = answers
        self.probe = LostJobDetector(broker, TASK, self.started.__contains__)

    def probe_after(self, seconds: float = YOUNG_SECONDS + 0.1) -> dict[str, JobStatus]:
        self.clock.now += seconds
        return self.probe.ended(self.jobs)


def test_a_young_message_is_not_asked_about(clock: Clock) -> None:
    assert Watched(clock, FakeBroker()).probe_after(0.1) == {}


def test_a_message_that_waits(clock: Clock) -> None:
    watched = Watched(clock, FakeBroker(depth_=Depth(1, None), workers={"w": {}}))
    assert not any(watched.probe_after() for _ in range(20))


def test_a_message_that_a_worker_has(clock: Clock) -> None:
    watched = Watched(
        clock, FakeBroker(workers={"w": {"id": ("reserved", "")}}, stuck={"id": "tag"})
    )
    assert not any(watched.probe_after() for _ in range(20))


def test_a_message_that_is_nowhere(clock: Clock) -> None:
    watched = Watched(clock, FakeBroker(workers={"w": {}}))
    assert watched.probe_after() == {}  # on its way to a worker, perhaps
    [status] = watched.probe_after().values()
    assert status.state == "missing" and "no worker has its message" in status.reason


def test_a_run_that_has_begun_is_somebody_elses_business(clock: Clock) -> None:
    watched = Watched(clock, FakeBroker(workers={"w": {}}))
    watched.started.add("run")
    assert not any(watched.probe_after() for _ in range(5))


def test_a_worker_that_was_the_last_to_have_it(clock: Clock) -> None:
    watched = Watched(clock, FakeBroker(workers={"w": {"id": ("reserved", "")}}))
    watched.probe_after()
    watched.broker.workers = {"w": {}}
    watched.probe_after()
    assert watched.probe_after()["run"].reason.endswith("w was the last to have it")


def test_a_worker_that_does_not_answer_any_more_is_given_time(clock: Clock) -> None:
    watched = Watched(
        clock, FakeBroker(workers={"w": {"id": ("reserved", "")}}, stuck={"id": "tag"})
    )
    watched.probe_after()
    watched.broker.workers = {}
    began = clock.now
    while not (found := watched.probe_after()):
        assert clock.now - began < REMEMBERED_SECONDS
    assert clock.now - began >= SILENT_SECONDS
    assert "taken by a worker (w) that is gone" in found["run"].reason
    assert watched.broker.dropped == ["tag"]


def test_a_message_in_the_hands_of_a_dead_worker_while_another_one_lives(clock: Clock) -> None:
    watched = Watched(
        clock, FakeBroker(workers={"w": {}}, stuck={"id": "tag"}, depth_=Depth(7, None))
    )
    watched.probe_after()
    assert (
        watched.probe_after()["run"].state == "missing"
    )  # the queue does not matter: it is not there


def test_a_detached_run_comes_back(clock: Clock) -> None:
    watched = Watched(clock, FakeBroker(workers={"w": {}}, stuck={"id": "tag"}), kept=True)
    watched.probe_after()
    assert "comes back after 3600 s" in watched.probe_after()["run"].reason
    assert watched.broker.dropped == []


def test_a_message_that_was_passed_over(clock: Clock) -> None:
    """The queue is never empty; but what was sent later has been taken."""
    watched = Watched(clock, FakeBroker(workers={"w": {}}, depth_=Depth(7, None)))
    watched.probe_after()
    watched.probe_after()
    watched.jobs["later"] = Submission("later", clock.now + 0.5, False)
    assert watched.probe_after() == {}
    watched.broker.workers = {"w": {"later": ("reserved", "")}}
    assert watched.probe_after().keys() == {"run"}


def test_a_consumer_that_was_not_heard(clock: Clock) -> None:
    """RabbitMQ knows of one more than have answered: it may have the message."""
    watched = Watched(clock, FakeBroker(kind="amqp", workers={"w": {}}, depth_=Depth(0, 2)))
    assert not any(watched.probe_after() for _ in range(20))
    watched.broker.depth_ = Depth(0, 1)
    assert watched.probe_after().keys() == {"run"}


def test_a_queue_without_consumers(clock: Clock) -> None:
    watched = Watched(clock, FakeBroker(kind="amqp", depth_=Depth(0, 0)))
    began = clock.now
    while not watched.probe_after():
        assert clock.now - began < REMEMBERED_SECONDS


def test_workers_that_do_not_know_the_task(clock: Clock) -> None:
    watched = Watched(clock, FakeBroker(workers={"w": {}}, registered=("other [rate_limit=1/s]",)))
    watched.probe_after()
    assert (
        f"no worker knows the task '{TASK}' (asked: w): register it"
        in watched.probe_after()["run"].reason
    )


def test_a_worker_that_says_what_went_wrong(clock: Clock) -> None:
    watched = Watched(
        clock, FakeBroker(workers={"w": {"id": ("failed", "WorkerLostError: signal 9 (SIGKILL)")}})
    )
    assert watched.probe_after() == {
        "run": JobStatus("lost", "w says: WorkerLostError: signal 9 (SIGKILL)")
    }


def test_a_worker_that_failed_where_another_one_has_it_now(clock: Clock) -> None:
    """As with ``task_reject_on_worker_lost``."""
    workers = {"w": {"id": ("failed", "WorkerLostError")}, "v": {"id": ("active", "")}}
    assert Watched(clock, FakeBroker(workers=workers)).probe_after() == {}


def test_a_transport_that_cannot_broadcast(clock: Clock) -> None:
    watched = Watched(clock, FakeBroker(answers=False))
    assert not any(watched.probe_after() for _ in range(20))
