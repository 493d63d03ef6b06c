"""The graph of a weave: what its tasks are doing, as text, as Mermaid, as a picture."""

from __future__ import annotations

import threading
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, strategies as st

from wove import weave
from wove.observe.graph import Graph
from wove.observe.graph.layout import PASSING, lay_out
from wove.observe.sampling import Row

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '</title><script>alert(1)</script>"]:::x\n    t9 --> t0'


def graph_of_all_states() -> Graph:
    rows = [
        Row("plain", "waiting"),
        Row(
            "now",
            "running",
            seconds=1.5,
            environment="pool",
            mapped=True,
            items=1200,
            total=5000,
            failed=3,
        ),
        Row("over", "done", seconds=0.012),
        Row("wrong", "failed", seconds=2, error="ValueError", retries=2),
        Row("off", "cancelled", seconds=1),
        Row("never", "skipped"),
    ]
    return Graph(rows, [(), (0,), (0,), (1, 2), (3,), (4,)])


# ---------------------------------------------------------------------- before, during, after


def test_before_the_block_closes_everything_waits() -> None:
    with weave(limit=3) as w:

        @w.do
        def ids(limit: int) -> list[int]:
            return list(range(limit))

        @w.do("ids", workers=2)
        def pdf(item: int) -> int:
            return item

        before = w.graph
    assert before.states == {"ids": "waiting", "pdf": "waiting"}
    assert w.graph.states == {"ids": "done", "pdf": "done"}
    assert "t0 --> t1" in before.mermaid
    assert "done · 3 items" in w.graph.mermaid


def test_while_it_runs_the_graph_says_what_runs() -> None:
    begun, go_on = threading.Event(), threading.Event()
    with weave(background=True) as w:

        @w.do
        def first() -> int:
            return 1

        @w.do([1, 2, 3], workers=1)
        def each(item: int, first: int) -> int:
            if item == 2:
                begun.set()
                assert go_on.wait(20)
            return item

        @w.do
        def last(each: list[int]) -> int:
            return sum(each)

    try:
        assert begun.wait(20)
        assert w.graph.states == {"first": "done", "each": "running", "last": "waiting"}
        assert "running · 1 of 3" in w.graph.mermaid
    finally:
        go_on.set()
    assert w.wait(20)
    assert set(w.graph.states.values()) == {"done"}


def test_after_a_failure_it_says_what_failed_and_what_was_never_begun() -> None:
    with weave(error_mode="return") as w:

        @w.do
        def bad() -> None:
            raise ValueError("no")

        @w.do
        def after(bad: None) -> None: ...

    assert w.graph.states == {"bad": "failed", "after": "skipped"}
    assert "ValueError" in w.graph.svg


def test_a_plan_that_is_wrong_is_drawn_as_far_as_it_goes() -> None:
    w = weave(environment="nowhere")
    with pytest.raises((NameError, RuntimeError)), w:

        @w.do(environment="nowhere, too")
        def one(two: int) -> int:
            return two

        @w.do
        def two(one: int) -> int:
            return one

        assert "in nowhere, too" in w.graph.mermaid
        assert 'class="line backwards"' in w.graph.svg
    assert w.graph.states == {"one": "waiting", "two": "waiting"}


def test_a_weave_without_tasks_has_an_empty_graph() -> None:
    with weave() as w:
        pass
    ET.fromstring(w.graph.svg)
    assert w.graph.states == {}
    assert w.graph.mermaid == "flowchart TD\n"


# ---------------------------------------------------------------------- Mermaid


def test_mermaid_says_state_numbers_and_place_in_words_and_colors() -> None:
    lines = graph_of_all_states().mermaid.splitlines()
    assert lines[0] in ("flowchart TD", "flowchart LR")
    assert '    t0["○ plain<br/>waiting"]:::waiting' in lines
    assert (
        '    t1[["● now<br/>running · 1#44;200 of 5#44;000 · 3 failed · 1.5 s<br/>in pool"]]:::running'
        in [line.replace(",", "#44;") for line in lines]
    )
    assert '    t3["✗ wrong<br/>failed · 2 s<br/>2 retries · ValueError"]:::failed' in lines
    assert [line for line in lines if "-->" in line] == [
        "    t0 --> t1",
        "    t0 --> t2",
        "    t1 --> t3",
        "    t2 --> t3",
        "    t3 --> t4",
        "    t4 --> t5",
    ]
    assert {line.split()[1] for line in lines if "classDef" in line} == {
        "waiting",
        "running",
        "done",
        "failed",
        "cancelled",
    }


