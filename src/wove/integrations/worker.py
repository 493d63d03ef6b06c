"""The functions that a backend's worker calls with the submitted payload: `run` and `arun`."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, cast

from wove.callback.link import Destination
from wove.callback.reporter import DeliveryOutcome
from wove.concurrency.mailbox import post_to
from wove.integrations.common.jobs import ASK_SECONDS, Job, close, fetches
from wove.protocol import heartbeats, payload as payloads
from wove.protocol.frames import FrameError
from wove.protocol.json_text import parse_json
from wove.protocol.names import ENVIRONMENT_VARIABLE, SECRET_VARIABLE
from wove.protocol.payload import Payload
from wove.security import NetworkExecutorSecurity, SecurityConfig

if TYPE_CHECKING:
    import asyncio  # for `arun` alone: a process that calls `run` starts in half the time without it

__all__ = ["arun", "check_security", "close", "deliver", "run"]

_log = logging.getLogger("wove.worker")

RETRY_SECONDS: Final = 60.0
"""For how long the end of a run is sent again where the payload does not say."""

STOP_SECONDS: Final = 2.0
"""How long an interrupted run may take to end before its worker reports without it."""

LAST_SECONDS: Final = 10.0
"""How long an interrupted worker waits for that report to arrive."""

SMALL_CHARACTERS: Final = 64 * 1024
"""A payload up to this size is read on the event loop: that takes less than half a millisecond."""


def run(
    payload: Mapping[str, Any] | str | bytes,
    *,
    security: SecurityConfig = None,
    ask_after: float = ASK_SECONDS,
) -> None:
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
        ask_after: Seconds. The worker asks the receiver before it begins the task of a payload of this age: if nobody
            waits for the run any more, or its weave is gone, the task is not begun, unless the run is detached.
            0: always.

    Raises:
        PermissionError: The payload is refused. Only the log says so, since its author may have chosen the address,
            too. DeliveryError: The end of the run did not get through, although it was tried for as long as the payload
            says;
            or whether anybody waits for the run could not be asked.
        FrameError: It is not a payload, and has no address to report that to (a `ValueError`).
        ValueError: *security* is wrong.

    Example::

        @app.task(name="wove.run_backend_payload")
        def run_backend_payload(payload):
            run(payload)
    """
    _conclude(deliver(payload, security=security, ask_after=ask_after))


def deliver(
    payload: Mapping[str, Any] | str | bytes, *, security: SecurityConfig, ask_after: float
) -> DeliveryOutcome | None:
    """As `run`, and return how the delivery of the run's end went instead of raising its error."""
    job = _read(payload, _security_of(security))
    job.ask_after = ask_after

    try:
        job.enter()
        job.start()
        return job.report.wait()
    except BaseException as error:
        if job.interrupt(error):
            job.report.wait_ended(STOP_SECONDS)
            job.insist()
            job.report.wait(LAST_SECONDS)
        raise


async def arun(
    payload: Mapping[str, Any] | str | bytes,
    *,
    security: SecurityConfig = None,
    ask_after: float = ASK_SECONDS,
) -> None:
    """As `run`, for async workers: on any event loop, which is not held up, whatever the task is.

    Being cancelled is its way of being interrupted.

    Args:
        payload: As `run`.
        security: As `run`.
        ask_after: As `run`.

    Raises:
        PermissionError: As `run`.
        DeliveryError: As `run`.
        FrameError: As `run`.
        ValueError: As `run`.

    Example::

        async def wove_run_backend_payload(ctx, payload):
            await arun(payload)
    """
    import asyncio

    signer = _security_of(security)
    job = (
        _read(payload, signer) if _is_small(payload) else await fetches.call(_read, payload, signer)
    )
    job.ask_after = ask_after
    loop = asyncio.get_running_loop()
    done: asyncio.Future[DeliveryOutcome] = loop.create_future()

    try:
        job.enter()
        job.report.when_delivered(lambda delivered: _settle_on(loop, done, delivered))
        if job.fetches:
            await fetches.call(job.start)
        else:
            job.start()
        delivered = await asyncio.shield(done)
    except BaseException as error:
        if job.interrupt(error):
            await asyncio.wait((done,), timeout=STOP_SECONDS)
            job.insist()
            await asyncio.wait((done,), timeout=LAST_SECONDS)
        raise

    _conclude(delivered)


def _settle_on(
    loop: asyncio.AbstractEventLoop,
    done: asyncio.Future[DeliveryOutcome],
    delivered: DeliveryOutcome,
) -> None:
    def settle() -> None:
        if not done.done():
            done.set_result(delivered)

    post_to(loop, settle)


def _conclude(delivered: DeliveryOutcome | None) -> None:
    if delivered is not None and delivered.error is not None:
        raise delivered.error


# --- reading payloads -------------------------------------------------------------------------------------


