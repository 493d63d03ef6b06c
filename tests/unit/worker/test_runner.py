from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import wove
from wove.errors import EnvironmentExecutionError, SerializationError, TaskTimeoutError
from wove.protocol.faults import to_exception
from wove.protocol.frames import PYTHON, TERMINAL, FrameError
from wove.protocol.pickling import Pickled, dumps, loads
from wove.worker.heartbeats import LoadMeter
from wove.worker.log_capture import LineBudget
from wove.worker.reports import RunReports
from wove.worker.runner import Runner


class Bench:
    """A runner, and what it said."""

    def __init__(self, **options: Any) -> None:
        self.events: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self.runner = Runner(self._take, **options)

    def _take(self, event: dict[str, Any]) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def send(
        self,
        function: Any,
        run_id: str = "r",
        /,
        delivery: Any = None,
        fields: Any = (),
        **args: Any,
    ) -> None:
        self.runner.submit(
            {
                "type": "run_task",
                "run_id": run_id,
                "task_id": "pdf",
                "callable_pickle": dumps(function, label="f"),
                "args_pickle": dumps(args, label="a"),
                "delivery": delivery or {},
                **dict(fields),
            }
        )

    def cancel(self, run_id: str = "r") -> None:
        self.runner.cancel({"type": "cancel_task", "run_id": run_id})

    def of(self, run_id: str = "r", kind: str | None = None) -> list[dict[str, Any]]:
        return [
            e for e in list(self.events) if e.get("run_id") == run_id and kind in (None, e["type"])
        ]

    def until(self, condition: Callable[[], Any], seconds: float = 20) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, seconds), self.events

    def started(self, run_id: str = "r") -> None:
        self.until(lambda: self.of(run_id, "task_started"))

    def end(self, run_id: str = "r") -> dict[str, Any]:
        """The one terminal event of a run."""
        self.until(lambda: any(e["type"] in TERMINAL for e in self.of(run_id)))
        (event,) = [e for e in self.of(run_id) if e["type"] in TERMINAL]
        assert event["task_id"] == "pdf"
        return event

    def outcome(self, run_id: str = "r") -> Any:
        event = self.end(run_id)
        if event["type"] == "task_result":
            return loads(event["result_pickle"], label="r")
        if event["type"] == "task_cancelled":
            return "cancelled"
        return to_exception(event, task="pdf")

    def call(self, function: Any, /, **options: Any) -> Any:
        self.send(function, "r", **options)
        return self.outcome()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench(name="bench")
    yield bench
    assert bench.runner.close(20)
    for run_id in {event["run_id"] for event in bench.events}:
        bench.end(run_id)


def double(x: int) -> int:
    return 2 * x


async def adouble(x: int) -> int:
    await asyncio.sleep(0)
    return 2 * x


class CallableObject:
    def __call__(self, x: int) -> int:
        return 2 * x

    def method(self, x: int) -> int:
        return 2 * x

    async def amethod(self, x: int) -> int:
        return 2 * x


class AsyncCallable:
    async def __call__(self, x: int) -> int:
        return 2 * x


@pytest.mark.parametrize(
    "function",
    [
        double,
        adouble,
        lambda x: 2 * x,
        lambda x: adouble(x),
        functools.partial(double),
        functools.partial(adouble),
        CallableObject(),
        CallableObject().method,
        CallableObject().amethod,
        AsyncCallable(),
    ],
)
def test_callables_of_every_kind(bench: Bench, function: Any) -> None:
    assert bench.call(function, x=21) == 42
    started, result = bench.events
    assert started["type"] == "task_started" and started["pid"] == os.getpid() and started["host"]
    assert result["type"] == "task_result"


class Rude(BaseException):
    pass


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError

    def __reduce__(self) -> Any:
        raise ValueError


