"""Keys: the same in every process, another one for whatever changes the result."""

from __future__ import annotations

import functools
import subprocess
import sys
import textwrap
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from wove.cache.canonical import canonical_bytes
from wove.cache.keys import TaskKeys
from wove.errors import SerializationError


def make_key(fn: Callable[..., Any], /, **options: Any) -> bytes:
    given: dict[str, Any] = {
        "task": "t",
        "arguments": {},
        "item": None,
        "cache_key": None,
        "cache_version": None,
        **options,
    }
    return TaskKeys(fn, **given).key()


def made(source: str, **variables: Any) -> Callable[..., Any]:
    """Return the function ``f`` that *source* defines."""
    module: dict[str, Any] = {"__name__": "made", **variables}
    exec(textwrap.dedent(source), module)
    return module["f"]  # type: ignore[no-any-return]


SAME = "def f(a):\n    return a + 1"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (SAME, SAME, True),
        (SAME, "\n\n\ndef f(a):\n    # a comment\n\n    return a + 1", True),
        (SAME, "def f(a):\n    return a + 2", False),
        (SAME, "def f(a):\n    return a - 1", False),
        (SAME, "def f(a):\n    return a + 1.0", False),
        (SAME, "def f(a, b=1):\n    return a + 1", False),
        ("def f(a, b=1): return a", "def f(a, b=2): return a", False),
        ("def f(a, *, b=1): return a", "def f(a, *, b=2): return a", False),
        ("def f(a): return lambda: 1", "def f(a): return lambda: 2", False),
        ("def f(a): return a in {'x', 'y'}", "def f(a): return a in {'x', 'z'}", False),
        ("def f(a): return a.load", "def f(a): return a.store", False),
        (
            "def g(): return 1\ndef f(a): return g()",
            "def g(): return 2\ndef f(a): return g()",
            False,
        ),
        (
            "def g(): return f(1)\ndef f(a): return g()",
            "def g(): return f(1)\ndef f(a): return g()",
            True,
        ),
        (
            "def outer(n):\n  def f(a): return n\n  return f\nf = outer(1)",
            "def outer(n):\n  def f(a): return n\n  return f\nf = outer(2)",
            False,
        ),
        (
            "def outer(n):\n  def f(a): return n()\n  return f\nf = outer(lambda: 1)",
            "def outer(n):\n  def f(a): return n()\n  return f\nf = outer(lambda: 2)",
            False,
        ),
        (
            "class C:\n  def __call__(self, a): return 1\nf = C().__call__.__func__",
            "class C:\n  def __call__(self, a): return 2\nf = C().__call__.__func__",
            False,
        ),
        ("async def f(a): return 1", "def f(a): return 1", False),
    ],
)
def test_code_decides(one: str, other: str, same: bool) -> None:
    assert (make_key(made(one)) == make_key(made(other))) is same


def plus(a: int, b: int) -> int:
    return a + b


class Adder:
    def __init__(self, n: int) -> None:
        self.n = n

    def add(self, a: int) -> int:
        return a + self.n

    def __call__(self, a: int) -> int:
        return a + self.n


def test_callables_of_every_kind_and_what_is_bound_to_them() -> None:
    keys = [
        make_key(plus),
        make_key(functools.partial(plus, 1)),
        make_key(functools.partial(plus, 2)),
        make_key(functools.partial(plus, b=1)),
        make_key(Adder(1).add),
        make_key(Adder(2).add),
        make_key(Adder(1)),
        make_key(Adder(2)),
        make_key(functools.lru_cache(plus)),
        make_key(Adder),
        make_key(len),
        make_key(abs),
        make_key("x".join),
        make_key("y".join),
    ]
    assert len(set(keys)) == len(keys)
    assert make_key(Adder(1).add) == make_key(Adder(1).add)


