"""Figures, probes and rounds: how everything here is measured.

A *figure* is one line of the promise: a subject, the references it is held against, and a target.
A *probe* measures once and says what it found, by label; a figure has one or more. The probes of a
figure take turns (``ABC BCA CAB ...``), so that a machine that slows down for a second slows all of
them, and what counts is the ratio of their medians.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Final, Literal, TypeAlias

MIN_ROUNDS: Final = 7

Values: TypeAlias = Mapping[str, float]
Probe: TypeAlias = Callable[[], Values]
Unit: TypeAlias = Literal["s", "MiB"]
Benchmark: TypeAlias = Callable[[], Iterable["Figure"]]


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure promises.

    Attributes:
        limit: The number that must be held, in the unit that *rule* implies.
        rule: ``"at most"`` and ``"at least"`` judge a ratio: subject / best reference, and best
            reference / subject. ``"over by"`` judges subject - best reference, ``"within"`` the
            subject alone, both in the unit of the figure.
    """

    limit: float
    rule: Literal["at most", "at least", "over by", "within"] = "at most"


@dataclass(frozen=True, slots=True)
class Figure:
    """One comparison.

    Attributes:
        title: What is done.
        subject: The label of the subject among what the probes report.
        probes: What measures it; they take turns.
        target: The promise, or ``None`` for a figure that only informs.
        aside: Labels that are shown and not judged.
        rounds: How often each probe runs, unless the command line says otherwise.
        warm_up: Whether a first round is run and thrown away.
        unit: ``"s"`` for seconds, ``"MiB"`` for memory.
    """

    title: str
    subject: str
    probes: Sequence[Probe]
    target: Target | None = None
    aside: tuple[str, ...] = ()
    rounds: int = 15
    warm_up: bool = True
    unit: Unit = "s"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A figure, measured: every sample by label, in the order of the rounds."""

    benchmark: str
    figure: Figure
    samples: Mapping[str, list[float]]
    medians: Mapping[str, float] = field(init=False)

    def __post_init__(self) -> None:
        medians = {label: statistics.median(values) for label, values in self.samples.items()}
        object.__setattr__(self, "medians", medians)

    @property
    def best(self) -> str | None:
        """The reference with the lowest median, or ``None`` where the subject stands alone."""
        references = [
            label
            for label in self.medians
            if label != self.figure.subject and label not in self.figure.aside
        ]
        return min(references, key=self.medians.__getitem__, default=None)

    @property
    def score(self) -> float:
        """What the target is held against; subject / best reference where there is no target."""
        subject = self.medians[self.figure.subject]
        rule = self.figure.target.rule if self.figure.target else "at most"
        if rule == "within" or self.best is None:
            return subject
        reference = self.medians[self.best]
        if rule == "over by":
            return subject - reference
        return reference / subject if rule == "at least" else subject / reference

    @property
    def reached(self) -> bool | None:
        """Whether the target was reached; ``None`` without one."""
        if (target := self.figure.target) is None:
            return None
        return (
            self.score >= target.limit if target.rule == "at least" else self.score <= target.limit
        )


BENCHMARKS: Final[dict[str, Benchmark]] = {}


def benchmark(name: str) -> Callable[[Benchmark], Benchmark]:
    """Register a function that yields figures; each is measured before the next one is asked for."""

    def register(function: Benchmark) -> Benchmark:
        BENCHMARKS[name] = function
        return function

    return register


def timed(
    label: str, work: Callable[[], object], *, number: int = 1, expect: object = None
) -> Probe:
    """A probe for the seconds that one call of *work* takes, as the mean of *number* calls.

    With *expect*, a call that returns anything else is an error: wrong answers are quick ones.
    """

    def probe() -> Values:
        gc.collect()
        repeat = range(number)
        answer: object = None
        begin = perf_counter()
        for _ in repeat:
            answer = work()
        elapsed = perf_counter() - begin
        _check(label, answer, expect)
        return {label: elapsed / number}

    return probe


def timed_in_loop(
    label: str, work: Callable[[], Awaitable[object]], *, number: int = 1, expect: object = None
) -> Probe:
    """As `timed`, for a coroutine function awaited inside a loop that already runs."""

    async def inside() -> Values:
        await work()  # the loop's own first steps are nobody's cost
        gc.collect()
        repeat = range(number)
        answer: object = None
        begin = perf_counter()
        for _ in repeat:
            answer = await work()
        elapsed = perf_counter() - begin
        _check(label, answer, expect)
        return {label: elapsed / number}

    return lambda: asyncio.run(inside())


def _check(label: str, answer: object, expect: object) -> None:
    if expect is not None and answer != expect:
        raise AssertionError(f"{label}: expected {expect!r:.200}, got {answer!r:.200}")


def run(selected: Sequence[str], rounds: int | None = None) -> Iterator[Outcome]:
    """Measure the benchmarks *selected* by name, each figure as it comes."""
    for name in selected:
        for figure in BENCHMARKS[name]():
            yield Outcome(name, figure, _sample(figure, rounds or figure.rounds))


def _sample(figure: Figure, rounds: int) -> dict[str, list[float]]:
    if figure.warm_up:
        for probe in figure.probes:
            probe()
    samples: dict[str, list[float]] = {}
    for number in range(rounds):
        first = number % len(figure.probes)
        for probe in (*figure.probes[first:], *figure.probes[:first]):
            for label, value in probe().items():
                samples.setdefault(label, []).append(value)
    return samples