class Two(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(a)


ERRORS: list[tuple[BaseException, type[BaseException]]] = [
    (ValueError("v"), ValueError),
    (StopIteration(3), StopIteration),
    (StopAsyncIteration(), StopAsyncIteration),
    (asyncio.CancelledError(), asyncio.CancelledError),
    (SystemExit(4), SystemExit),
    (KeyboardInterrupt(), KeyboardInterrupt),
    (GeneratorExit(), GeneratorExit),
    (Rude(), Rude),
    (Unspeakable(), EnvironmentExecutionError),
    (Two(1, 2), Two),
    (ExceptionGroup("g", [ValueError()]), ExceptionGroup),
]


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(("error", "expected"), ERRORS)
def test_whatever_a_task_raises_ends_its_run(
    bench: Bench, error: BaseException, expected: type[BaseException], is_async: bool
) -> None:
    def fail() -> None:
        raise error

    async def afail() -> None:
        raise error

    try:
        carried = bool(dumps(error, label="e")) and not isinstance(error, Two)
    except SerializationError:
        carried = False
    kind = type(error)

    def fail_there() -> None:
        raise kind(1, 2) if kind is Two else kind()

    async def afail_there() -> None:
        fail_there()

    again = bench.call(
        (afail if is_async else fail) if carried else (afail_there if is_async else fail_there)
    )
    if is_async and isinstance(error, StopIteration):
        expected = RuntimeError  # as Python has it
    assert type(again) is expected
    assert "fail" in str(again.__cause__) and "wove/worker" not in str(again.__cause__)
    bench.send(double, "next", x=1)
    assert bench.outcome("next") == 2


def test_sys_exit_in_a_task_that_a_coroutine_started(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def outer() -> str:
        async def inner() -> None:
            sys.exit(3)

        task = asyncio.create_task(inner())
        try:
            await task
        except SystemExit:
            return "survived"
        return "?"

    assert bench.call(outer) == "survived"
    bench.send(adouble, "next", x=1)
    assert bench.outcome("next") == 2
    assert "through the worker's event loop" in caplog.text


class Unloadable:
    def __reduce__(self) -> Any:
        return int, ("not a number",)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda: threading.Lock(), r"the result of task 'pdf' \(_thread.lock\)"),
        (lambda: {"a": [threading.Lock()]}, r"the result of task 'pdf': a\[0\] \(_thread.lock\)"),
        (lambda: Unloadable(), "cannot rebuild the result of task 'pdf'"),
        (lambda: (i for i in range(3)), "generator"),
    ],
)
def test_results_that_cannot_travel(bench: Bench, function: Any, message: str) -> None:
    again = bench.call(function)
    assert type(again) is SerializationError
    with pytest.raises(SerializationError, match=message):
        raise again
    error = bench.end()["error"]
    assert error["source"] == "task" and error["retryable"] is False


def test_a_module_that_is_missing_here(bench: Bench) -> None:
    stream = Pickled([b"\x80\x05\x8c\x12no_such_module_xyz\x8c\x05thing\x93."])
    for i, field in enumerate(("callable_pickle", "args_pickle")):
        bench.send(double, str(i), fields={field: stream})
        with pytest.raises(
            SerializationError, match=r"task 'pdf': the module 'no_such_module_xyz'"
        ):
            raise bench.outcome(str(i))
        assert bench.end(str(i))["error"]["source"] == "config"


def test_another_python(bench: Bench) -> None:
    bench.send(double, fields={"python": "2.7", "callable_pickle": Pickled([b"poison"])})
    with pytest.raises(
        SerializationError, match=rf"task 'pdf' .* Python 2\.7, and Python {PYTHON}"
    ):
        raise bench.outcome()
    assert bench.end()["error"]["source"] == "config"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"callable_pickle": None}, "comes without its callable"),
        ({"callable_pickle": dumps(3, label="c")}, "is not callable but int"),
        ({"args_pickle": dumps([1], label="a")}, "not a dict by parameter name but list"),
        ({"args_pickle": dumps({"y": 1}, label="a")}, "unexpected keyword argument"),
        ({"args_pickle": Pickled([b"junk"])}, "cannot rebuild the arguments of task 'pdf'"),
        ({"delivery": "?"}, ""),
    ],
)
def test_odd_frames_end_too(bench: Bench, fields: dict[str, Any], message: str) -> None:
    bench.send(double, fields=fields)
    assert message in str(bench.outcome())


def test_a_frame_without_a_run(bench: Bench) -> None:
    with pytest.raises(FrameError, match="without a run_id"):
        bench.runner.submit({"type": "run_task"})


def test_a_callable_is_sent_and_unpickled_once(bench: Bench) -> None:
    class Loaded:
        def __reduce__(self) -> Any:
            return make_counting, ()

    bench.send(Loaded(), "1", fields={"callable_id": "abc"})
    first = bench.outcome("1")
    for i in "23":
        bench.send(double, i, fields={"callable_id": "abc", "callable_pickle": None})
        assert bench.outcome(i) == first
    bench.send(double, "4", fields={"callable_id": "other", "callable_pickle": None})
    assert "without its callable" in str(bench.outcome("4"))


made = 0


