"""The activity of Temporal's workers, and a worker that has nothing else.

``python -m wove.integrations.temporal --task-queue NAME`` is that worker.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Generator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from temporalio import activity
from temporalio.client import Client
from temporalio.service import TLSConfig
from temporalio.worker import Worker

from wove.concurrency.backoff import Backoff
from wove.integrations.temporal.client import SETTLE_SECONDS, check_namespace
from wove.integrations.temporal.states import close_event, end_text
from wove.integrations.temporal.workflow import ACTIVITY, HEARTBEAT_SECONDS, RunBackendPayload
from wove.integrations.worker import arun, check_security, close
from wove.security import NetworkExecutorSecurity, SecurityConfig

__all__ = ["main", "make_activity"]

_log = logging.getLogger("wove.worker")

BEAT_SECONDS: Final = HEARTBEAT_SECONDS / 4
"""The time between two heartbeats of an activity, whose answers tell of a cancel."""

CONNECT_AGAIN: Final = Backoff(0.2, 5.0)
"""The delays between attempts to connect to a server that is down."""

ASK_SECONDS: Final = 2.0
"""How long Temporal may take to say how a workflow ended."""


def make_activity(security: SecurityConfig) -> Callable[..., Any]:
    """The activity that runs payloads; see `wove.integrations.temporal.activities`.

    Raises:
        ValueError: *security* is not right.
    """
    checked = check_security(security)

    @activity.defn(name=ACTIVITY)
    async def run_backend_payload(payload: dict[str, Any]) -> None:
        """Run *payload*; see `wove.integrations.worker.arun`."""
        with _beating():
            await _run(payload, checked)

    return run_backend_payload


async def _run(payload: dict[str, Any], security: NetworkExecutorSecurity | None) -> None:
    running = asyncio.ensure_future(arun(payload, security=security))

    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        if running.done():
            raise
        # It is a task of its own, because the reason for the weave is known only now.
        running.cancel(await _why_cancelled())
        await running
        raise


async def _why_cancelled() -> str:
    details = activity.cancellation_details()
    if details is None or details.worker_shutdown:
        return "the worker is shutting down"
    if details.timed_out:
        return "its time in Temporal was over"
    if details.not_found:
        return f"its workflow {await _end_text() or 'has ended in Temporal'}"
    return "its workflow was cancelled in Temporal"


async def _end_text() -> str | None:
    """Return how the workflow of this activity ended; ``None``: it has not, or that cannot be found out."""
    about = activity.info()

    try:
        async with asyncio.timeout(ASK_SECONDS):
            client = activity.client()
            end = await close_event(
                client.get_workflow_handle(str(about.workflow_id), run_id=about.workflow_run_id)
            )
            return None if end is None else await end_text(client, end)
    except Exception as error:  # the weave gets the report in any case
        _log.debug(
            "Temporal could not be asked how a workflow ended: %s: %s", type(error).__name__, error
        )
        return None


@contextlib.contextmanager
def _beating() -> Generator[None]:
    """Send heartbeats to Temporal. The loop is never blocked by tasks, which have threads and a loop of their own."""
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None

    def beat() -> None:
        nonlocal timer
        activity.heartbeat()
        timer = loop.call_later(BEAT_SECONDS, beat)

    timer = loop.call_later(BEAT_SECONDS, beat)
    try:
        yield
    finally:
        timer.cancel()


# --- a worker in one command ------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: The command's arguments; ``None``: those of this process.

    Returns:
        The exit status: 0, 1 for a failure, 2 for wrong arguments.
    """
    chosen = _parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("wove").setLevel(chosen.log_level.upper())
    if (here := os.getcwd()) not in sys.path:  # where the user's modules are
        sys.path.insert(0, here)
    try:
        made = make_activity(chosen.security)
        options = _connect_options(chosen)
    except (OSError, TypeError, ValueError) as error:
        return _fail(error, 2)

    try:
        asyncio.run(_work(chosen, made, options))
    except RuntimeError as error:  # DeliveryError is one, and so is what Temporal's worker raises
        return _fail(error, 1)

    return 0


