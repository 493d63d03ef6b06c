"""``executor="stdio"``: worker processes on this machine, one JSON frame a line."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import shlex
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, Literal, cast

from wove.errors import DeliveryError, EnvironmentExecutionError, MissingDispatchFeatureError, WorkerLostError
from wove.executors import forks, offload
from wove.executors.balance import Seat, choose
from wove.executors.base import CancelReach, EnvironmentExecutor, Frame
from wove.executors.process import Listener, WorkerProcess, describe_exit
from wove.graph.options import suggest
from wove.protocol import codec
from wove.protocol.callables import Kept
from wove.protocol.frames import TERMINAL, FrameError
from wove.protocol.limits import INLINE_BYTES

__all__ = ["StdioExecutor"]

logger = logging.getLogger("wove")

KEYS: Final = (
    "command",
    "processes",
    "terminate_on_cancel",
    "start_timeout",
    "send_timeout",
    "stop_timeout",
    "cancel_ack_timeout",
)

CANCEL_SECONDS: Final = 0.5
"""How long a cancelled run may take to end, before its process is to end instead."""

FAREWELL_SECONDS: Final = 1.0
"""How long a process may take to end by itself after its stdin was closed."""

MOST_SILENT_ENDS: Final = 3
"""So many processes in a row that end without a word, and the runs that wait for one fail as well."""

STAGNATION_SECONDS: Final = 1.0
"""After so long without a start or end, processes get more runs than they seem to have room for; then
after twice as long, and so on."""


class _Worker:
    """One process of the pool, and what it has to do."""

    __slots__ = (
        "cancelled",
        "decoding",
        "draining",
        "encoding",
        "kept",
        "process",
        "reason",
        "runs",
        "seat",
        "spoke",
    )

    def __init__(self, process: WorkerProcess, *, limited: bool) -> None:
        self.process = process
        self.seat = Seat(limit=1 if limited else None)
        self.kept = Kept[bool]()
        self.runs: dict[str, str] = {}  # task by run id
        self.cancelled: set[str] = set()  # those of them that were told to end
        self.draining = False  # gets no new runs any more, and ends when it has none
        self.encoding = False  # a large frame for it is being made, and nothing may overtake that
        self.decoding = 0  # large lines of it that are being taken apart
        self.spoke = False
        self.reason = ""  # why we have ended it


class StdioExecutor(EnvironmentExecutor, Listener):
    """A pool of worker processes that read commands on stdin and write events to stdout.

    Keys of ``executor_config``, beside the timeouts of every executor:

    * ``command`` (list, or text as for a shell): the worker. Default: ``python -m wove.stdio_worker``, with
      this interpreter.
    * ``processes``: the most processes. Default: the CPUs that this process may use; 1 with a ``command``.
    * ``terminate_on_cancel`` (default true): whether a process is ended when a run in it was cancelled, does
      not end, and the process has nothing else to do.

    The default worker gets one run at a time as long as runs compute, and as many as there are while they
    wait. A worker of your own gets all runs at once.
    """

    scope: ClassVar[Literal["run", "process"]] = "process"
    wire: ClassVar[bool] = True
    cancel_reach: ClassVar[CancelReach] = "process"
    inherits: ClassVar[bool] = True

    def __init__(self) -> None:
        self._workers: list[_Worker] = []
        self._where: dict[str, _Worker] = {}
        self._waiting: OrderedDict[str, Frame] = OrderedDict()
        self._events: list[Frame] = []
        self._reader: asyncio.Future[None] | None = None
        self._silent_ends = 0
        self._stopping = False
        self._all_ended: asyncio.Future[None] | None = None
        self._stagnation: asyncio.TimerHandle | None = None
        self._patience = STAGNATION_SECONDS
        self._moved = False

    # ------------------------------------------------------------------ the contract

    async def start(
        self, *, environment_name: str, environment_config: Mapping[str, Any], run_config: Mapping[str, Any]
    ) -> None:
        self._name = environment_name
        self._loop = asyncio.get_running_loop()
        for key in environment_config:
            if key not in KEYS:
                raise ValueError(
                    f"environment {environment_name!r}: stdio has no executor_config key {key!r}."
                    f"{suggest(key, KEYS)} Its keys are: {', '.join(KEYS)}"
                )
        if importlib.util.find_spec("cloudpickle") is None:
            raise MissingDispatchFeatureError
        command = environment_config.get("command")
        self._pooled = command is None
        self._command = _worker_command() if command is None else _split(command, environment_name)
        processes = environment_config.get("processes")
        if processes is None:
            processes = _processors() if self._pooled else 1
        elif isinstance(processes, bool) or not isinstance(processes, int) or processes < 1:
            raise ValueError(
                f"environment {environment_name!r}: executor_config 'processes' must be a whole number of at "
                f"least 1, not {processes!r}"
            )
        self._processes = processes
        terminate = environment_config.get("terminate_on_cancel", True)
        if not isinstance(terminate, bool):
            raise TypeError(
                f"environment {environment_name!r}: executor_config 'terminate_on_cancel' must be True or "
                f"False, not {terminate!r}"
            )
        self._terminate = terminate
        self._start_seconds = cast("float | None", environment_config.get("start_timeout", 60.0))
        self._cwd = cast("str | None", run_config.get("cwd"))
        self._environ = dict(run_config.get("environ", os.environ))
        if self._pooled:
            with forks.importing:
                from wove.worker.stdio import child_environment

            self._environ = child_environment(self._environ, run_config.get("path", sys.path))
        self._spawn()

    async def send(self, frame: Frame) -> None:
        self.send_nowait(frame)

    def send_nowait(self, frame: Frame) -> bool:
        if frame["type"] == "run_task":
            if "deadline" in frame:  # seconds left now; made so again when it leaves the queue
                frame["deadline"] += self._loop.time()
            self._waiting[frame["run_id"]] = frame
            self._dispatch()
        elif frame["type"] == "cancel_task":
            self._cancel(frame)
        return True

    async def recv(self) -> list[Frame]:
        while not self._events:
            self._reader = self._loop.create_future()
            await self._reader
        events, self._events = self._events, []
        return events

    async def stop(self) -> None:
        self._stopping = True
        if self._stagnation is not None:
            self._stagnation.cancel()
        self._waiting.clear()
        for worker in self._workers:
            if not worker.runs:  # "shutdown" asks to finish what runs, and nobody waits for that any more
                worker.process.write(codec.encode({"type": "shutdown"}))
            worker.process.close_stdin()
        await self._ended_within(FAREWELL_SECONDS)
        for worker in self._workers:
            worker.process.kill()
        await self._ended_within(FAREWELL_SECONDS)
        for worker in self._workers:
            logger.warning("environment %r: worker process %d does not end", self._name, worker.process.pid)
            worker.process.close()
        self._workers.clear()

    async def _ended_within(self, seconds: float) -> None:
        if self._workers:
            self._all_ended = self._loop.create_future()
            await asyncio.wait({self._all_ended}, timeout=seconds)

    # ------------------------------------------------------------------ out

    def _dispatch(self) -> None:
        """Give waiting runs to processes that have room, and start more processes if that is not enough."""
        while self._waiting and not self._stopping:
            able = [worker for worker in self._workers if self._takes_runs(worker)]
            free = [worker.seat.free(worker.process.backlog) for worker in able]
            load = [worker.seat.load for worker in able]
            now = self._loop.time()
            for index in choose(free, load, len(self._waiting)):
                worker = able[index]
                if not worker.encoding:  # the run before it was a large one
                    self._give(worker, now)
            if not self._waiting:
                break
            room = self._processes - sum(not worker.draining for worker in self._workers)
            if room <= 0:
                break
            try:
                for _ in range(min(room, len(self._waiting))):
                    self._spawn()
            except DeliveryError as error:
                self._fail_waiting(error)
        if self._waiting and self._stagnation is None and not self._stopping:
            self._moved = False
            self._stagnation = self._loop.call_later(self._patience, self._check_stagnation)

    def _takes_runs(self, worker: _Worker) -> bool:
        return not (
            worker.draining
            or worker.encoding
            or worker.process.ended
            or (worker.cancelled and self._terminate)
        )

    def _give(self, worker: _Worker, now: float) -> None:
        run_id, frame = self._waiting.popitem(last=False)
        worker.runs[run_id] = frame["task_id"]
        self._where[run_id] = worker
        worker.seat.took(now)
        self._moved = True
        if self._pooled and not worker.spoke and self._start_seconds is not None and len(worker.runs) == 1:
            self._loop.call_later(self._start_seconds, self._check_spoke, worker)
        if "deadline" in frame:
            frame["deadline"] = max(0.0, round(frame["deadline"] - now, 3))
        known = frame.pop("callable_id", None)
        pickled = frame["callable_pickle"]
        if self._pooled and known is not None:
            frame["callable_id"] = known
            if worker.kept.get(known) is not None:
                del frame["callable_pickle"]
                pickled = None
            else:
                worker.kept.put(known, True, pickled.size)
        if frame["args_pickle"].size + (0 if pickled is None else pickled.size) <= INLINE_BYTES:
            worker.process.write(codec.encode(frame))
            return
        worker.encoding = True

        def encode() -> None:
            chunks: list[bytes] | BaseException
            try:
                chunks = codec.encode(frame)
            except BaseException as error:  # memory, above all; it ends this run alone
                chunks = error
            self._post(self._encoded, worker, run_id, chunks)

        offload.submit(encode)

    def _encoded(self, worker: _Worker, run_id: str, chunks: list[bytes] | BaseException) -> None:
        worker.encoding = False
        if isinstance(chunks, BaseException):
            self._forget(worker, run_id)
            self._tell({"type": "task_error", "run_id": run_id, "exception": chunks})
        elif run_id in worker.cancelled:  # the callable must get there: the next frame may rely on it
            worker.process.write(chunks)
            worker.process.write(codec.encode({"type": "cancel_task", "run_id": run_id}))
        elif run_id in worker.runs:
            worker.process.write(chunks)
        self._dispatch()

    def _spawn(self) -> None:
        try:
            process = WorkerProcess(self._command, self._cwd, self._environ, self)
        except (OSError, ValueError) as error:
            raise DeliveryError(
                f"environment {self._name!r}: its worker cannot be started: {error} "
                f"(command: {shlex.join(self._command)})"
            ) from error
        self._workers.append(_Worker(process, limited=self._pooled))
        logger.debug("environment %r: started worker process %d", self._name, process.pid)

    def _check_stagnation(self) -> None:
        self._stagnation = None
        if self._moved:
            self._patience = STAGNATION_SECONDS
        else:
            self._patience *= 2
            for worker in self._workers:
                worker.seat.stagnates()
        self._dispatch()

    def _check_spoke(self, worker: _Worker) -> None:
        if not worker.spoke and not worker.process.ended:
            worker.reason = (
                f"it did not answer within {self._start_seconds:g} s (executor_config 'start_timeout')"
            )
            worker.process.kill()

    # ------------------------------------------------------------------ cancel

    def _cancel(self, frame: Frame) -> None:
        run_id = frame["run_id"]
        if self._waiting.pop(run_id, None) is not None:
            self._tell({"type": "task_cancelled", "run_id": run_id})
            return
        worker = self._where.get(run_id)
        if worker is None or run_id in worker.cancelled:
            return
        worker.cancelled.add(run_id)
        worker.seat.load -= 1
        if not worker.encoding:
            worker.process.write(codec.encode(frame))
        self._loop.call_later(CANCEL_SECONDS, self._overdue, worker, run_id)

    def _overdue(self, worker: _Worker, run_id: str) -> None:
        if run_id not in worker.cancelled or not self._terminate or worker.process.ended:
            return
        if not worker.draining:
            logger.debug("environment %r: worker process %d is to end", self._name, worker.process.pid)
            worker.draining = True
            worker.reason = "a cancelled run in it did not end"
        self._end_if_useless(worker)
        self._dispatch()

    def _end_if_useless(self, worker: _Worker) -> None:
        if worker.draining and len(worker.cancelled) == len(worker.runs):
            worker.process.kill()

    def _forget(self, worker: _Worker, run_id: str) -> bool:
        """The run has ended; whether it counted as load."""
        if worker.runs.pop(run_id, None) is None:
            return False
        self._where.pop(run_id, None)
        if run_id in worker.cancelled:
            worker.cancelled.discard(run_id)
            return False
        return True

    # ------------------------------------------------------------------ back

    def lines(self, process: WorkerProcess, lines: list[list[bytes]]) -> None:
        worker = self._worker(process)
        if worker is None:
            return
        frames: list[Frame] = []
        for line in lines:
            size = sum(map(len, line))
            if size > 2 * INLINE_BYTES:
                worker.decoding += 1
                offload.submit(self._decode_elsewhere, worker, line)
            elif size:
                frames.extend(self._decode(worker, line))
        self._take(worker, frames)

    def _worker(self, process: WorkerProcess) -> _Worker | None:
        return next((worker for worker in self._workers if worker.process is process), None)

    def _decode(self, worker: _Worker, line: Sequence[bytes]) -> list[Frame]:
        try:
            return codec.decode(b"".join(line))
        except FrameError as error:
            return self._garbage(worker, error)

    def _decode_elsewhere(self, worker: _Worker, line: Sequence[bytes]) -> None:
        frames: list[Frame] | BaseException
        try:
            frames = codec.decode(line)
        except BaseException as error:
            frames = error
        self._post(self._decoded, worker, frames)

    def _decoded(self, worker: _Worker, frames: list[Frame] | BaseException) -> None:
        worker.decoding -= 1
        if isinstance(frames, BaseException):
            frames = self._garbage(worker, frames)
        self._take(worker, frames)
        if worker.process.ended and not worker.decoding:
            self._buried(worker)

    def _garbage(self, worker: _Worker, error: BaseException) -> list[Frame]:
        """Report a line that is no frame. If it names one of the runs, that one cannot end otherwise."""
        logger.warning(
            "environment %r: worker process %d wrote to its stdout what is no frame, which is skipped: %s",
            self._name, worker.process.pid, error,
        )  # fmt: skip
        run_id = getattr(error, "run_id", None)
        if run_id not in worker.runs:
            return []
        report = {
            "kind": type(error).__name__,
            "message": str(error),
            "retryable": False,
            "source": "transport",
        }
        failure = EnvironmentExecutionError(
            f"run {run_id} ended with an event that cannot be read: {error}", report
        )
        return [{"type": "task_error", "run_id": run_id, "exception": failure}]

    def _take(self, worker: _Worker, frames: list[Frame]) -> None:
        if not frames:
            return
        now = self._loop.time()
        if not worker.spoke:
            worker.spoke = True
            worker.seat.marked_at = now
        self._silent_ends = 0
        over = 0
        for frame in frames:
            kind = frame.get("type")
            run_id = frame.get("run_id")
            if kind == "heartbeat":
                if self._waiting and frame.get("blocked") and worker.seat.waits():
                    self._moved = True
            elif isinstance(kind, str) and kind in TERMINAL and isinstance(run_id, str):
                over += self._forget(worker, run_id)
            elif kind == "task_started":
                self._moved = True
        self._tell(*frames)
        if over:
            self._moved = True
            worker.seat.finished(over, now)
            if not self._waiting:
                worker.seat.idle()
        if worker.draining:
            self._end_if_useless(worker)
        if self._waiting:
            self._dispatch()

    def ended(self, process: WorkerProcess) -> None:
        worker = self._worker(process)
        if worker is not None and not worker.decoding:  # else when that is done: it may hold an end of a run
            self._buried(worker)

    def _buried(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        status = describe_exit(worker.process.returncode)
        words = worker.process.last_words
        said = f". The last that it wrote to stderr:\n{words}" if words else ""
        expected = self._stopping or bool(worker.reason)
        logger.log(
            logging.DEBUG if expected else logging.WARNING,
            "environment %r: worker process %d ended with %s", self._name, worker.process.pid, status,
        )  # fmt: skip
        for run_id, task in list(worker.runs.items()):
            cancelled = run_id in worker.cancelled
            self._forget(worker, run_id)
            if cancelled:
                self._tell({"type": "task_cancelled", "run_id": run_id})
                continue
            why = f" ({worker.reason})" if worker.reason else ""
            before = "" if worker.spoke else " before it answered anything"
            text = (
                f"run {run_id} of task {task!r} was lost: worker process {worker.process.pid} of environment "
                f"{self._name!r} ended with {status}{before}{why}{said}"
            )
            self._tell({"type": "task_error", "run_id": run_id, "exception": WorkerLostError(text)})
        if self._stopping:
            if not self._workers and self._all_ended is not None and not self._all_ended.done():
                self._all_ended.set_result(None)
            return
        if not worker.spoke:
            self._silent_ends += 1
            if self._silent_ends >= MOST_SILENT_ENDS and not any(other.spoke for other in self._workers):
                self._fail_waiting(
                    WorkerLostError(
                        f"environment {self._name!r}: its workers do not start: {self._silent_ends} in a row "
                        f"ended before they answered anything, the last with {status} "
                        f"(command: {shlex.join(self._command)}){said}"
                    )
                )
        self._dispatch()

    def _fail_waiting(self, error: DeliveryError) -> None:
        waiting = list(self._waiting)
        self._waiting.clear()
        for run_id in waiting:
            self._tell({"type": "task_error", "run_id": run_id, "exception": type(error)(str(error))})

    def _tell(self, *events: Frame) -> None:
        self._events.extend(events)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _post(self, *call: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(*call)
        except RuntimeError:  # the loop was closed: nobody waits for this any more
            pass


def _worker_command() -> list[str]:
    if not sys.executable:
        raise DeliveryError(
            "this interpreter does not know its own executable (sys.executable is empty): "
            "set executor_config 'command' for stdio"
        )
    # The same options as this interpreter (-X, -W, -O, ...), as multiprocessing does it. -P, because the
    # worker gets this process's sys.path instead of the working directory.
    flags = cast("list[str]", subprocess._args_from_interpreter_flags())  # type: ignore[attr-defined]
    with forks.importing:
        from wove.worker.stdio import REPORT_LOAD_FLAG

    return [sys.executable, *flags, "-P", "-m", "wove.stdio_worker", REPORT_LOAD_FLAG]


def _split(command: object, environment: str) -> list[str]:
    parts: list[str]
    if isinstance(command, str):
        parts = shlex.split(command)
    elif isinstance(command, (list, tuple)):
        parts = [os.fspath(part) for part in cast("Sequence[Any]", command)]
    else:
        raise TypeError(
            f"environment {environment!r}: executor_config 'command' must be a list or text, "
            f"not {type(command).__name__}"
        )
    if not parts:
        raise ValueError(f"environment {environment!r}: executor_config 'command' is empty")
    return parts


def _processors() -> int:
    """The CPUs that this process may use, not those that the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1