def make_counting() -> Callable[[], int]:
    global made
    made += 1
    return lambda: made


def test_a_run_that_comes_twice_runs_once(bench: Bench) -> None:
    gate = in_this_process(threading.Event())
    bench.send(lambda: wait_for(gate))
    bench.started()
    bench.send(lambda: wait_for(gate))
    SHARED[gate].set()
    assert bench.outcome() is True
    assert len(bench.of(kind="task_started")) == 1


def test_a_run_of_the_same_id_runs_again_as_soon_as_the_end_of_the_first_is_told() -> None:
    ends: list[dict[str, Any]] = []
    both = threading.Event()

    def hear(event: dict[str, Any]) -> None:
        if event["type"] in TERMINAL:
            ends.append(event)
            if len(ends) == 1:
                runner.submit(frame)
            else:
                both.set()

    runner = Runner(hear)
    frame = {
        "type": "run_task",
        "run_id": "r",
        "callable_pickle": dumps(double, label="f"),
        "args_pickle": dumps({"x": 1}, label="a"),
    }
    runner.submit(frame)
    assert both.wait(20)
    assert runner.drain(20)
    assert runner.close(20)
    assert [end["type"] for end in ends] == ["task_result", "task_result"]


# Functions travel by value, so what they share with a test is found by its key.
SHARED: dict[int, Any] = {}


def in_this_process(thing: Any) -> int:
    SHARED[id(thing)] = thing
    return id(thing)


def test_callables_that_are_kept_for_frames_of_many_connections() -> None:
    bench = Bench()
    pickled = dumps(double, label="f")
    assert bench.runner.shared("id") is None
    kept = bench.runner.shared("id", pickled)
    assert kept is not None and bench.runner.shared("id") is kept
    assert bench.runner.shared("id", dumps(len, label="f")) is kept
    frame = {
        "type": "run_task",
        "run_id": "r",
        "task_id": "pdf",
        "args_pickle": dumps({"x": 21}, label="a"),
    }
    bench.runner.submit(frame, kept)
    assert bench.outcome() == 42
    bench.runner.close(5)


def shared(key: int) -> Any:
    return SHARED[key]


def wait_for_it(key: int) -> bool:
    return wait_for(key)


def wait_for(key: int) -> bool:
    return bool(SHARED[key].wait(20))


def test_contexts_are_fresh(bench: Bench) -> None:
    key = in_this_process(contextvars.ContextVar("variable", default=0))

    def look() -> int:
        before: int = shared(key).get()
        shared(key).set(5)
        return before

    async def alook() -> int:
        return look()

    for i in range(4):
        bench.send(alook if i % 2 else look, str(i))
        assert bench.outcome(str(i)) == 0


def test_tasks_use_asyncio_run_and_threads_of_their_own(bench: Bench) -> None:
    assert bench.call(lambda: asyncio.run(adouble(4))) == 8


def test_large_values(bench: Bench) -> None:
    result = bench.call(lambda data: data + b"!", data=bytes(3_000_000))
    assert result == bytes(3_000_000) + b"!"


def test_cancelling_a_queued_run() -> None:
    bench = Bench(max_threads=1)
    gate = in_this_process(threading.Event())
    bench.send(lambda: wait_for(gate), "1")
    bench.started("1")
    bench.send(double, "2", x=1)
    bench.cancel("2")
    assert bench.outcome("2") == "cancelled" and not bench.of("2", "task_started")
    SHARED[gate].set()
    assert bench.outcome("1") is True
    assert bench.runner.close(20)
    assert not bench.of("2", "task_started")


def spin(entered: int | None = None) -> None:
    if entered is not None:
        shared(entered).set()
    while True:
        time.sleep(0.001)


async def aspin(entered: int | None = None) -> None:
    if entered is not None:
        shared(entered).set()
    while True:
        await asyncio.sleep(0.001)


def spin_in_a_loop_of_its_own(entered: int) -> None:
    asyncio.run(aspin(entered))


@pytest.mark.parametrize(
    "function", [spin, aspin, lambda entered: aspin(entered), spin_in_a_loop_of_its_own]
)
def test_cancelling_what_runs(bench: Bench, function: Any) -> None:
    entered = in_this_process(threading.Event())
    bench.send(function, entered=entered)
    assert wait_for(entered)
    bench.cancel()
    bench.cancel()
    assert bench.outcome() == "cancelled"
    bench.cancel()
    bench.send(double, "next", x=1)
    assert bench.outcome("next") == 2


