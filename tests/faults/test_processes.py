"""Whole processes: their ends, their forks, many weaves at once, and what user code leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.scripts import MAY_BLOCK_LOOP, Finished, needs_threads_at_the_end

from wove.errors import install_command

SOON = 30
"""Seconds after which something hangs."""

STRICT = ("-X", "dev", "-W", "error")

needs_dispatch = pytest.mark.backend("stdio")

Script = Callable[..., Finished]


def until_written(path: Path) -> Any:
    deadline = time.monotonic() + SOON
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return json.loads(path.read_text())


# ------------------------------------------------------------------------------------------ the end of a script


@needs_threads_at_the_end
@pytest.mark.parametrize("block", ["with", "async with", "with in a thread"])
def test_a_script_that_ends_finishes_its_background_work(script: Script, block: str) -> None:
    """Threads for sync tasks and the loop's own executor, which `asyncio.to_thread` uses, included."""
    found = script(
        f"""
        import asyncio, threading, time
        from wove import merge, weave

        async def told(result):
            await asyncio.to_thread(print, "told", result.final)

        def declare(w):
            @w.do
            def first():
                time.sleep(0.3)
                return 1
            @w.do([1, 2, 3])
            def mapped(item, first):
                return merge(lambda n: n + first, [item])[0]
            @w.do
            async def looked_up(mapped):
                loop = asyncio.get_running_loop()
                await loop.getaddrinfo("127.0.0.1", 80)
                return await asyncio.to_thread(sum, mapped)

        def sync_block():
            with weave(background=True, on_done=told) as w:
                declare(w)

        async def async_block():
            async with weave(background=True, on_done=told) as w:
                declare(w)

        if {block!r} == "with":
            sync_block()
        elif {block!r} == "async with":
            asyncio.run(async_block())
        else:
            thread = threading.Thread(target=sync_block)
            thread.start()
            thread.join()
        print("end")
        """
    )
    assert found.stdout.splitlines() == ["end", "told 9"]
    assert not found.complaints


@needs_threads_at_the_end
def test_a_main_thread_that_fails_does_not_end_background_work(script: Script) -> None:
    found = script(
        """
        import time
        from wove import weave
        with weave(background=True, on_done=lambda result: print("told", result.final)) as w:
            @w.do
            def first():
                time.sleep(0.3)
            @w.do
            def second(first):
                return 2
        raise LookupError("the script's own")
        """,
        check=False,
    )
    assert found.returncode == 1
    assert found.stdout == "told 2\n"
    assert found.stderr.rstrip().endswith("LookupError: the script's own")


def test_a_background_failure_that_nobody_is_told_of_is_seen(script: Script) -> None:
    found = script(
        """
        from wove import weave
        with weave(background=True) as w:
            @w.do
            def fails():
                raise LookupError("mine")
        w.wait()
        """
    )
    assert "LookupError: mine" in found.stderr


def test_a_weave_at_exit(script: Script) -> None:
    found = script(
        """
        import atexit, asyncio
        from wove import weave

        @atexit.register
        def last():
            with weave() as w:
                @w.do
                async def one():
                    await asyncio.sleep(0)
                    return 1
                @w.do("numbers")
                async def doubled(item, one):
                    return 2 * item + one
                @w.do
                def numbers():
                    return [1, 2]
            print(w.result.doubled)

        with weave() as w:
            @w.do
            def before():
                return 1
        print(w.result.before)
        """,
        flags=STRICT,
    )
    assert found.stdout == "1\n[3, 5]\n"
    assert not found.complaints


