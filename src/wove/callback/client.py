"""Single requests to a receiver: `post_event`, for workers that are not Wove's, and `fetch`, for claims."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from wove.callback.link import REFUSED_SECONDS, Destination, Link, exchange, request
from wove.concurrency.backoff import Backoff
from wove.errors import DeliveryError
from wove.net.http1 import Head, ProtocolError, quoted
from wove.protocol import codec, payload
from wove.protocol.faults import from_exception
from wove.protocol.frames import PYTHON, check_event
from wove.protocol.names import CLAIM_METHOD, EVENT_METHOD, JSON_TYPE, UNAWAITED_HEADER
from wove.protocol.payload import Claim
from wove.protocol.pickling import Pickled, dumps
from wove.security import NetworkExecutorSecurity, SecurityConfig

__all__ = [
    "RETRY",
    "fetch",
    "is_retryable",
    "post_event",
    "refusal_text",
    "run_ids_in",
]

_log = logging.getLogger("wove.worker")

T = TypeVar("T")

RETRY: Final = Backoff(0.1, 2.0)
"""Pause between two attempts. The jitter keeps the workers of a receiver apart."""

_RETRYABLE: Final = frozenset({408, 425, 429})  # and 5xx

_now = time.monotonic


def is_retryable(status: int) -> bool:
    """Return whether a request that was answered with *status* may succeed a little later."""
    return status in _RETRYABLE or status >= 500


def run_ids_in(head: Head, name: str) -> frozenset[str]:
    """Return the ids of runs in the header *name* of a response.

    Args:
        head: The response's head.
        name: `UNAWAITED_HEADER` or `CANCELLED_HEADER`.
    """
    return frozenset((head.get(name.lower()) or "").replace(",", " ").split())


def refusal_text(destination: Destination, head: Head, body: bytes) -> str:
    """Return a message about a response that refuses the request: what came, and what to do about it."""
    text = f"{destination} answered {head}" + (f": {quoted(body)}" if body.strip() else "")
    if head.status == 404:
        return f"{text}. Is its callback_url one of Wove's, with the right token?"
    if head.status in (401, 403):
        return f"{text}. Both sides need the same secret: 'security' of the environment, and that of this worker"
    return text


# --- events -----------------------------------------------------------------------------------------------


def post_event(
    callback_url: str,
    event: Mapping[str, Any],
    *,
    security: SecurityConfig = None,
    timeout: float = 10.0,
    retry_seconds: float = 0.0,
) -> bool:
    """Post one event of a run, for workers that run payloads in a way of their own.

    Blocks until the receiver has accepted it.

    Args:
        callback_url: The payload's.
        event: Its ``type`` and ``run_id``, and what else belongs to it. A value in ``result``, and an exception in
            ``exception``, are pickled here.
        security: As the environment's ``security``.
        timeout: Seconds that one attempt may make no progress.
        retry_seconds: For how many seconds a failed attempt is repeated. A worker should repeat the end of a run.

    Returns:
        Whether the receiver wants to hear more of the run. If not, nobody waits for it any more, and a run in
        progress should end.

    Raises:
        FrameError: *event* is not an event (a `ValueError`).
        SerializationError: Its result cannot be pickled.
        DeliveryError: It did not get through, or was refused.

    Example::

        post_event(payload["callback_url"], {"type": "task_result", "run_id": payload["run_id"], "result": 42},
                   retry_seconds=60)
    """
    destination = Destination.parse(callback_url)
    signer = NetworkExecutorSecurity.from_config(security)
    chunks = codec.encode(_with_pickles(check_event(event)))
    label = f"the {event['type']} of run {event['run_id']}"

    def attempt() -> bool:
        fields = [
            ("Content-Type", JSON_TYPE),
            ("Content-Length", str(sum(map(len, chunks)))),
        ]
        if signer.authenticates:
            fields += signer.headers_for(
                transport="http", target=destination.target, body=chunks
            ).items()

        head, body = exchange(
            destination, request(destination, EVENT_METHOD, fields), chunks, stall_seconds=timeout
        )
        if head.status == 410:
            return False
        if not 200 <= head.status < 300:
            raise _RefusedError(
                refusal_text(destination, head, body), retryable=is_retryable(head.status)
            )
        return event["run_id"] not in run_ids_in(head, UNAWAITED_HEADER)

    return _with_retries(attempt, label, destination, retry_seconds)


def _with_pickles(event: dict[str, Any]) -> dict[str, Any]:
    """Return *event* with its result and its exception pickled."""
    ready = {name: value for name, value in event.items() if name not in ("result", "exception")}
    task = str(event.get("task_id") or "?")
    if "result" in event and "result_pickle" not in event:
        ready["result_pickle"] = dumps(event["result"], label=f"the result of task {task!r}")
    exception = event.get("exception")
    if isinstance(exception, BaseException) and "exception_pickle" not in event:
        ready = {**from_exception(exception, task=task), "python": PYTHON, **ready}
    return ready


# --- claims -----------------------------------------------------------------------------------------------


def fetch(
    callback_url: str,
    claim: Claim,
    *,
    security: NetworkExecutorSecurity,
    label: str,
    retry_seconds: float,
    stall_seconds: float = 60.0,
) -> Pickled:
    """Fetch the bytes that *claim* stands for, and check them.

    Args:
        callback_url: The payload's.
        claim: From the payload, which must have been verified.
        security: Signs the request.
        label: What they are, for messages: ``"the arguments of task 'pdf'"``.
        retry_seconds: For how many seconds a failed attempt is repeated.
        stall_seconds: Seconds that one attempt may make no progress.

    Raises:
        DeliveryError: They could not be fetched, or differ from what the payload says.
    """
    destination = Destination.parse(payload.claim_url(callback_url, claim.id))

    def attempt() -> Pickled:
        fields = security.headers_for(transport="http", target=destination.target).items()
        link = Link(destination)

        try:
            link.send(
                request(destination, CLAIM_METHOD, fields),
                (),
                seconds=stall_seconds,
                most_answer=claim.size,
            )
            return _received(link, claim, destination, stall_seconds)
        finally:
            link.close()

    return _with_retries(attempt, label, destination, retry_seconds)


def _received(link: Link, claim: Claim, destination: Destination, stall_seconds: float) -> Pickled:
    found = hashlib.sha256()
    chunks: list[bytes] = []
    size = 0

    while not link.parser.complete:
        for piece in link.receive(stall_seconds):
            found.update(piece)  # other threads run meanwhile
            chunks.append(piece)
            size += len(piece)

    head = link.parser.head
    assert head is not None
    if head.status != 200:
        raise _RefusedError(
            refusal_text(destination, head, b"".join(chunks)), retryable=is_retryable(head.status)
        )

    if size != claim.size or found.hexdigest() != claim.sha256:
        raise _RefusedError(
            f"{destination} sent {size} bytes with the SHA-256 {found.hexdigest()}, and the payload says "
            f"{claim.sha256}. Nothing of it was unpickled",
            retryable=False,
        )

    return Pickled(chunks, size=size)


# --- retries ----------------------------------------------------------------------------------------------


class _RefusedError(Exception):
    """The receiver refused the request; *retryable*: it may succeed a little later."""

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


def _with_retries(
    attempt: Callable[[], T], label: str, destination: Destination, seconds: float
) -> T:
    give_up_at = _now() + seconds
    refused_since: float | None = None
    failures = 0

    while True:
        try:
            return attempt()
        except _RefusedError as error:
            trouble, cause, retryable = str(error), error.__cause__, error.retryable
            refused_since = None
        except (OSError, ProtocolError) as error:
            trouble, cause, retryable = f"{destination}: {error}", error, True
            refused = isinstance(error, ConnectionRefusedError)
            refused_since = (refused_since or _now()) if refused else None

        if refused_since is not None and _now() > refused_since + REFUSED_SECONDS:
            retryable = False
        left = give_up_at - _now()
        if not retryable or left <= 0:
            tried = f" within {seconds:g} s" if retryable and seconds else ""
            raise DeliveryError(f"{label} did not get through{tried}: {trouble}") from cause

        failures += 1
        _log.info("%s; trying again", trouble)
        time.sleep(min(RETRY.delay(failures), left))
