"""How long the event loop stands still while much data goes out and comes back."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

from .fresh import call
from .harness import Figure, Probe, Target, Values, benchmark

SUBJECT = "longest gap beside the weave"
IDLE = "longest gap of an idle loop meanwhile"
ELAPSED = "the weave's own time"


def gap_probe(function: str, *arguments: int | str) -> Probe:
    """Both gaps of one round: each loop has a process of its own, and they run at the same time."""

    def probe() -> Values:
        command = [sys.executable, "-m", "benchmarks.fresh", "benchmarks.children:idle"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as idle:
            assert idle.stdin is not None
            assert idle.stdout is not None
            assert idle.stdout.readline() == "ready\n"
            busy = call(f"benchmarks.children:{function}", *arguments)
            idle.stdin.close()
            beside = json.loads(idle.stdout.read())
        return {SUBJECT: busy["gap"], IDLE: beside["gap"], ELAPSED: busy["elapsed"]}

    return probe


@benchmark("loop-gap")
def gaps() -> Iterator[Figure]:
    """The longest gap of the loop while an `async with` weave talks to stdio, in fresh processes."""
    for title, function, number in (
        ("100 MiB of bytes to stdio and back", "echo_bytes", 100),
        ("1.2 million small rows to stdio and back", "echo_rows", 1_200_000),
    ):
        yield Figure(
            title,
            SUBJECT,
            [gap_probe(function, number)],
            Target(0.15, "over by"),
            aside=(ELAPSED,),
            rounds=7,
        )
