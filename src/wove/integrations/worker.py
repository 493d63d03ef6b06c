"""What the worker of a backend calls: `run` and `arun`, with the payload that was submitted.

Each process has one runner for all payloads it is given, made when the first one comes, and anew in a forked child.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Generator, Mapping
from functools import partial
from typing import Any, Final, cast

from wove.callback import sender
from wove.callback.client import fetch
from wove.callback.link import Destination
from wove.callback.report import Delivered, Report
from wove.errors import DeliveryError, SerializationError, WorkerLostError
from wove.executors.offload import Offload
from wove.protocol import payload as payloads
from wove.protocol.frames import FrameError, check_python
from wove.protocol.payload import Claim, Payload
from wove.protocol.pickling import Pickled
from wove.protocol.signing import digest
from wove.security import NetworkExecutorSecurity, SecurityConfig
from wove.worker.runner import Runner
from wove.worker.runs import BEATS_PER_INTERVAL, SharedCallable

__all__ = ["SECRET_VARIABLE", "arun", "close", "run"]

_log = logging.getLogger("wove.worker")

SECRET_VARIABLE: Final = "WOVE_WORKER_SECRET"
"""The environment variable whose secret a worker uses that is given none."""

RETRY_SECONDS: Final = 60.0
"""For how long the end of a run is sent again where the payload does not say."""

BEAT_SECONDS: Final = 5.0
"""The longest time between two heartbeats where the payload does not say: the answer to one is how a worker learns
of a cancel."""

STOP_SECONDS: Final = 2.0
"""How long an interrupted run may take to end before its worker reports without it."""

LAST_SECONDS: Final = 10.0
"""How long an interrupted worker waits for that report to arrive."""

SMALL_CHARACTERS: Final = 64 * 1024
"""A payload up to this size is read on the event loop: that takes less than half a millisecond."""

FETCHES: Final = 8
"""Payloads of `arun` that are fetching something at a time."""


def run(payload: Mapping[str, Any] | str | bytes, *, security: SecurityConfig = None) -> None:
    """Run the task of *payload*, and report to the weave that waits for it.

    For sync workers. Returns when the end of the run, whatever it is, has been reported; that the task failed is for
    its weave, not for the backend. May be called from any thread, and from many at once.

    The call can be interrupted, by a signal handler that raises (a backend's time limit, Ctrl-C) or with
    `SystemExit`: the task is stopped as far as Python can, that is reported, and the exception goes on.

    Args:
        payload: What the adapter submitted, or its JSON.
        security: As the environment's ``security``: then a payload that is not signed with it is refused, before
            anything of it is decoded. ``None``: the secret in the variable ``WOVE_WORKER_SECRET`` if there is one, else
            no security.

    Raises:
        PermissionError: The payload is refused. Nobody is told but the log: whoever made it may have written the
            address, too.
        DeliveryError: The end of the run did not get through, although it was tried for as long as the payload says.
        FrameError: The payload is none, and does not say whom to tell (a `ValueError`).
        ValueError: *security* is not right.

    Example::

        @app.task(name="wove.run_backend_payload")
        def run_backend_payload(payload):
            run(payload)
    """
    job = _read(payload, _security_of(security))
    try:
        job.start()
        delivered = job.report.wait()
    except BaseException as error:
        job.interrupt(error)
        job.report.wait_ended(STOP_SECONDS)
        job.insist()
        job.report.wait(LAST_SECONDS)
        raise
    _conclude(delivered)


async def arun(payload: Mapping[str, Any] | str | bytes, *, security: SecurityConfig = None) -> None:
    """As `run`, for async workers: on any event loop, which is not held up, whatever the task is.

    Being cancelled is its way of being interrupted.

    Args:
        payload: As `run`.
        security: As `run`.

    Raises:
        PermissionError: As `run`.
        DeliveryError: As `run`.
        FrameError: As `run`.
        ValueError: As `run`.

    Example::

        async def wove_run_backend_payload(ctx, payload):
            await arun(payload)
    """
    signer = _security_of(security)
    job = _read(payload, signer) if _is_small(payload) else await _fetches.call(_read, payload, signer)
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Delivered] = loop.create_future()
    try:
        job.report.when_delivered(lambda delivered: _settle_on(loop, done, delivered))
        if job.fetches:
            await _fetches.call(job.start)
        else:
            job.start()
        delivered = await asyncio.shield(done)
    except BaseException as error:
        job.interrupt(error)
        await asyncio.wait((done,), timeout=STOP_SECONDS)
        job.insist()
        await asyncio.wait((done,), timeout=LAST_SECONDS)
        raise
    _conclude(delivered)


def _settle_on(loop: asyncio.AbstractEventLoop, done: asyncio.Future[Delivered], delivered: Delivered) -> None:
    def settle() -> None:
        if not done.done():
            done.set_result(delivered)

    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(settle)


def _conclude(delivered: Delivered | None) -> None:
    if delivered is not None and delivered.error is not None:
        raise delivered.error


# --- one payload ------------------------------------------------------------------------------------------


class _Job:
    """A payload, and what is done about it.

    Args:
        report: What is said of its run.
        content: The payload; ``None``: another call has it, or it cannot be run.
        security: Verifies and signs.
        worker: That of this process.

    Attributes:
        fetches: Something of it is to be fetched first, which blocks.
    """

    def __init__(
        self, report: Report, content: Payload | None, security: NetworkExecutorSecurity, worker: _Worker
    ) -> None:
        self.report = report
        self._content = content
        self._security = security
        self._worker = worker
        self._lock = threading.Lock()
        self._submitted = self._stopped = False
        self.fetches = content is not None and bool(content.claims)

    def start(self) -> None:
        """Run it, once everything is there. Whatever stands in the way is reported."""
        content, self._content = self._content, None
        if content is None:
            return
        frame = dict(content.frame)
        try:
            check_python(frame, what=f"task {self.report.task!r}")
            function = self._function(content, frame)
            if (claim := content.claims.get("args_pickle")) is not None:
                frame["args_pickle"] = self._fetch(content, claim, "the arguments")
        except SerializationError as error:
            self.report.fail(error, source="config")
            return
        except (DeliveryError, FrameError) as error:
            self.report.fail(error, source="transport", retryable=isinstance(error, DeliveryError))
            return
        frame["deadline"] = _left(content)
        # Also where its weave wants none: the answer to one is how a worker learns of a cancel.
        delivery = cast("dict[str, Any]", frame.get("delivery") or {})
        interval = self.report.beat_seconds * BEATS_PER_INTERVAL
        frame["delivery"] = {**delivery, "delivery_heartbeat_seconds": interval}
        with self._lock:
            if not self._stopped:
                self._submitted = True
                self._worker.runner.submit(frame, function)

    def interrupt(self, error: BaseException) -> None:
        """Whoever waits for it has been interrupted by *error*: stop it."""
        if self._worker.reports.get(self.report.run_id) is not self.report:
            return
        said = ": ".join(filter(None, (type(error).__name__, str(error))))
        lost = WorkerLostError(f"task {self.report.task!r}: its worker was stopped in the middle of it ({said})")
        # Not as a cancel, which its weave knows nothing of.
        self.report.last_word = self.report.failure(lost, source="executor", retryable=True)
        with self._lock:
            self._stopped = True
        if self._submitted:
            self.report.cancel()
        else:
            self.insist()

    def insist(self) -> None:
        """The task has not ended, and is left to itself: report without it."""
        if self.report.last_word is not None:
            self.report.put(self.report.last_word)

    def _function(self, content: Payload, frame: dict[str, Any]) -> SharedCallable:
        """The callable, of which this process keeps those that were used last."""
        runner = self._worker.runner
        claim = content.claims.get("callable_pickle")
        if claim is None:
            pickled = frame.pop("callable_pickle", None)
            if pickled is None:
                raise FrameError(f"the payload of task {self.report.task!r} comes without its callable")
            return runner.shared(digest(pickled.chunks), pickled) or SharedCallable(pickled)
        with self._worker.fetching(claim.sha256):  # many runs of one callable start at the same time
            found = runner.shared(claim.sha256)
            if found is None:
                pickled = self._fetch(content, claim, "the callable")
                found = runner.shared(claim.sha256, pickled) or SharedCallable(pickled)
            return found

    def _fetch(self, content: Payload, claim: Claim, what: str) -> Pickled:
        return fetch(
            content.callback_url,
            claim,
            security=self._security,
            what=f"{what} of task {self.report.task!r}",
            retry_seconds=self.report.retry_seconds,
        )


def _left(content: Payload) -> float | None:
    """What is left of the deadline, in seconds; ``None``: there is none."""
    deadline: object = content.frame.get("deadline")
    if isinstance(deadline, bool) or not isinstance(deadline, (int, float)):
        return None
    if content.sent_at is None:
        return deadline
    # The clocks of two machines: if they disagree, it is neither longer than it was nor over before it began.
    return deadline - min(max(time.time() - content.sent_at, 0.0), deadline)


def _beat_seconds(content: Payload, delivery: Mapping[str, Any]) -> float:
    """The time between two heartbeats."""
    longest = content.beat_seconds or BEAT_SECONDS
    interval: object = delivery.get("delivery_heartbeat_seconds")
    if isinstance(interval, bool) or not isinstance(interval, (int, float)) or interval <= 0:
        return longest
    return min(longest, interval / BEATS_PER_INTERVAL)


# --- reading payloads -------------------------------------------------------------------------------------


def _read(payload: object, security: NetworkExecutorSecurity) -> _Job:
    try:
        content = payloads.parse(payload)
        destination = Destination.parse(content.callback_url)
    except ValueError as error:  # FrameError is one
        return _unreadable(payload, error, security)
    run_id = content.frame["run_id"]
    try:
        security.verify_payload(
            adapter=content.adapter, run_id=run_id, body=content.digest, signature=content.signature
        )
    except PermissionError as error:
        _log.error("the payload of run %r is refused: %s", run_id, error)
        raise
    delivery = cast("dict[str, Any]", content.frame.get("delivery") or {})
    return _open(
        content,
        run_id,
        content.frame["task_id"],
        destination,
        security,
        retry_seconds=RETRY_SECONDS if content.retry_seconds is None else content.retry_seconds,
        beat_seconds=_beat_seconds(content, delivery),
        detached=delivery.get("delivery_orphan_policy") == "detach",
    )


def _unreadable(payload: object, error: ValueError, security: NetworkExecutorSecurity) -> _Job:
    """Tell the weave, where the payload says which."""
    try:
        fields: Any = json.loads(payload) if isinstance(payload, (str, bytes, bytearray)) else payload
        run_id, task, url = fields["run_id"], fields.get("task_id"), fields["callback_url"]
        destination = Destination.parse(url)
        if security.authenticates or not isinstance(run_id, str):
            raise ValueError
    except (ValueError, TypeError, LookupError, AttributeError):
        _log.error("a payload cannot be read, and nobody can be told: %s", error)
        raise error from None
    job = _open(
        None,
        run_id,
        str(task or "?"),
        destination,
        security,
        retry_seconds=RETRY_SECONDS,
        beat_seconds=BEAT_SECONDS,
        detached=False,
    )
    job.report.fail(error, source="transport", retryable=False)
    return job


def _open(
    content: Payload | None,
    run_id: str,
    task: str,
    destination: Destination,
    security: NetworkExecutorSecurity,
    **options: Any,
) -> _Job:
    """What is done about a run: by this call, or by an earlier one, as a backend may hand out a payload twice."""
    while True:
        worker = _this_worker()
        opened = worker.open(run_id, task, destination, security, **options)
        if opened is not None:
            report, is_new = opened
            return _Job(report, content if is_new else None, security, worker)


def _is_small(payload: object) -> bool:
    if isinstance(payload, Mapping):
        values = cast("Mapping[str, object]", payload).values()
        return sum(len(value) for value in values if isinstance(value, str)) <= SMALL_CHARACTERS
    return not isinstance(payload, (str, bytes, bytearray)) or len(payload) <= SMALL_CHARACTERS


# --- security ---------------------------------------------------------------------------------------------

MOST_SECURITIES: Final = 16
_VARIABLES: Final = re.compile(r'_env": "([^"]*)"|"env:([^"]*)"')

_securities: dict[object, NetworkExecutorSecurity] = {}


def _security_of(security: SecurityConfig) -> NetworkExecutorSecurity:
    """The one for *security*: the same as long as that says the same, so that runs share requests."""
    if security is None and os.environ.get(SECRET_VARIABLE):
        security = f"env:{SECRET_VARIABLE}"
    if isinstance(security, NetworkExecutorSecurity):
        return security
    try:
        text = json.dumps(security)
    except TypeError:  # a secret of bytes
        return NetworkExecutorSecurity.from_config(security, what="the security of this worker")
    key = (text, *(os.environ.get("".join(names)) for names in _VARIABLES.findall(text)))
    found = _securities.get(key)
    if found is None:
        found = NetworkExecutorSecurity.from_config(security, what="the security of this worker")
        if len(_securities) >= MOST_SECURITIES:
            _securities.clear()
        _securities[key] = found
    return found


# --- this process -----------------------------------------------------------------------------------------


class _Worker:
    """What a process has for all its payloads."""

    def __init__(self) -> None:
        self.reports: dict[str, Report] = {}
        self.runner = Runner(self._emit, name="wove-worker")
        self._lock = threading.Lock()
        self._fetching: dict[str, tuple[threading.Lock, int]] = {}
        self._closed = False

    def open(
        self, run_id: str, task: str, destination: Destination, security: NetworkExecutorSecurity, **options: Any
    ) -> tuple[Report, bool] | None:
        """The report of a run, and whether it is a new one; ``None`` once this is closed."""
        with self._lock:
            if self._closed:
                return None
            report = self.reports.get(run_id)
            if report is not None:
                return report, False
            report = self.reports[run_id] = Report(
                run_id, task, destination, security, cancel=partial(self.runner.cancel, {"run_id": run_id}), **options
            )
        report.when_delivered(partial(self._forget, run_id))
        sender.sender_for(destination).open(report)
        return report, True

    @contextlib.contextmanager
    def fetching(self, name: str) -> Generator[None]:
        """One at a time for each *name*."""
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
        """Take no more runs, if there are none; whether that is so."""
        with self._lock:
            self._closed = not self.reports
            return self._closed

    def _forget(self, run_id: str, delivered: Delivered) -> None:
        del delivered, self.reports[run_id]

    def _emit(self, event: dict[str, Any]) -> None:
        report = self.reports.get(event["run_id"])
        if report is not None:
            report.put(event)


_worker: _Worker | None = None
_worker_lock = threading.Lock()
_fetches: Final = Offload(FETCHES, "wove-fetch")


def _this_worker() -> _Worker:
    global _worker
    if _worker is None:
        with _worker_lock:
            if _worker is None:
                _worker = _Worker()
    return _worker


def close(timeout: float) -> None:
    """End the threads of this module that have nothing to do, waiting about *timeout* seconds. They start again."""
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
    _fetches.close(timeout)


def _renew() -> None:
    global _worker, _worker_lock
    _worker, _worker_lock = None, threading.Lock()
    _fetches.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
