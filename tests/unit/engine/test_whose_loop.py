"""Whose thread and whose loop it is: what blocks them, what shares them, and what is refused in words."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.support.forms import PATIENCE, soon

from wove import WeaveStateError, WoveWarning, config, weave


def one_async_task() -> int:
    with weave() as w:

        @w.do
        async def one() -> int:
            return 1

    return int(w.result.one)


# --- a plain `with` in a running loop


def test_a_plain_block_in_a_running_loop_warns_where_it_stands() -> None:
    async def main() -> None:
        for _ in range(3):
            one_async_task()

    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        warnings.simplefilter("default")
        asyncio.run(main())
    [warning] = caught  # once, however often that line is run
    assert warning.category is WoveWarning
    assert "async with weave()" in str(warning.message)
    assert warning.filename == __file__


def test_a_notebook_is_not_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    ipython: Any = ModuleType("IPython")
    ipython.get_ipython = object
    monkeypatch.setitem(sys.modules, "IPython", ipython)

    async def main() -> int:
        return one_async_task()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert asyncio.run(main()) == 1


def test_no_loop_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert one_async_task() == 1


# --- loops that are not asyncio's, threads that are none


def test_async_with_without_a_loop_of_asyncio() -> None:
    async def main() -> None:
        async with weave():
            raise AssertionError("the block is not entered")

    coroutine = main()
    with pytest.raises(WeaveStateError, match="runs on asyncio.*trio.to_thread.run_sync"):
        coroutine.send(None)  # as another library's loop does


@pytest.mark.parametrize(
    ("module", "asks", "remedy"),
    [
        ("gevent.monkey", "is_module_patched", "patch_all"),
        ("eventlet.patcher", "is_monkey_patched", "monkey_patch"),
    ],
)
def test_green_threads_are_refused_at_once(
    module: str, asks: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    patched: Any = ModuleType(module)
    monkeypatch.setitem(sys.modules, module, patched)

    setattr(patched, asks, lambda name: False)
    assert one_async_task() == 1
    setattr(patched, asks, lambda name: name in ("thread", "threading"))
    with pytest.raises(WeaveStateError, match=f"real ones.*{remedy}"):
        one_async_task()


# --- asgiref, as under Django


def test_a_sync_view_may_weave_tasks_that_come_back_to_its_thread() -> None:
    sync = pytest.importorskip("asgiref.sync")
    variable = threading.local()

    def query() -> tuple[int, str]:
        return threading.get_ident(), variable.tenant

    def view() -> tuple[int, Any]:
        variable.tenant = "acme"  # as the database connection of a request, it is the thread's own
        with weave() as w:

            @w.do
            async def row() -> tuple[int, str]:
                return await sync.sync_to_async(query)()

            @w.do
            async def rows(row: Any) -> list[Any]:
                return [row, await sync.sync_to_async(query)()]

        return threading.get_ident(), w.result.rows

    async def main() -> tuple[int, Any]:
        async with sync.ThreadSensitiveContext():
            return await asyncio.wait_for(sync.sync_to_async(view)(), PATIENCE)

    thread, rows = asyncio.run(main())
    assert rows == [(thread, "acme")] * 2


def test_what_a_task_raises_in_a_sync_view_comes_out() -> None:
    sync = pytest.importorskip("asgiref.sync")

    def view() -> None:
        with weave() as w:

            @w.do
            async def broken() -> None:
                raise LookupError("no row")

    with pytest.raises(LookupError, match="no row"):
        asyncio.run(sync.sync_to_async(view)())


# --- threads of asyncio.to_thread


@pytest.mark.parametrize("fails", [False, True])
def test_a_block_does_not_wait_for_the_threads_of_to_thread(fails: bool) -> None:
    release, ended = threading.Event(), threading.Event()

    def stuck() -> None:
        release.wait(PATIENCE)
        ended.set()

    try:
        with pytest.raises((TimeoutError, LookupError)), weave() as w:

            @w.do(timeout=0.05)
            async def slow() -> None:
                await asyncio.to_thread(stuck)

            if fails:

                @w.do
                async def broken() -> None:
                    await asyncio.sleep(0.01)
                    raise LookupError

        assert not ended.is_set()
    finally:
        release.set()
    soon(ended.is_set)
    assert one_async_task() == 1  # on a loop of its own


# --- Ctrl-C while waiting for a background weave


def test_an_interrupted_wait_does_not_end_a_background_weave() -> None:
    release = threading.Event()
    with weave(background=True) as w:

        @w.do
        def work() -> int:
            release.wait(PATIENCE)
            return 1

    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    with contextlib.suppress(KeyboardInterrupt):
        w.wait(PATIENCE)
    assert not w.done()
    assert w.wait(0.01) is False
    release.set()
    assert w.wait(PATIENCE)
    assert w.result.work == 1


# --- modules that are being imported

MODULE = """
import functools
import wove

wove.config(environments={"pool": {"executor": "stdio", "executor_config": {"processes": 1}}})

class Item:
    pass

def square(item, given=None):
    return 1

def local(item):
    return 2

with wove.weave() as w:
    w.do([1])(local)
try:
    with wove.weave() as w:
        DECLARE
except wove.WeaveStateError as error:
    print(error)
"""


@pytest.mark.parametrize(
    "declare",
    [
        "w.do([1, 2], environment='pool')(square)",
        "w.do(environment='pool')(functools.partial(square, 1))",
        "w.do([Item()], environment='pool')(len)",
    ],
)
def test_tasks_of_a_module_that_is_being_imported_are_refused(declare: str, tmp_path: Path) -> None:
    (tmp_path / "jobs.py").write_text(MODULE.replace("DECLARE", declare))
    done = subprocess.run(
        [sys.executable, "-c", "import jobs"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE * 2,
        check=True,
    )
    assert "its module 'jobs' is being imported" in done.stdout, done.stderr


def test_a_module_that_another_thread_imports_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slowly_imported.py").write_text(
        "import time\ndef one(): return 1\ntime.sleep(0.5)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    config(environments={"pool": {"executor": "stdio", "executor_config": {"processes": 1}}})
    thread = threading.Thread(target=__import__, args=("slowly_imported",))
    thread.start()
    soon(lambda: hasattr(sys.modules.get("slowly_imported"), "one"))
    with weave() as w:
        w.do(environment="pool")(sys.modules["slowly_imported"].one)
    thread.join(PATIENCE)
    assert w.result.one == 1
