"""A map whose process is killed goes on where it was."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.scripts import Finished
from tests.support.volume import volume

A_FEW = 200
"""Items that may run twice: those that were under way, and results that were about to be written."""

SCRIPT = """
import os, signal, sys
from wove import weave

calls = os.open("calls", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def work(number):
    if number == int(os.environ.get("KILL_AT", -1)):
        os.kill(os.getpid(), signal.SIGKILL)
    os.write(calls, b".")
    return {"number": number}

items = range(int(sys.argv[2]))
with weave(store="runs/") as w:
    if sys.argv[1] == "threads":
        @w.do(items, cache=True, workers=4)
        def item(number): return work(number)
    else:
        @w.do(items, cache=True, workers=4)
        async def item(number): return work(number)

print(sum(row["number"] for row in w.result.item))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system kills in another way")
@pytest.mark.parametrize(("where", "items"), [("threads", 10_000), ("loop", volume(10_000, 1_000))])
def test_a_map_that_is_killed_at_nine_tenths_runs_the_last_tenth_again(
    where: str, items: int, script: Callable[..., Finished], tmp_path: Path
) -> None:
    killed_at = items * 9 // 10
    killed = script(SCRIPT, where, str(items), env={"KILL_AT": str(killed_at)}, check=False)
    assert killed.returncode == -signal.SIGKILL
    before = (tmp_path / "calls").stat().st_size
    assert before >= killed_at - 10

    whole = script(SCRIPT, where, str(items))
    assert whole.stdout == f"{sum(range(items))}\n"
    again = (tmp_path / "calls").stat().st_size - before
    assert items - before <= again <= items - before + A_FEW

    assert script(SCRIPT, where, str(items)).stdout == whole.stdout
    assert (tmp_path / "calls").stat().st_size == before + again
