"""What a mapped task takes its items from, without ever waiting."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from tests.support.forms import PATIENCE, soon

from wove.engine.sources import END, WAIT, Source, is_iterable, open_source
from wove.engine.streams import Stream
from wove.engine.threads import RunMailbox


async def take_all(source: Source) -> list[Any]:
    woken = asyncio.Event()
    source.on_ready = woken.set
    items = []
    async with asyncio.timeout(PATIENCE):
        while True:
            item = source.receive()
            if item is END:
                break
            if item is WAIT:
                await woken.wait()
                woken.clear()
            else:
                items.append(item)
    assert source.receive() is END
    assert source.available() >= 0
    await source.close()
    return items


def opened(
    value: Any, *, max_items: int | None = None, workers: float = 4, by_threads: bool = False
) -> Source:
    loop = asyncio.get_running_loop()
    return open_source(
        value,
        task="task",
        max_items=max_items,
        workers=workers,
        by_threads=by_threads,
        loop=loop,
        inbox=RunMailbox(loop),
        context=contextvars.copy_context(),
    )


def taken(value: Any, **options: Any) -> list[Any]:
    async def main() -> list[Any]:
        return await take_all(opened(value, **options))

    return asyncio.run(main())


async def asynchronous(count: int) -> AsyncIterator[int]:
    for i in range(count):
        await asyncio.sleep(0)
        yield i


@pytest.mark.parametrize("by_threads", [False, True])
@pytest.mark.parametrize("max_items", [None, 100])
@pytest.mark.parametrize("workers", [1, 4, float("inf")])
@pytest.mark.parametrize(
    "make",
    [
        lambda: list(range(50)),
        lambda: (i for i in range(50)),
        lambda: asynchronous(50),
        lambda: range(50),
    ],
)
def test_all_items_in_order(
    make: Callable[[], Any], workers: float, max_items: int | None, by_threads: bool
) -> None:
    assert taken(make(), workers=workers, max_items=max_items, by_threads=by_threads) == list(
        range(50)
    )


def test_an_async_iterable_that_is_no_generator() -> None:
    class Source:
        def __init__(self) -> None:
            self.left = 3

        def __aiter__(self) -> Any:
            return self

        async def __anext__(self) -> int:
            if not self.left:
                raise StopAsyncIteration
            self.left -= 1
            return self.left

    assert taken(Source()) == [2, 1, 0]


def test_what_is_iterable() -> None:
    class Items:
        def __getitem__(self, i: int) -> int:
            raise IndexError

    for value in ([], "text", iter(()), asynchronous(0), Items(), {}):
        assert is_iterable(value)
    for value in (7, None, lambda: None, object(), len, Items):
        assert not is_iterable(value)


@pytest.mark.parametrize("workers", [1, 4])
def test_an_iterator_is_pulled_no_further_than_the_bound(workers: int) -> None:
    pulled = 0

    def source() -> Iterator[int]:
        nonlocal pulled
        for i in range(100):
            pulled += 1
            yield i

    async def main() -> None:
        made = opened(source(), workers=workers)
        woken = asyncio.Event()
        made.on_ready = woken.set
        assert made.receive() is WAIT
        await asyncio.wait_for(woken.wait(), PATIENCE)
        soon(lambda: pulled == workers)
        await asyncio.sleep(0.005)
        assert pulled == workers
        assert made.receive() == 0
        await made.close()

    asyncio.run(main())


def test_nothing_is_pulled_before_it_is_wanted() -> None:
    pulled: list[str] = []

    def source() -> Iterator[int]:
        pulled.append("sync")
        yield 1

    async def async_source() -> AsyncIterator[int]:
        pulled.append("async")
        yield 1

    async def main() -> None:
        made = [opened(source()), opened(async_source())]
        await asyncio.sleep(0.002)
        assert pulled == []
        for one in made:
            await one.close()

    asyncio.run(main())


def test_each_item_can_be_taken_as_soon_as_it_is_there() -> None:
    gates = [threading.Event() for _ in range(5)]

    def source() -> Iterator[int]:
        for i, gate in enumerate(gates):
            assert gate.wait(PATIENCE)
            yield i

    async def main() -> None:
        made = opened(source())
        woken = asyncio.Event()
        made.on_ready = woken.set
        for i, gate in enumerate(gates):
            item = made.receive()
            assert item is WAIT
            gate.set()
            async with asyncio.timeout(PATIENCE):
                while item is WAIT:
                    await woken.wait()
                    woken.clear()
                    item = made.receive()
            assert item == i

    asyncio.run(main())


def test_closing_ends_an_async_source_that_waits() -> None:
    async def main() -> None:
        closed = asyncio.Event()

        async def source() -> AsyncIterator[int]:
            try:
                yield 1
                await asyncio.sleep(PATIENCE)
            finally:
                await asyncio.sleep(0)
                closed.set()

        for takes in (1, 2):
            closed.clear()
            made = opened(source())
            woken = asyncio.Event()
            made.on_ready = woken.set
            assert made.receive() is WAIT
            await woken.wait()
            if takes == 2:
                assert made.receive() == 1
                assert made.receive() is WAIT
                await asyncio.sleep(0)
            await made.close()
            assert closed.is_set()

    asyncio.run(main())


def test_closing_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wove.engine.sources.CLOSE_SECONDS", 0.01)

    async def source() -> AsyncIterator[int]:
        try:
            await asyncio.sleep(PATIENCE)
        finally:
            await asyncio.sleep(0.1)
        yield 1

    async def main() -> None:
        made = opened(source())
        assert made.receive() is WAIT
        await asyncio.sleep(0)
        await made.close()

    asyncio.run(main())


def test_an_error_comes_once_after_the_items_before_it() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise KeyError("source")

    async def async_source() -> AsyncIterator[int]:
        yield 1
        raise KeyError("source")

    async def main(made: Source) -> None:
        woken = asyncio.Event()
        made.on_ready = woken.set
        items: list[Any] = []
        with pytest.raises(KeyError):
            while True:
                item = made.receive()
                if item is WAIT:
                    await asyncio.wait_for(woken.wait(), PATIENCE)
                    woken.clear()
                else:
                    items.append(item)
        assert items == [1]
        assert made.receive() is END

    async def both() -> None:
        await main(opened(source()))
        await main(opened(async_source()))

    asyncio.run(both())


def test_a_stream_gives_every_reader_everything() -> None:
    async def main() -> None:
        stream = Stream()
        readers = [opened(stream.reader(4)) for _ in range(2)]
        assert [reader.receive() for reader in readers] == [WAIT, WAIT]
        assert [reader.available() for reader in readers] == [0, 0]
        stream.push(1, "b")
        stream.push(0, "a")
        assert [reader.available() for reader in readers] == [2, 2]
        assert [readers[0].receive() for _ in range(3)] == [(1, "b"), (0, "a"), WAIT]
        stream.push(2, "c")
        stream.end(["a", "b", "c"])
        assert await take_all(readers[0]) == [(2, "c")]
        assert await take_all(readers[1]) == [(1, "b"), (0, "a"), (2, "c")]

    asyncio.run(main())


def test_a_stream_ends_with_the_error_of_its_task_after_its_items() -> None:
    async def main() -> None:
        stream = Stream()
        reader = opened(stream.reader(4))
        stream.push(0, 1)
        stream.end(error=KeyError("task"))
        assert reader.receive() == (0, 1)
        with pytest.raises(KeyError):
            reader.receive()

    asyncio.run(main())


def test_items_pushed_from_threads_wake_the_reader_once() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        mailbox, stream = RunMailbox(loop), Stream()
        reader = opened(stream.reader(4))
        woken = asyncio.Event()
        reader.on_ready = woken.set

        def work() -> None:
            for position in range(100):
                stream.post(mailbox, position, str(position))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        await asyncio.wait_for(woken.wait(), PATIENCE)
        assert [reader.receive() for _ in range(100)] == [(i, str(i)) for i in range(100)]

    asyncio.run(main())


def test_nothing_is_kept_for_a_reader_that_was_closed() -> None:
    async def main() -> None:
        stream = Stream()
        closed, other = stream.reader(4), stream.reader(4)
        await closed.close()
        stream.push(0, "a")
        assert (closed.available(), other.receive()) == (1, (0, "a"))
        assert closed.receive() is WAIT

    asyncio.run(main())


@pytest.mark.parametrize("by_threads", [False, True])
@pytest.mark.parametrize("begun", [False, True])
def test_a_generator_that_is_not_used_up_is_closed(by_threads: bool, begun: bool) -> None:
    closed: list[bool] = []

    def source() -> Iterator[int]:
        try:
            yield from range(10)
        finally:
            closed.append(True)

    async def main() -> None:
        made = opened(source(), workers=1, by_threads=by_threads)
        if begun:
            woken = asyncio.Event()
            made.on_ready = woken.set
            if made.receive() is WAIT:
                await asyncio.wait_for(woken.wait(), PATIENCE)
        await made.close()
        await made.close()

    asyncio.run(main())
    if begun:
        soon(lambda: closed == [True])
    else:
        assert closed == []


def test_an_iterator_of_the_users_own_is_not_closed() -> None:
    class Rows:
        closed = False

        def __iter__(self) -> Rows:
            return self

        def __next__(self) -> int:
            return 1

        def close(self) -> None:
            self.closed = True

    async def main() -> None:
        rows = Rows()
        made = opened(rows, by_threads=True)
        assert made.receive() == 1
        await made.close()
        assert not rows.closed

    asyncio.run(main())