def test_cancelling_at_once_whatever_the_moment(bench: Bench) -> None:
    kinds: list[Any] = [double, adouble, lambda x: adouble(x)]
    for i in range(300):
        bench.send(kinds[i % 3], str(i), x=i)
        bench.cancel(str(i))
    for i in range(300):
        assert bench.outcome(str(i)) in (2 * i, "cancelled")
    bench.send(double, "next", x=1)
    assert bench.outcome("next") == 2


def test_a_task_may_clean_up_and_raise_its_own_when_cancelled(bench: Bench) -> None:
    def wrap() -> None:
        try:
            spin()
        except BaseException as error:
            raise RuntimeError("wrapped") from error

    bench.send(wrap)
    bench.started()
    bench.cancel()
    assert bench.outcome() == "cancelled"


def test_a_task_that_will_not_stop_keeps_its_result(bench: Bench) -> None:
    async def astubborn() -> str:
        try:
            await aspin()
        except asyncio.CancelledError:
            return "done"
        return "?"

    bench.send(astubborn)
    bench.started()
    time.sleep(0.01)
    bench.cancel()
    assert bench.outcome() in ("done", "cancelled")


def test_cancelling_the_unknown(bench: Bench) -> None:
    bench.cancel("nobody")
    bench.runner.cancel({})
    assert bench.call(double, x=1) == 2


@pytest.mark.parametrize("function", [spin, aspin])
def test_a_deadline(bench: Bench, function: Any) -> None:
    bench.send(function, fields={"deadline": 0.5})  # enough to be inside the function by then
    error = bench.outcome()
    assert type(error) is TaskTimeoutError and "task 'pdf' timed out" in str(error)
    assert error.task == "pdf" and error.limit == 0.5
    assert "spin" in str(error.__cause__)


def test_a_deadline_does_not_count_the_queue() -> None:
    bench = Bench(max_threads=1)
    gate = in_this_process(threading.Event())
    bench.send(lambda: wait_for(gate), "1")
    bench.send(double, "2", fields={"deadline": 0.2}, x=1)
    time.sleep(0.3)  # longer than the run may take, once it has begun
    SHARED[gate].set()
    assert bench.outcome("2") == 2
    assert bench.runner.drain(20) and bench.runner.close(1)


def test_a_deadline_that_does_not_pass(bench: Bench) -> None:
    assert bench.call(double, x=1, fields={"deadline": 60}) == 2
    assert "timed out" not in str(bench.events)


@pytest.mark.parametrize("is_async", [False, True])
def test_heartbeats_come_while_a_task_blocks(bench: Bench, is_async: bool) -> None:
    gate = in_this_process(threading.Event())

    async def await_it() -> bool:
        while not shared(gate).is_set():
            await asyncio.sleep(0.001)
        return True

    bench.send(
        await_it if is_async else (lambda: wait_for(gate)),
        delivery={"delivery_heartbeat_seconds": 0.06},
    )
    bench.until(lambda: len(bench.of(kind="heartbeat")) >= 3)
    assert "blocked" not in bench.of(kind="heartbeat")[0]
    SHARED[gate].set()
    assert bench.outcome() is True


def test_no_clock_thread_unless_somebody_wants_it(bench: Bench) -> None:
    assert bench.call(double, x=1) == 2
    assert not [t for t in threading.enumerate() if t.name == "bench-pulse"]


def test_the_load_is_reported_when_tasks_wait() -> None:
    bench = Bench(report_load=True)
    gate = in_this_process(threading.Event())
    for i in range(3):
        bench.send(lambda: wait_for(gate), str(i))
    bench.until(lambda: any(e.get("blocked") and e["running"] == 3 for e in bench.events))
    SHARED[gate].set()
    assert bench.runner.drain(20)
    assert bench.runner.close(20)


def test_the_load_is_reported_again_after_a_pause() -> None:
    bench = Bench(report_load=True)
    for i in range(3):
        bench.send(double, f"tiny{i}", x=1)
        bench.outcome(f"tiny{i}")
        gate = in_this_process(threading.Event())
        bench.send(functools.partial(wait_for_it, gate), str(i))
        bench.until(lambda i=i: any(e.get("blocked") for e in bench.of(str(i))))  # type: ignore[misc]
        SHARED[gate].set()
        bench.outcome(str(i))
        time.sleep(0.02)
    assert bench.runner.close(20)