def _fail(error: Exception, status: int) -> int:
    print(f"wove.integrations.temporal: {error}", file=sys.stderr)  # noqa: T201
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m wove.integrations.temporal",
        description="A Temporal worker that runs the tasks of environments with executor 'temporal'.",
    )
    add = parser.add_argument
    add("--task-queue", required=True, metavar="NAME", help="the task queue to take runs from")
    add(
        "--target-host",
        default="localhost:7233",
        metavar="HOST:PORT",
        help="Temporal's address (localhost:7233)",
    )
    add("--namespace", default="default", metavar="NAME", help="the namespace (default)")
    add(
        "--security",
        metavar="SPEC",
        help='"env:VARIABLE" with the secret (default: WOVE_WORKER_SECRET, if it is set)',
    )
    add(
        "--max-concurrent",
        type=_positive,
        default=100,
        metavar="N",
        help="the maximum number of runs at a time (100)",
    )
    add(
        "--drain-timeout",
        type=float,
        default=30.0,
        metavar="S",
        help="seconds for runs to end after SIGTERM (30)",
    )
    add("--api-key-env", metavar="VARIABLE", help="the environment variable with an API key")
    add("--tls", action="store_true", help="use TLS; implied by the three below")
    add("--tls-ca", metavar="FILE", help="PEM file: the authorities to trust")
    add("--tls-cert", metavar="FILE", help="PEM file: the client certificate")
    add("--tls-key", metavar="FILE", help="PEM file: its private key")
    add(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="the level of Wove's log (info)",
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _connect_options(chosen: argparse.Namespace) -> dict[str, Any]:
    options: dict[str, Any] = {"namespace": chosen.namespace}

    if chosen.api_key_env:
        options["api_key"] = os.environ.get(chosen.api_key_env)
        if not options["api_key"]:
            raise ValueError(
                f"--api-key-env: the environment variable {chosen.api_key_env} is not set"
            )

    if bool(chosen.tls_cert) != bool(chosen.tls_key):
        raise ValueError("a client certificate needs both --tls-cert and --tls-key")
    files = [
        Path(name).read_bytes() if name else None
        for name in (chosen.tls_ca, chosen.tls_cert, chosen.tls_key)
    ]
    if any(files):
        options["tls"] = TLSConfig(
            server_root_ca_cert=files[0], client_cert=files[1], client_private_key=files[2]
        )
    elif chosen.tls or chosen.api_key_env:
        options["tls"] = True

    return options


async def _work(
    chosen: argparse.Namespace, made: Callable[..., Any], options: dict[str, Any]
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, number, stop)
    client = await _connect(chosen.target_host, options, stop)
    if client is None:
        return
    try:
        await _work_with(client, chosen, made, stop)
    finally:
        await asyncio.to_thread(close, 1.0)
        await asyncio.sleep(SETTLE_SECONDS)


async def _work_with(
    client: Client, chosen: argparse.Namespace, made: Callable[..., Any], stop: asyncio.Event
) -> None:
    await check_namespace(client, label="the worker")
    worker = Worker(
        client,
        task_queue=chosen.task_queue,
        workflows=[RunBackendPayload],
        activities=[made],
        max_concurrent_activities=chosen.max_concurrent,
        # Without this, every second heartbeat would be held back (temporalio.worker.Worker).
        max_heartbeat_throttle_interval=timedelta(seconds=BEAT_SECONDS),
        graceful_shutdown_timeout=timedelta(seconds=chosen.drain_timeout),
    )

    async with worker:
        print(  # noqa: T201
            f"wove.integrations.temporal: takes runs from task queue {chosen.task_queue!r} of namespace "
            f"{chosen.namespace!r} at {chosen.target_host}",
            flush=True,
        )
        await stop.wait()


async def _connect(target: str, options: dict[str, Any], stop: asyncio.Event) -> Client | None:
    """Return a client, retrying until the server is there; ``None`` if *stop* was set before."""
    failures = 0

    while not stop.is_set():
        try:
            return await Client.connect(target, **options)
        except RuntimeError as error:
            failures += 1
            if failures == 1:
                _log.warning("Temporal at %s cannot be reached, trying again: %s", target, error)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), CONNECT_AGAIN.delay(failures))

    return None


def _on_signal(number: int, stop: asyncio.Event) -> None:
    if stop.is_set():
        os._exit(128 + number)
    _log.info("%s: taking no more runs; once more ends at once", signal.Signals(number).name)
    stop.set()
