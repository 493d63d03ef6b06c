from __future__ import annotations

import pickle
import re
import sys
import threading
import time
from collections import namedtuple
from datetime import UTC, datetime
from types import ModuleType
from typing import Any

import pytest
from tests.support.measures import least_within

from wove.errors import MissingDispatchFeatureError, SerializationError, install_command
from wove.protocol import codec, pickling
from wove.protocol.limits import INLINE_BYTES, PIECE_BYTES
from wove.protocol.pickling import NotPlainError, Pickled, dumps, is_plain, loads, loads_plain


class Text(str):
    __slots__ = ()


def round_trip(value: Any) -> Any:
    return loads(dumps(value, label="a value"), label="a value")


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        2.5,
        "text",
        b"bytes",
        [],
        {},
        (1, [2, {"a": {3, 4}}]),
        frozenset({1}),
        {"a": ("b", b"c")},
    ],
)
def test_small_builtin_values_are_plain(value: Any) -> None:
    pickled = dumps(value, label="a value")
    assert is_plain(value) and pickled.plain
    assert len(pickled.chunks) == 1 and pickled.size == len(pickled.chunks[0])
    assert loads(pickled, label="a value") == value == loads_plain(pickled)


@pytest.mark.parametrize(
    "value",
    [
        Text("x"),
        datetime(2026, 1, 1, tzinfo=UTC),
        [Text("x")],
        {"a": object},
        list(range(500)),
        "x" * INLINE_BYTES,
    ],
)
def test_other_values_are_not(value: Any) -> None:
    assert not is_plain(value)
    assert round_trip(value) == value


def test_a_list_within_itself_is_not_plain_and_survives() -> None:
    knot: list[Any] = []
    knot.append(knot)
    assert not is_plain(knot)
    again = round_trip(knot)
    assert again[0] is again


def test_large_builtin_values_are_known_to_be_plain() -> None:
    assert dumps(list(range(100_000)), label="a list").plain
    assert not dumps([*range(100_000), Text("x")], label="a list").plain


def test_only_plain_pickles_are_loaded_plainly() -> None:
    pickled = dumps(Text("x"), label="a text")
    with pytest.raises(NotPlainError, match="Text"):
        loads_plain(pickled)
    with pytest.raises(NotPlainError):
        loads_plain(b"no pickle")