def test_arguments_name_and_version_decide() -> None:
    keys = [
        make_key(plus, arguments={"a": 1, "b": 2}),
        make_key(plus, arguments={"a": 2, "b": 1}),
        make_key(plus, arguments={"a": 1, "b": 2.0}),
        make_key(plus, arguments={"a": True, "b": 2}),
        make_key(plus, arguments={"a": "1", "b": 2}),
        make_key(plus, arguments={"a": 1, "b": 2}, cache_version="1"),
        make_key(plus, arguments={"a": 1, "b": 2}, cache_version="2"),
        make_key(plus, arguments={"a": 1, "b": 2}, task="other"),
        make_key(plus, arguments={"a": 1, "b": lambda: 1}),
        make_key(plus, arguments={"a": 1, "b": lambda: 2}),
        make_key(plus, arguments={"a": 1, "b": [date(2026, 1, 1), lambda: 2]}),
    ]
    assert len(set(keys)) == len(keys)
    same = {"b": 2, "a": 1}
    assert make_key(plus, arguments=same) == keys[0]


def test_items_share_the_arguments_and_differ() -> None:
    keys = TaskKeys(plus, "t", {"b": 1}, "a", None, None)
    assert keys.key_of_item(1) == TaskKeys(plus, "t", {"b": 1}, "a", None, None).key_of_item(1)
    assert len({keys.key_of_item(item) for item in (1, 2, "1", None, (1,), [1])}) == 6
    assert keys.key_of_item(1) != TaskKeys(plus, "t", {"b": 2}, "a", None, None).key_of_item(1)


def test_cache_key_stands_for_all_values_and_not_for_code() -> None:
    connection = (unpicklable for unpicklable in ())

    def by_template(a: object, b: int) -> object:
        return connection

    options: dict[str, Any] = {"cache_key": "{b}"}
    first = make_key(by_template, arguments={"a": connection, "b": 1}, **options)
    assert first == make_key(by_template, arguments={"a": None, "b": 1}, **options)
    assert first != make_key(by_template, arguments={"a": None, "b": 2}, **options)
    assert first != make_key(plus, arguments={"a": None, "b": 1}, **options)
    called = TaskKeys(plus, "t", {"b": 1}, "a", lambda a, b: f"{a}-{b}", None)
    assert called.key_of_item(1) != called.key_of_item(2)


def test_what_cannot_be_part_of_a_key_is_named() -> None:
    connection = (unpicklable for unpicklable in ())

    def capturing(a: object) -> object:
        return connection

    with pytest.raises(SerializationError, match=r"task 't'.*the argument 'a'.*cache_key"):
        make_key(plus, arguments={"a": connection, "b": 1})
    with pytest.raises(SerializationError, match="the variable 'connection' of its closure"):
        make_key(capturing)
    with pytest.raises(SerializationError, match="the item"):
        TaskKeys(plus, "t", {}, "a", None, None).key_of_item(connection)
    with pytest.raises(ValueError, match="cache_key '{c}' has a field {c}"):
        make_key(plus, arguments={"a": 1}, cache_key="{c}")


def test_a_function_whose_closure_leads_back_to_it() -> None:
    def made_of(n: int) -> Callable[[int], Any]:
        steps: list[Any] = []

        def walk(a: int) -> Any:
            return steps, n

        steps.append(walk)
        return walk

    assert make_key(made_of(1)) == make_key(made_of(1))
    assert make_key(made_of(1)) != make_key(made_of(2))


SCRIPT = """
import sys
from wove.cache.keys import TaskKeys
from wove.cache.canonical import canonical_bytes

def f(a, names=frozenset({"x", "yy", "zzz", "w"})):
    return a in {"one", "two", "three", "four"}

keys = TaskKeys(f, "t", {"names": {"a", "bb", "ccc", "dd"}}, "a", None, "1")
print(keys.key_of_item({"tags": {"p", "q", "r", "s"}}).hex())
"""


def test_every_process_makes_the_same_key(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    printed = {
        subprocess.run(
            [sys.executable, "script.py"],
            cwd=tmp_path,
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(printed) == 1


def test_a_text_with_the_byte_of_an_opcode_is_as_good_as_any() -> None:
    def nothing(function: object) -> bytes:
        raise AssertionError(function)

    texts = [["\x8f", 1], ["\x91", 1], ["\x93", 1], [b"\x8f\x91\x93", 1]]
    assert len({canonical_bytes(text, nothing) for text in texts}) == 4
