"""The worker processes of one environment: who gets the next run, and what becomes of those that end."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shlex
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from wove.concurrency import forks, thread_pool
from wove.concurrency.backoff import Backoff
from wove.concurrency.deadline import Deadline
from wove.concurrency.mailbox import post_to
from wove.errors import DeliveryError, EnvironmentExecutionError, WorkerLostError
from wove.executors.base import Frame
from wove.executors.stdio import resource_tracker
from wove.executors.stdio.balance import choose
from wove.executors.stdio.process import WATCHES_PIPES, Listener, WorkerProcess, describe_exit
from wove.executors.stdio.worker import Plan, PoolWorker
from wove.protocol import codec
from wove.protocol.frames import READY, TERMINAL, FrameError
from wove.protocol.limits import INLINE_BYTES
from wove.worker.run_marks import UNPICKLING, RunMarks, shared_file

__all__ = ["Pool"]

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


class Pool(Listener):
    """Runs frames in worker processes. Everything is to be called on one loop.

    Args:
        plan: What it is made of.
        on_events: Called with the events.
    """

    def __init__(self, plan: Plan, on_events: Callable[[Sequence[Frame]], object]) -> None:
        self._plan = plan
        self._on_events = on_events
        self._loop = asyncio.get_running_loop()
        self._workers: list[PoolWorker] = []
        self._where: dict[str, PoolWorker] = {}
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
            free = [worker.capacity.free(worker.process.backlog) for worker in able]
            load = [worker.capacity.load for worker in able]
            now = self._loop.time()
            for index in choose(free, load, len(self._waiting)):
                worker = able[index]
                if not worker.encoding:  # the run before it was a large one
                    self._assign(worker, now)
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
        return sum(not (worker.answered or worker.draining) for worker in self._workers)

    def _takes_runs(self, worker: PoolWorker) -> bool:
        if self._plan.says_ready and not worker.answered:
            return False  # it may be queued for hours, and another may be free long before
        return not (
            worker.draining
            or worker.encoding
            or worker.process.ended
            or (worker.cancelled and self._plan.terminate)
        )

    def _assign(self, worker: PoolWorker, now: float) -> None:
        run_id, frame = self._waiting.popitem(last=False)
        worker.runs[run_id] = frame["task_id"]
        self._where[run_id] = worker
        worker.capacity.assigned(now)
        self._moved = True

        if (
            self._plan.ours
            and not worker.answered
            and self._plan.start_seconds is not None
            and len(worker.runs) == 1
        ):
            self._loop.call_later(self._plan.start_seconds, self._check_answered, worker)

        if worker.marks is not None:
            worker.not_begun[run_id] = frame
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

    def _encoded(
        self, worker: PoolWorker, run_id: str, chunks: list[bytes] | BaseException
    ) -> None:
        worker.encoding = False

        if isinstance(chunks, BaseException):
            self._forget(worker, run_id)
            worker.draining = True  # its callable counts as sent, and was not
            worker.reason = "a frame for it could not be made"
            self._end_if_useless(worker)
            self._emit({"type": "task_error", "run_id": run_id, "exception": chunks})
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

    def _start(self) -> PoolWorker:
        plan, now = self._plan, self._loop.time()
        if plan.launched:
            process = _process_class()(
                plan.command, plan.cwd, plan.environ, self, linger_seconds=LAUNCHER_SECONDS
            )
            if plan.boot is not None:
                process.write([json.dumps(plan.boot).encode()])
            return PoolWorker(process, None, 1 if plan.ours else None, now)

        if plan.boot is None:
            process = _process_class()(plan.command, plan.cwd, plan.environ, self)
            return PoolWorker(process, None, None, now)

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

        return PoolWorker(process, marks, 1, now)

    def _check_stagnation(self) -> None:
        self._stagnation = None

        if self._moved:
            self._patience = STAGNATION_SECONDS
        else:
            self._patience *= 2
            for worker in filter(self._takes_runs, self._workers):
                worker.capacity.stagnates()

        self._dispatch()

    def _check_answered(self, worker: PoolWorker) -> None:
        if not worker.answered and not worker.process.ended:
            worker.reason = f"it did not answer within {self._plan.start_seconds:g} s (executor_config 'start_timeout')"
            self._kill(worker)

    # ------------------------------------------------------------------ processes without work

    def _is_idle(self, worker: PoolWorker) -> bool:
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

    def _dismiss(self, worker: PoolWorker) -> None:
        """Ask a process without runs to end; one that still waits in a scheduler's queue is withdrawn."""
        if self._plan.says_ready and not worker.answered:
            self._kill(worker)
            return
        worker.process.write(codec.encode({"type": "shutdown"}))
        worker.process.close_stdin()

    def _kill(self, worker: PoolWorker) -> None:
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
            self._emit({"type": "task_cancelled", "run_id": run_id})
            self._idle_deadline.update()
            return

        worker = self._where.get(run_id)
        if worker is None or run_id in worker.cancelled:
            return
        worker.cancelled.add(run_id)
        worker.capacity.load -= 1
        if not worker.encoding:
            worker.process.write(codec.encode(frame))
        self._loop.call_later(CANCEL_SECONDS, self._overdue, worker, run_id)

    def _overdue(self, worker: PoolWorker, run_id: str) -> None:
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

    def _end_if_useless(self, worker: PoolWorker) -> None:
        if worker.draining and len(worker.cancelled) == len(worker.runs):
            self._kill(worker)

    def _forget(self, worker: PoolWorker, run_id: str) -> bool:
        """Remove a run that has ended, and return whether it counted as load."""
        if worker.runs.pop(run_id, None) is None:
            return False
        if not worker.runs:
            worker.idle_since = self._loop.time()
        self._where.pop(run_id, None)
        worker.not_begun.pop(run_id, None)
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

        self._receive(worker, frames)

    def _worker(self, process: WorkerProcess) -> PoolWorker | None:
        return next((worker for worker in self._workers if worker.process is process), None)

    def _decode(self, worker: PoolWorker, line: Sequence[bytes]) -> list[Frame]:
        try:
            return codec.decode(b"".join(line))
        except FrameError as error:
            return self._garbage(worker, error)

    def _decode_large(self, worker: PoolWorker, line: Sequence[bytes]) -> None:
        worker.decoding += 1
        try:
            thread_pool.submit(self._decode_elsewhere, worker, line)
        except (RuntimeError, MemoryError) as error:  # no room for a thread
            self._decoded(worker, _unreadable(line, error))

    def _decode_elsewhere(self, worker: PoolWorker, line: Sequence[bytes]) -> None:
        frames: list[Frame] | BaseException

        try:
            frames = codec.decode(line)
        except FrameError as error:
            frames = error
        except BaseException as error:  # memory, above all
            frames = _unreadable(line, error)

        post_to(self._loop, self._decoded, worker, frames)

    def _decoded(self, worker: PoolWorker, frames: list[Frame] | BaseException) -> None:
        worker.decoding -= 1
        if isinstance(frames, BaseException):
            frames = self._garbage(worker, frames)
        self._receive(worker, frames)
        if worker.process.ended and not worker.decoding:
            self._finish(worker)

    def _garbage(self, worker: PoolWorker, error: BaseException) -> list[Frame]:
        """Report a line that is not a frame. A run that it names could not end otherwise."""
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

    def _receive(self, worker: PoolWorker, frames: list[Frame]) -> None:
        if not frames:
            return
        now = self._loop.time()
        if not worker.answered:
            worker.answered = True
            self._silent_ends = 0
            worker.capacity.marked_at = worker.idle_since = now

        if self._plan.says_ready:
            frames = [frame for frame in frames if frame.get("type") != READY]
        over = 0

        for frame in frames:
            kind = frame.get("type")
            run_id = frame.get("run_id")
            if kind == "heartbeat":
                if self._waiting and frame.get("blocked") and worker.capacity.waits():
                    self._moved = True
            elif isinstance(kind, str) and kind in TERMINAL and isinstance(run_id, str):
                over += self._forget(worker, run_id)
                self._suspects.discard(run_id)
            elif kind == "task_started":
                self._moved = True
                if isinstance(run_id, str) and self._has_begun(worker, run_id):
                    worker.not_begun.pop(run_id, None)

        if frames:
            self._emit(*frames)
        if over:
            self._moved = True
            worker.capacity.finished(over, now)
            if not self._waiting:
                worker.capacity.idle()

        if not self._waiting:
            self._idle_deadline.update()

        if worker.draining:
            self._end_if_useless(worker)
        if self._waiting:
            self._dispatch()

    def _has_begun(self, worker: PoolWorker, run_id: str) -> bool:
        """Return whether the call of a run that has started is sure to have begun, so that its frame can go."""
        slot = worker.slots.get(run_id)
        return slot is None or worker.marks is None or worker.marks.state(slot) != UNPICKLING

    def ended(self, process: WorkerProcess) -> None:
        worker = self._worker(process)
        if (
            worker is not None and not worker.decoding
        ):  # else when that is done: it may hold an end of a run
            self._finish(worker)

    def _finish(self, worker: PoolWorker) -> None:
        self._workers.remove(worker)
        status = describe_exit(worker.process.returncode)
        tail = worker.process.stderr_tail
        output = f". The last that it wrote to stderr:\n{tail}" if tail else ""
        expected = self._stopping or bool(worker.reason)
        logger.log(
            logging.DEBUG if expected else logging.WARNING,
            "environment %r: worker process %d ended with %s",
            self._plan.environment,
            worker.process.pid,
            status,
        )
        self._end_runs(worker, status, output)
        if self._stopping:
            if not self._workers and self._all_ended is not None and not self._all_ended.done():
                self._all_ended.set_result(None)
            return

        if not (worker.answered or worker.draining):
            self._silent_ends += 1
            if self._silent_ends >= MAX_SILENT_ENDS and not any(
                other.answered for other in self._workers
            ):
                self._fail_waiting(
                    WorkerLostError(
                        f"environment {self._plan.environment!r}: its workers do not start: "
                        f"{self._silent_ends} in a row ended before they answered anything, "
                        f"the last with {status} (command: {shlex.join(self._plan.command)}){output}"
                    )
                )
            elif any(other.answered for other in self._workers):
                self._spawn_at = self._loop.time() + RESTARTS.delay(self._silent_ends)

        self._dispatch()

    def _end_runs(self, worker: PoolWorker, status: str, output: str) -> None:
        """End the runs that the process had begun, the ones that were running first; the others wait again."""
        begun, returned, suspects = worker.lost_runs(self._suspects, stopping=self._stopping)
        self._suspects.update(suspects)
        lost = [*begun, *returned]
        waiting = {
            run_id: frame
            for run_id, frame in worker.not_begun.items()
            if run_id not in lost and run_id not in worker.cancelled
        }
        reason = worker.reason or worker.process.read_error
        why = f" ({reason})" if reason else ""
        before = "" if worker.answered else " before it answered anything"
        with_it = f". Lost with it: {', '.join(lost)}" if len(lost) > 1 else ""
        end = f"worker process {worker.process.pid} of environment {self._plan.environment!r} ended with {status}"

        for run_id in list(worker.cancelled):
            self._forget(worker, run_id)
            self._emit({"type": "task_cancelled", "run_id": run_id})

        for run_id in lost:
            task = worker.runs[run_id]
            self._forget(worker, run_id)
            self._suspects.discard(run_id)
            how = " after its call had returned" if run_id in returned else ""
            text = (
                f"run {run_id} of task {task!r} was lost{how}: {end}{before}{why}{with_it}{output}"
            )
            self._emit({"type": "task_error", "run_id": run_id, "exception": WorkerLostError(text)})

        for run_id in waiting:
            self._forget(worker, run_id)
        for run_id, frame in reversed(waiting.items()):
            self._waiting[run_id] = frame
            self._waiting.move_to_end(run_id, last=False)

        if worker.marks is not None:
            worker.marks.close()

    def _fail_waiting(self, error: DeliveryError) -> None:
        waiting = list(self._waiting)
        self._waiting.clear()
        for run_id in waiting:
            self._emit(
                {"type": "task_error", "run_id": run_id, "exception": type(error)(str(error))}
            )

    def _emit(self, *events: Frame) -> None:
        self._on_events(events)


class _UnreadableError(FrameError):
    """This process has not enough memory to read a line, whatever is in it."""


def _unreadable(line: Sequence[bytes], error: BaseException) -> FrameError:
    """Return the error for a line that may be a frame, and cannot be read here because of *error*."""
    size = sum(map(len, line))
    text = f"{type(error).__name__} while {size} bytes were read {error}".rstrip()
    return _UnreadableError(text, codec.find_run_id(*line))


def _process_class() -> type[WorkerProcess]:
    if WATCHES_PIPES:
        return WorkerProcess
    # Here, because most systems do without threads.
    from wove.executors.stdio.process_by_threads import ThreadWorkerProcess

    return ThreadWorkerProcess
