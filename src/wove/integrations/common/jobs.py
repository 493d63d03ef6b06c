"""Payloads that are being run. Each process has one runner for all of them, made for the first."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Generator
from functools import partial
from typing import Any, Final

from wove.callback import sender
from wove.callback.client import fetch
from wove.callback.link import Destination
from wove.callback.reporter import DeliveryOutcome, RunReporter
from wove.concurrency import forks
from wove.concurrency.thread_pool import ThreadPool
from wove.errors import DeliveryError, SerializationError, WorkerLostError
from wove.protocol import heartbeats
from wove.protocol.frames import FrameError, check_python
from wove.protocol.payload import Claim, Payload
from wove.protocol.pickling import Pickled
from wove.protocol.signing import digest
from wove.security import NetworkExecutorSecurity
from wove.worker.runner import Runner
from wove.worker.runs import SharedCallable

__all__ = ["ASK_SECONDS", "Job", "close", "fetches"]

ASK_SECONDS: Final = 1.0
"""The age of a payload, in seconds, from which on its worker asks first whether anybody still waits for its run: it may
have outlived its weave in a queue. A younger one is begun without a question, which would double its latency."""

FETCHES: Final = 8
"""Payloads of `arun` that are being read, or fetch something, at a time."""

fetches: Final = ThreadPool(FETCHES, "wove-fetch")


class Job:
    """Runs one payload: `enter`, then `start`; `interrupt` at any time.

    Args:
        content: The payload, verified; or the error because of which it cannot be run.
        run_id: The id of its run.
        task: The name of its task.
        destination: Where its events go.
        security: Signs the events.
        retry_seconds: As `RunReporter`.
        heartbeat_seconds: The time between two heartbeats.
        detached: As `RunReporter`.

    Attributes:
        report: What is said of its run.
        fetches: Something of it is to be fetched first, so that `start` blocks.
        ask_after: In seconds: if the payload is older, the receiver is asked before anything is fetched or begun. A
            payload with an end of validity may be a copy: for it, the receiver is always asked.
    """

    def __init__(
        self,
        content: Payload | ValueError,
        run_id: str,
        task: str,
        destination: Destination,
        security: NetworkExecutorSecurity,
        *,
        retry_seconds: float,
        heartbeat_seconds: float = heartbeats.MAX_SECONDS,
        detached: bool = False,
    ) -> None:
        self.report = RunReporter(
            run_id,
            task,
            destination,
            security,
            retry_seconds=retry_seconds,
            heartbeat_seconds=heartbeat_seconds,
            detached=detached,
            cancel=self._cancel,
        )
        self.report.when_delivered(self._leave)
        self.report.sender = sender.sender_for(destination)
        self.fetches = isinstance(content, Payload) and bool(content.claims)
        self.ask_after = ASK_SECONDS
        self._content: Payload | ValueError | None = content
        self._worker = _this_worker()
        self._lock = threading.Lock()
        self._submitted = self._stopped = False

    def enter(self) -> None:
        """Join the run if this process has it already: a backend may deliver a payload twice."""
        while (found := self._worker.enter(self.report)) is None:
            self._worker = _this_worker()
        if found is not self.report:
            self.report, self._content, self.fetches = found, None, False

    def start(self) -> None:
        """Run the payload once everything is fetched. An obstacle is reported."""
        content, self._content = self._content, None
        if content is None:
            return
        if isinstance(content, ValueError):
            self.report.fail(content, source="transport", retryable=False)
            return

        sender.sender_for(self.report.destination).open(self.report)

        if content.valid_until is not None or _age(content) >= self.ask_after:
            self.report.ask(partial(self._awaited, content))
        else:
            self._prepare(content)

    def _awaited(self, content: Payload) -> None:
        # In the sender's thread, which must not wait for what is to be fetched.
        if self.fetches:
            fetches.submit(self._prepare, content)
        else:
            self._prepare(content)

    def _prepare(self, content: Payload) -> None:
        """Fetch the parts that are not in the payload, and begin the run."""
        frame = dict(content.frame)

        try:
            check_python(frame, label=f"task {self.report.task!r}")
            function = self._function(content, frame)
            if (claim := content.claims.get("args_pickle")) is not None:
                frame["args_pickle"] = self._fetch(content, claim, "the arguments")
        except SerializationError as error:
            self.report.fail(error, source="config")
            return
        except (DeliveryError, FrameError) as error:
            self.report.fail(error, source="transport", retryable=isinstance(error, DeliveryError))
            return
        except Exception as error:
            self.report.fail(error, source="executor")
            return

        with self._lock:
            if not self._stopped:
                self._submitted = True
                self._worker.runner.submit(
                    frame, function, heartbeat_seconds=self.report.heartbeat_seconds
                )

    def interrupt(self, error: BaseException) -> bool:
        """Stop the run, because the call that waits for it was interrupted by *error*.

        Returns:
            Whether the run is going to end and be reported because of that. False if another call runs it, or it is
            over.
        """
        if (
            self.report.cancel != self._cancel
            or self._worker.reports.get(self.report.run_id) is not self.report
        ):
            return False

        said = ": ".join(filter(None, (type(error).__name__, str(error))))
        lost = WorkerLostError(
            f"task {self.report.task!r}: its worker was stopped in the middle of it ({said})"
        )
        # Not as a cancel, since its weave has cancelled nothing.
        self.report.override_event = self.report.failure(lost, source="executor", retryable=True)
        with self._lock:
            self._stopped = True
        if self._submitted:
            self.report.cancel()
        else:
            self.insist()

        return True

    def insist(self) -> None:
        """Report the interruption without waiting any longer for the end of the task."""
        if self.report.override_event is not None:
            self.report.put(self.report.override_event)

    def _cancel(self) -> None:
        with self._lock:
            self._stopped = True
        if self._submitted:
            self._worker.runner.cancel({"type": "cancel_task", "run_id": self.report.run_id})
        else:
            self.report.put(
                {
                    "type": "task_cancelled",
                    "run_id": self.report.run_id,
                    "task_id": self.report.task,
                }
            )

    def _leave(self, delivered: DeliveryOutcome) -> None:
        del delivered
        if self._worker.reports.get(self.report.run_id) is self.report:
            del self._worker.reports[self.report.run_id]

    def _function(self, content: Payload, frame: dict[str, Any]) -> SharedCallable:
        """Return the callable. This process keeps those that were used last."""
        runner = self._worker.runner
        claim = content.claims.get("callable_pickle")
        if claim is None:
            pickled = frame.pop("callable_pickle", None)
            if pickled is None:
                raise FrameError(
                    f"the payload of task {self.report.task!r} comes without its callable"
                )
            return runner.shared(digest(pickled.chunks), pickled) or SharedCallable(pickled)

        with self._worker.fetching(
            claim.sha256
        ):  # many runs of one callable start at the same time
            found = runner.shared(claim.sha256)
            if found is None:
                pickled = self._fetch(content, claim, "the callable")
                found = runner.shared(claim.sha256, pickled) or SharedCallable(pickled)
            return found

    def _fetch(self, content: Payload, claim: Claim, label: str) -> Pickled:
        return fetch(
            content.callback_url,
            claim,
            security=self.report.security,
            label=f"{label} of task {self.report.task!r}",
            retry_seconds=self.report.retry_seconds,
        )


def _age(content: Payload) -> float:
    """Return how long ago *content* was made, in seconds, by two clocks: if they disagree, it counts as old."""
    return 0.0 if content.sent_at is None else abs(time.time() - content.sent_at)


# --- this process -----------------------------------------------------------------------------------------


class _Worker:
    """The parts that all payloads of a process share.

    Attributes:
        reports: The reporters of the runs that are here, by run id.
        runner: Runs them.
    """

    def __init__(self) -> None:
        self.reports: dict[str, RunReporter] = {}
        self.runner = Runner(self._emit, name="wove-worker")
        self._lock = threading.Lock()
        self._fetching: dict[str, tuple[threading.Lock, int]] = {}
        self._closed = False

    def enter(self, report: RunReporter) -> RunReporter | None:
        """Return *report*, or the earlier reporter of its run; ``None`` once this is closed."""
        with self._lock:
            return None if self._closed else self.reports.setdefault(report.run_id, report)

    @contextlib.contextmanager
    def fetching(self, name: str) -> Generator[None]:
        """Let one thread at a time fetch *name*."""
        with self._lock:
            lock, users = self._fetching.get(name) or (threading.Lock(), 0)
            self._fetching[name] = lock, users + 1

        try:
            with lock:
                yield
        finally:
            with self._lock:
                lock, users = self._fetching.pop(name)
                if users > 1:
                    self._fetching[name] = lock, users - 1

    def retire(self) -> bool:
        """Accept no more runs if there are none now, and return whether that is so."""
        with self._lock:
            self._closed = not self.reports
            return self._closed

    def _emit(self, event: dict[str, Any]) -> None:
        report = self.reports.get(event["run_id"])
        if report is not None:
            report.put(event)


_worker: _Worker | None = None
_worker_lock = threading.Lock()


def _this_worker() -> _Worker:
    global _worker
    if _worker is None:
        with _worker_lock:
            if _worker is None:
                _worker = _Worker()
    return _worker


def close(timeout: float) -> None:
    """End the threads of an idle worker, waiting about *timeout* seconds. The next payload starts them again."""
    global _worker
    with _worker_lock:
        worker, ended = _worker, _worker is not None and _worker.retire()
        if ended:
            _worker = None

    if worker is not None:
        if not ended:
            return
        worker.runner.close(timeout)

    sender.close(timeout)
    fetches.close(timeout)


def reset_after_fork() -> None:
    global _worker, _worker_lock
    _worker, _worker_lock = None, threading.Lock()


forks.after_in_child(forks.Phase.THREADS, reset_after_fork)