def test_the_meter_tells_computing_from_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, count, reports = [0.0], (1, 1), []
    monkeypatch.setattr(time, "process_time", lambda: cpu[0])
    meter = LoadMeter(lambda: count, reports.append)
    meter.restart(100.0)
    assert meter.due == pytest.approx(100.005)
    cpu[0] += 0.005
    meter.measure(100.005)
    assert not reports  # it computed
    meter.measure(100.010)
    assert reports == [1]  # it waited
    now = meter.due
    meter.measure(now)
    assert reports == [1] and meter.due - now > 0.005  # nothing new: look less often
    count = (2, 2)
    meter.measure(meter.due)
    assert reports == [1, 2]
    meter.measure(meter.due + 1.0)
    assert reports == [1, 2]  # late: says nothing about the tasks
    while len(reports) < 3:
        meter.measure(meter.due)  # once in a while it is said again
    count = (0, 2)
    meter.measure(meter.due)
    assert meter.due == float("inf")


def test_closing_stops_everything_and_refuses_more() -> None:
    bench = Bench()
    bench.send(spin, "1")
    bench.send(aspin, "2")
    bench.started("1")
    bench.started("2")
    assert bench.runner.close(20)
    assert bench.outcome("1") == bench.outcome("2") == "cancelled"
    bench.send(double, "3", x=1)
    assert (
        "shutting down" in str(bench.outcome("3")) and bench.end("3")["error"]["retryable"] is True
    )


def test_draining_waits_for_what_runs() -> None:
    bench = Bench()
    gate = in_this_process(threading.Event())
    bench.send(lambda: wait_for(gate), "1")
    assert not bench.runner.drain(0.01)
    bench.send(double, "2", x=1)
    assert "shutting down" in str(bench.outcome("2"))
    SHARED[gate].set()
    assert bench.runner.drain(20) and bench.outcome("1") is True


def test_an_emit_that_fails_does_not_stop_the_worker(caplog: pytest.LogCaptureFixture) -> None:
    def emit(event: dict[str, Any]) -> None:
        raise OSError("no way out")

    runner = Runner(emit)
    runner.submit(
        {
            "run_id": "1",
            "callable_pickle": dumps(double, label="f"),
            "args_pickle": dumps({"x": 1}, label="a"),
        }
    )
    assert runner.drain(20) and "cannot send task_result of run 1" in caplog.text


def test_a_thousand_tasks_from_many_senders(bench: Bench) -> None:
    def send(sender: int) -> None:
        for i in range(100):
            bench.send(adouble if i % 3 == 0 else double, f"{sender}-{i}", x=i)

    senders = [threading.Thread(target=send, args=(sender,)) for sender in range(5)]
    for thread in senders:
        thread.start()
    for thread in senders:
        thread.join()
    for sender in range(5):
        for i in range(100):
            assert bench.outcome(f"{sender}-{i}") == 2 * i


# --- reports ----------------------------------------------------------------------------------------------


def test_reports_are_sent_at_most_ten_times_a_second_and_the_last_before_the_end(
    bench: Bench,
) -> None:
    def work() -> float:
        import time

        import wove

        began = time.monotonic()
        for done in range(20_000):
            wove.progress(done, 20_000, "going on")
        return time.monotonic() - began

    seconds = bench.call(work)
    reports = bench.of(kind="progress")
    assert 2 <= len(reports) <= 12 + 10 * seconds
    assert reports[0]["done"] == 0 and reports[-1]["done"] == 19_999
    assert reports[-1] == {
        "type": "progress",
        "run_id": "r",
        "task_id": "pdf",
        "done": 19_999,
        "total": 20_000,
        "note": "going on",
    }
    assert [event["type"] for event in bench.of()[-2:]] == ["progress", "task_result"]


GO_ON = threading.Event()


def report_twice_and_wait() -> None:
    wove.progress(1)
    wove.progress(2)
    assert GO_ON.wait(60)


def test_a_report_that_waits_is_sent_while_the_task_goes_on(bench: Bench) -> None:
    GO_ON.clear()
    bench.send(report_twice_and_wait)
    bench.until(lambda: [event["done"] for event in bench.of(kind="progress")] == [1, 2])
    GO_ON.set()
    assert bench.outcome() is None


# --- logs and output --------------------------------------------------------------------------------------

HOME = {"remote_logs": logging.INFO}


def lines_of(bench: Bench, run_id: str = "r") -> list[tuple[Any, ...]]:
    return [tuple(line[1:]) for event in bench.of(run_id, "log") for line in event["lines"]]


