from __future__ import annotations

import asyncio
import json
import threading
from types import ModuleType
from typing import Any

import pytest

from wove.errors import EnvironmentExecutionError, TaskTimeoutError
from wove.protocol import codec, pickling
from wove.protocol.faults import RemoteTraceback, from_exception, to_exception
from wove.protocol.limits import TRACEBACK_CHARACTERS


def caught(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as raised:
        return raised


def way(error: BaseException, **options: Any) -> BaseException:
    """*error* raised in a worker, as the sender sees it."""
    fields = from_exception(caught(error), task="pdf", **options)
    json.dumps(fields["error"])
    (event,) = codec.decode(b"".join(codec.encode({"type": "task_error", "run_id": "1", **fields})))
    return to_exception(event, task="pdf")


class Mine(Exception):
    pass


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no", 3),
        Mine("x"),
        OSError(2, "gone", "file"),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"),
        StopIteration(5),
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit("g"),
        asyncio.CancelledError("c"),
        TaskTimeoutError.of("pdf", 1, 2.0),
        EnvironmentExecutionError("m", {"kind": "k"}),
        BaseException("base"),
    ],
)
def test_the_exception_itself_arrives_with_the_remote_traceback(error: BaseException) -> None:
    again = way(error)
    assert (
        type(again) is type(error) and again.args == error.args and again.__dict__ == error.__dict__
    )
    assert isinstance(again.__cause__, RemoteTraceback)
    assert "in caught" in str(again.__cause__) and "raise error" in str(again.__cause__)


def test_notes_and_causes_are_kept() -> None:
    error = ValueError("outer")
    error.add_note("a note")
    error.__cause__ = caught(KeyError("inner"))
    again = way(error)
    assert again.__notes__ == ["a note"]
    text = str(again.__cause__)
    assert "KeyError: 'inner'" in text and "direct cause" in text and "a note" in text


def test_groups_keep_their_parts() -> None:
    again = way(ExceptionGroup("several", [caught(Mine("one")), caught(ValueError("two"))]))
    assert isinstance(again, ExceptionGroup)
    assert [type(part) for part in again.exceptions] == [Mine, ValueError]
    assert "Mine: one" in str(again.__cause__)


def test_a_class_of_the_senders_script() -> None:
    script = ModuleType("__main__")
    exec(
        "class Trouble(Exception):\n    def hint(self):\n        return self.args[0]\n",
        script.__dict__,
    )
    again = way(script.Trouble("x"))
    assert type(again) is script.Trouble and again.hint() == "x"


