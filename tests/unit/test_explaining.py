"""`w.explain()` and `debug=True`: a weave in words."""

from __future__ import annotations

import pytest
from tests.support.forms import attempt, run

import wove
from wove import weave


def test_every_effective_setting_and_where_it_came_from() -> None:
    ran: list[int] = []
    wove.config(environments={"far": {"executor": "local", "retries": 2}}, timeout=9)
    with weave(delivery_timeout=5, max_workers=3) as w:

        @w.do
        def plain() -> list[int]:
            ran.append(1)
            return [1]

        @w.do("plain", environment="far", workers=4)
        def mapped(item: int) -> None: ...

        explained = w.explain()
        assert ran == []
    assert w.explain() == explained
    assert explained["weave"]["max_workers"] == (3, "weave")
    assert explained["weave"]["error_mode"] == ("raise", "built-in")
    assert explained["plain"]["timeout"] == (9.0, "wove.config")
    assert explained["plain"]["retries"] == (0, "built-in")
    assert explained["plain"]["delivery_timeout"] == (5.0, "weave")
    assert explained["plain"]["environment"] == ("default", "built-in")
    assert "workers" not in explained["plain"]
    assert explained["mapped"]["environment"] == ("far", "task")
    assert explained["mapped"]["retries"] == (2, "environment 'far'")
    assert explained["mapped"]["workers"] == (4, "task")
    text = str(explained)
    for part in ("plain", "mapped", "environment 'far'", "wove.config", "built-in", "retries"):
        assert part in text


def test_it_explains_what_cannot_run() -> None:
    with pytest.raises(NameError), weave() as w:
        w.do(lambda nowhere: None)
        assert "<lambda>" in w.explain()
    assert "<lambda>" in w.explain()


def test_an_environment_that_is_not_configured() -> None:
    with pytest.raises(NameError, match="nowhere"), weave() as w:
        w.do(environment="nowhere")(lambda: None)
        w.explain()


def test_debug_prints_the_plan(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    def declare(w: weave) -> None:
        @w.do
        def first() -> list[int]:
            return [1]

        @w.do("first")
        async def second(item: int) -> int:
            return item

        @w.do([1])
        def third(item: int, second: list[int]) -> None: ...

    run(form, declare, debug=True)
    printed = capsys.readouterr().out
    assert "weave of 3 task(s)" in printed
    for part in (
        "first (sync",
        "mapped over first",
        "after first",
        "after second",
        "an iterable",
        "'default'",
    ):
        assert part in printed


def test_debug_prints_the_plan_when_it_is_wrong(
    form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    done = attempt(form, lambda w: w.do(lambda nowhere: None), debug=True)
    assert isinstance(done.error, NameError)
    assert "nowhere" in capsys.readouterr().out


def test_debug_prints_a_cycle(capsys: pytest.CaptureFixture[str]) -> None:
    def a(b: int) -> None: ...
    def b(a: int) -> None: ...

    done = attempt("with", lambda w: (w.do(a), w.do(b)), debug=True)
    assert isinstance(done.error, RuntimeError)
    assert "Circular dependency detected" in capsys.readouterr().out


def test_what_tells_kept_results_apart() -> None:
    captured = 5
    with pytest.raises(ValueError, match="has no store"), weave(n=1) as w:

        @w.do(cache=True)
        def plain(n: int, unit: str = "m") -> str:
            return f"{n + captured} {unit}"

        @w.do(cache=True, cache_key="{n}", cache_version=2)
        def keyed(n: int, unit: str = "m") -> int:
            return captured

        @w.do(cache=True)
        def impossible(n: int) -> object:
            return generator

        generator = (nothing for nothing in ())
        explained = w.explain()

    def parts(task: str) -> dict[str, object]:
        found = {name: value for name, (value, _) in explained[task].items() if "key: " in name}
        return {name.removeprefix("key: "): value for name, value in found.items()}

    function = test_what_tells_kept_results_apart.__name__ + ".<locals>."
    assert parts("plain") == {
        "code of": (f"{function}plain",),
        "defaults of": ("unit",),
        "captured": ("captured",),
        "arguments": ("n",),
    }
    assert parts("keyed") == {"code of": (f"{function}keyed",)}
    assert explained["keyed"]["cache_version"] == ("2", "task")
    (reason,) = parts("impossible").values()
    assert "the variable 'generator' of its closure" in str(reason)