def log_and_print() -> None:
    log = logging.getLogger("app.pdf")
    log.debug("debug")
    log.info("info %d", 1)
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError:
        log.exception("no")
    print("one\ntwo")
    print("three", end="")
    print("four", file=sys.stderr)


def test_records_and_output_are_sent_before_the_end(bench: Bench) -> None:
    bench.send(log_and_print, fields=HOME)
    assert bench.outcome() is None
    lines = lines_of(bench)
    assert lines[0] == (logging.INFO, "app.pdf", "info 1")
    assert lines[1][2].startswith("no\nTraceback") and "1 / 0" in lines[1][2]
    assert lines[2:] == [
        (0, "stdout", "one"),
        (0, "stdout", "two"),
        (0, "stderr", "four"),
        (0, "stdout", "three"),
    ]
    assert bench.events[-1]["type"] == "task_result"
    assert all(event["host"] for event in bench.of(kind="log"))


def test_a_record_that_cannot_be_formatted_is_sent_as_it_is() -> None:
    events: list[dict[str, Any]] = []
    reports = RunReports({}, "here", events.append, lambda *_: None, LineBudget())
    reports.add_record(logging.makeLogRecord({"name": "app", "msg": "wrong %d", "args": ("x",)}))
    ((*_, text),) = events[0]["lines"]
    assert text.startswith("'wrong %d' (it cannot be formatted: ")


async def print_later() -> None:
    await asyncio.sleep(0)
    print("later")


def test_output_of_coroutines_is_sent_too(bench: Bench) -> None:
    bench.send(print_later, fields=HOME)
    assert bench.outcome() is None
    assert lines_of(bench) == [(0, "stdout", "later")]


def test_what_is_not_captured_goes_where_it_went(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.call(double, x=1) == 2
    bench.send(log_and_print, "captured", fields=HOME)
    bench.end("captured")
    bench.send(log_and_print, "other")
    bench.end("other")
    print("here")
    assert capsys.readouterr().out == "one\ntwo\nthreehere\n"
    assert not bench.of("other", "log")


def test_everything_is_as_before_when_the_runner_is_closed() -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers), sys.stdout, sys.stderr)
    handler = logging.Handler()
    root.addHandler(handler)
    try:
        benches = [Bench(name=f"bench-{number}") for number in range(2)]
        for bench in benches:
            bench.send(print_now, fields={"remote_logs": logging.DEBUG})
            assert bench.outcome() is None
        assert root.level == logging.DEBUG and sys.stdout is not before[2]
        for bench in benches:
            assert bench.runner.close(20)
        assert handler.filters == []
    finally:
        root.removeHandler(handler)
    assert (root.level, list(root.handlers), sys.stdout, sys.stderr) == before


def print_now() -> None:
    print("now")


def test_handlers_of_the_worker_see_no_more_than_before(bench: Bench) -> None:
    seen: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())

    handler = Handler()
    logging.getLogger().addHandler(handler)
    own = logging.getLogger("app.own_level")
    own.setLevel(logging.DEBUG)
    try:
        bench.send(log_at_several_levels, fields={"remote_logs": logging.DEBUG})
        assert bench.outcome() is None
    finally:
        logging.getLogger().removeHandler(handler)
        own.setLevel(logging.NOTSET)
    assert seen == ["warning", "own debug"]
    assert [line[2] for line in lines_of(bench)] == ["debug", "warning", "own debug"]


def log_at_several_levels() -> None:
    logging.getLogger("app.several").debug("debug")
    logging.getLogger("app.several").warning("warning")
    logging.getLogger("app.own_level").debug("own debug")


def flood() -> None:
    log = logging.getLogger("app.flood")
    for number in range(50_000):
        log.info("line %d", number)


def test_a_flood_of_lines_is_bounded_and_what_is_dropped_is_counted(bench: Bench) -> None:
    began = time.monotonic()
    bench.send(flood, fields=HOME)
    assert bench.outcome() is None
    seconds = time.monotonic() - began
    sent = len(lines_of(bench))
    dropped = sum(event["dropped"] for event in bench.of(kind="log"))
    assert sent + dropped == 50_000
    assert sent <= 5_000 * (seconds + 1) + 1
    assert len([event for event in bench.of(kind="log") if event["dropped"]]) <= seconds + 2


def fork_and_print() -> int:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(writer, 1)
        print("of the child", flush=True)
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as file:
        return len(file.read())


def test_a_forked_child_keeps_its_output(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    bench.send(fork_and_print, fields=HOME)
    assert isinstance(bench.outcome(), int)
    assert lines_of(bench) == []