class Two(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


class Locked(Exception):
    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.lock = threading.Lock()


class Sullen(Exception):
    def __reduce__(self) -> Any:
        raise SystemExit("not with me")


class Changed(Exception):
    def __reduce__(self) -> Any:
        return ValueError, ("something else",)


def test_an_exception_with_an_init_of_its_own_keeps_its_type_and_attributes() -> None:
    again = way(Two(1, 2))
    assert type(again) is Two and str(again) == "1 and 2" and not hasattr(again, "__notes__")


def test_what_cannot_be_pickled_of_an_exception_is_left_out_and_named() -> None:
    again = way(Locked("l", {"a": 1}))
    assert type(again) is Locked and again.args == ("l", {"a": 1})
    assert not hasattr(again, "lock")
    assert again.__notes__ == ["without what cannot be pickled of it: lock (lock)"]

    again = way(ValueError(threading.Lock(), 3))
    assert type(again) is ValueError and again.args[1] == 3 and "lock object" in again.args[0]
    assert again.__notes__ == ["without what cannot be pickled of it: args[0] (lock)"]


@pytest.mark.parametrize(
    ("error", "why"), [(Sullen("s"), "not with me"), (Changed("c"), "is rebuilt as ValueError")]
)
def test_what_does_not_survive_is_reported_in_plain(error: Exception, why: str) -> None:
    assert "exception_pickle" not in from_exception(error, task="pdf")
    again = way(error, source="executor")
    assert type(again) is EnvironmentExecutionError
    kind = type(error).__name__
    assert f"task 'pdf' failed: {again.payload['kind']}: {error}" in str(again)
    assert "its exception object is missing: " in str(again) and why in str(again)
    assert again.payload["kind"].endswith(kind) and again.payload["source"] == "executor"
    assert again.payload["message"] == str(error) and "in caught" in again.payload["traceback"]
    assert isinstance(again.__cause__, RemoteTraceback)


def test_source_lines_that_the_worker_did_not_have_are_added_here() -> None:
    place = f'  File "{__file__}", line 1, in task'
    remote = f"Traceback (most recent call last):\n{place}\nValueError: no\n"
    error = to_exception({"error": {"kind": "ValueError", "traceback": remote}}, task="pdf")
    assert f"{place}\n    from __future__ import annotations\nValueError" in str(error.__cause__)

    whole = f"Traceback (most recent call last):\n{place}\n    its own line\nValueError: no\n"
    error = to_exception({"error": {"kind": "ValueError", "traceback": whole}}, task="pdf")
    assert whole.rstrip() in str(error.__cause__)


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt

    __repr__ = __str__


def test_an_exception_that_cannot_be_printed() -> None:
    fields = from_exception(caught(Unspeakable("x")), task="pdf")
    assert fields["error"]["message"] == "<its message could not be printed>"
    assert "Unspeakable" in fields["error"]["traceback"]
    assert type(way(Unspeakable("x"))) is Unspeakable


def test_long_tracebacks_lose_their_middle() -> None:
    fields = from_exception(ValueError("a" * 300_000 + "the end"), task="pdf")
    text = fields["error"]["traceback"]
    assert (
        len(text) < TRACEBACK_CHARACTERS + 100 and "left out" in text and text.endswith("the end\n")
    )


def test_retryable() -> None:
    assert from_exception(ValueError(), task="t")["error"]["retryable"] is True
    assert from_exception(SystemExit(), task="t")["error"]["retryable"] is False
    assert from_exception(ValueError(), task="t", retryable=False)["error"]["retryable"] is False


def test_without_cloudpickle_the_report_goes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cloudpickle", None)
    monkeypatch.setattr(pickling, "_made_pickler", None)
    fields = from_exception(Mine("x"), task="pdf")
    assert "exception_pickle" not in fields and fields["error"]["message"] == "x"


def test_a_module_that_the_sender_lacks() -> None:
    stream = pickling.Pickled([b"\x80\x05\x8c\x12no_such_module_xyz\x8c\x05thing\x93."])
    event = {
        "exception_pickle": stream,
        "error": {"kind": "lib.Oops", "message": "bad", "traceback": "tb"},
    }
    again = to_exception(event, task="pdf")
    assert type(
        again
    ) is EnvironmentExecutionError and "'no_such_module_xyz' cannot be imported" in str(again)
    assert str(again).startswith("task 'pdf' failed: lib.Oops: bad") and "tb" in str(
        again.__cause__
    )


def test_another_python_is_not_unpickled() -> None:
    event = {
        "exception_pickle": pickling.Pickled([b"poison"]),
        "python": "2.7",
        "error": {"message": "bad"},
    }
    again = to_exception(event, task="pdf")
    assert type(again) is EnvironmentExecutionError and "Python 2.7" in str(again)


@pytest.mark.parametrize(
    ("event", "message", "payload"),
    [
        (
            {"error": {"kind": "E", "message": "m", "more": 1}},
            "task 'pdf' failed: E: m",
            {"kind": "E", "more": 1},
        ),
        ({"error": "just a text"}, "task 'pdf' failed: just a text", {"message": "just a text"}),
        ({"error": None}, "did not say why", {}),
        ({}, "did not say why", {}),
        ({"exception": "no object"}, "task 'pdf' failed: no object", {}),
        (
            {"error_pickle": pickling.dumps({"kind": "E"}, label="e")},
            "task 'pdf' failed: E",
            {"kind": "E"},
        ),
        (
            {"error_pickle": pickling.dumps(ValueError("v"), label="e")},
            "ValueError: v",
            {"kind": "ValueError"},
        ),
        ({"error_pickle": pickling.Pickled([b"?"])}, "cannot rebuild", {}),
        (
            {"exception_pickle": pickling.dumps("text", label="e"), "error": {"kind": "E"}},
            "E: text",
            {},
        ),
    ],
)
def test_reports_of_other_workers(
    event: dict[str, Any], message: str, payload: dict[str, Any]
) -> None:
    again = to_exception(event, task="pdf")
    assert isinstance(again, EnvironmentExecutionError)
    assert message in str(again) and payload.items() <= again.payload.items()


def test_a_live_exception_stays_the_same_object() -> None:
    error = ValueError("x")
    assert to_exception({"exception": error}, task="pdf") is error and error.__cause__ is None
