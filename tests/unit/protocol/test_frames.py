from __future__ import annotations

import pickle
import sys
from typing import Any

import pytest

from wove import __version__
from wove.errors import SerializationError
from wove.protocol.callables import CallableCache
from wove.protocol.frames import (
    EVENTS,
    PYTHON,
    TERMINAL,
    FrameError,
    check_event,
    check_python,
    says_busy,
)


@pytest.mark.parametrize("kind", sorted(EVENTS))
def test_known_events_pass(kind: str) -> None:
    frame = {"type": kind, "run_id": "1", "whatever": 1}
    assert check_event(frame) is frame
    assert kind not in TERMINAL or kind.startswith("task_")


@pytest.mark.parametrize("frame", [{}, {"type": "task_result"}, {"type": "heartbeat", "run_id": 5}])
def test_an_event_names_its_run(frame: dict[str, Any]) -> None:
    with pytest.raises(FrameError, match="without a run_id"):
        check_event(frame)


def test_an_unknown_type_names_the_run_and_the_types() -> None:
    with pytest.raises(
        FrameError, match=r"'task_done' is not a type of event .*task_result.*run_id='7'"
    ) as caught:
        check_event({"type": "task_done", "run_id": "7", "result": "x" * 1000})
    assert caught.value.run_id == "7" and len(str(caught.value)) < 300
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.run_id) == (str(caught.value), "7")


@pytest.mark.parametrize("version", [None, PYTHON, f"{PYTHON}.4", 3])
def test_the_same_python_or_none_passes(version: Any) -> None:
    check_python({"python": version}, label="task 'x'")
    check_python({}, label="task 'x'")


def test_another_package_of_our_name_is_refused() -> None:
    check_python({"wove": __version__}, label="task 'x'")
    with pytest.raises(SerializationError, match=r"task 'x' was sent by wove 2\.0\.3.*uninstall"):
        check_python({"wove": "2.0.3"}, label="task 'x'")


@pytest.mark.parametrize(
    "version", ["2.7", f"{sys.version_info.major}.{sys.version_info.minor + 1}", "4"]
)
def test_another_python_is_refused_with_both_names(version: str) -> None:
    with pytest.raises(SerializationError, match=f"task 'x' .*Python {version}.*Python {PYTHON}"):
        check_python({"python": version}, label="task 'x'")


def test_kept_forgets_the_least_recently_used() -> None:
    kept: CallableCache[int] = CallableCache(count=2)
    kept.put("a", 1, 10)
    kept.put("b", 2, 10)
    assert kept.get("a") == 1
    kept.put("c", 3, 10)
    assert (kept.get("a"), kept.get("b"), kept.get("c")) == (1, None, 3)


def test_kept_counts_bytes() -> None:
    kept: CallableCache[int] = CallableCache(size=100)
    kept.put("a", 1, 60)
    kept.put("huge", 2, 101)
    assert (kept.get("a"), kept.get("huge")) == (1, None)
    kept.put("a", 1, 70)
    kept.put("b", 2, 30)
    assert len(kept) == 2
    kept.put("c", 3, 1)
    assert (kept.get("a"), kept.get("b"), kept.get("c")) == (None, 2, 3)


def test_both_sides_forget_alike() -> None:
    sender: CallableCache[bool] = CallableCache(count=3, size=100)
    worker: CallableCache[str] = CallableCache(count=3, size=100)
    sizes = {"a": 10, "b": 50, "c": 45, "d": 1, "e": 200}
    for callable_id in "abcabdeedabcdeabc" * 3:
        if sender.get(callable_id) is None:
            sender.put(callable_id, True, sizes[callable_id])
            worker.put(callable_id, callable_id, sizes[callable_id])
        else:
            assert worker.get(callable_id) == callable_id
    assert len(sender) == len(worker)


@pytest.mark.parametrize(
    ("error", "busy"),
    [
        ({"kind": "WorkerBusyError", "source": "executor"}, True),
        # A task's own exception of that name has run.
        ({"kind": "WorkerBusyError", "source": "task"}, False),
        ({"kind": "WorkerBusyError"}, False),
        ({"kind": "OSError", "source": "executor"}, False),
        ("WorkerBusyError", False),
    ],
)
def test_only_the_service_says_that_it_is_busy(error: object, busy: bool) -> None:
    assert says_busy({"type": "task_error", "run_id": "r", "error": error}) == busy
