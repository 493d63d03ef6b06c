"""What runs in fresh processes, one function a run; see `fresh`.

Each function imports what it needs and nothing else, because what it imports is part of its memory.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any


def nothing() -> None:
    """An interpreter with asyncio imported: the floor under every peak."""
    import asyncio  # noqa: F401


async def no_op(item: int) -> int:
    return item


async def size(item: bytes) -> int:
    return len(item)


def chunks(count: int) -> Iterator[bytes]:
    """*count* different chunks of 1 KiB, none of them kept."""
    for index in range(count):
        yield index.to_bytes(4, "big") * 256


def gather_map(count: int) -> None:
    import asyncio

    items = list(range(count))

    async def main() -> list[int]:
        return await asyncio.gather(*map(no_op, items))

    assert asyncio.run(main()) == items


def weave_map(count: int, workers: int) -> None:
    """A map of *count* items; 0 workers means without a bound."""
    from wove import weave

    items = list(range(count))
    with weave() as w:
        w.do(items, workers=workers or None)(no_op)
    assert w.result.final == items


def weave_pipeline(count: int, workers: int) -> None:
    """Three maps in a row that keep nothing."""
    from wove import weave

    def stage(name: str) -> Callable[[int], Awaitable[int]]:
        async def work(item: int) -> int:
            return item

        work.__name__ = name
        return work

    with weave() as w:
        w.do(range(count), workers=workers, keep=False)(stage("first"))
        w.do("first", workers=workers, keep=False)(stage("second"))
        w.do("second", workers=workers, keep=False)(stage("third"))
    assert not w.result.failures


def pipeline_by_hand(count: int, workers: int) -> None:
    import asyncio

    from benchmarks.queues import by_hand

    asyncio.run(by_hand(range(count), [(no_op, workers)] * 3))


def weave_chunks(count: int, workers: int) -> None:
    from wove import weave

    with weave() as w:
        w.do(chunks(count), workers=workers)(size)
    assert w.result.final == [1024] * count


async def _pull(
    work: Callable[[Any], Awaitable[int]], source: Iterable[Any], workers: int
) -> list[int]:
    import asyncio

    results: list[int] = []
    iterator = iter(source)

    async def worker() -> None:
        for item in iterator:
            index = len(results)
            results.append(0)
            results[index] = await work(item)

    await asyncio.gather(*(worker() for _ in range(workers)))
    return results


def pull_map(count: int, workers: int) -> None:
    import asyncio

    items = list(range(count))
    assert asyncio.run(_pull(no_op, items, workers)) == items


def pull_chunks(count: int, workers: int) -> None:
    import asyncio

    assert asyncio.run(_pull(size, chunks(count), workers)) == [1024] * count


def two_weaves() -> dict[str, float]:
    """Seconds of the first weave on a stdio environment, and of the second."""
    from time import perf_counter

    import wove
    from wove import weave

    wove.config(environments={"pool": {"executor": "stdio"}})

    def once() -> float:
        begin = perf_counter()
        with weave(value=1, environment="pool") as w:

            @w.do
            def following(value: int) -> int:
                return value + 1

        assert w.result.following == 2
        return perf_counter() - begin

    return {"first": once(), "second": once()}


STDIO = "stdio"


def echo_bytes(mebibytes: int, executor: str = STDIO, address: str = "") -> dict[str, float]:
    """The longest gap of the loop while bytes go to a worker and come back, and the seconds that takes."""
    import os

    return _echo(os.urandom(1024 * 1024) * mebibytes, executor, address)


def echo_rows(count: int) -> dict[str, float]:
    """The longest gap of the loop while small rows go to a stdio worker and come back."""
    return _echo([(index, f"name {index}", index / 8) for index in range(count)], STDIO, "")


def environment(executor: str, address: str) -> dict[str, Any]:
    """An environment for the worker, or the worker service at *address*."""
    config = {} if executor == STDIO else {"target" if executor == "grpc" else "url": address}
    return {"executor": executor, "executor_config": config}


def in_flight(count: int, executor: str, address: str) -> dict[str, float]:
    """What *count* sleeping runs at once cost this process: MiB more than before, all together."""
    import asyncio

    import wove
    from benchmarks.fresh import peak_mib
    from wove import weave

    wove.config(environments={"pool": environment(executor, address)})

    def nap(number: int) -> int:
        import time

        time.sleep(2)
        return number

    async def main(numbers: range) -> None:
        async with weave(environment="pool") as w:
            w.do(numbers)(nap)
        assert w.result.nap == list(numbers)

    asyncio.run(main(range(1)))
    before = peak_mib()
    asyncio.run(main(range(count)))
    return {"grown": peak_mib() - before}


def _echo(payload: Any, executor: str, address: str) -> dict[str, float]:
    import asyncio
    from time import perf_counter

    import wove
    from wove import weave

    wove.config(environments={"pool": environment(executor, address)})

    async def main() -> dict[str, float]:
        stop = asyncio.Event()
        ticker = asyncio.create_task(longest_gap(stop))
        await asyncio.sleep(0.01)
        begin = perf_counter()
        async with weave(payload=payload, environment="pool") as w:

            @w.do
            def echo(payload: Any) -> Any:
                return payload

        answer = w.result.echo
        elapsed = perf_counter() - begin
        stop.set()
        gap = await ticker
        assert answer is not payload
        assert answer == payload
        return {"gap": gap, "elapsed": elapsed}

    return asyncio.run(main())


def backend(executor: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """An environment, with the object that stands for the URL of a broker."""
    found = dict(config)
    if executor == "taskiq":
        from taskiq_redis import ListQueueBroker

        found["broker"] = ListQueueBroker(config["broker"])
    return {"executor": executor, "executor_config": found}


def hand_out(count: int, executor: str, config: str) -> dict[str, float]:
    """The longest gap of the loop while *count* small tasks go to a backend and come back."""
    import asyncio
    import json

    import wove

    wove.config(environments={"backend": backend(executor, json.loads(config))})

    async def main() -> dict[str, float]:
        await _small(range(1))
        return await _beside(_small(range(count)))

    return asyncio.run(main())


def hand_out_to_nobody(server: int, executor: str, config: str) -> dict[str, float]:
    """The same while the process *server* stands still, so that nothing is answered."""
    import asyncio
    import json
    import os
    import signal

    import wove
    from wove import DeliveryTimeoutError

    wove.config(environments={"backend": backend(executor, json.loads(config))})

    async def given_up() -> None:
        try:
            await _small(range(100), delivery_timeout=3.0)
        except (DeliveryTimeoutError, wove.errors.DeliveryError):
            return
        raise AssertionError("somebody answered")

    async def main() -> dict[str, float]:
        await _small(range(1))
        os.kill(server, signal.SIGSTOP)
        try:
            return await _beside(given_up())
        finally:
            os.kill(server, signal.SIGCONT)

    return asyncio.run(main())


async def _small(items: range, **options: Any) -> None:
    from wove import weave

    async with weave(environment="backend") as w:

        @w.do(items, **options)
        def small(item: int) -> int:
            return item

    assert w.result.small == list(items)


async def _beside(work: Awaitable[None]) -> dict[str, float]:
    """The longest gap of the loop while it awaits *work*, and how long that takes."""
    import asyncio
    from time import perf_counter

    stop = asyncio.Event()
    ticker = asyncio.create_task(longest_gap(stop))
    await asyncio.sleep(0.01)
    begin = perf_counter()
    await work
    elapsed = perf_counter() - begin
    stop.set()
    return {"gap": await ticker, "elapsed": elapsed}


async def longest_gap(stop: Any) -> float:
    """The longest time, in seconds, between two steps of a coroutine that sleeps a millisecond."""
    import asyncio
    from time import perf_counter

    longest, before = 0.0, perf_counter()
    while not stop.is_set():
        await asyncio.sleep(0.001)
        now = perf_counter()
        longest, before = max(longest, now - before), now
    return longest


def idle() -> dict[str, float]:
    """The longest gap of a loop with nothing to do, from now until stdin ends."""
    import asyncio
    import sys
    import threading

    async def main() -> float:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()

        def wait() -> None:
            sys.stdin.read()
            loop.call_soon_threadsafe(stop.set)

        threading.Thread(target=wait, daemon=True).start()
        print("ready", flush=True)
        return await longest_gap(stop)

    return {"gap": asyncio.run(main())}
