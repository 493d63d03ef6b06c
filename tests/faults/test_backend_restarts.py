"""Workers of backends that are killed and come again, all the time: no run is lost, none comes twice, none hangs.

The rows are in tests/backends.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

import pytest
from tests.backends import Restarts, parameters, restart_rows
from tests.support.killer import Killer
from tests.support.servers import Servers
from tests.support.volume import volume

import wove
from wove import weave

RUNS = volume(2000, 200)
"""Over each backend, but for those that do fewer."""

EVERY = volume(3.0, 1.5)
"""Seconds between two deaths; more only where the worker needs longer to come up."""

ALIVE = 1.0
"""Seconds that it takes work before it dies."""

AT_LEAST = volume(3, 2)
"""It goes on until there were so many deaths."""

AT_MOST = volume(100, 4)
"""After so many it is left alone: on a busy machine, nothing may get done in the time between two."""


@pytest.mark.parametrize("row", parameters(restart_rows()))
def test_runs_on_a_worker_that_is_killed_again_and_again(
    row: Restarts, servers: Servers, tmp_path: Path
) -> None:
    began = str(tmp_path / "began")
    arrived: Counter[int] = Counter()

    def returned(item: int) -> int:
        # One write() of a few bytes with O_APPEND: it is there as a whole before the process can die.
        file = os.open(began, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(file, b"%d\n" % item)
        finally:
            os.close(file)
        time.sleep(0.005)
        return item

    with row.open(servers, tmp_path / "worker") as (environment, worker):
        wove.config(environments={"mortal": {**environment, "delivery_orphan_policy": "requeue"}})
        runs = RUNS * row.runs // 1000
        killer = Killer(worker.ready, worker.kill_all, every=EVERY, alive=ALIVE, most=AT_MOST)
        begin = time.monotonic()
        items, results = range(0), list[int]()
        with killer.at_work():
            # A quick machine is through before that, and gets as many again.
            while killer.kills < AT_LEAST and killer.error is None:
                more = range(len(items), len(items) + runs)
                with weave() as w:

                    @w.do(more, environment="mortal")
                    def far(item: int) -> int:
                        return returned(item)

                    @w.do("far")
                    def counted(item: int) -> None:
                        arrived[item] += 1

                items, results = range(more.stop), results + w.result.far

        seconds = time.monotonic() - begin
        wove.shutdown()
    ran = Counter(map(int, Path(began).read_text().split()))
    print(f"{len(items)} runs, {sum(ran.values())} begun, {killer.kills} deaths, {seconds:.1f} s")
    assert results == list(items)  # none lost, none twice, each in its place
    assert arrived == Counter(items)
    assert ran.keys() == set(items)  # each was really there, and not only here
