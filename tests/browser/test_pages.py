"""The pages that people look at, in a real browser: what they show, how quickly, and that data cannot run in them.

With ``WOVE_WRITE_PICTURES=1`` the pictures of the documentation are written anew.
"""

from __future__ import annotations

import json
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.browser import Page, browser
from tests.support.made_records import ORIGIN, made_records
from tests.support.volume import volume

import wove
from wove import config, weave
from wove.observe.graph import Graph
from wove.observe.sampling import Row
from wove.observe.timeline import Timeline
from wove.result import RunRecord, Trip

pytestmark = [pytest.mark.backend("chromium"), pytest.mark.timeout(180)]

KEPT = (
    "graph-before-light",
    "graph-during-light",
    "graph-after-light",
    "graph-after-dark",
    "timeline-demo-light",
    "timeline-demo-dark",
    "timeline-large-light",
    "timeline-large-dark",
    "timeline-zoomed-light",
    "timeline-phone",
    "live-page-light",
    "live-page-dark",
    "notebook-cell-light",
    "notebook-cell-dark",
)
"""The pictures of the documentation."""

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
READY = "window.wove !== undefined && window.wove.ready"
HOSTILE = (
    "</script><script>document.title='taken'</script><img src=x onerror=document.title='taken'>"
)
THEMES = ("light", "dark")

ITEMS = 100_000
MAX_BYTES = 10_000_000
MAX_OPEN_SECONDS = volume(2.0, 20.0)
MIN_FRAMES = volume(8.0, 3.0)
"""What a busy machine holds; the figure that was measured is printed."""

TRIES = 8
"""How often a figure is measured at most: what else the machine does only makes it worse."""

FRAMES = """(async () => {
  const frames = 40, from = wove.view(), began = performance.now();
  for (let i = 0; i < frames; i++) { %s; await new Promise(requestAnimationFrame); }
  await new Promise(requestAnimationFrame);
  return frames * 1000 / (performance.now() - began);
})()"""


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with browser() as page:
        yield page


@pytest.fixture(scope="module")
def large() -> str:
    return Timeline(made_records(ITEMS), "100,000 items in four environments").html


