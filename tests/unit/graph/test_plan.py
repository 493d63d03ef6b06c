"""Declarations in, a plan out: edges, order, and what is wrong."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, strategies as st

from wove.errors import UnresolvedSignatureError
from wove.graph.plan import Declaration, ExecutionPlan, Plan, plan


def planned(*fns: Callable[..., Any] | Declaration, **values: Any) -> Plan:
    declarations = [fn if isinstance(fn, Declaration) else Declaration(fn, {}) for fn in fns]
    return plan({declaration.name: declaration for declaration in declarations}, values)


def mapped(source: Any, fn: Callable[..., Any], **options: Any) -> Declaration:
    return Declaration(fn, options, source, mapped=True)


def shown(*fns: Callable[..., Any] | Declaration, **values: Any) -> ExecutionPlan:
    made = planned(*fns, **values)
    assert made.error is None
    return made.execution_plan()


def error(*fns: Callable[..., Any] | Declaration, **values: Any) -> Exception:
    found = planned(*fns, **values).error
    assert found is not None
    return found


def a() -> None: ...
def b(a: Any) -> None: ...
def c(a: Any, b: Any) -> None: ...


def named(name: str, *needs: str) -> Declaration:
    namespace: dict[str, Any] = {}
    exec(
        f"def {name}({', '.join(needs)}): return ({''.join(f'{need}, ' for need in needs)})",
        namespace,
    )
    return Declaration(namespace[name], {})


def test_a_parameter_that_names_a_task_is_a_dependency() -> None:
    made = shown(c, b, a)
    assert made.dependencies == {"c": ["b", "a"], "b": ["a"], "a": []}
    assert made.dependents == {"c": [], "b": ["c"], "a": ["c", "b"]}
    assert made.sorted_tasks == ["a", "b", "c"]
    assert made.tiers == [["a"], ["b"], ["c"]]


def test_the_plan_can_be_read_as_attributes_and_as_a_mapping() -> None:
    made = shown(a, b)
    assert made["tiers"] == made.tiers
    assert set(made) == {"dependencies", "dependents", "tiers", "sorted_tasks"} == set(dict(made))
    assert len(made) == 4
    with pytest.raises(KeyError):
        made["layers"]
    assert repr(made) == "<ExecutionPlan [a] -> [b]>"


def test_initial_values_are_no_tasks() -> None:
    made = shown(b, a=1)
    assert made.dependencies == {"b": []}


def test_data_names_all_initial_values() -> None:
    def whole(data: dict[str, Any]) -> None: ...

    assert shown(whole).dependencies == {"whole": []}


def test_a_default_is_kept_unless_it_names_something() -> None:
    def both(a: int = 1, elsewhere: int = 2) -> None: ...

    assert shown(a, both).dependencies["both"] == ["a"]
    assert shown(both).dependencies["both"] == []


def test_stars_need_nothing() -> None:
    def starred(*args: Any, **kwargs: Any) -> None: ...

    assert shown(a, starred).dependencies["starred"] == []


def test_what_names_nothing_is_an_error_that_says_all() -> None:
    def uses(acount: Any) -> None: ...

    def account() -> None: ...

    found = error(a, account, uses, day=1)
    assert isinstance(found, UnresolvedSignatureError)
    assert isinstance(found, NameError)
    text = str(found)
    for part in ("'acount'", "'uses'", "Did you mean 'account'?", "Available: day, a, account."):
        assert part in text


def test_what_names_nothing_where_there_is_nothing() -> None:
    def uses(thing: Any) -> None: ...

    assert "Available: nothing." in str(error(uses))


@pytest.mark.parametrize(
    ("edges", "cycle"),
    [
        ({"x": ["x"]}, ["x"]),
        ({"x": ["y"], "y": ["x"]}, ["x", "y"]),
        ({"x": ["z"], "y": ["x"], "z": ["y"]}, ["x", "y", "z"]),
        ({"entry": [], "x": ["y", "entry"], "y": ["x"], "exit": ["y"]}, ["x", "y"]),
    ],
)
def test_a_cycle_is_printed_in_the_direction_of_the_data(
    edges: dict[str, list[str]], cycle: list[str]
) -> None:
    declarations = [named(name, *needs) for name, needs in edges.items()]
    found = error(*declarations)
    assert type(found) is RuntimeError
    match = re.fullmatch(r"Circular dependency detected: (.*)", str(found))
    assert match is not None
    path = match[1].split(" -> ")
    assert path[0] == path[-1]
    assert sorted(path[1:]) == cycle
    for source, target in zip(path, path[1:], strict=False):
        assert source in edges[target]


def test_the_plan_is_there_when_it_is_wrong() -> None:
    def lost(nowhere: Any, a: Any) -> None: ...

    made = planned(a, b, lost).execution_plan()
    assert made.dependencies["b"] == ["a"]
    assert made.dependencies["lost"] == ["a"]
    circle = planned(a, named("x", "y", "a"), named("y", "x")).execution_plan()
    assert circle.dependencies == {"a": [], "x": ["a", "y"], "y": ["x"]}
    assert circle.tiers == [["a"]]


def test_a_cycle_through_the_source_of_a_map() -> None:
    def x(item: Any) -> None: ...

    found = error(mapped("y", x), named("y", "x"))
    assert str(found).startswith("Circular dependency detected: ")


def test_a_map_waits_for_its_source_once() -> None:
    def each(item: Any, a: Any) -> None: ...

    assert shown(a, mapped("a", each)).dependencies["each"] == ["a"]


def test_the_source_can_be_an_initial_value_or_data() -> None:
    def each(item: Any) -> None: ...

    assert shown(mapped("rows", each), rows=[1]).dependencies["each"] == []
    assert shown(mapped("data", each), rows=[1]).dependencies["each"] == []


def test_an_unknown_source() -> None:
    def each(item: Any) -> None: ...

    found = error(mapped("row", each), rows=[1])
    assert isinstance(found, NameError)
    for part in ("'each'", "'row'", "Did you mean 'rows'?", "Available: rows."):
        assert part in str(found)


def test_the_parameter_that_names_nothing_gets_the_item() -> None:
    def each(a: Any, this: Any, *, other: int = 1) -> None: ...

    node = planned(a, mapped([1], each)).nodes[1]
    assert node.item == "this"


def test_a_single_free_parameter_gets_the_item_although_it_has_a_default() -> None:
    def each(this: int = 1) -> None: ...

    assert planned(mapped([1], each)).nodes[0].item == "this"


@pytest.mark.parametrize(
    ("fn", "parts"),
    [
        (lambda: None, ["no parameter for the item", "none at all"]),
        (lambda a: None, ["no parameter for the item", "'a'"]),
        (lambda this, that: None, ["2 parameters", "(this, that)"]),
        (lambda this=1, that=2: None, ["2 parameters"]),
    ],
)
def test_not_exactly_one_free_parameter(fn: Callable[..., Any], parts: list[str]) -> None:
    found = error(a, mapped([1], fn))
    assert type(found) is TypeError
    for part in ("'<lambda>'", *parts):
        assert part in str(found)


def test_a_generator_or_a_mapped_task_as_the_source_streams() -> None:
    def stream() -> Iterator[int]:
        yield 1

    def each(item: Any) -> None: ...

    def each_with_all(item: Any, stream: Any) -> None: ...

    def each_of_list(item: Any) -> None: ...

    def each_of_each(item: Any) -> None: ...

    def each_of_each_with_all(item: Any, each: Any) -> None: ...

    made = planned(
        a,
        stream,
        mapped("stream", each),
        mapped("stream", each_with_all),
        mapped("a", each_of_list),
        mapped("each", each_of_each),
        mapped("each", each_of_each_with_all),
    )
    streams = [node.name for node in made.nodes if node.streams]
    assert streams == ["each", "each_of_each"]


@pytest.mark.parametrize("seed", range(20))
def test_the_order_depends_on_the_order_of_definition_alone(seed: int) -> None:
    def wide(e: Any, d: Any, c: Any, b: Any, a: Any) -> None: ...

    singles = [named(name) for name in "abcde"]
    random.Random(seed).shuffle(singles)
    made = shown(wide, *singles)
    order = [single.name for single in singles]
    assert made.sorted_tasks == [*order, "wide"]
    assert made.tiers == [order, ["wide"]]
    assert made.dependencies["wide"] == order


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, list[str]]:
    count = draw(st.integers(1, 12))
    edges = {f"t{i}": [f"t{j}" for j in range(i) if draw(st.booleans())] for i in range(count)}
    return {name: edges[name] for name in draw(st.permutations(list(edges)))}


@given(graphs())
def test_a_plan_respects_every_edge(edges: dict[str, list[str]]) -> None:
    made = shown(*(named(name, *needs) for name, needs in edges.items()))
    assert {name: sorted(needs) for name, needs in made.dependencies.items()} == {
        name: sorted(needs) for name, needs in edges.items()
    }
    place = {name: i for i, name in enumerate(made.sorted_tasks)}
    tier = {name: i for i, names in enumerate(made.tiers) for name in names}
    assert place.keys() == tier.keys() == edges.keys()
    for name, needs in edges.items():
        assert all(place[need] < place[name] for need in needs)
        assert tier[name] == 1 + max((tier[need] for need in needs), default=-1)
        assert all(name in made.dependents[need] for need in needs)