def test_no_name_ends_its_label() -> None:
    text = Graph([Row(HOSTILE, "failed", environment=HOSTILE, error=HOSTILE)], [()]).mermaid
    lines = text.splitlines()
    assert len(lines) == 3
    label = lines[1].removeprefix('    t0["').removesuffix('"]:::failed').replace("<br/>", "")
    assert not set('"<>[]/') & set(label)


# ---------------------------------------------------------------------- SVG


def test_the_picture_is_xml_with_a_title_and_a_description() -> None:
    root = ET.fromstring(graph_of_all_states().svg)
    assert root.get("role") == "img"
    title, description = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
    assert title is not None and title.text == (
        "Weave of 6 tasks: 1 running, 1 done, 1 failed, 1 cancelled, 1 waiting, 1 not run"
    )
    assert description is not None and "wrong: failed, 2 s, 2 retries, ValueError" in str(
        description.text
    )


def test_each_state_has_a_sign_and_a_word_beside_its_color() -> None:
    root = ET.fromstring(graph_of_all_states().svg)
    shown = {
        group.get("class"): " ".join(text.text or "" for text in group.iter(f"{SVG}text"))
        for group in root.iter(f"{SVG}g")
    }
    assert "○ plain waiting" in shown["waiting"]
    assert "● now running" in shown["running"]
    assert "✓ over done" in shown["done"]
    assert "✗ wrong failed" in shown["failed"]
    assert "– never not run" in shown["cancelled"]


def test_a_picture_has_nothing_that_runs() -> None:
    rows = [Row(HOSTILE + "\x00\udcff", "failed", environment=HOSTILE, error=HOSTILE)]
    text = Graph(rows, [()]).svg
    found: list[str] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.append(tag)
            found.extend(name for name, _ in attrs if name.startswith("on"))

    Tags().feed(text)
    assert "script" not in found and not [name for name in found if name.startswith("on")]
    ET.fromstring(text)


def test_a_notebook_shows_the_picture_for_a_weave() -> None:
    with weave() as w:

        @w.do
        def one() -> int:
            return 1

    bundle: dict[str, Any] = w._repr_mimebundle_()
    assert bundle["image/svg+xml"] == w.graph.svg
    assert w.graph.svg in bundle["text/html"]
    assert bundle["text/plain"] == repr(w)
    assert str(w.graph).startswith("✓ one: done")


# ---------------------------------------------------------------------- the layout


@st.composite
def graphs(draw: st.DrawFn) -> list[list[int]]:
    count = draw(st.integers(1, 14))
    return [draw(st.lists(st.integers(0, count - 1), max_size=4)) for _ in range(count)]


@given(graphs())
def test_every_task_has_a_place_of_its_own_and_every_line_runs_forwards(
    needs: list[list[int]],
) -> None:
    layout = lay_out(needs)
    for (layer, middle), (other_layer, other) in combinations(layout.places, 2):
        assert layer != other_layer or abs(middle - other) >= 1 - 1e-9
    for _, middle in layout.places:
        assert 0.5 - 1e-9 <= middle <= layout.width - 0.5 + 1e-9
    edges = {(need, task) for task, needed in enumerate(needs) for need in needed if need != task}
    assert set(layout.lines) == edges
    for edge, line in layout.lines.items():
        assert (line[0], line[-1]) == (layout.places[edge[0]], layout.places[edge[1]])
        layers = [layer for layer, _ in line]
        if edge not in layout.backwards:
            assert layers == list(range(layers[0], layers[-1] + 1)) and len(layers) > 1


@given(graphs())
def test_without_a_circle_nothing_runs_backwards(needs: list[list[int]]) -> None:
    acyclic = [[need for need in needed if need < task] for task, needed in enumerate(needs)]
    layout = lay_out(acyclic)
    assert not layout.backwards
    for task, needed in enumerate(acyclic):
        assert layout.places[task][0] == max(
            (layout.places[need][0] + 1 for need in needed), default=0
        )


def test_lines_that_need_not_cross_do_not() -> None:
    # Two pairs, declared so that the straight order would cross.
    layout = lay_out([(), (), (1,), (0,)])
    assert (layout.places[0][1] < layout.places[1][1]) == (
        layout.places[3][1] < layout.places[2][1]
    )


def test_a_line_over_a_layer_passes_beside_its_tasks() -> None:
    layout = lay_out([(), (0,), (0, 1)])
    (_, middle) = layout.lines[0, 2][1]
    assert abs(middle - layout.places[1][1]) >= (1 + PASSING) / 2 - 1e-9


def test_a_graph_of_thousands_is_laid_out_in_time() -> None:
    needs: list[tuple[int, ...]] = [()] * 1000
    needs += [(task, (task * 7) % 1000) for task in range(1000)]
    needs.append(tuple(range(1000, 2000)))
    layout = lay_out(needs)
    assert layout.layers == 3
