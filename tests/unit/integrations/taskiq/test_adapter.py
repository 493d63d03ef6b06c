"""The adapter for Taskiq, without a Redis."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from wove.errors import DeliveryError
from wove.integrations.common import silent_jobs
from wove.integrations.taskiq import TaskiqAdapter, register
from wove.integrations.taskiq.client import BrokerLoops, loop_of
from wove.integrations.taskiq.lost import LostJobDetector, _entry

pytest.importorskip("taskiq")


def configured(**config: Any) -> TaskiqAdapter:
    adapter = TaskiqAdapter("jobs", config)
    adapter.configure()
    return adapter


def in_memory() -> Any:
    from taskiq import InMemoryBroker

    return InMemoryBroker()


def broadcasting() -> Any:
    taskiq_redis = pytest.importorskip("taskiq_redis")
    return taskiq_redis.PubSubBroker("redis://localhost")


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (dict, ValueError, "needs one of them: 'task'.*or 'broker'"),
        (
            lambda: {"task": register(in_memory()), "broker": in_memory()},
            ValueError,
            "both 'task' and 'broker'",
        ),
        (
            lambda: {"task": register(in_memory()), "task_name": "x"},
            ValueError,
            "both 'task' and 'task_name'",
        ),
        (lambda: {"task": print}, TypeError, "'task' must be a task of a broker"),
        (lambda: {"broker": "redis://x"}, TypeError, "'broker' must be a broker of taskiq"),
        (
            lambda: {"broker": in_memory(), "task_name": ""},
            ValueError,
            "'task_name' is an empty text",
        ),
        (
            lambda: {"broker": broadcasting()},
            ValueError,
            "PubSubBroker gives each task to all workers",
        ),
    ],
)
def test_what_is_refused(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=f"environment 'jobs': .*{words}"):
        configured(**make())


def test_a_shared_task_goes_to_the_broker_that_it_has_now() -> None:
    from taskiq.brokers.shared_broker import AsyncSharedBroker

    shared, real = AsyncSharedBroker(), in_memory()
    task = register(shared, name="shop.wove")
    shared.default_broker(real)
    adapter = configured(task=task)
    assert (adapter._broker, adapter._name) == (real, "shop.wove")


def test_what_goes_out() -> None:
    taken: list[Any] = []
    broker = in_memory()

    async def kick(message: Any) -> None:
        taken.append(message)

    broker.kick = kick
    task = register(broker, queue_name="reports", retry_on_error=True)

    async def main() -> None:
        adapter = configured(task=task)
        await adapter.start()
        plain = {"run_id": "r1", "task_id": "t", "delivery": {}}
        keyed = {"run_id": "r2", "task_id": "t", "delivery": {"delivery_idempotency_key": "k"}}
        first = await adapter.submit({"run_id": "r1"}, plain)
        second = await adapter.submit({"run_id": "r2"}, keyed)
        assert first.task_id == "wove-r1" and first.ended >= first.began
        assert second.task_id.startswith("wove-key-") and second.task_id.endswith("-r2")
        assert await adapter.cancel("r1", first, {}) is False
        await adapter.close()

    asyncio.run(main())
    assert taken[0].task_id == "wove-r1"
    labels = taken[0].labels
    assert labels["queue_name"] == "reports" and labels["ack_type"] == "when_received"
    assert labels["retry_on_error"] == "True", "what the user says holds"
    assert task.labels == {"queue_name": "reports", "retry_on_error": True}, "and is not changed"


def test_a_broker_that_takes_nothing() -> None:
    broker = in_memory()

    async def main() -> None:
        adapter = configured(broker=broker, task_name="no.such.task")
        await adapter.start()
        with pytest.raises(
            DeliveryError, match="InMemoryBroker.*did not take the task: UnknownTaskError"
        ):
            await adapter.submit({"run_id": "r1"}, {"run_id": "r1", "task_id": "t"})
        await adapter.close()

    asyncio.run(main())


def test_where_a_broker_lives() -> None:
    broker = in_memory()
    register(broker)

    async def main() -> None:
        assert loop_of(broker) is None and not BrokerLoops.is_started(broker)
        await broker.startup()
        assert loop_of(broker) is asyncio.get_running_loop() and BrokerLoops.is_started(broker)
        await broker.shutdown()
        assert loop_of(broker) is None

    asyncio.run(main())
    broker.is_worker_process = True
    assert BrokerLoops.is_started(broker), "the worker has started it"


# ------------------------------------------------------------------------------- what can be seen of messages


def test_ids_of_a_streams_entries() -> None:
    assert _entry(b"17-3") == (17, 3) and _entry("18") == (18, 0)
    assert _entry(b"9-0") < _entry(b"10-0")


def test_brokers_that_cannot_be_asked() -> None:
    from taskiq.result_backends.dummy import DummyResultBackend

    broker = in_memory()
    assert LostJobDetector(broker, "t", bool, trusts_results=True).usable
    broker.result_backend = DummyResultBackend()
    assert not LostJobDetector(broker, "t", bool, trusts_results=True).usable


@pytest.mark.parametrize("trusted", [True, False])
def test_results_of_a_store_that_is_asked_one_by_one(trusted: bool) -> None:
    from taskiq import TaskiqResult

    from wove.integrations.taskiq.client import Submission

    broker = in_memory()

    async def main() -> None:
        probe = LostJobDetector(broker, "t", bool, trusts_results=trusted)
        for number in range(120):
            failed = TaskiqResult(
                is_err=True, return_value=None, execution_time=0, error=ValueError(f"no {number}")
            )
            if number % 2:
                broker.result_backend.results[f"job-{number}"] = failed
        sent = {f"run-{number}": Submission(f"job-{number}", 0, 0) for number in range(120)}
        statuses: dict[str, Any] = {}
        for _ in range(3):
            statuses.update(await probe.ended(sent))
        assert sorted(statuses) == sorted(f"run-{number}" for number in range(1, 120, 2))
        status = statuses["run-7"]
        if trusted:
            assert (status.state, status.reason) == (
                "lost",
                "Taskiq's task 'job-7' failed: ValueError: no 7",
            )
        else:
            assert status.state == "finished" and "nobody has signed it" in status.reason

    asyncio.run(main())


def test_silence_counts_from_when_it_was_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(silent_jobs.time, "monotonic", lambda: now)
    silent = silent_jobs.SilentJobs()
    assert silent.overdue({"a"}, {"a", "b"}) == []
    now += silent_jobs.SILENCE_SECONDS - 1
    assert silent.overdue({"b"}, {"a", "b"}) == [], "it is not seen each time"
    now += 1
    assert silent.overdue((), {"a", "b"}) == ["a"]
    now += silent_jobs.SILENCE_SECONDS
    assert silent.overdue((), {"b"}) == ["b"], "the other one was heard of"
    assert silent.overdue((), ()) == []
