"""Whatever happens in a weave, nothing is left unsaid to its user and nothing is said behind his back.

Each test is a script of its own, in which every warning is an error and asyncio checks all it can.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

import pytest
from tests.support.scripts import MAY_BLOCK_LOOP

HEAD = """
import asyncio, gc, logging, sys, threading, time
from wove import weave

logging.getLogger("asyncio").setLevel(logging.ERROR)  # that a step took long says nothing on a busy machine
unraisable = []
sys.unraisablehook = lambda args: unraisable.append(args)
threading.excepthook = lambda args: unraisable.append(args)

class Boom(Exception):
    pass

async def coroutine(value=None):
    await asyncio.sleep(0)
    return value

def attempt(declare, **options):
    errors = []
    def block():
        w = weave(**options)
        try:
            with w:
                declare(w)
        except BaseException as error:
            errors.append(type(error).__name__)
    async def awaiting():
        w = weave(**options)
        try:
            async with w:
                declare(w)
        except BaseException as error:
            errors.append(type(error).__name__)
    async def blocking():
        block()
    for _ in range(ROUNDS):
        block()
        asyncio.run(awaiting())
        asyncio.run(blocking())
    print(*sorted(set(errors)))

ROUNDS = 1
"""

TAIL = """
gc.collect()
assert not unraisable, unraisable
"""


def said(script: Callable[..., Any], body: str) -> str:
    """What the script prints; it must end well and complain about nothing."""
    source = HEAD + textwrap.dedent(body) + TAIL
    done = script(source, flags=("-X", "dev", *MAY_BLOCK_LOOP), timeout=60)
    assert done.complaints == [], done.stderr
    return str(done.stdout).strip()


def test_everything_that_succeeds(script: Callable[..., Any]) -> None:
    assert (
        said(
            script,
            """
            def declare(w):
                @w.do
                def a(): return 1
                @w.do
                async def b(a): return await coroutine(a)
                @w.do(range(20), workers=3)
                def c(item, b): return coroutine(item)
                @w.do(iter(range(20)), workers=3, retries=1, timeout=60)
                async def d(item): return item
                @w.do
                def e(): yield from range(5)
                @w.do("e")
                def f(item): return item
                @w.do
                async def g():
                    for i in range(5):
                        yield i
                @w.do("g", limit_per_minute=60_000)
                async def h(item): return item
                @w.do
                async def leaves():
                    asyncio.create_task(asyncio.sleep(0.001))
                    await asyncio.to_thread(time.sleep, 0)
            ROUNDS = 3
            attempt(declare)
            """,
        )
        == ""
    )


@pytest.mark.parametrize(
    "error", ["Boom", "SystemExit", "KeyboardInterrupt", "GeneratorExit", "asyncio.CancelledError"]
)
def test_everything_that_fails_at_once(script: Callable[..., Any], error: str) -> None:
    assert said(
        script,
        f"""
        def declare(w):
            def bad(*_): raise {error}
            async def async_bad(*_): raise {error}
            def returning(*_): return async_bad()
            def generator(*_):
                yield 1
                raise {error}
            async def async_generator(*_):
                yield 1
                raise {error}
            def named(name, fn):
                import types
                made = types.FunctionType(fn.__code__, globals(), name, fn.__defaults__, fn.__closure__)
                return made
            for n, options in enumerate([{{}}, {{"timeout": 60}}, {{"retries": 1}}]):
                for fn in (bad, async_bad, returning, generator, async_generator):
                    w.do(**options)(named(f"{{fn.__name__}}_{{n}}", fn))
                    def item(item, fn=fn): return fn(item)
                    w.do([1, 2], **options)(named(f"{{fn.__name__}}_{{n}}_items", item))
            w.do("generator_0")(named("streamed", lambda item: item))
            w.do("async_generator_0")(named("async_streamed", lambda item: item))
        for mode in ("raise", "return", "continue"):
            attempt(declare, error_mode=mode)
        """,
    ).split() == [error.removeprefix("asyncio.")]


def test_coroutines_that_nobody_awaits_any_more(script: Callable[..., Any]) -> None:
    """Sync calls whose coroutines come too late: after a failure, a timeout, or the end."""
    assert said(
        script,
        """
            gate = threading.Event()
            def late(*_):
                gate.wait(0.01)
                return coroutine()
            def declare(w):
                @w.do
                def a(): return late()
                @w.do(range(5))
                def b(item): return late()
                @w.do(timeout=0.005)
                def c(): return late()
                @w.do(range(5), timeout=60)
                def d(item): return coroutine()
                @w.do
                def e(): return coroutine()
                @w.do(range(5))
                def f(item): return coroutine()
                @w.do
                async def bad():
                    await asyncio.sleep(0.0005)
                    raise Boom
            ROUNDS = 20
            attempt(declare)
            time.sleep(0.1)
            """,
    ) in ("Boom", "Boom TaskTimeoutError", "TaskTimeoutError")


def test_siblings_that_fail_while_they_clean_up(script: Callable[..., Any]) -> None:
    assert (
        said(
            script,
            """
            def declare(w):
                async def sibling(*_):
                    try:
                        await asyncio.sleep(60)
                    finally:
                        await asyncio.sleep(0)
                        raise ValueError
                @w.do
                async def a(): await sibling()
                @w.do(timeout=60)
                async def b(): await sibling()
                @w.do(range(3), retries=2)
                async def c(item): await sibling()
                @w.do
                def d(): return sibling()
                @w.do
                async def bad():
                    await asyncio.sleep(0.001)
                    raise Boom
            ROUNDS = 3
            attempt(declare)
            """,
        )
        == "Boom"
    )


def test_cancelled_at_every_step(script: Callable[..., Any]) -> None:
    assert (
        said(
            script,
            """
            async def source():
                for i in range(100):
                    await asyncio.sleep(0)
                    yield i
            async def main():
                async def block():
                    async with weave() as w:
                        @w.do(timeout=60)
                        async def a(): await asyncio.sleep(60)
                        @w.do(range(3), workers=2, retries=1)
                        async def b(item): await asyncio.sleep(60)
                        @w.do(range(3), workers=2, timeout=60)
                        def c(item): return coroutine()
                        @w.do(source(), workers=2, limit_per_minute=600)
                        def d(item): return coroutine()
                        @w.do(iter(range(100)), workers=2)
                        async def e(item): await asyncio.sleep(60)
                        @w.do
                        def f(): return coroutine()
                        @w.do
                        async def g():
                            async with weave() as w:
                                w.do(lambda: time.sleep(0.01))
                                w.do(range(3))(coroutine)
                for steps in range(25):
                    task = asyncio.create_task(block())
                    for _ in range(steps):
                        await asyncio.sleep(0)
                    task.cancel()
                    try:
                        await task
                    except asyncio.CancelledError:
                        continue
                    raise AssertionError("it was not cancelled")
                print("cancelled")
            asyncio.run(main())
            """,
        )
        == "cancelled"
    )


def test_a_result_that_nobody_reads(script: Callable[..., Any]) -> None:
    assert (
        said(
            script,
            """
            def declare(w):
                @w.do
                async def bad(): raise Boom
                @w.do
                def worse(): raise Boom
                @w.do([1])
                async def items(item): raise Boom
            attempt(declare, error_mode="continue")
            """,
        )
        == ""
    )


def test_at_the_exit_of_the_interpreter(script: Callable[..., Any]) -> None:
    """A weave may run while the interpreter ends, and one that gave up a thread does not hold it up."""
    assert (
        said(
            script,
            """
            import atexit
            with weave() as w:
                @w.do
                def warm(): return 1
            @atexit.register
            def last():
                with weave() as w:
                    @w.do
                    async def a(): return await coroutine(1)
                    @w.do([1, 2], workers=1)
                    async def b(item, a): return item + a
                print(w.result.final)
            try:
                with weave() as w:
                    @w.do
                    def stuck(): time.sleep(30)
                    @w.do
                    async def bad(): raise Boom
            except Boom:
                print("Boom")
            """,
        )
        == "Boom\n[2, 3]"
    )