def written(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path.as_uri()


def take(page: Page, folder: Path, name: str) -> None:
    """Take the picture *name*, which must show something."""
    page.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    kept = name in KEPT and os.environ.get("WOVE_WRITE_PICTURES")
    path = (PICTURES if kept else folder) / f"{name}.png"
    page.picture(path)
    assert path.stat().st_size > 4_000
    assert page.errors == []


def best(measure: Callable[[], float], enough: Callable[[float], bool], better: Any) -> float:
    """Return the best of some measurements: the first that is enough, if one is."""
    found: list[float] = []
    for _ in range(TRIES):
        found.append(measure())
        if enough(found[-1]):
            break
    return float(better(found))


# ---------------------------------------------------------------------- the timeline


def test_a_hundred_thousand_items_open_and_move_quickly(
    page: Page, large: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    address = written(tmp_path, "large.html", large)
    page.look("light", 1280, 860)
    opened = best(
        lambda: page.open(address, READY), lambda seconds: seconds < MAX_OPEN_SECONDS, min
    )
    moves = {
        "zooming": "wove.setView(from.start + i / 4, from.end - i)",
        "panning over all": "wove.setView(from.start + i / 100, from.end)",
        "panning": "wove.setView(2 + i / 50, 8 + i / 50)",
    }
    frames: dict[str, float] = {}
    for name, move in moves.items():
        page.run("wove.fit()")
        frames[name] = best(
            lambda move=move: page.run(FRAMES % move),  # type: ignore[misc]
            lambda rate: rate >= MIN_FRAMES,
            max,
        )
    for figure, value in (("bytes", len(large)), ("open", opened), *frames.items()):
        record_property(figure, value)
        print(f"{figure}: {value:,.3g}")
    assert len(large) < MAX_BYTES
    assert opened < MAX_OPEN_SECONDS
    assert min(frames.values()) >= MIN_FRAMES, frames


@pytest.mark.parametrize("theme", THEMES)
def test_it_is_readable_in_both_themes(page: Page, large: str, theme: str, tmp_path: Path) -> None:
    page.look(theme, 1280, 860)
    page.open(written(tmp_path, "large.html", large), READY)
    take(page, tmp_path, f"timeline-large-{theme}")
    page.run("wove.setView(3, 3.4)")
    take(page, tmp_path, f"timeline-zoomed-{theme}")


def test_it_fits_on_a_phone(page: Page, large: str, tmp_path: Path) -> None:
    page.look("light", 420, 860, 1.5)
    page.open(written(tmp_path, "large.html", large), READY)
    assert page.run("document.documentElement.scrollWidth") <= 420
    take(page, tmp_path, "timeline-phone")


def test_the_page_asks_for_nothing_but_itself(page: Page, tmp_path: Path) -> None:
    page.requests.clear()
    address = written(tmp_path, "small.html", Timeline(made_records(50)).html)
    page.open(address, READY)
    assert {request for request in page.requests if not request.startswith("data:")} == {address}


@pytest.mark.parametrize(
    ("query", "matches"),
    [
        ("render", lambda record: record.task == "render"),
        ("parse[7]", lambda record: record.task == "parse" and record.item == 7),
        ("#12", lambda record: record.item == 12),
        ("celery node2", lambda record: record.environment == "celery" and record.host == "node2"),
        ("reset", lambda record: "reset" in (record.error or "")),
        ("is:lost store", lambda record: record.task == "store" and lost(record)),
        ("nothing at all", lambda _: False),
    ],
)
def test_search_finds_tasks_items_workers_and_errors(
    page: Page, query: str, matches: Callable[[RunRecord], bool], tmp_path: Path
) -> None:
    records = made_records(6_000)
    page.open(written(tmp_path, "some.html", Timeline(records).html), READY)
    page.run(f"wove.find({query!r})")
    assert page.run("wove.matches()") == sum(map(matches, records))


def lost(record: RunRecord) -> bool:
    return record.losses > 0 or (record.error or "").startswith("WorkerLostError")


def test_the_keys_move_zoom_search_and_switch(page: Page, tmp_path: Path) -> None:
    page.look("light", 1000, 800)
    page.open(written(tmp_path, "some.html", Timeline(made_records(2_000)).html), READY)

    def width() -> float:
        return float(page.run("wove.view().end - wove.view().start"))

    whole = width()
    page.press("+")
    page.press("+")
    assert width() < whole / 2
    start = page.run("wove.view().start")
    page.press("ArrowRight")
    assert page.run("wove.view().start") > start
    page.press("-")
    page.press("0")
    assert width() == pytest.approx(whole)

    page.press("/")
    for key in "is:retried":
        page.press(key)
    page.press("Enter")
    page.wait("!document.getElementById('details').hidden")
    assert page.run("document.getElementById('details').textContent").count("attempt")
    assert width() < whole
    page.press("Escape")
    page.press("t")
    assert page.run("document.documentElement.dataset.theme") == "light"
    page.press("t")
    assert page.run("document.documentElement.dataset.theme") == "dark"
    assert page.errors == []


def test_no_data_can_run_in_the_page(page: Page, tmp_path: Path) -> None:
    record = RunRecord(
        HOSTILE, 0, 1, HOSTILE, started=ORIGIN, ended=ORIGIN + 1, run_id="1", host=HOSTILE, pid=1,
        error=HOSTILE, trip=Trip(ORIGIN, ORIGIN, ORIGIN, ORIGIN, ORIGIN + 1),
    )  # fmt: skip
    page.open(written(tmp_path, "hostile.html", Timeline([record], HOSTILE).html), READY)
    page.run("wove.find('script')")
    page.press("n")
    page.wait("!document.getElementById('details').hidden")
    assert page.run("document.title") == HOSTILE
    assert page.run("document.querySelectorAll('img').length") == 0
    assert page.run("document.querySelectorAll('script').length") == 2
    assert page.run("document.getElementById('details').textContent").count(HOSTILE) >= 2
    assert page.errors == []


def test_a_timeline_without_runs_says_so(page: Page, tmp_path: Path) -> None:
    page.open(written(tmp_path, "empty.html", Timeline([]).html), READY)
    assert page.run("document.getElementById('summary').textContent") == "Nothing ran."
    assert page.errors == []


# ---------------------------------------------------------------------- the graph


def shown(graph: Graph) -> str:
    return (
        '<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        f'<body style="margin:12px;background:light-dark(#fff,#14171c)">{graph.svg}</body>'
    )


@pytest.mark.backend("stdio")
def test_a_graph_of_twelve_tasks_before_during_and_after(page: Page, tmp_path: Path) -> None:
    w, graphs = run_twelve()
    for moment, graph in graphs.items():
        address = written(tmp_path, f"{moment}.html", shown(graph))
        for theme in THEMES:
            page.look(theme, 760, 770)
            page.open(address)
            assert page.run("document.querySelectorAll('.wove-graph g').length") == 12
            assert page.run("document.documentElement.scrollWidth") <= 760
            take(page, tmp_path, f"graph-{moment}-{theme}")

    assert set(graphs["before"].states.values()) == {"waiting"}
    assert graphs["during"].states["parse"] == "running"
    assert graphs["after"].states["audit"] == "failed"
    assert graphs["after"].states["alert"] == "skipped"
    for theme in THEMES:
        page.look(theme, 1100, 640)
        page.open(written(tmp_path, "twelve.html", w.timeline().html), READY)
        take(page, tmp_path, f"timeline-demo-{theme}")


def run_twelve(
    at_half_way: Callable[[], object] = lambda: None,
) -> tuple[weave, dict[str, Graph]]:
    """A weave of twelve tasks on threads, the loop and worker processes; its graph at three moments."""
    config(environments={"pool": {"executor": "stdio", "executor_config": {"processes": 2}}})
    half_way, go_on = threading.Event(), threading.Event()
    graphs: dict[str, Graph] = {}
    with weave(background=True, error_mode="continue", on_done=lambda result: None, account=7) as w:

        @w.do
        def customer(account: int) -> int:
            time.sleep(0.02)
            return account

        @w.do
        async def rates() -> dict[str, float]:
            return {"EUR": 1.0}

        @w.do
        def orders(customer: int) -> list[int]:
            time.sleep(0.01)
            return list(range(60))

        @w.do("orders", workers=6)
        def fetch(item: int, customer: int) -> int:
            time.sleep(random.uniform(0.002, 0.02))
            return item

        @w.do("fetch", workers=4, environment="pool", retries=3)
        def parse(item: int) -> int:
            import random
            import time

            time.sleep(random.uniform(0.005, 0.02))
            if random.random() < 0.08:
                raise OSError("the page ended early")
            return item

        @w.do
        def gate(fetch: list[int]) -> None:
            half_way.set()
            assert go_on.wait(30)

        @w.do
        def total(parse: list[int], rates: dict[str, float]) -> float:
            return sum(parse) * rates["EUR"]

        @w.do("parse", workers=3)
        def render(item: int, gate: None) -> int:
            time.sleep(0.004)
            return item

        @w.do
        def audit(total: float) -> None:
            raise ValueError("the total does not add up")

        @w.do
        def alert(audit: None) -> None: ...

        @w.do
        def summary(total: float, render: list[int]) -> str:
            return f"{len(render)} pages, {total:g} EUR"

        @w.do
        def mail(summary: str, customer: int) -> str:
            return f"to {customer}: {summary}"

        graphs["before"] = w.graph
    try:
        assert half_way.wait(30)
        deadline = time.monotonic() + 30
        while (
            not re.search(r"running · 2\d of 60", w.graph.mermaid) and time.monotonic() < deadline
        ):
            time.sleep(0.001)
        graphs["during"] = w.graph
        at_half_way()
    finally:
        go_on.set()
    assert w.wait(60)
    graphs["after"] = w.graph
    return w, graphs


# ---------------------------------------------------------------------- a notebook

CELL = """\
with weave() as w:

    @w.do
    def invoices():
        return list(range(40))

    @w.do("invoices", workers=4)
    def pdf(invoice):
        return f"{invoice}.pdf"

    @w.do
    def sent(pdf):
        return len(pdf)

w"""


def notebook(source: str, bundle: dict[str, str]) -> str:
    """A cell and its output, in the richest form that notebooks show, as they frame it."""
    return f"""<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark">
<style>
  body {{ margin: 14px; font: 14px system-ui; background: light-dark(#fff, #111); color: light-dark(#222, #ddd) }}
  .cell {{ display: grid; grid-template-columns: 70px 1fr; margin-bottom: 10px }}
  pre {{ margin: 0; padding: 8px; background: light-dark(#f5f5f5, #1e1e1e); border: 1px solid #8884 }}
  b {{ font: 13px monospace; color: light-dark(#307fc1, #64b5f6); padding-top: 8px }}
</style>
<div class="cell"><b>[1]:</b><pre id="source"></pre></div>
<div class="cell"><b>[1]:</b><section id="output">{bundle["text/html"]}</section></div>
<script>document.getElementById("source").textContent = {json.dumps(source)}</script>"""


def test_a_cell_that_ends_with_the_weave_shows_its_graph(page: Page, tmp_path: Path) -> None:
    names: dict[str, Any] = {"weave": weave}
    exec(compile(CELL, "cell", "exec"), names)
    bundle = names["w"]._repr_mimebundle_()
    for theme in THEMES:
        page.look(theme, 760, 640)
        page.open(written(tmp_path, "cell.html", notebook(CELL, bundle)))
        assert page.run("document.querySelectorAll('#output svg g').length") == 3
        assert "40 items" in page.run("document.getElementById('output').textContent")
        assert page.run("document.documentElement.scrollWidth") <= 760
        take(page, tmp_path, f"notebook-cell-{theme}")


# ---------------------------------------------------------------------- the live page

LIVE = "document.getElementById('link').textContent === 'live'"
TIMELINE = "document.getElementById('timeline').contentWindow.wove?.ready"


@pytest.fixture
def live() -> Iterator[str]:
    shown = wove.dashboard(":0")
    yield shown.url
    shown.close()


@pytest.mark.backend("stdio")
def test_the_live_page_follows_a_weave(page: Page, live: str, tmp_path: Path) -> None:
    page.look("light", 1280, 900)
    page.open(live)
    page.wait("document.getElementById('link').textContent === 'no weave has run yet'")

    def look() -> None:
        page.wait(f"{LIVE} && document.querySelectorAll('#tasks tr').length === 12")
        page.wait("document.getElementById('tasks').textContent.includes('running')")
        page.wait("document.querySelectorAll('#workers tr').length >= 3")
        page.wait(f"{TIMELINE} && document.getElementById('graph').naturalWidth > 100")
        for theme in THEMES:
            page.look(theme, 1280, 1500)
            page.wait(f"document.getElementById('graph').complete && {TIMELINE}")
            take(page, tmp_path, f"live-page-{theme}")

    run_twelve(look)
    page.wait("document.getElementById('state').textContent.includes('failed')")
    page.wait("document.querySelectorAll('#failures details').length === 1")
    page.run("document.querySelector('#failures summary').click()")
    assert "does not add up" in page.run("document.querySelector('#failures pre').textContent")
    page.wait("frames[0].document.getElementById('summary').textContent.includes('1 failed')")
    page.look("light", 420, 900)
    assert page.run("document.documentElement.scrollWidth") <= 420
    assert page.errors == []


def test_no_data_can_run_in_the_live_page(page: Page, live: str) -> None:
    def hostile() -> None:
        raise ValueError(HOSTILE)

    hostile.__name__ = HOSTILE
    with weave(error_mode="return") as w:
        w.do(hostile)
    page.open(live)
    page.wait(f"{LIVE} && document.querySelectorAll('#failures details').length === 1")
    page.wait(TIMELINE)
    assert page.run("document.querySelectorAll('script').length") == 1
    assert page.run("document.querySelectorAll('img').length") == 1
    assert page.run("document.title") == "Wove"
    assert page.errors == []


def test_no_data_can_run_in_a_graph(page: Page, tmp_path: Path) -> None:
    graph = Graph([Row(HOSTILE, "failed", environment=HOSTILE, error=HOSTILE)], [()])
    page.open(written(tmp_path, "graph.html", f"<title>mine</title>{shown(graph)}"))
    assert page.run("document.title") == "mine"
    assert page.run("document.querySelectorAll('img, script').length") == 0
    assert page.errors == []
