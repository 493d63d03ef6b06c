"""``wove worker http|grpc|websocket``: a worker service in one command."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from wove.cli.configuring import import_from_here
from wove.cli.logs import logging_to_stderr
from wove.cli.terminal import new_command
from wove.errors import MissingDependencyError, WorkerSetupError, install_command

if TYPE_CHECKING:
    from wove.services.binding import Bind, ServerTLS
    from wove.services.options import ServiceOptions

__all__ = ["add_parser"]

logger = logging.getLogger("wove.service")

TRANSPORTS: Final = {
    "http": ("wove.services.http_server", "127.0.0.1:8800"),
    "grpc": ("wove.services.grpc", "127.0.0.1:8810"),
    "websocket": ("wove.services.websocket", "127.0.0.1:8820"),
}
"""The module whose ``serve`` it is, and where it listens by default."""

LOG_LEVELS: Final = ("debug", "info", "warning", "error")

DESCRIPTION: Final = """\
A worker service: it runs the tasks of environments with executor {transport!r}. Whoever may send runs to it may
run any code in it, so it listens on this machine only, unless it has TLS (or --insecure is given)
and --security (or --unauthenticated is given)."""

EXAMPLES: Final = """\
examples:
  wove worker {transport}                       for this machine alone, port {port}
  wove worker {transport} --processes 4         tasks run in four worker processes
  wove worker {transport} --bind 0.0.0.0:{port} --security env:WOVE_WORKER_SECRET \\
      --tls-cert cert.pem --tls-key key.pem