def test_a_thread_that_cannot_be_started_is_an_error_and_no_hang(script: Script) -> None:
    found = script(
        """
        import threading
        from wove import merge, weave

        def no_more(self):
            raise RuntimeError("can't start new thread")

        threading.Thread.start = no_more

        def fails(declare):
            try:
                with weave() as w:
                    declare(w)
            except RuntimeError as error:
                print(error)

        @fails
        def plain(w):
            @w.do
            def task(): pass

        @fails
        def after_another(w):
            @w.do
            async def first(): pass
            @w.do
            def task(first): pass

        @fails
        def mapped(w):
            @w.do([1, 2])
            def task(item): pass

        @fails
        def retried(w):
            @w.do(timeout=5)
            def task(): pass

        @fails
        def generator(w):
            @w.do
            def source(): yield 1
            @w.do("source")
            async def task(item): pass

        @fails
        def merged(w):
            @w.do
            async def task(): await merge(len, ["a"])

        @fails
        def pulled(w):
            @w.do(iter([1, 2]))
            async def task(item): pass
            @w.do
            def other(): pass

        with weave() as w:
            @w.do
            async def task(): return 1
        print(w.result.task)
        """,
        timeout=10,
    )
    assert found.stdout.splitlines() == ["can't start new thread"] * 7 + ["1"]


# ------------------------------------------------------------------------------------------ detached processes

DETACHED = """
import json, os, sys, time
from pathlib import Path
from wove import Weave, weave

factor = 3

def helper(n):
    return n * factor

class Number:
    def __init__(self, n): self.n = n

class Workflow(Weave):
    @Weave.do
    def number(self, start):
        return Number(helper(start.n))

def told(result):
    import neighbour
    found = {
        "final": result.final, "path": sys.path, "cwd": os.getcwd(), "session": os.getsid(0) == os.getpid(),
        "name": __name__, "neighbour": neighbour.name, "stdin": sys.stdin.read(),
    }
    Path("part").write_text(json.dumps(found))
    Path("part").rename("done")

sys.path.append("relative")
with weave(Workflow, background=True, fork=True, on_done=told, start=Number(5)) as w:
    @w.do
    async def final_one(number):
        time.sleep(0.3)
        return number.n
print("end")
"""


