"""Any graph of any kinds of tasks gives what evaluating it one task after the other gives."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings, strategies as st
from tests.support.forms import FORMS, PATIENCE, attempt

from wove import TaskCancelledError, weave

KINDS = ["sync", "async", "waiting", "returning", "generator", "async generator", "mapped sync", "mapped async",
         "streaming"]  # fmt: skip
OPTIONS: list[dict[str, Any]] = [{}, {"timeout": PATIENCE}, {"retries": 1}]


class Boom(Exception):
    pass


@dataclass(frozen=True)
class Spec:
    """One task: what it needs, how it is written, and whether it fails."""

    name: str
    needs: tuple[str, ...]
    kind: str
    options: int
    fails: bool = False


@st.composite
def graphs(draw: st.DrawFn, *, failing: bool) -> list[Spec]:
    count = draw(st.integers(1, 9))
    specs = [
        Spec(
            f"t{i}",
            tuple(f"t{j}" for j in range(i) if draw(st.integers(0, 2)) == 0),
            draw(st.sampled_from(KINDS)),
            draw(st.integers(0, len(OPTIONS) - 1)),
            failing and draw(st.integers(0, 4)) == 0,
        )
        for i in range(count)
    ]
    return draw(st.permutations(specs))


def function(spec: Spec) -> Callable[..., Any]:
    """The task as its user would write it: its value tells its name and what it was given."""
    mapped = spec.kind in ("mapped sync", "mapped async", "streaming")
    parameters = ", ".join([*(["item"] if mapped else []), *spec.needs])
    value = f"({spec.name!r}, {'item, ' if mapped else ''}{''.join(f'{need}, ' for need in spec.needs)})"
    check = f"check({spec.name!r})"
    bodies = {
        "sync": f"def {spec.name}({parameters}): {check}; return {value}",
        "async": f"async def {spec.name}({parameters}): {check}; return {value}",
        "waiting": f"async def {spec.name}({parameters}): await sleep(0); {check}; return {value}",
        "returning": f"def {spec.name}({parameters}): return later({spec.name!r}, {value})",
        "generator": f"def {spec.name}({parameters}): yield 1; {check}; yield {value}",
        "async generator": f"async def {spec.name}({parameters}): yield 1; {check}; yield {value}",
        "mapped sync": f"def {spec.name}({parameters}): {check}; return {value}",
        "mapped async": f"async def {spec.name}({parameters}): await sleep(0); {check}; return {value}",
        "streaming": f"def {spec.name}({parameters}): {check}; return {value}",
    }
    failing = spec.name if spec.fails else None

    def check(name: str) -> None:
        if name == failing:
            raise Boom(name)

    async def later(name: str, value: Any) -> Any:
        await asyncio.sleep(0)
        check(name)
        return value

    space: dict[str, Any] = {"check": check, "later": later, "sleep": asyncio.sleep}
    exec(bodies[spec.kind], space)
    return space[spec.name]  # type: ignore[no-any-return]


def expected(specs: list[Spec]) -> dict[str, Any]:
    """What a plain loop over the tasks gives; an exception's name where a task fails."""
    by_name = {spec.name: spec for spec in specs}
    values: dict[str, Any] = {}
    for name in sorted(by_name, key=lambda name: int(name[1:])):
        spec = by_name[name]
        given = [values[need] for need in spec.needs]
        failed = [value for value in given if isinstance(value, Boom)]
        if spec.fails or failed:
            values[name] = Boom(name)
        elif spec.kind in ("mapped sync", "mapped async", "streaming"):
            values[name] = [(name, item, *given) for item in range(3)]
        elif spec.kind in ("generator", "async generator"):
            values[name] = [1, (name, *given)]
        else:
            values[name] = (name, *given)
    return values


def declare(w: weave, specs: list[Spec]) -> None:
    if any(spec.kind == "streaming" for spec in specs):

        @w.do
        async def numbers() -> Any:
            for i in range(3):
                await asyncio.sleep(0)
                yield i

    for spec in specs:
        source = {
            "mapped sync": range(3),
            "mapped async": iter(range(3)),
            "streaming": "numbers",
        }.get(spec.kind)
        given = () if source is None else (source,)
        w.do(*given, **OPTIONS[spec.options])(function(spec))  # type: ignore[arg-type]


@settings(max_examples=120, deadline=None)
@given(
    specs=graphs(failing=False),
    form=st.sampled_from(FORMS),
    max_workers=st.sampled_from([1, 2, 256]),
)
def test_as_one_after_the_other(specs: list[Spec], form: str, max_workers: int) -> None:
    done = attempt(form, lambda w: declare(w, specs), max_workers=max_workers)
    assert done.error is None
    for name, value in expected(specs).items():
        assert done.result[name] == value
    assert [name for name in done.w.execution_plan.dependencies if name != "numbers"] == [
        spec.name for spec in specs
    ]


@settings(max_examples=120, deadline=None)
@given(specs=graphs(failing=True), form=st.sampled_from(FORMS))
def test_with_failures_every_independent_branch_is_as_one_after_the_other(
    specs: list[Spec], form: str
) -> None:
    done = attempt(form, lambda w: declare(w, specs), error_mode="continue")
    assert done.error is None
    for name, value in expected(specs).items():
        if isinstance(value, Boom):
            assert isinstance(done.result[name], Boom)
        else:
            assert done.result[name] == value
    failing = {spec.name for spec in specs if spec.fails}
    reached = {failure.task for failure in done.result.failures}
    assert reached <= failing
    assert bool(reached) is bool(failing)
    assert done.result.cancelled == ()


@settings(max_examples=120, deadline=None)
@given(specs=graphs(failing=True), form=st.sampled_from(FORMS))
def test_the_first_failure_comes_out_and_nothing_is_lost(specs: list[Spec], form: str) -> None:
    done = attempt(form, lambda w: declare(w, specs))
    failing = {spec.name for spec in specs if spec.fails}
    values = expected(specs)
    if not failing:
        assert done.error is None
        return
    assert isinstance(done.error, Boom)
    assert done.error.args[0] in failing
    assert done.result.failures[0].exception is done.error
    for name, value in values.items():
        try:
            read = done.result[name]
        except Boom as error:
            assert str(error) in failing  # noqa: PT017
        except TaskCancelledError:
            assert name in done.result.cancelled
        else:
            assert read == value


def test_a_large_graph() -> None:
    chance = random.Random(7)
    specs = [
        Spec(
            f"t{i}",
            tuple({f"t{chance.randrange(i)}" for _ in range(2)}) if i else (),
            KINDS[i % 4],
            i % 7 == 0,
        )
        for i in range(300)
    ]
    lengths: dict[str, int] = {}
    for form in ("with", "async with"):
        done = attempt(form, lambda w: [w.do(_length(spec)) for spec in specs])
        assert done.error is None
        lengths = lengths or {spec.name: done.result[spec.name] for spec in specs}
        assert lengths == {spec.name: done.result[spec.name] for spec in specs}


def _length(spec: Spec) -> Any:
    space: dict[str, Any] = {}
    start = "async def" if spec.kind == "async" else "def"
    exec(
        f"{start} {spec.name}({', '.join(spec.needs)}): return 1 + max([{', '.join(spec.needs)}], default=0)",
        space,
    )
    return space[spec.name]
