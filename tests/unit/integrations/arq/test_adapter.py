"""The adapter for ARQ, without a Redis."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Sequence
from typing import Any

import pytest

from wove.integrations.arq import ARQAdapter, options as arq_settings, worker_function
from wove.integrations.arq.states import Command, JobProbe

pytest.importorskip("arq")


def configured(**config: Any) -> ARQAdapter:
    adapter = ARQAdapter("jobs", config)
    adapter.configure()
    return adapter


class Pool:
    """Something with an ``enqueue_job``."""

    async def enqueue_job(self, *args: Any, **options: Any) -> None: ...


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        (
            {"pool": Pool(), "redis_settings": "redis://x"},
            ValueError,
            "both 'pool' and 'redis_settings'",
        ),
        ({"pool": "redis://x"}, TypeError, "'pool' must be what arq.create_pool"),
        ({"redis_settings": "http://:secret@x"}, ValueError, "not an address of a Redis"),
        ({"redis_settings": "redis://x:port"}, ValueError, "not an address of a Redis"),
        ({"redis_settings": "redis://x/one"}, ValueError, "not an address of a Redis"),
        ({"redis_settings": "unix://"}, ValueError, "not an address of a Redis"),
        ({"function_name": ""}, ValueError, "'function_name' is an empty text"),
        ({"queue_name": 1}, TypeError, "'queue_name' must be text"),
        ({"enqueue_options": []}, TypeError, "'enqueue_options' must be a dict"),
        ({"enqueue_options": {1: 2}}, TypeError, "1 is not a name"),
        (
            {"enqueue_options": {"_job_id": "x"}},
            ValueError,
            "'_job_id': Wove gives each job its id",
        ),
        ({"enqueue_options": {"_job_try": 2}}, ValueError, "'_job_try'.*retries"),
        (
            {"enqueue_options": {"_queue_name": "q"}},
            ValueError,
            "'_queue_name': the key 'queue_name'",
        ),
        ({"enqueue_options": {"defer_by": 1}}, ValueError, "'defer_by'; ARQ's own.*'_defer_by'"),
        ({"enqueue_options": {"_expire": 1}}, ValueError, "does not know. Did you mean '_expires'"),
        (
            {"enqueue_options": {"_defer_by": 1, "_defer_until": 2}},
            ValueError,
            "both '_defer_by' and",
        ),
    ],
)
def test_what_is_refused(config: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=f"environment 'jobs': .*{words}") as caught:
        configured(**config)
    assert "secret" not in str(caught.value)


def test_what_is_taken() -> None:
    adapter = configured(
        pool=Pool(), queue_name="q", enqueue_options={"_defer_by": 1, "tenant": "a"}
    )
    assert (adapter._options, adapter._extra) == ({"_defer_by": 1}, {"tenant": "a"})
    configured()


def read(value: object) -> Any:
    return arq_settings.read_settings(
        value, arq_settings.library().RedisSettings, "environment 'jobs'"
    )


def test_where_redis_is() -> None:
    found = read("rediss://user:p%40ss@host:7000/3")
    assert (found.host, found.port, found.database, found.ssl) == ("host", 7000, 3, True)
    assert (found.username, found.password) == ("user", "p@ss")
    found = read("unix:///run/redis.sock?db=2")
    assert (found.unix_socket_path, found.database) == ("/run/redis.sock", 2)
    found = read("rediss://user:p%40ss@host:7000/3")
    assert read({"host": "h", "database": 4}).database == 4
    assert read(None).port == 6379
    assert read(found) is found
    with pytest.raises(ValueError, match="no field 'hots'. Did you mean 'host'"):
        read({"hots": "h"})
    with pytest.raises(TypeError, match="must be arq's RedisSettings"):
        read(7)


def test_addresses_are_shown_without_credentials() -> None:
    assert arq_settings.shown_address(read("redis://user:secret@host:7000/3")) == "host:7000/3"
    assert arq_settings.shown_address(read("unix:///run/redis.sock")) == "/run/redis.sock"


def test_the_function_of_a_worker() -> None:
    from arq.worker import Worker

    async def other(ctx: object) -> None: ...

    async def main() -> None:
        function = worker_function(name="shop.wove", keep_result=7)
        assert (function.name, function.keep_result_s, function.max_tries) == ("shop.wove", 7, 1)
        worker = Worker([function, other], job_timeout=20, handle_signals=False)
        assert worker.in_progress_timeout_s == 30, (
            "what holds for the worker's other jobs is not changed"
        )
        assert function.timeout_s > 10**8
        assert worker_function(timeout=60).timeout_s == 60

    asyncio.run(main())
    with pytest.raises(ValueError, match="the security of this worker"):
        worker_function(security={"type": "nonsense"})


def test_a_job_that_was_begun_before_is_refused() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="it is not begun twice"):
            await worker_function().coroutine({"job_try": 2}, {})

    asyncio.run(main())


def test_a_pool_that_knows_nothing_but_to_enqueue() -> None:
    """A wrapper of the user's own, or a double in a test."""
    asked: list[Any] = []

    class Recorder:
        async def enqueue_job(self, function: str, *args: Any, **options: Any) -> object:
            asked.append((function, args, options))
            return object() if len(asked) == 1 else None

    async def main() -> None:
        adapter = configured(pool=Recorder(), queue_name="q", enqueue_options={"_expires": 5})
        await adapter.start()
        frame = {"run_id": "r1", "task_id": "t", "delivery": {}}
        assert await adapter.submit({"run_id": "r1"}, frame) == "wove-r1"
        options = {"_job_id": "wove-r1", "_queue_name": "q", "_expires": 5}
        assert asked == [("wove_run_backend_payload", ({"run_id": "r1"},), options)]
        with pytest.raises(RuntimeError, match="'wove-r1' is there already"):
            await adapter.submit({"run_id": "r1"}, frame)
        assert await adapter.watch({"r1": "wove-r1"}) == {}
        assert await adapter.cancel("r1", "wove-r1", {}) is False
        await adapter.close()

    asyncio.run(main())


@pytest.mark.parametrize("trusted", [True, False])
def test_results_with_a_serializer_of_the_users(trusted: bool) -> None:
    """Only an environment without ``security`` may call it with bytes that anyone can have stored."""
    replies: dict[str, Any] = {
        "ZMSCORE": [None],
        "EXISTS": 0,
        "GET": pickle.dumps({"s": False, "r": ValueError("no")}),
    }

    async def execute(commands: Sequence[Command]) -> list[Any]:
        return [replies[str(command[0])] for command in commands]

    probe = JobProbe(
        "q",
        execute,
        lambda run_id: False,
        error=ValueError,
        deserialize=pickle.loads,
        trusts_redis=trusted,
    )
    status = asyncio.run(probe.ended({"run": "j"}))["run"]
    if trusted:
        assert status == ("lost", "ARQ's job 'j' failed: ValueError: no")
    else:
        assert status.state == "finished"
        assert "is given nothing that is not signed" in status.reason
