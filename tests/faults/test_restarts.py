"""Services that are killed and come again, all the time: nothing is lost, nothing comes twice, nothing hangs."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.support.killer import Killer
from tests.support.services import Plan, running
from tests.support.volume import volume

import wove
from wove import weave

RUNS = volume(10_000, 4_000)
"""Over each transport."""

EVERY = volume(2.0, 1.0)
"""Seconds between two deaths; more only where the service needs longer to come up."""

ALIVE = volume(0.0, 1.0)
"""Seconds that it takes work before it dies, at the least."""

AT_LEAST = 3
"""So many deaths, or the test has not seen what it is about."""

AT_MOST = volume(100, 6)
"""After so many it is left alone: on a busy machine, nothing may get done in the time between two."""


@pytest.mark.timeout(180)
@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize(
    "transport",
    [pytest.param(name, marks=pytest.mark.backend(name)) for name in ("http", "grpc", "websocket")],
)
def test_runs_against_a_service_that_dies_again_and_again(transport: Any, tmp_path: Path) -> None:
    begun = str(tmp_path / "begun")
    with running(Plan(transport, supervised=True, concurrency=64), tmp_path / "service") as service:
        wove.config(
            environments={"mortal": {"executor": transport, "executor_config": service.config()}}
        )
        killer = Killer(service.ready, service.kill, every=EVERY, alive=ALIVE, most=AT_MOST)
        arrived: Counter[int] = Counter()

        def returned(item: int) -> int:
            # One write() of a few bytes with O_APPEND: it is there as a whole before the process can die.
            file = os.open(begun, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            try:
                os.write(file, b"%d\n" % item)
            finally:
                os.close(file)
            time.sleep(0.05)
            return item

        with killer.at_work():
            with weave() as w:

                @w.do(range(RUNS), environment="mortal", workers=64, retries=5)
                def far(item: int) -> int:
                    return returned(item)

                @w.do("far")
                def counted(item: int) -> None:
                    arrived[item] += 1

        wove.shutdown()
    ran = Counter(map(int, Path(begun).read_text().split()))
    ends = [record for record in w.result.run_records if record.task == "far"]
    print(
        f"{transport}: {len(ends)} attempts of {RUNS} runs, {sum(ran.values())} begun, "
        f"{killer.kills} deaths, {w.result.timings['far']:.1f} s"
    )
    assert w.result.far == list(range(RUNS))  # none lost, none twice, each in its place
    assert arrived == Counter(range(RUNS))
    assert ran.keys() == set(range(RUNS))  # each was really there, and not only here
    assert killer.kills >= AT_LEAST
    assert service.starts == killer.kills + 1  # and it never died of anything else
    assert len(ends) > RUNS  # some were lost on their way, and went there again
