"""The RQ adapter against a real Redis: how it enqueues, replaces and cancels jobs, and the statuses it returns."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.servers import Servers
from wove.errors import DeliveryError
from wove.integrations.base import JobStatus
from wove.integrations.rq import adapter as rq_adapter, states as rq_states
from wove.integrations.rq.adapter import FUNCTION, RQAdapter, Submission

pytestmark = pytest.mark.backend("rq")

Make = Callable[..., RQAdapter]

KEY = "invoice 7"


_queues: dict[RQAdapter, Any] = {}
"""The test's own view of each adapter's queue."""


@pytest.fixture
def make(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes adapters, started, of one queue of the test's own."""
    import redis
    import rq

    monkeypatch.setattr(rq_adapter, "KILL_SECONDS", 0.0)
    made: list[RQAdapter] = []
    name = f"jobs-{secrets.token_hex(4)}"
    connection: Any = redis.Redis.from_url(servers.redis.url)

    def make(**config: Any) -> RQAdapter:
        if "queue" not in config:
            config = {"redis_url": servers.redis.url, "queue_name": name, **config}
        adapter = RQAdapter("jobs", config)
        adapter.configure()
        adapter.start()
        made.append(adapter)
        _queues[adapter] = config.get("queue") or rq.Queue(name, connection=connection)
        return adapter

    yield make
    for adapter in made:
        if "queue" not in adapter.config:
            for key in redis_of(adapter).keys("rq:job:wove-key-*"):  # ids are those of all queues
                redis_of(adapter).delete(key)
        adapter.close()
    _queues.clear()
    connection.close()


@pytest.fixture
def adapter(make: Make) -> RQAdapter:
    return make()


def frame_of(key: str | None = None) -> dict[str, Any]:
    delivery = {} if key is None else {"delivery_idempotency_key": key}
    return {
        "type": "run_task",
        "run_id": secrets.token_hex(8),
        "task_id": "pdf",
        "delivery": delivery,
    }


def submitted(adapter: RQAdapter, frame: dict[str, Any]) -> Submission:
    return adapter.submit(payload_of(frame), frame)


def payload_of(frame: dict[str, Any]) -> dict[str, Any]:
    names = {name: frame[name] for name in ("run_id", "task_id", "delivery")}
    return {
        "version": 1,
        "adapter": "rq",
        **names,
        "task_name": frame["task_id"],
        "callable_pickle": "c2VjcmV0",
    }


def redis_of(adapter: RQAdapter) -> Any:
    return _queues[adapter].connection


def cancelled(adapter: RQAdapter, submission: Submission) -> bool:
    """Cancel a job, and return whether it certainly never runs."""
    return asyncio.run(adapter.cancel("r1", submission, {"type": "cancel_task"}))


def job(adapter: RQAdapter, submission: Submission) -> Any:
    return _queues[adapter].fetch_job(submission.job_id)


def put(adapter: RQAdapter, submission: Submission, **fields: str) -> None:
    """Have the job look as workers leave it."""
    redis_of(adapter).hset(f"rq:job:{submission.job_id}", mapping=fields)


def take(adapter: RQAdapter, submission: Submission) -> None:
    """What a worker does first."""
    assert redis_of(adapter).lrem(_queues[adapter].key, 1, submission.job_id) == 1


def begin(adapter: RQAdapter, submission: Submission, worker: str = "w1") -> None:
    take(adapter, submission)
    put(
        adapter,
        submission,
        status="started",
        worker_name=worker,
        started_at="2026-01-02T00:00:00.000000Z",
    )


def status_of(adapter: RQAdapter, submission: Submission) -> JobStatus | None:
    return adapter.watch({"r1": submission}).get("r1")