@needs_dispatch
@pytest.mark.parametrize("how", ["script", "-c", "stdin", "-m"])
def test_detached_from_every_kind_of_main(how: str, tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("name = 'neighbour'")
    (tmp_path / "script.py").write_text(DETACHED)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    arguments = {
        "script": ["script.py"],
        "-c": ["-c", DETACHED],
        "stdin": ["-"],
        "-m": ["-m", "script"],
    }[how]
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=tmp_path,
        input=DETACHED if how == "stdin" else "",
        text=True,
        capture_output=True,
        timeout=SOON,
        env=os.environ | {"TMPDIR": str(temporary)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")
    found = until_written(tmp_path / "done")
    assert found["final"] == 15
    assert found["cwd"] == str(tmp_path)
    assert found["session"]
    assert str(tmp_path / "relative") in found["path"]
    assert found["neighbour"] == "neighbour"
    assert found["stdin"] == ""
    assert not list(temporary.iterdir())


@needs_dispatch
def test_a_detached_weave_has_the_configuration_of_its_parent(
    script: Script, tmp_path: Path
) -> None:
    script(
        """
        import os
        from pathlib import Path
        import wove
        from wove import weave

        wove.config(retries=2, environments={"elsewhere": {"executor": "stdio", "executor_config": {"processes": 1}}})

        def told(result):
            Path("part").write_text(f'[{result.explained}, {result.elsewhere != os.getpid()}]'.lower())
            Path("part").rename("done")

        tried = []
        with weave(background=True, fork=True, on_done=told) as w:
            @w.do
            def explained():
                tried.append(1)
                if len(tried) < 3:
                    raise OSError
                return len(tried)
            @w.do(environment="elsewhere")
            def elsewhere():
                return os.getpid()
        """
    )
    assert until_written(tmp_path / "done") == [3, True]


@needs_dispatch
def test_a_detached_failure_is_seen(script: Script) -> None:
    found = script(
        """
        from wove import weave
        with weave(background=True, fork=True) as w:
            @w.do
            def fails():
                raise LookupError("mine")
        w.wait()
        """
    )
    assert "LookupError: mine" in found.stderr
    assert "a weave in the background failed" in found.stderr


def test_detached_without_cloudpickle(script: Script, tmp_path: Path) -> None:
    (tmp_path / "cloudpickle.py").write_text("raise ImportError('not installed')")
    found = script(
        """
        from wove import MissingDispatchFeatureError, weave
        try:
            with weave(background=True, fork=True) as w:
                @w.do
                def task(): pass
        except MissingDispatchFeatureError as error:
            print(error)
        with weave(background=True) as w:
            @w.do
            def task(): return 1
        w.wait()
        print(w.result.task)
        """
    )
    first, second = found.stdout.splitlines()
    assert install_command("dispatch") in first
    assert second == "1"


# ------------------------------------------------------------------------------------------ forks

CHECK = """
import asyncio, multiprocessing, os, sys, threading, time, warnings
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
from wove import merge, weave

def check():
    with weave(n=2) as w:
        @w.do
        def sync_task(n):
            return merge(lambda item: item * n, [1, 2])
        @w.do("sync_task", workers=2)
        async def async_task(item):
            await asyncio.sleep(0.001)
            return item
        @w.do([1, 2], workers=2)
        def mapped(item):
            return item
    assert w.result.async_task == [2, 4] and w.result.mapped == [1, 2], w.result

def in_child(body=check):
    pid = os.fork()
    if not pid:
        status = 1
        try:
            body()
            status = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("check()\nassert in_child() == 0\ncheck()", id="after a weave"),
        pytest.param("assert in_child() == 0\ncheck()", id="before any weave"),
        pytest.param(
            """
with weave() as w:
    @w.do
    def forks():
        return in_child()
    @w.do([1, 2, 3])
    def busy(item):
        check()
    @w.do
    async def forks_too():
        return in_child()
    @w.do
    def merges():
        return merge(in_child)
assert (w.result.forks, w.result.forks_too, w.result.merges) == (0, 0, 0), w.result
check()
""",
            id="inside of tasks",
        ),
        pytest.param(
            """
stop = threading.Event()
def keep_going():
    while not stop.is_set():
        check()
threads = [threading.Thread(target=keep_going) for _ in range(3)]
for thread in threads: thread.start()
for _ in range(5): assert in_child() == 0
stop.set()
for thread in threads: thread.join()
""",
            id="while others weave",
        ),
        pytest.param(
            """
async def main():
    async with weave() as w:
        @w.do
        async def first(): await asyncio.sleep(0)
    assert in_child() == 0
    async with weave() as w:
        @w.do
        def second(): return in_child()
    assert w.result.second == 0
asyncio.run(main())
""",
            id="in a running loop",
        ),
        pytest.param(
            "check()\nassert in_child(lambda: in_child() and os._exit(1)) == 0",
            id="a child of a child",
        ),
    ],
)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_forks(script: Script, body: str) -> None:
    found = script(CHECK + body + "\nprint('ok')", flags=("-W", "error"))
    assert found.stdout == "ok\n"
    assert not found.complaints


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(script: Script, method: str) -> None:
    found = script(
        CHECK
        + textwrap.dedent(
            f"""
            if __name__ == "__main__":
                context = multiprocessing.get_context({method!r})
                check()
                with weave() as w:
                    @w.do
                    def starts():
                        process = context.Process(target=check)
                        process.start()
                        process.join()
                        return process.exitcode
                assert w.result.starts == 0
                with context.Pool(2) as pool:
                    pool.apply(check)
                    pool.close()
                    pool.join()
                check()
                print("ok")
            """
        ),
        flags=("-W", "error"),
    )
    assert found.stdout == "ok\n"
    assert not found.complaints


# ------------------------------------------------------------------------------------------ many


def test_many_weaves_in_many_threads(script: Script) -> None:
    found = script(
        CHECK
        + textwrap.dedent(
            """
            failed = []
            def work():
                try:
                    for _ in range(5):
                        check()
                        asyncio.run(later())
                except BaseException as error:
                    failed.append(error)
            async def later():
                async with weave() as w:
                    @w.do
                    def one(): return 1
                    @w.do
                    async def two(one): return one + 1
                assert w.result.two == 2
            threads = [threading.Thread(target=work) for _ in range(20)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            print(failed or "ok")
            """
        ),
        flags=STRICT,
    )
    assert found.stdout == "ok\n"
    assert not found.complaints


def test_weaves_inside_each_other(script: Script) -> None:
    found = script(
        """
        import asyncio
        from wove import weave

        def sync_down(depth):
            if not depth:
                return 0
            with weave(max_workers=1) as w:
                @w.do
                def level():
                    return 1 + (sync_down if depth % 2 else async_from_sync)(depth - 1)
            return w.result.level

        def async_from_sync(depth):
            return asyncio.run(async_down(depth))

        async def async_down(depth):
            if not depth:
                return 0
            async with weave(max_workers=1) as w:
                @w.do
                async def level():
                    return 1 + await async_down(depth - 1)
            return w.result.level

        async def blocking_down(depth):
            if not depth:
                return 0
            with weave() as w:
                @w.do
                async def level():
                    return 1 + await blocking_down(depth - 1)
            return w.result.level

        print(sync_down(20), asyncio.run(async_down(20)), asyncio.run(blocking_down(10)))
        """,
        flags=MAY_BLOCK_LOOP,
    )
    assert found.stdout == "20 20 10\n"
    assert not found.complaints


def test_nothing_stays_behind_after_many_weaves(script: Script) -> None:
    found = script(
        CHECK
        + textwrap.dedent(
            """
            from pathlib import Path
            import wove.concurrency.thread_pool
            wove.concurrency.thread_pool.IDLE_SECONDS = 0.05

            def state():
                deadline = time.monotonic() + 20
                while threading.active_count() > 1 and time.monotonic() < deadline:
                    time.sleep(0.01)
                return threading.active_count(), len(os.listdir("/proc/self/fd"))

            check()
            before = state()
            for _ in range(50):
                check()
                try:
                    with weave() as w:
                        @w.do
                        def fails(): raise LookupError
                        @w.do
                        async def sleeps(): await asyncio.sleep(60)
                except LookupError:
                    pass
            def elsewhere():
                check()
            threads = [threading.Thread(target=elsewhere) for _ in range(5)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            after = state()
            assert after == before, (before, after)
            assert before[0] == 1
            print("ok")
            """
        ),
        flags=STRICT,
    )
    assert found.stdout == "ok\n"
    assert not found.complaints


# ------------------------------------------------------------------------------------------ what user code leaves


def test_what_user_code_leaves_on_the_loop_is_cleaned_up(script: Script) -> None:
    """As `asyncio.run` does it; the next weave of the thread sees nothing of it."""
    found = script(
        """
        import asyncio, threading, time
        from wove import weave

        async def forever(name):
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0)
                print("cleaned", name)

        async def generator():
            try:
                while True:
                    yield 1
            finally:
                await asyncio.sleep(0)
                print("closed generator")

        kept = []
        for turn in range(2):
            with weave() as w:
                @w.do
                async def leaves_a_task():
                    kept.append(asyncio.create_task(forever("task")))
                    await asyncio.sleep(0)
                @w.do
                async def leaves_a_generator(leaves_a_task):
                    kept.append(generator())
                    return await anext(kept[-1])
                @w.do
                async def uses_the_executor(leaves_a_generator):
                    return await asyncio.to_thread(threading.get_ident)
            assert w.result.leaves_a_generator == 1
            deadline = time.monotonic() + 10
            while any("asyncio" in thread.name for thread in threading.enumerate()):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            print("no thread")
        """,
        flags=STRICT,
    )
    assert sorted(found.stdout.splitlines()) == sorted(
        ["cleaned task", "closed generator", "no thread"] * 2
    )
    assert not found.complaints


def test_a_task_left_behind_that_fails_is_told_as_asyncio_does(script: Script) -> None:
    found = script(
        """
        import asyncio
        from wove import weave

        async def fails_in_the_end():
            try:
                await asyncio.sleep(60)
            finally:
                raise LookupError("left behind")

        with weave() as w:
            @w.do
            async def leaves_a_task():
                global kept
                kept = asyncio.create_task(fails_in_the_end())
                await asyncio.sleep(0)
        print("went on")
        """,
        flags=STRICT,
    )
    assert found.stdout == "went on\n"
    assert "LookupError: left behind" in found.stderr


def test_settings_that_user_code_makes_on_the_loop_do_not_reach_the_next_weave(
    script: Script,
) -> None:
    found = script(
        """
        import asyncio
        from wove import weave

        with weave() as w:
            @w.do
            async def meddles():
                loop = asyncio.get_running_loop()
                loop.set_exception_handler(lambda loop, context: None)
                loop.set_task_factory(lambda loop, coroutine, **options: asyncio.Task(coroutine, loop=loop, **options))

        with weave() as w:
            @w.do
            async def looks():
                loop = asyncio.get_running_loop()
                return loop.get_exception_handler(), loop.get_task_factory()
        print(w.result.looks)
        """,
        flags=STRICT,
    )
    assert found.stdout == "(None, None)\n"


def test_nothing_is_said_of_what_was_cancelled_or_failed_beside_the_first_failure(
    script: Script,
) -> None:
    found = script(
        """
        import asyncio, gc, time
        from wove import merge, weave

        async def late(item):
            await asyncio.sleep(0.05)
            raise OSError(item)

        def declare(w):
            @w.do
            def first():
                time.sleep(0.02)
                raise LookupError
            @w.do(range(5))
            async def others(item):
                try:
                    await asyncio.sleep(0.1)
                finally:
                    raise OSError(item)
            @w.do(range(5), workers=2)
            def in_threads(item):
                time.sleep(0.05)
                raise OSError(item)
            @w.do
            def merges():
                merge(late, range(3))
            @w.do
            async def merges_too():
                await merge(late, range(3))
            @w.do
            def gives_a_coroutine():
                time.sleep(0.05)
                return late(1)
            @w.do(timeout=0.01)
            def times_out():
                time.sleep(0.05)
                return late(1)

        async def main():
            for mode in ("raise", "return", "continue"):
                try:
                    async with weave(error_mode=mode) as w:
                        declare(w)
                except (LookupError, OSError):
                    pass

        for mode in ("raise", "return", "continue"):
            try:
                with weave(error_mode=mode) as w:
                    declare(w)
            except (LookupError, OSError):
                pass
        asyncio.run(main())
        time.sleep(0.2)
        gc.collect()
        print("ok")
        """,
        flags=STRICT,
    )
    assert found.stdout == "ok\n"
    assert not found.complaints


# ------------------------------------------------------------------------------------ objects of multiprocessing


POOL = """
import os, time, wove
from multiprocessing import Manager, resource_tracker, shared_memory
from wove import weave

wove.config(environments={"pool": {"executor": "stdio", "executor_config": {"processes": 1}}})

def attach(name):
    segment = shared_memory.SharedMemory(name=name)
    try:
        return segment.buf[0]
    finally:
        segment.close()

def create():
    segment = shared_memory.SharedMemory(create=True, size=10)
    segment.buf[0] = 7
    segment.close()
    return segment.name

def elsewhere(fn, *items):
    with weave() as w:
        w.do(items, environment="pool")(fn)
    return w.result.final
"""


@needs_dispatch
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("end", ["wove.shutdown()", "os.kill(elsewhere(pid, 1)[0], 9)"])
def test_a_segment_outlives_a_worker_that_attached_to_it(
    script: Script, warm: bool, end: str
) -> None:
    """Also where the pool was there before anything of multiprocessing was used."""
    found = script(
        POOL
        + textwrap.dedent(
            f"""
            def pid(item):
                return os.getpid()

            {"elsewhere(pid, 1)" if warm else ""}
            segment = shared_memory.SharedMemory(create=True, size=10)
            segment.buf[0] = 42
            print(elsewhere(attach, segment.name))
            {end}
            wove.shutdown()
            print(attach(segment.name))
            segment.close()
            segment.unlink()
            """
        ),
        flags=("-W", "error"),
    )
    assert found.stdout == "[42]\n42\n"
    assert "leaked" not in found.stderr and "Traceback" not in found.stderr


@needs_dispatch
def test_a_segment_of_a_worker_is_the_programs_to_remove(script: Script) -> None:
    found = script(
        POOL
        + textwrap.dedent(
            """
            (name,) = elsewhere(lambda item: create(), 1)
            wove.shutdown()
            segment = shared_memory.SharedMemory(name=name)
            print(segment.buf[0])
            segment.close()
            segment.unlink()
            """
        ),
        flags=("-W", "error"),
    )
    assert found.stdout == "7\n"
    assert not found.complaints


@needs_dispatch
def test_managers_and_their_locks_and_queues_work_in_the_pool(script: Script) -> None:
    found = script(
        POOL
        + textwrap.dedent(
            """
            if __name__ == "__main__":
                elsewhere(str, 1)
                with Manager() as manager:
                    lock, counts, queue = manager.Lock(), manager.dict(n=0), manager.Queue()

                    def count(item):
                        with lock:
                            counts["n"] += 1
                        queue.put(item)

                    elsewhere(count, *range(10))
                    print(counts["n"], sorted(queue.get() for _ in range(10)) == list(range(10)))
            """
        ),
        flags=("-W", "error"),
    )
    assert found.stdout == "10 True\n"
    assert not found.complaints


# ------------------------------------------------------------------------- what a worker has of its parent


@needs_dispatch
@pytest.mark.parametrize("flag", ["-I", "-E", "-S"])
def test_an_isolated_interpreter_has_workers(script: Script, flag: str) -> None:
    """They find Wove where the parent does, though no PYTHONPATH tells them."""
    paths = [
        path
        for path in sys.path
        if (Path(path) / "cloudpickle").exists() or (Path(path) / "wove").exists()
    ]
    found = script(
        f"""
        import sys
        sys.path += {paths}
        import wove

        wove.config(environments={{"pool": {{"executor": "stdio", "executor_config": {{"processes": 1}}}}}})
        with wove.weave() as w:
            @w.do(environment="pool")
            def seen():
                flags = sys.flags
                return flags.isolated, flags.ignore_environment, flags.no_site, sys.path
        flags = sys.flags
        print(w.result.seen == (flags.isolated, flags.ignore_environment, flags.no_site, sys.path))
        """,
        flags=(flag, "-S"),
    )
    assert found.stdout == "True\n"
    assert not found.complaints


@needs_dispatch
def test_a_worker_logs_what_its_parent_does(script: Script) -> None:
    found = script(
        """
        import logging, sys, wove

        logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
        logging.getLogger("mine").setLevel(logging.INFO)
        wove.config(environments={"pool": {"executor": "stdio", "executor_config": {"processes": 1}}})
        with wove.weave() as w:
            @w.do(environment="pool")
            def log():
                logging.getLogger("mine").info("shown")
                logging.getLogger("mine").debug("hidden")
                logging.getLogger("another").warning("hidden")
                logging.getLogger("another").error("shown")
                logging.basicConfig(stream=sys.stderr, format="%(message)s of my own")
                logging.getLogger("mine").info("shown")
        wove.shutdown()
        """,
    )
    assert found.complaints == ["shown", "shown", "shown of my own"]


@needs_dispatch
def test_a_worker_has_the_signals_of_a_fresh_process(script: Script) -> None:
    """A parent that discards exit statuses, or a thread that blocks signals, does not pass that on."""
    found = script(
        """
        import signal, subprocess, sys, wove

        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        wove.config(environments={"pool": {"executor": "stdio", "executor_config": {"processes": 1}}})
        with wove.weave() as w:
            @w.do(environment="pool")
            def signals():
                status = subprocess.run([sys.executable, "-c", "raise SystemExit(3)"]).returncode
                return status, signal.pthread_sigmask(signal.SIG_BLOCK, [])
        print(w.result.signals)
        """,
    )
    assert found.stdout == "(3, set())\n"
    assert not found.complaints
