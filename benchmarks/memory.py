"""Peak memory of maps, in fresh processes."""

from __future__ import annotations

from collections.abc import Iterator

from .fresh import call
from .harness import Figure, Probe, Target, Values, benchmark

FLOOR = "an interpreter with asyncio"


def peak(label: str, function: str, *numbers: int) -> Probe:
    """The peak memory of a fresh process that calls *function* of `children`."""

    def probe() -> Values:
        return {label: call(f"benchmarks.children:{function}", *numbers)["peak"]}

    return probe


@benchmark("memory")
def memory() -> Iterator[Figure]:
    """Peak memory of a fresh process: big maps, with and without a bound."""
    floor = peak(FLOOR, "nothing")
    yield Figure(
        "map of 100,000 items",
        "wove",
        [peak("wove", "weave_map", 100_000, 0), peak("gather", "gather_map", 100_000), floor],
        Target(1.1),
        aside=(FLOOR,),
        rounds=7,
        unit="MiB",
    )
    for title, subject, reference, count, workers in (
        ("map of 100,000 items, workers=100", "weave_map", "pull_map", 100_000, 100),
        ("generator of 200,000 x 1 KiB, workers=8", "weave_chunks", "pull_chunks", 200_000, 8),
    ):
        pulling = f"{workers} coroutines pulling one iterator"
        yield Figure(
            title,
            "wove",
            [
                peak("wove", subject, count, workers),
                peak(pulling, reference, count, workers),
                floor,
            ],
            Target(1.5),
            aside=(FLOOR,),
            rounds=7,
            unit="MiB",
        )
