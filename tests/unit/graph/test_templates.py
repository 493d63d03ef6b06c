"""Text made of arguments."""

from __future__ import annotations

import pytest

from wove.graph.templates import render


def test_template() -> None:
    assert (
        render(
            "k-{item}-{day:%d}",
            {"item": 3, "day": __import__("datetime").date(2020, 1, 2)},
            "t",
            "cache_key",
        )
        == "k-3-02"
    )
    assert render("{item[id]}{{}}", {"item": {"id": 7}}, "t", "cache_key") == "7{}"


def test_callable_of_the_arguments() -> None:
    assert (
        render(
            lambda item, **rest: f"{item}-{sorted(rest)}", {"item": 3, "other": 1}, "t", "cache_key"
        )
        == "3-['other']"
    )


def test_errors_name_the_field() -> None:
    with pytest.raises(ValueError, match=r"task 'x'.*\{itm\}.*has: item.*Did you mean 'item'"):
        render("{itm}", {"item": 1}, "task 'x'", "cache_key")
    with pytest.raises(ValueError, match="has: none"):
        render("{itm}", {}, "task 'x'", "cache_key")
    with pytest.raises(TypeError, match="must return text, not int"):
        render(lambda: 5, {}, "task 'x'", "cache_key")  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match="empty"):
        render("{item}", {"item": ""}, "task 'x'", "cache_key")
    with pytest.raises(KeyError):  # the user's own: not about a parameter
        render("{item[id]}", {"item": {}}, "task 'x'", "cache_key")