@pytest.fixture
def worker(adapter: RQAdapter) -> Iterator[str]:
    """The name of a worker that looks alive to others: it listens to its commands."""
    name = secrets.token_hex(8)
    redis_of(adapter).hset(f"rq:worker:{name}", "birth", "2026-01-01T00:00:00.000000Z")
    channel = redis_of(adapter).pubsub()
    channel.subscribe(f"rq:pubsub:{name}")
    assert channel.get_message(timeout=10)
    yield name
    channel.close()


# ---------------------------------------------------------------------------------------------------- submit


def test_what_is_enqueued(adapter: RQAdapter) -> None:
    frame = frame_of()
    submission = submitted(adapter, frame)
    found = job(adapter, submission)
    assert found.id == f"wove-{frame['run_id']}"
    assert found.func_name == FUNCTION
    assert found.args == (payload_of(frame),)
    assert found.meta == {"wove_run": frame["run_id"]}
    assert (found.timeout, found.result_ttl, found.failure_ttl) == (-1, 60, 600)
    assert found.description == f"wove task 'pdf', run {frame['run_id']}"
    assert _queues[adapter].job_ids == [submission.job_id]


def test_options(make: Make) -> None:
    options = {
        "job_timeout": "2m",
        "result_ttl": 7,
        "at_front": True,
        "meta": {"mine": 1},
        "ttl": 99,
    }
    adapter = make(enqueue_options=options)
    first, second = submitted(adapter, frame_of()), submitted(adapter, frame_of())
    found = job(adapter, second)
    assert (found.timeout, found.result_ttl, found.meta["mine"], found.ttl) == (120, 7, 1, 99)
    assert _queues[adapter].job_ids == [second.job_id, first.job_id]


def test_options_that_rq_does_not_take(make: Make) -> None:
    with pytest.raises(ValueError, match=r"environment 'jobs': rq \d.*does not take.*ttl"):
        make(enqueue_options={"ttl": -3})


def test_a_job_that_depends_on_another(make: Make, adapter: RQAdapter) -> None:
    first = submitted(adapter, frame_of())
    later = make(enqueue_options={"depends_on": first.job_id})
    for key in (None, "key"):
        submission = submitted(later, frame_of(key))
        assert job(later, submission).get_status().value == "deferred"
        assert status_of(later, submission) is None
        assert later._take_back(submission) is True
        assert job(later, submission) is None
    assert job(adapter, first) is not None


def test_a_queue_of_the_users_own(make: Make, servers: Servers) -> None:
    from redis import Redis
    from rq import Queue
    from rq.serializers import JSONSerializer

    client = Redis.from_url(servers.redis.url)
    queue = Queue(f"own-{secrets.token_hex(4)}", connection=client, serializer=JSONSerializer)
    adapter, frame = make(queue=queue), frame_of()
    submission = submitted(adapter, frame)
    found = queue.fetch_job(submission.job_id)
    assert found is not None
    assert found.args == [payload_of(frame)]
    assert found.meta == {"wove_run": frame["run_id"]}
    adapter.close()
    assert queue.job_ids == [submission.job_id]  # it still has its connection
    queue.delete()
    client.close()


def test_a_run_that_was_given_up_is_not_enqueued(adapter: RQAdapter) -> None:
    adapter.is_awaited = lambda run_id: False
    with pytest.raises(DeliveryError, match="given up"):
        submitted(adapter, frame_of())
    assert _queues[adapter].job_ids == []


# ------------------------------------------------------------------------------------------------------ keys


def test_a_key_makes_the_id(adapter: RQAdapter) -> None:
    submission = submitted(adapter, frame_of("invoice 7"))
    assert submission.job_id.startswith("wove-key-")
    assert job(adapter, submission) is not None


@pytest.mark.parametrize("status", ["queued", "started"])
def test_a_live_job_of_another_process_with_that_key(
    make: Make, adapter: RQAdapter, worker: str, status: str
) -> None:
    submission = submitted(adapter, frame_of(KEY))
    if status == "started":
        begin(adapter, submission, worker)
    with pytest.raises(
        DeliveryError, match=rf"already job {submission.job_id} of RQ \({status}\).*another process"
    ):
        submitted(make(), frame_of(KEY))
    assert status_of(adapter, submission) is None


