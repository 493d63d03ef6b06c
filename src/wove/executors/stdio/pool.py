"""The worker processes of one environment: who gets the next run, and what becomes of those that end."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shlex
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from wove.concurrency import forks, thread_pool
from wove.concurrency.backoff import Backoff
from wove.concurrency.deadline import Deadline
from wove.concurrency.mailbox import post_to
from wove.errors import DeliveryError, EnvironmentExecutionError, WorkerLostError
from wove.executors.base import Frame
from wove.executors.stdio import resource_tracker
from wove.executors.stdio.balance import WorkerLoad, choose
from wove.executors.stdio.process import Listener, WorkerProcess, describe_exit
from wove.protocol import codec
from wove.protocol.callables import CallableCache
from wove.protocol.frames import READY, TERMINAL, FrameError
from wove.protocol.limits import INLINE_BYTES, SHARED_KEPT
from wove.worker.run_marks import RETURNED, UNPICKLING, RunMarks, shared_file

__all__ = ["Plan", "Pool"]

logger = logging.getLogger("wove")

CANCEL_SECONDS: Final = 0.5
"""How long a cancelled run may take to end, before its process is to end instead."""

FAREWELL_SECONDS: Final = 1.0
"""How long a process may take to end by itself after its stdin was closed."""

LAUNCHER_SECONDS: Final = 3.0
"""The same for a launcher: it passes the end on, waits for that of the worker, and tidies up. Also how long it may take
to end after SIGTERM, or after the worker has closed its stdout."""

RESTARTS: Final = Backoff(0.5, 30.0)
"""How soon a process is replaced that ended without a word while others work: a scheduler may refuse more of them."""

KILLED_SECONDS: Final = 3.0
"""How long the system may take to end one that was killed: its memory is given back first."""

MAX_SILENT_ENDS: Final = 3
"""Number of processes in a row that end without a word after which the runs that wait for one fail as well."""

STAGNATION_SECONDS: Final = 1.0
"""After so long without a start or end, processes get more runs than they seem to have room for; then
after twice as long, and so on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The settings of a pool.

    Attributes:
        environment: The environment's name.
        command: Program and arguments of a worker.
        boot: What Wove's own worker starts with, which says more than a plain one needs to; ``None``: it is not ours.
        launched: Whether a launcher starts it, so that it may be elsewhere and may start late.
        processes: Maximum number of processes.
        min_processes: How many are started at once, and stay when they are idle.
        idle_seconds: How long a process without work stays; ``None``: for ever.
        terminate: Whether a cancelled run that does not end costs its process.
        start_seconds: How long a worker of ours may take until it says something; ``None`` for no limit.
        cwd: Working directory; ``None`` for this process's.
        environ: Environment variables.
    """

    environment: str
    command: Sequence[str]
    boot: Mapping[str, Any] | None
    launched: bool = False
    processes: int
    min_processes: int = 0
    idle_seconds: float | None = None
    terminate: bool
    start_seconds: float | None
    cwd: str | None
    environ: Mapping[str, str]

    @property
    def ours(self) -> bool:
        """Whether the worker is Wove's own."""
        return self.boot is not None

    @property
    def says_ready(self) -> bool:
        """Whether a worker says when it has started, and gets no run before that."""
        return self.launched and self.ours


class _Worker:
    """One process of the pool, and what it has to do."""

    __slots__ = (
        "cancelled",
        "decoding",
        "draining",
        "encoding",
        "idle_since",
        "kept",
        "marks",
        "process",
        "reason",
        "runs",
        "seat",
        "shared",
        "slots",
        "spoke",
        "unbegun",
    )

    def __init__(
        self, process: WorkerProcess, marks: RunMarks | None, limit: int | None, now: float
    ) -> None:
        self.process = process
        self.idle_since = now  # when it last had a run
        self.marks = marks
        self.slots: dict[str, int] = {}
        self.unbegun: dict[str, Frame] = {}  # by run id, to be given to another one if it ends
        self.seat = WorkerLoad(limit)
        self.kept = CallableCache[bool]()
        self.shared = CallableCache[bool](SHARED_KEPT)
        self.runs: dict[str, str] = {}  # task by run id
        self.cancelled: set[str] = set()  # those of them that were told to end
        self.draining = False  # gets no new runs any more, and ends when it has none
        self.encoding = False  # a large frame for it is being made, and nothing may overtake that
        self.decoding = 0  # large lines of it that are being taken apart
        self.spoke = False
        self.reason = ""  # why we have ended it