@pytest.mark.parametrize(
    "size", [0, 1, INLINE_BYTES, INLINE_BYTES + 1, PIECE_BYTES, 3 * PIECE_BYTES + 1]
)
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_bytes_of_any_size(size: int, kind: type[bytes] | type[bytearray]) -> None:
    value = kind(bytes(range(256)) * (size // 256 + 1))[:size]
    again = round_trip({"value": value, "more": [value, "x" * size]})
    assert again == {"value": value, "more": [value, "x" * size]}
    assert type(again["value"]) is kind and again["value"] is again["more"][0]


def test_a_buffer_that_changes_after_pickling_does_not_matter() -> None:
    value = bytearray(b"a" * (2 * PIECE_BYTES))
    pickled = dumps([value, object], label="a buffer")
    value[:] = b"b" * len(value)
    assert loads(pickled, label="a buffer")[0] == b"a" * len(value)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_made_elsewhere(protocol: int) -> None:
    value = [("row", i, float(i)) for i in range(20_000)]
    assert loads(pickle.dumps(value, protocol), label="rows") == value


def test_functions_travel_by_value() -> None:
    step = 3
    assert round_trip(lambda x: x + step)(4) == 7


def in_main(source: str) -> ModuleType:
    """A module like the script of a sender: nobody can import it."""
    module = ModuleType("__main__")
    exec(source, module.__dict__)
    return module


def test_a_class_by_value_comes_back_as_the_senders_own_and_unharmed() -> None:
    script = in_main(
        "calls = 0\n"
        "class Counter:\n"
        "    made = 0\n"
        "    def count(self):\n"
        "        global calls\n"
        "        calls += 1\n"
        "        return calls\n"
    )
    cls = script.Counter
    pickled = dumps(cls(), label="a counter")
    method = cls.count
    cls.made = 5
    again = loads(pickled, label="a counter")
    assert type(again) is cls
    assert cls.count is method and cls.made == 5
    assert (again.count(), script.calls) == (1, 1)


def test_enums_by_value() -> None:
    script = in_main(
        "import enum\nclass Color(enum.Enum):\n    RED = 1\n    def shout(self):\n        return self.name\n"
    )
    again = round_trip(script.Color.RED)
    assert again is script.Color.RED and again.shout() == "RED"


def test_what_cannot_be_pickled_is_named() -> None:
    with pytest.raises(SerializationError) as caught:
        dumps({"page": 1, "item": {"lock": threading.Lock()}}, label="the arguments of task 'pdf'")
    message = str(caught.value)
    assert (
        "the arguments of task 'pdf': item['lock'] (_thread.lock)" in message
        and "create it where" in message
    )


def test_what_a_function_closes_over_is_named() -> None:
    lock = threading.Lock()
    with pytest.raises(
        SerializationError, match=r"the callable of task 'pdf': variable 'lock' \(_thread.lock\)"
    ):
        dumps(lambda: lock, label="the callable of task 'pdf'")


class Sly:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error

    def __repr__(self) -> str:
        raise RuntimeError("no repr either")


def test_a_part_that_fails_in_its_own_way() -> None:
    with pytest.raises(SerializationError, match=r"\[1\]\[0\] .*Sly\): ZeroDivisionError: oops"):
        dumps([1, [Sly(ZeroDivisionError("oops"))]], label="a list")
    with pytest.raises(SerializationError, match="member <Sly>"):
        dumps({Sly(ZeroDivisionError("oops"))}, label="a set")


def test_generators_and_depth() -> None:
    with pytest.raises(SerializationError, match="generator"):
        dumps((i for i in range(3)), label="the result of task 'rows'")
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(SerializationError, match="recursion"):
        dumps(deep, label="a nest")
    while deep:  # taken apart by hand: freeing it in one go recurses as well
        deep = deep.pop()


Missing = namedtuple("Missing", "x")


def test_a_missing_module_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = b"\x80\x05\x8c\x12no_such_module_xyz\x8c\x05thing\x93."
    with pytest.raises(
        SerializationError, match="the module 'no_such_module_xyz' cannot be imported there"
    ) as caught:
        loads(stream, label="the callable of task 'pdf'")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    pickled = dumps(Missing(1), label="a tuple")
    monkeypatch.delitem(globals(), "Missing")
    with pytest.raises(SerializationError, match="bring both sides to the same version"):
        loads(pickled, label="a tuple")


def test_what_pickles_but_does_not_unpickle() -> None:
    class Two:
        def __reduce__(self) -> Any:
            return complex, (1, 2, 3)

    with pytest.raises(
        SerializationError, match=r"cannot rebuild an error: TypeError.*survive pickle"
    ):
        round_trip_named(Two(), "an error")
    with pytest.raises(SerializationError):
        loads(b"", label="nothing")


def round_trip_named(value: Any, label: str) -> Any:
    return loads(dumps(value, label=label), label=label)


def test_without_cloudpickle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    monkeypatch.setattr(pickling, "_made_pickler", None)
    assert round_trip({"plain": [1, 2]}) == {"plain": [1, 2]}
    with pytest.raises(MissingDispatchFeatureError, match=re.escape(install_command("dispatch"))):
        dumps(Text("x"), label="a text")


class Ticking(threading.Thread):
    """Notes the longest time for which it did not get to run."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.gap = 0.0
        self._over = threading.Event()

    def run(self) -> None:
        last = time.perf_counter()
        while not self._over.is_set():
            time.sleep(0.001)
            now = time.perf_counter()
            self.gap = max(self.gap, now - last)
            last = now

    def __enter__(self) -> Ticking:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self.join()


def way(value: Any) -> Any:
    pickled = dumps(value, label="a value")
    frames = codec.decode(
        codec.encode({"type": "task_result", "run_id": "1", "result_pickle": pickled})
    )
    return loads(frames[0]["result_pickle"], label="a value")


@pytest.mark.skipif(
    not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="there is no lock to be held"
)
@pytest.mark.parametrize("kind", ["bytes", "rows"])
def test_other_threads_run_while_large_values_pass(kind: str) -> None:
    value: Any = (
        b"x" * 100_000_000 if kind == "bytes" else [(i, str(i), i * 0.5) for i in range(1_200_000)]
    )

    def ours() -> float:
        with Ticking() as ticking:
            again = way(value)
        assert again == value
        return ticking.gap

    def at_once() -> float:
        with Ticking() as ticking:
            pickle.loads(pickle.dumps(value))
        return ticking.gap

    least_within(ours, at_once, lambda gap: gap, tries=3)


def test_repr() -> None:
    assert repr(Pickled([b"abc"], plain=True)) == "<Pickled 3 bytes in 1 plain>"