@pytest.mark.parametrize("status", ["finished", "failed", "stopped", "canceled", ""])
def test_a_job_of_that_key_that_is_over_is_replaced(
    make: Make, adapter: RQAdapter, status: str
) -> None:
    earlier = submitted(adapter, frame_of(KEY))
    take(adapter, earlier)
    if status:
        put(adapter, earlier, status=status)
    else:  # what a heartbeat leaves behind that comes late: https://github.com/rq/rq/issues/1450
        redis_of(adapter).delete(f"rq:job:{earlier.job_id}")
        put(adapter, earlier, last_heartbeat="2026-01-02T00:00:00.000000Z")
    frame = frame_of(KEY)
    submission = submitted(make(), frame)
    assert submission.job_id == earlier.job_id
    found = job(adapter, submission)
    assert found.get_status().value == "queued" and found.args == (payload_of(frame),)
    assert _queues[adapter].job_ids == [submission.job_id]
    assert status_of(adapter, earlier) == JobStatus(
        "lost", "its job was replaced by another run's with the same idempotency key"
    )


def test_a_job_of_that_key_whose_worker_is_gone_is_replaced(make: Make, adapter: RQAdapter) -> None:
    earlier = submitted(adapter, frame_of(KEY))
    begin(adapter, earlier, "nobody")
    assert submitted(make(), frame_of(KEY)).job_id == earlier.job_id


def test_an_earlier_submission_of_ours_is_replaced(adapter: RQAdapter) -> None:
    first = submitted(adapter, frame_of(KEY))
    second = submitted(adapter, frame_of(KEY))
    assert second.job_id == first.job_id and second.mark != first.mark
    assert _queues[adapter].job_ids == [second.job_id]
    assert cancelled(adapter, first) is False  # the job belongs to another run now
    assert _queues[adapter].job_ids == [second.job_id]
    assert cancelled(adapter, second) is True


def test_what_a_lost_worker_still_writes_does_not_reach_the_new_job(
    adapter: RQAdapter, worker: str
) -> None:
    first = submitted(adapter, frame_of(KEY))
    begin(adapter, first, worker)
    second = submitted(adapter, frame_of(KEY))
    assert second.job_id.startswith(first.job_id) and second.job_id != first.job_id
    assert job(adapter, second).get_status().value == "queued"


# ---------------------------------------------------------------------------------------------------- cancel


def test_taking_back_what_is_queued_leaves_nothing(adapter: RQAdapter) -> None:
    submission = submitted(adapter, frame_of())
    assert cancelled(adapter, submission) is True
    assert _queues[adapter].job_ids == []
    assert not redis_of(adapter).keys(f"rq:*{submission.job_id}*")
    assert cancelled(adapter, submission) is False


def test_a_job_that_a_worker_has_is_stopped_there(adapter: RQAdapter) -> None:
    submission = submitted(adapter, frame_of())
    take(adapter, submission)
    assert cancelled(adapter, submission) is False
    assert job(adapter, submission) is not None

    put(adapter, submission, status="started", worker_name="w1")
    with redis_of(adapter).pubsub() as commands:
        commands.subscribe("rq:pubsub:w1")
        assert commands.get_message(timeout=10)["type"] == "subscribe"
        assert cancelled(adapter, submission) is False
        message = commands.get_message(timeout=10)
        assert json.loads(message["data"])["job_id"] == submission.job_id

        put(adapter, submission, status="finished")
        assert cancelled(adapter, submission) is False
        assert commands.get_message() is None
    assert job(adapter, submission) is not None


# ----------------------------------------------------------------------------------------------------- watch