exit status: 0 after SIGTERM or SIGINT; 1 it cannot listen; 2 the options are wrong."""


def add_parser(new: Callable[..., argparse.ArgumentParser]) -> None:
    """Add ``worker`` to the commands; *new* is the ``add_parser`` of argparse."""
    parser = new_command(
        new,
        "worker",
        help="run a worker service",
        description="Run a worker service.",
        examples=EXAMPLES.format(transport="http", port=8800),
    )
    transports = parser.add_subparsers(title="transports", metavar="TRANSPORT", required=True)

    for transport, (_, default) in TRANSPORTS.items():
        one = new_command(
            transports.add_parser,
            transport,
            help=f"for executor {transport!r}",
            description=DESCRIPTION.format(transport=transport),
            examples=EXAMPLES.format(transport=transport, port=default.rpartition(":")[2]),
        )
        one.set_defaults(run=_run, transport=transport)
        _add_service(one, default)
        _add_tls(one)
        if transport == "http":
            one.add_argument(
                "--root-path",
                default="",
                metavar="PATH",
                help="the prefix that a proxy in front removes from the URL's path",
            )


def _add_service(parser: argparse.ArgumentParser, default: str) -> None:
    add = parser.add_argument
    add(
        "--bind",
        default=default,
        metavar="HOST:PORT",
        help=f"where to listen; port 0 takes a free one ({default})",
    )
    add(
        "--security",
        metavar="SPEC",
        help='"env:VARIABLE" with the secret, or all in JSON; or "none" (default)',
    )
    add("--concurrency", type=int, metavar="N", help="maximum number of runs at a time (64)")
    add(
        "--processes",
        type=int,
        metavar="N",
        help="run tasks in N worker processes instead of threads",
    )
    add(
        "--setup",
        metavar="MODULE:FUNCTION",
        help="called once in each process, before its first task",
    )
    add(
        "--backlog",
        type=int,
        metavar="N",
        help='maximum number of runs that wait; another run is refused as "busy" (1024)',
    )
    add(
        "--max-message-bytes",
        type=int,
        metavar="N",
        help="maximum number of bytes of a request (536870912)",
    )
    add(
        "--drain-timeout",
        type=float,
        metavar="S",
        help="seconds that tasks get to end on SIGTERM (30)",
    )
    add("--log-level", choices=LOG_LEVELS, default="info", help="info: one line a run (info)")


def _add_tls(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--tls-cert", metavar="FILE", help="PEM file with the certificate chain")
    add("--tls-key", metavar="FILE", help="PEM file with its private key")
    add(
        "--client-ca",
        metavar="FILE",
        help="PEM file: clients need a certificate of one of these authorities",
    )
    add(
        "--tls-at-proxy",
        action="store_true",
        help="a proxy in front ends TLS: plaintext is fine, --security needed",
    )
    add("--insecure", action="store_true", help="listen for other machines without TLS")
    add(
        "--unauthenticated",
        action="store_true",
        help="listen for other machines without --security: whoever connects may run code",
    )


def _run(chosen: argparse.Namespace) -> int:
    import_from_here()
    with logging_to_stderr(chosen.log_level):
        try:
            options, bind, tls = _settings(chosen)
            serve = _serve_of(chosen)
            _set_up(chosen)
        except (TypeError, ValueError, MissingDependencyError, WorkerSetupError) as error:
            return _fail(chosen, error, 2)
        _warn(options, tls, tls_at_proxy=chosen.tls_at_proxy)
        try:
            _run_until_stopped(chosen, partial(serve, options, bind, tls))
        except (OSError, MissingDependencyError) as error:
            return _fail(chosen, error, 1)

    return 0


def _set_up(chosen: argparse.Namespace) -> None:
    """Call the set-up of this process now, so that what is wrong with it is seen; worker processes call theirs."""
    from wove.graph.rules import function_path
    from wove.worker.setup import SETUP_VARIABLE, set_up

    if chosen.setup is not None:
        try:
            os.environ[SETUP_VARIABLE] = function_path(chosen.setup)
        except ValueError as error:
            raise ValueError(f"--setup {error}") from None
    if chosen.processes is None:
        set_up(None)


def _settings(chosen: argparse.Namespace) -> tuple[ServiceOptions, Bind, ServerTLS | None]:
    from wove.services.binding import Bind, ServerTLS, refuse_exposed
    from wove.services.options import service_options

    names = ("concurrency", "processes", "backlog", "max_message_bytes", "drain_timeout")
    given = {name: value for name in names if (value := getattr(chosen, name)) is not None}
    security = "none" if chosen.security is None else chosen.security
    options = service_options(security=security, **given)
    bind = Bind.parse(chosen.bind)
    tls: ServerTLS | None = None
    if chosen.tls_cert and chosen.tls_key:
        tls = ServerTLS.load(chosen.tls_cert, chosen.tls_key, chosen.client_ca)
    elif chosen.tls_cert or chosen.tls_key or chosen.client_ca:
        raise ValueError("TLS needs both --tls-cert and --tls-key")

    refuse_exposed(
        bind,
        tls,
        options,
        insecure=chosen.insecure,
        unauthenticated=chosen.unauthenticated,
        tls_at_proxy=chosen.tls_at_proxy,
    )
    if importlib.util.find_spec("cloudpickle") is None:
        raise MissingDependencyError(
            f"a worker service needs cloudpickle. Install it with: {install_command('worker')}"
        )

    return options, bind, tls


def _warn(options: ServiceOptions, tls: ServerTLS | None, *, tls_at_proxy: bool) -> None:
    """Say in the first line of the log what this service risks."""
    risks: list[str] = []
    if os.name == "posix" and os.geteuid() == 0:
        risks.append("as root, so that every task may do anything on this machine")
    if not options.security.authenticates and tls is None and not tls_at_proxy:
        risks.append(
            "without TLS and without --security, so that every user of this machine may run code in it"
        )

    if risks:
        logger.warning("this worker service runs %s", " and ".join(risks))


def _serve_of(chosen: argparse.Namespace) -> Callable[..., Any]:
    if chosen.transport == "grpc":
        # gRPC's own log would repeat what strangers send, byte for byte, line breaks included.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        # With its fork handlers, every fourth child that a task forks dies of SIGSEGV (grpcio 1.85).
        os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

    module = importlib.import_module(TRANSPORTS[chosen.transport][0])
    serve: Callable[..., Any] = module.serve
    return partial(serve, root_path=chosen.root_path) if chosen.transport == "http" else serve


def _fail(chosen: argparse.Namespace, error: Exception, status: int) -> int:
    print(f"wove worker {chosen.transport}: {error}", file=sys.stderr)  # noqa: T201
    return status


def _run_until_stopped(chosen: argparse.Namespace, serve: Callable[..., Any]) -> None:
    def started(url: str) -> None:
        print(f"wove worker {chosen.transport}: listening on {url}", flush=True)  # noqa: T201

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            try:
                loop.add_signal_handler(number, _on_signal, number, stop)
            except NotImplementedError:  # Windows
                signal.signal(number, partial(_on_signal_elsewhere, loop, stop))
        from wove.services.forked import handles_signals

        try:
            with handles_signals(*numbers):
                await serve(started=started, stop=stop)
        finally:
            for number in numbers:  # uvloop would leave its own behind
                with contextlib.suppress(NotImplementedError):
                    loop.remove_signal_handler(number)

        logger.info("stopped")

    with asyncio.Runner(loop_factory=_loop_factory(chosen.transport)) as runner:
        runner.run(main())


def _on_signal(number: int, stop: asyncio.Event) -> None:
    if stop.is_set():
        # At once means now: nothing that still runs may hold it up. Worker processes end with their parent.
        os._exit(128 + number)
    logger.info("%s: taking no more runs; once more ends at once", signal.Signals(number).name)
    stop.set()


def _on_signal_elsewhere(
    loop: asyncio.AbstractEventLoop, stop: asyncio.Event, number: int, frame: object
) -> None:
    """Handle a signal where the loop cannot: between two instructions of the main thread."""
    del frame
    loop.call_soon_threadsafe(_on_signal, number, stop)


def _loop_factory(transport: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed; not for grpc, whose library brings its own polling."""
    if transport == "grpc" or importlib.util.find_spec("uvloop") is None:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module(
        "uvloop"
    ).new_event_loop
    return factory