def _read(payload: object, security: NetworkExecutorSecurity) -> Job:
    """Return the job for *payload*: to run it, or to report why not.

    Raises:
        PermissionError: It is refused.
        ValueError: It is wrong, and has no address to report that to.
    """
    try:
        content = payloads.parse(payload)
        destination = Destination.parse(content.callback_url)
    except ValueError as error:  # FrameError is one
        return _unreadable(payload, error, security)

    run_id = content.frame["run_id"]

    try:
        security.verify_payload(
            adapter=content.adapter,
            run_id=run_id,
            body=content.digest if security.authenticates else b"",
            signature=content.signature,
        )
        _check_environment(content)
    except PermissionError as error:
        _log.error("the payload of run %r is refused: %s", run_id, error)
        raise

    delivery = cast("dict[str, Any]", content.frame.get("delivery") or {})
    return Job(
        _expired(content) or content,
        run_id,
        content.frame["task_id"],
        destination,
        security,
        retry_seconds=RETRY_SECONDS if content.retry_seconds is None else content.retry_seconds,
        heartbeat_seconds=heartbeats.spacing(delivery, content.beat_seconds)
        or heartbeats.MAX_SECONDS,
        detached=delivery.get("delivery_orphan_policy") == "detach",
    )


def _check_environment(content: Payload) -> None:
    """Refuse the payload of an environment that this worker does not serve, if the worker names those that it does.

    Raises:
        PermissionError: The payload is refused.
    """
    names = os.environ.get(ENVIRONMENT_VARIABLE)
    if names is None:
        return
    if content.environment not in [name.strip() for name in names.split(",")]:
        raise PermissionError(
            f"the payload is of environment {content.environment!r:.100}, and this worker takes those of "
            f"{names!r:.200} ({ENVIRONMENT_VARIABLE})"
        )


def _expired(content: Payload) -> ValueError | None:
    """Return why the run of *content* must not begin any more; ``None``: it may."""
    late = 0.0 if content.valid_until is None else time.time() - content.valid_until
    if late <= 0:
        return None
    run_id = content.frame["run_id"]
    return FrameError(
        f"the payload of run {run_id} came {late:.0f} s after the end of its validity, by this worker's clock "
        "(executor_config 'payload_max_age'): the run is not begun",
        run_id,
    )


def _unreadable(payload: object, error: ValueError, security: NetworkExecutorSecurity) -> Job:
    """Return the job that reports *error*, if the payload has an address.

    Raises:
        ValueError: It has none.
    """
    try:
        fields: Any = (
            parse_json(payload) if isinstance(payload, (str, bytes, bytearray)) else payload
        )
        run_id, task, url = fields["run_id"], fields.get("task_id"), fields["callback_url"]
        destination = Destination.parse(url)
        if security.authenticates or not isinstance(run_id, str):
            raise ValueError
    except (ValueError, TypeError, LookupError, AttributeError):
        _log.error("a payload cannot be read, and nobody can be told: %s", error)
        raise error from None

    return Job(error, run_id, str(task or "?"), destination, security, retry_seconds=RETRY_SECONDS)


def _is_small(payload: object) -> bool:
    if isinstance(payload, Mapping):
        values = cast("Mapping[str, object]", payload).values()
        return sum(len(value) for value in values if isinstance(value, str)) <= SMALL_CHARACTERS
    return not isinstance(payload, (str, bytes, bytearray)) or len(payload) <= SMALL_CHARACTERS


# --- security ---------------------------------------------------------------------------------------------

MAX_SECURITIES: Final = 16
_WHAT: Final = "the security of this worker"
_VARIABLES: Final = re.compile(r'_env": "([^"]*)"|"env:([^"]*)"')

_securities: dict[object, NetworkExecutorSecurity] = {}


def check_security(security: SecurityConfig) -> NetworkExecutorSecurity | None:
    """*security* as `run` takes it, checked once and before there are runs; ``None``: each run looks for the variable.

    Raises:
        ValueError: It is not right.
    """
    return None if security is None else NetworkExecutorSecurity.from_config(security, label=_WHAT)


def _security_of(security: SecurityConfig) -> NetworkExecutorSecurity:
    """The one for *security*: the same as long as that says the same, so that runs share requests."""
    if security is None and SECRET_VARIABLE in os.environ:  # an empty one is an error, not none
        security = f"env:{SECRET_VARIABLE}"
    if isinstance(security, NetworkExecutorSecurity):
        return security
    try:
        text = json.dumps(security)
    except TypeError:  # a secret of bytes
        return NetworkExecutorSecurity.from_config(security, label=_WHAT)

    key = (text, *(os.environ.get("".join(names)) for names in _VARIABLES.findall(text)))
    found = _securities.get(key)
    if found is None:
        found = NetworkExecutorSecurity.from_config(security, label=_WHAT)
        if len(_securities) >= MAX_SECURITIES:
            _securities.clear()
        _securities[key] = found

    return found