def test_nothing_is_said_of_jobs_that_wait_or_run(
    adapter: RQAdapter, worker: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr(rq_states, "SILENT_SECONDS", 0.0)
    running, waiting = submitted(adapter, frame_of()), submitted(adapter, frame_of())
    begin(adapter, running, worker)
    for _ in range(2):
        assert adapter.watch({"a": running, "b": waiting}) == {}


@pytest.mark.parametrize(
    ("status", "fate"),
    [
        ("finished", JobStatus("finished", "RQ: finished")),
        ("stopped", JobStatus("lost", "its job was stopped on worker w1, from outside the weave")),
        (
            "canceled",
            JobStatus("lost", "its job was canceled on worker w1, from outside the weave"),
        ),
        ("scheduled", None),
        ("deferred", None),
        ("a state of some later version", None),
    ],
)
def test_states(adapter: RQAdapter, status: str, fate: JobStatus | None) -> None:
    submission = submitted(adapter, frame_of())
    take(adapter, submission)
    put(adapter, submission, status=status, worker_name="w1")
    assert status_of(adapter, submission) == fate


def test_a_job_that_is_not_there(adapter: RQAdapter) -> None:
    fate = status_of(adapter, Submission("wove-nothing", None))
    assert fate is not None and fate.state == "missing" and "no longer in Redis" in fate.reason


def failed(adapter: RQAdapter, submission: Submission, told: str) -> None:
    put(adapter, submission, status="failed")
    packed = base64.b64encode(zlib.compress(told.encode())).decode()
    redis_of(adapter).xadd(f"rq:results:{submission.job_id}", {"type": 2, "exc_string": packed})


def test_the_words_of_a_failed_job(adapter: RQAdapter) -> None:
    submission, silent = submitted(adapter, frame_of()), submitted(adapter, frame_of())
    begin(adapter, submission)
    failed(
        adapter, submission, "Work-horse terminated unexpectedly; waitpid returned 9 (signal 9); "
    )
    take(adapter, silent)
    put(adapter, silent, status="failed")
    assert adapter.watch({"a": submission, "b": silent}) == {
        "a": JobStatus(
            "lost",
            "its job failed on worker w1: Work-horse terminated unexpectedly; waitpid returned 9 (signal 9);",
        ),
        "b": JobStatus("lost", "its job failed: RQ has kept no reason"),
    }


def test_a_job_that_counts_as_abandoned_while_its_worker_is_there(
    adapter: RQAdapter, worker: str
) -> None:
    submission = submitted(adapter, frame_of())
    begin(adapter, submission, worker)
    failed(
        adapter, submission, "Moved to FailedJobRegistry, due to AbandonedJobError, at 2026-01-02"
    )
    assert status_of(adapter, submission) is None
    put(adapter, submission, worker_name="nobody")
    fate = status_of(adapter, submission)
    assert fate is not None and "AbandonedJobError" in fate.reason


def test_a_worker_that_has_shut_down(adapter: RQAdapter, worker: str) -> None:
    submission = submitted(adapter, frame_of())
    begin(adapter, submission, worker)
    redis_of(adapter).hset(f"rq:worker:{worker}", "death", "2026-01-03T00:00:00.000000Z")
    fate = status_of(adapter, submission)
    assert (
        fate is not None
        and fate.state == "lost"
        and f"worker {worker} shut down at 2026-01-03" in fate.reason
    )


def test_a_worker_that_was_started_anew_under_its_name(adapter: RQAdapter, worker: str) -> None:
    submission = submitted(adapter, frame_of())
    begin(adapter, submission, worker)
    redis_of(adapter).hset(f"rq:worker:{worker}", "birth", "2026-01-03T00:00:00.000000Z")
    fate = status_of(adapter, submission)
    assert fate is not None and fate.state == "lost" and "started anew" in fate.reason


def test_a_worker_that_is_not_connected_any_more(adapter: RQAdapter, monkeypatch: Any) -> None:
    submission = submitted(adapter, frame_of())
    begin(adapter, submission, "nobody")
    assert status_of(adapter, submission) is None  # it may come back
    monkeypatch.setattr(rq_states, "SILENT_SECONDS", 0.0)
    fate = status_of(adapter, submission)
    assert fate is not None and "worker nobody has no connection to Redis any more" in fate.reason


def test_a_worker_that_comes_back(adapter: RQAdapter, worker: str, monkeypatch: Any) -> None:
    submission = submitted(adapter, frame_of())
    begin(adapter, submission, "nobody")
    assert status_of(adapter, submission) is None
    put(adapter, submission, worker_name=worker)
    assert status_of(adapter, submission) is None
    monkeypatch.setattr(rq_states, "SILENT_SECONDS", 0.05)
    put(adapter, submission, worker_name="nobody")
    assert status_of(adapter, submission) is None  # the time counts anew
    time.sleep(0.05)
    assert status_of(adapter, submission) is not None


@pytest.mark.parametrize("longest", [rq_states.MAX_LIST, 0])
def test_a_job_that_a_worker_took_and_did_not_begin(
    adapter: RQAdapter, longest: int, monkeypatch: Any
) -> None:
    monkeypatch.setattr(rq_states, "MAX_LIST", longest)
    taken, waiting = submitted(adapter, frame_of()), submitted(adapter, frame_of())
    take(adapter, taken)
    assert adapter.watch({"a": taken, "b": waiting}) == {}  # it may be about to
    monkeypatch.setattr(rq_states, "SILENT_SECONDS", 0.0)
    assert adapter.watch({"a": taken, "b": waiting}) == {
        "a": JobStatus("lost", "a worker took its job from the queue, and ended before it began it")
    }


def test_a_job_that_was_moved_to_another_queue(adapter: RQAdapter, monkeypatch: Any) -> None:
    monkeypatch.setattr(rq_states, "SILENT_SECONDS", 0.0)
    submission = submitted(adapter, frame_of())
    take(adapter, submission)
    put(adapter, submission, origin="elsewhere")
    assert status_of(adapter, submission) is None


def test_thousands_of_jobs_in_a_few_round_trips(adapter: RQAdapter, monkeypatch: Any) -> None:
    monkeypatch.setattr(rq_states, "MAX_QUERY_JOBS", 2)
    jobs = {str(number): submitted(adapter, frame_of()) for number in range(5)}
    for submission in jobs.values():
        take(adapter, submission)
        put(adapter, submission, status="finished")
    assert list(adapter.watch(jobs)) == list(jobs)


def test_nothing_of_a_job_is_unpickled_here(adapter: RQAdapter, tmp_path: Any) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (open, (str(tmp_path / "written"), "w"))

    evil = pickle.dumps(Evil())
    submission = submitted(adapter, frame_of(KEY))
    for status in ("queued", "started", "failed", "finished"):
        put(adapter, submission, status=status, meta=evil, data=evil, worker_name="w1")  # type: ignore[arg-type]
        fields = {"type": 2, "return_value": base64.b64encode(evil).decode()}
        redis_of(adapter).xadd(f"rq:results:{submission.job_id}", fields)
        status_of(adapter, submission)
        cancelled(adapter, submission)
    submitted(adapter, frame_of(KEY))
    assert not (tmp_path / "written").exists()


# ----------------------------------------------------------------------------------------------- no Redis


def test_nobody_listens_there() -> None:
    from tests.support.kept import free_port

    adapter = RQAdapter("jobs", {"redis_url": f"redis://:hunter2@127.0.0.1:{free_port()}/0"})
    adapter.configure()
    with pytest.raises(
        DeliveryError, match=r"environment 'jobs': Redis at 127\.0\.0\.1:\d+ \(.*redis_url.*refused"
    ) as told:
        adapter.start()
    assert "hunter2" not in str(told.value)
    adapter.close()