class Pool(Listener):
    """Runs frames in worker processes. Everything is to be called on one loop.

    Args:
        plan: What it is made of.
        tell: Is given the events.
    """

    def __init__(self, plan: Plan, tell: Callable[[Sequence[Frame]], object]) -> None:
        self._plan = plan
        self._tell_all = tell
        self._loop = asyncio.get_running_loop()
        self._workers: list[_Worker] = []
        self._where: dict[str, _Worker] = {}
        self._waiting: OrderedDict[str, Frame] = OrderedDict()
        self._silent_ends = 0
        self._stopping = False
        self._all_ended: asyncio.Future[None] | None = None
        self._stagnation: asyncio.TimerHandle | None = None
        # Runs that were being unpickled when a process ended: they may have been the reason, and get one more chance.
        self._suspects: set[str] = set()
        self._patience = STAGNATION_SECONDS
        self._moved = False
        self._spawn_at = 0.0  # no process is started before that
        self._respawn: asyncio.TimerHandle | None = None
        self._idle_deadline = Deadline(self._loop, self._idle_due, self._end_idle)

    def start(self) -> None:
        """Start the first processes: they come up while the first run is on its way.

        Raises:
            DeliveryError: They cannot be started.
        """
        for _ in range(max(1, self._plan.min_processes)):
            self.spawn()

    def run(self, frame: Frame) -> None:
        """Take a ``run_task`` frame."""
        self._waiting[frame["run_id"]] = frame
        self._dispatch()

    async def stop(self) -> None:
        """End all processes; those that do not end by themselves are killed."""
        self._stopping = True
        if self._stagnation is not None:
            self._stagnation.cancel()
        if self._respawn is not None:
            self._respawn.cancel()
        self._idle_deadline.cancel()
        self._waiting.clear()

        for worker in self._workers:
            if (
                worker.runs
            ):  # "shutdown" would ask to finish them, and they are not awaited any more
                worker.process.close_stdin()
            else:
                self._dismiss(worker)

        await self._ended_within(LAUNCHER_SECONDS if self._plan.launched else FAREWELL_SECONDS)
        for worker in self._workers:
            self._kill(worker)
        await self._ended_within(
            KILLED_SECONDS + (LAUNCHER_SECONDS if self._plan.launched else 0.0)
        )

        for worker in self._workers:
            logger.warning(
                "environment %r: worker process %d does not end",
                self._plan.environment,
                worker.process.pid,
            )
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
            count = min(self._room(), len(self._waiting) - self._starting())
            if count <= 0:
                break
            try:
                for _ in range(count):
                    self.spawn()
            except DeliveryError as error:
                self._fail_waiting(error)

        if not self._waiting:
            self._idle_deadline.update()
        elif self._stagnation is None and not self._stopping:
            self._moved = False
            self._stagnation = self._loop.call_later(self._patience, self._check_stagnation)

    def _room(self) -> int:
        """Return how many more processes may be started now."""
        now = self._loop.time()
        if now < self._spawn_at:
            if self._respawn is None:
                self._respawn = self._loop.call_at(self._spawn_at, self._spawn_again)
            return 0
        return self._plan.processes - sum(not worker.draining for worker in self._workers)

    def _spawn_again(self) -> None:
        self._respawn = None
        self._dispatch()

    def _starting(self) -> int:
        """Return how many processes will take a run each once they are ready."""
        if not self._plan.says_ready:
            return 0
        return sum(not (worker.spoke or worker.draining) for worker in self._workers)

    def _takes_runs(self, worker: _Worker) -> bool:
        if self._plan.says_ready and not worker.spoke:
            return False  # it may be queued for hours, and another may be free long before
        return not (
            worker.draining
            or worker.encoding
            or worker.process.ended
            or (worker.cancelled and self._plan.terminate)
        )

    def _give(self, worker: _Worker, now: float) -> None:
        run_id, frame = self._waiting.popitem(last=False)
        worker.runs[run_id] = frame["task_id"]
        self._where[run_id] = worker
        worker.seat.took(now)
        self._moved = True

        if (
            self._plan.ours
            and not worker.spoke
            and self._plan.start_seconds is not None
            and len(worker.runs) == 1
        ):
            self._loop.call_later(self._plan.start_seconds, self._check_spoke, worker)

        if worker.marks is not None:
            worker.unbegun[run_id] = frame
            worker.slots[run_id] = slot = worker.marks.acquire()
            frame = dict(frame)
            frame["slot"] = slot

        known = frame.pop("callable_id", None)
        pickled = frame["callable_pickle"]

        if self._plan.ours and known is not None:
            frame["callable_id"] = known
            if worker.kept.get(known) is not None:
                del frame["callable_pickle"]
                pickled = None
            else:
                worker.kept.put(known, True, pickled.size)

        size = frame["args_pickle"].size + (0 if pickled is None else pickled.size)

        if (shared := frame.get("shared_pickle")) is not None:
            if worker.shared.get(frame["shared_id"]) is not None:
                del frame["shared_pickle"]
            else:
                worker.shared.put(frame["shared_id"], True, shared.size)
                size += shared.size

        if size <= INLINE_BYTES:
            worker.process.write(codec.encode(frame))
            return

        worker.encoding = True

        def encode() -> None:
            chunks: list[bytes] | BaseException
            try:
                chunks = codec.encode(frame)
            except BaseException as error:  # memory, above all; it ends this run alone
                chunks = error
            post_to(self._loop, self._encoded, worker, run_id, chunks)

        try:
            thread_pool.submit(encode)
        except (RuntimeError, MemoryError) as error:  # no room for a thread
            self._loop.call_soon(self._encoded, worker, run_id, error)

    def _encoded(self, worker: _Worker, run_id: str, chunks: list[bytes] | BaseException) -> None:
        worker.encoding = False

        if isinstance(chunks, BaseException):
            self._forget(worker, run_id)
            worker.draining = True  # its callable counts as sent, and was not
            worker.reason = "a frame for it could not be made"
            self._end_if_useless(worker)
            self._tell({"type": "task_error", "run_id": run_id, "exception": chunks})
        elif (
            run_id in worker.cancelled
        ):  # the callable must get there: the next frame may rely on it
            worker.process.write(chunks)
            worker.process.write(codec.encode({"type": "cancel_task", "run_id": run_id}))
        elif run_id in worker.runs:
            worker.process.write(chunks)

        self._dispatch()

    def spawn(self) -> None:
        """Start one more process.

        Raises:
            DeliveryError: It cannot be started.
        """
        try:
            worker = self._start()
        except (OSError, ValueError) as error:
            raise DeliveryError(
                f"environment {self._plan.environment!r}: its worker cannot be started: {error} "
                f"(command: {shlex.join(self._plan.command)})"
            ) from error

        self._workers.append(worker)
        logger.debug(
            "environment %r: started worker process %d", self._plan.environment, worker.process.pid
        )

    def _start(self) -> _Worker:
        plan, now = self._plan, self._loop.time()
        if plan.launched:
            process = WorkerProcess(
                plan.command, plan.cwd, plan.environ, self, linger_seconds=LAUNCHER_SECONDS
            )
            if plan.boot is not None:
                process.write([json.dumps(plan.boot).encode()])
            return _Worker(process, None, 1 if plan.ours else None, now)

        if plan.boot is None:
            process = WorkerProcess(plan.command, plan.cwd, plan.environ, self)
            return _Worker(process, None, None, now)

        with forks.importing:
            from wove.worker.stdio import BOOT_VARIABLE

        ours: list[int] = []

        try:
            ours.append(shared_file())
            marks = RunMarks(ours[0])
            tracker, theirs = os.pipe()
            ours.append(theirs)
            key = resource_tracker.authentication_key().hex()
            boot = {**plan.boot, "marks": ours[0], "tracker": theirs, "authentication_key": key}
            ours.append(shared_file(json.dumps(boot).encode()))
            environ = {**plan.environ, BOOT_VARIABLE: str(ours[-1])}
            process = WorkerProcess(
                plan.command, plan.cwd, environ, self, inherits=ours, tracker=tracker
            )
        finally:
            for descriptor in ours:
                os.close(descriptor)

        return _Worker(process, marks, 1, now)

    def _check_stagnation(self) -> None:
        self._stagnation = None

        if self._moved:
            self._patience = STAGNATION_SECONDS
        else:
            self._patience *= 2
            for worker in filter(self._takes_runs, self._workers):
                worker.seat.stagnates()

        self._dispatch()

    def _check_spoke(self, worker: _Worker) -> None:
        if not worker.spoke and not worker.process.ended:
            worker.reason = f"it did not answer within {self._plan.start_seconds:g} s (executor_config 'start_timeout')"
            self._kill(worker)

    # ------------------------------------------------------------------ processes without work

    def _is_idle(self, worker: _Worker) -> bool:
        return not (worker.runs or worker.draining or worker.process.ended)

    def _idle_due(self) -> float | None:
        """Return when the next idle process is to end, as a time of the loop."""
        seconds = self._plan.idle_seconds
        if seconds is None or self._waiting or self._stopping:
            return None
        if sum(not worker.draining for worker in self._workers) <= self._plan.min_processes:
            return None
        idle = [worker.idle_since for worker in self._workers if self._is_idle(worker)]
        return min(idle) + seconds if idle else None

    def _end_idle(self) -> None:
        worker = min(filter(self._is_idle, self._workers), key=lambda worker: worker.idle_since)
        worker.draining = True
        worker.reason = "it had nothing to do for a while (executor_config 'idle_seconds')"
        self._dismiss(worker)
        self._loop.call_later(LAUNCHER_SECONDS, self._kill, worker)
        self._idle_deadline.update()

    def _dismiss(self, worker: _Worker) -> None:
        """Ask a process without runs to end."""
        worker.process.write(codec.encode({"type": "shutdown"}))
        worker.process.close_stdin()

    def _kill(self, worker: _Worker) -> None:
        if self._plan.launched:
            # A launcher that is killed tells the other side nothing: it has the chance to, first.
            worker.process.terminate(LAUNCHER_SECONDS)
        else:
            worker.process.kill()

    # ------------------------------------------------------------------ cancel

    def cancel(self, frame: Frame) -> None:
        """Take a ``cancel_task`` frame."""
        run_id = frame["run_id"]
        if self._waiting.pop(run_id, None) is not None:
            self._tell({"type": "task_cancelled", "run_id": run_id})
            self._idle_deadline.update()
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
        if run_id not in worker.cancelled or not self._plan.terminate or worker.process.ended:
            return
        if not worker.draining:
            logger.debug(
                "environment %r: worker process %d is to end",
                self._plan.environment,
                worker.process.pid,
            )
            worker.draining = True
            worker.reason = "a cancelled run in it did not end"

        self._end_if_useless(worker)
        self._dispatch()

    def _end_if_useless(self, worker: _Worker) -> None:
        if worker.draining and len(worker.cancelled) == len(worker.runs):
            self._kill(worker)

    def _forget(self, worker: _Worker, run_id: str) -> bool:
        """The run has ended; whether it counted as load."""
        if worker.runs.pop(run_id, None) is None:
            return False
        if not worker.runs:
            worker.idle_since = self._loop.time()
        self._where.pop(run_id, None)
        worker.unbegun.pop(run_id, None)
        if worker.marks is not None:
            worker.marks.release(worker.slots.pop(run_id))
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
                self._decode_large(worker, line)
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

    def _decode_large(self, worker: _Worker, line: Sequence[bytes]) -> None:
        worker.decoding += 1
        try:
            thread_pool.submit(self._decode_elsewhere, worker, line)
        except (RuntimeError, MemoryError) as error:  # no room for a thread
            self._decoded(worker, _unreadable(line, error))

    def _decode_elsewhere(self, worker: _Worker, line: Sequence[bytes]) -> None:
        frames: list[Frame] | BaseException

        try:
            frames = codec.decode(line)
        except FrameError as error:
            frames = error
        except BaseException as error:  # memory, above all
            frames = _unreadable(line, error)

        post_to(self._loop, self._decoded, worker, frames)

    def _decoded(self, worker: _Worker, frames: list[Frame] | BaseException) -> None:
        worker.decoding -= 1
        if isinstance(frames, BaseException):
            frames = self._garbage(worker, frames)
        self._take(worker, frames)
        if worker.process.ended and not worker.decoding:
            self._buried(worker)

    def _garbage(self, worker: _Worker, error: BaseException) -> list[Frame]:
        """Report a line that is not a frame. If it names one of the runs, that one cannot end otherwise."""
        logger.warning(
            "environment %r: worker process %d wrote to its stdout what is not a frame, which is skipped: %s",
            self._plan.environment, worker.process.pid, error,
        )  # fmt: skip
        run_id = getattr(error, "run_id", None)
        if run_id not in worker.runs:
            if isinstance(error, _UnreadableError):  # it may have been the end of any run
                worker.reason = f"an answer of it could not be read: {error}"
                self._kill(worker)
            return []

        text = f"run {run_id} ended with an event that cannot be read: {error}"
        failure = EnvironmentExecutionError.of_transport(text, kind=type(error).__name__)
        return [{"type": "task_error", "run_id": run_id, "exception": failure}]

    def _take(self, worker: _Worker, frames: list[Frame]) -> None:
        if not frames:
            return
        now = self._loop.time()
        if not worker.spoke:
            worker.spoke = True
            self._silent_ends = 0
            worker.seat.marked_at = worker.idle_since = now

        if self._plan.says_ready:
            frames = [frame for frame in frames if frame.get("type") != READY]
        over = 0

        for frame in frames:
            kind = frame.get("type")
            run_id = frame.get("run_id")
            if kind == "heartbeat":
                if self._waiting and frame.get("blocked") and worker.seat.waits():
                    self._moved = True
            elif isinstance(kind, str) and kind in TERMINAL and isinstance(run_id, str):
                over += self._forget(worker, run_id)
                self._suspects.discard(run_id)
            elif kind == "task_started":
                self._moved = True
                if isinstance(run_id, str) and self._has_begun(worker, run_id):
                    worker.unbegun.pop(run_id, None)

        if frames:
            self._tell(*frames)
        if over:
            self._moved = True
            worker.seat.finished(over, now)
            if not self._waiting:
                worker.seat.idle()

        if not self._waiting:
            self._idle_deadline.update()

        if worker.draining:
            self._end_if_useless(worker)
        if self._waiting:
            self._dispatch()

    def _has_begun(self, worker: _Worker, run_id: str) -> bool:
        """Return whether the call of a run that has started is sure to have begun, so that its frame can go."""
        slot = worker.slots.get(run_id)
        return slot is None or worker.marks is None or worker.marks.state(slot) != UNPICKLING

    def ended(self, process: WorkerProcess) -> None:
        worker = self._worker(process)
        if (
            worker is not None and not worker.decoding
        ):  # else when that is done: it may hold an end of a run
            self._buried(worker)

    def _buried(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        status = describe_exit(worker.process.returncode)
        words = worker.process.last_words
        said = f". The last that it wrote to stderr:\n{words}" if words else ""
        expected = self._stopping or bool(worker.reason)
        logger.log(
            logging.DEBUG if expected else logging.WARNING,
            "environment %r: worker process %d ended with %s",
            self._plan.environment,
            worker.process.pid,
            status,
        )
        self._end_runs(worker, status, said)
        if self._stopping:
            if not self._workers and self._all_ended is not None and not self._all_ended.done():
                self._all_ended.set_result(None)
            return

        if not (worker.spoke or worker.draining):
            self._silent_ends += 1
            if self._silent_ends >= MAX_SILENT_ENDS and not any(
                other.spoke for other in self._workers
            ):
                self._fail_waiting(
                    WorkerLostError(
                        f"environment {self._plan.environment!r}: its workers do not start: "
                        f"{self._silent_ends} in a row ended before they answered anything, "
                        f"the last with {status} (command: {shlex.join(self._plan.command)}){said}"
                    )
                )
            elif any(other.spoke for other in self._workers):
                self._spawn_at = self._loop.time() + RESTARTS.delay(self._silent_ends)

        self._dispatch()

    def _end_runs(self, worker: _Worker, status: str, said: str) -> None:
        """End the runs that the process had begun, the ones that were running first; the others wait again."""
        begun, returned = self._lost_runs(worker)
        lost = [*begun, *returned]
        waiting = {
            run_id: frame
            for run_id, frame in worker.unbegun.items()
            if run_id not in lost and run_id not in worker.cancelled
        }
        reason = worker.reason or worker.process.trouble
        why = f" ({reason})" if reason else ""
        before = "" if worker.spoke else " before it answered anything"
        with_it = f". Lost with it: {', '.join(lost)}" if len(lost) > 1 else ""
        end = f"worker process {worker.process.pid} of environment {self._plan.environment!r} ended with {status}"

        for run_id in list(worker.cancelled):
            self._forget(worker, run_id)
            self._tell({"type": "task_cancelled", "run_id": run_id})

        for run_id in lost:
            task = worker.runs[run_id]
            self._forget(worker, run_id)
            self._suspects.discard(run_id)
            how = " after its call had returned" if run_id in returned else ""
            text = f"run {run_id} of task {task!r} was lost{how}: {end}{before}{why}{with_it}{said}"
            self._tell({"type": "task_error", "run_id": run_id, "exception": WorkerLostError(text)})

        for run_id in waiting:
            self._forget(worker, run_id)
        for run_id, frame in reversed(waiting.items()):
            self._waiting[run_id] = frame
            self._waiting.move_to_end(run_id, last=False)

        if worker.marks is not None:
            worker.marks.close()

    def _lost_runs(self, worker: _Worker) -> tuple[list[str], list[str]]:
        """Return the runs that are lost with a process: those whose call had begun, and those whose call had returned.

        A run that was being unpickled is lost if the process crashed in its thread, or if that happens to it a second
        time; otherwise it waits again. At least one run is lost, so that a run that ends each process before it is
        begun is not given to process after process.
        """
        runs = [run_id for run_id in worker.runs if run_id not in worker.cancelled]
        marks = worker.marks
        if marks is None or self._stopping:
            return runs, []

        crashed = worker.process.crashed_thread
        begun: list[str] = []
        returned: list[str] = []
        suspects: list[str] = []

        for run_id in runs:
            slot = worker.slots[run_id]
            state = marks.state(slot)
            if state == RETURNED:
                returned.append(run_id)
            elif state == UNPICKLING and run_id in worker.unbegun:
                culprit = marks.thread(slot) == crashed or run_id in self._suspects
                (begun if culprit else suspects).append(run_id)
            elif state or run_id not in worker.unbegun:
                begun.append(run_id)

        # Of several that ran at once: the one in whose thread the process crashed, otherwise the last to begin.
        begun.reverse()
        begun.sort(key=lambda run_id: marks.thread(worker.slots[run_id]) != crashed)
        if not (begun or returned):
            begun, suspects = [*suspects, *runs][:1], suspects[1:]
        self._suspects.update(suspects)
        return begun, returned

    def _fail_waiting(self, error: DeliveryError) -> None:
        waiting = list(self._waiting)
        self._waiting.clear()
        for run_id in waiting:
            self._tell(
                {"type": "task_error", "run_id": run_id, "exception": type(error)(str(error))}
            )

    def _tell(self, *events: Frame) -> None:
        self._tell_all(events)


class _UnreadableError(FrameError):
    """There is no room here to read a line, whatever is in it."""


def _unreadable(line: Sequence[bytes], error: BaseException) -> FrameError:
    """The error for a line that may well be a frame, and cannot be read here because of *error*."""
    size = sum(map(len, line))
    text = f"{type(error).__name__} while {size} bytes were read {error}".rstrip()
    return _UnreadableError(text, codec.find_run_id(*line))
