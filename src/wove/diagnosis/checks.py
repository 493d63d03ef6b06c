"""The checks of one environment, in their order."""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import platform
import re
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from wove import __version__
from wove.concurrency.thread_pool import run_in_thread
from wove.delivery.manager import process_state
from wove.diagnosis.findings import Finding, Status
from wove.diagnosis.reach import check_place, clock_ahead, places_of
from wove.diagnosis.session import Probe, ProbeSession, Warnings
from wove.errors import OTHER_WOVE, MissingDependencyError
from wove.executors.base import EnvironmentExecutor
from wove.executors.registry import executor_class

if TYPE_CHECKING:
    from wove.settings.model import Environment

__all__ = ["Examination", "Limits", "check_installation"]

CLOCK_WARNING_SECONDS: Final = 5.0
CLOCK_FAILED_SECONDS: Final = 240.0
"""Signatures are refused when clocks are 300 s apart (``clock_skew_seconds``); some time is spent on the way."""

NOTICE_SECONDS: Final = 2.0
"""After how long a backend is asked why no worker has begun a probe."""

SIZES: Final = (64 * 1024, 1024 * 1024, 8 * 1024 * 1024)
"""Bytes of the payloads that are sent there and back; proxies allow 1 MiB, or 8, by default."""

STREAM_SECONDS: Final = (1.0, 3.0)
"""How long the probes take whose start must arrive before their end; the second is sent if the first was late, as on a
busy machine."""

BEGIN_SECONDS: Final = 1.0
"""How long a probe may take to report its start, before it is cancelled all the same."""

CANCEL_SECONDS: Final = 30.0
"""How long the probe that is cancelled would take."""

CANCEL_WAIT_SECONDS: Final = 10.0
"""How long it may go on after its cancel."""

NO_WORKER: Final = re.compile(r"no \w[\w ]*worker \w+ ")
"""An answer after which waiting is of no use: the backend says that no worker can begin the run."""


class Limits(NamedTuple):
    """Bounds of an examination.

    Attributes:
        seconds: How long one probe may take.
        payload_bytes: The largest payload to try.
    """

    seconds: float
    payload_bytes: int


class Examination:
    """Examines one environment. For Wove's background loop.

    Args:
        environment: The environment.
        limits: How far it goes.
        modules: Modules that a worker must be able to import.
    """

    def __init__(self, environment: Environment, limits: Limits, modules: Sequence[str]) -> None:
        self._environment = environment
        self._limits = limits
        self._modules = tuple(modules)
        self._config = environment.executor_config
        self.findings: list[Finding] = []

    def _add(self, check: str, status: Status, message: str, remedy: str = "") -> None:
        self.findings.append(Finding(self._environment.name, check, status, message, remedy))

    async def run(self) -> list[Finding]:
        """Make all checks that make sense, and return what they found."""
        if self._environment.is_local:
            text = f"tasks run in this process, on Python {platform.python_version()}"
            self._add("worker", "ok", text)
            return self.findings

        kind = await self._executor_class()
        if kind is None:
            return self.findings
        places = list(places_of(self._config))
        for place in places:
            self.findings += await run_in_thread(
                partial(check_place, self._environment.name, place, self._config)
            )
        if not all(finding.ok for finding in self.findings):
            return self.findings  # whatever fails after this fails because of it

        with Warnings() as warnings:
            await self._examine(kind, warnings)
        return self.findings

    async def _executor_class(self) -> type[EnvironmentExecutor] | None:
        try:
            return await run_in_thread(
                executor_class, self._environment.executor, self._environment.name
            )
        except (ValueError, TypeError) as error:
            self._add("configuration", "failed", str(error), "correct 'executor'")
        except ImportError as error:
            self._add("packages", "failed", str(error), f"install {error.name}")
        return None

    async def _examine(self, kind: type[EnvironmentExecutor], warnings: Warnings) -> None:
        executor = self._environment.executor
        session = ProbeSession(
            executor if isinstance(executor, EnvironmentExecutor) else kind(),
            self._environment,
            process_state() if kind.inherits else {},
        )
        try:
            if not await self._start(session):
                return
            if not await self._first_probe(session, warnings):
                return
            await self._check_latency(session)
            await self._check_payloads(session, warnings)
            if getattr(kind, "transport", None) == "http":
                await self._check_stream(session)
            await self._check_cancel(session)
        finally:
            await session.stop()

    # ------------------------------------------------------------------ start

    async def _start(self, session: ProbeSession) -> bool:
        try:
            await session.start(self._limits.seconds)
        except MissingDependencyError as error:
            self._add("packages", "failed", str(error), "run the command in this message")
        except (ValueError, TypeError) as error:
            self._add("configuration", "failed", str(error), "correct this key of executor_config")
        except TimeoutError as error:
            text = str(error) or f"it did not start within {self._limits.seconds:g} s"
            self._add("start", "failed", text, "see whether the service, broker or cluster answers")
        except Exception as error:
            check, remedy = _classified(str(error), "start")
            self._add(check, "failed", _worded(error), remedy)
        else:
            self._add("packages", "ok", _packages_here())
            self._add("start", "ok", "the executor has started")
            return True

        return False

    # ------------------------------------------------------------------ probes

    async def _ended(self, session: ProbeSession, probe: Probe, warnings: Warnings) -> bool:
        """Wait for the end of *probe*, and return whether there was one."""
        waiter = asyncio.ensure_future(probe.over.wait())
        try:
            await asyncio.wait({waiter}, timeout=min(NOTICE_SECONDS, self._limits.seconds))
            why = ""
            if not waiter.done() and probe.started is None:
                why = await session.why_waiting(probe)
                warnings.texts += [why] * bool(why)
            if not NO_WORKER.match(why):
                await asyncio.wait({waiter}, timeout=self._limits.seconds - NOTICE_SECONDS)
            if probe.over.is_set():
                return True
        finally:
            waiter.cancel()

        await session.cancel(probe)
        return False

    async def _first_probe(self, session: ProbeSession, warnings: Warnings) -> bool:
        """Return whether a worker runs tasks and reports; find out what it is."""
        probe = await session.send(modules=self._modules, limit=self._limits.seconds)
        if not await self._ended(session, probe, warnings):
            self._no_answer(probe, warnings)
            return False

        try:
            value = await session.result(probe)
        except BaseException as error:
            check, remedy = _classified(" ".join((str(error), *warnings.texts)), "worker")
            if check == "secret":
                await self._check_clock_of_service()
            if not any(finding.check == "clock" for finding in self.findings):
                self._add(check, "failed", _worded(error), remedy)
            return False

        self._check_worker(value, session.callback_url)
        return True

    def _no_answer(self, probe: Probe, warnings: Warnings) -> None:
        said = "; ".join(warnings.texts)
        if probe.started is not None:
            text = f"a worker began the probe and did not report its end within {self._limits.seconds:g} s"
            check, remedy = _classified(said, "worker", "look into the log of the worker")
        else:
            text = f"no worker has begun the probe within {self._limits.seconds:g} s"
            check, remedy = _classified(said, "worker", "start a worker, and look into its log")
            if any(map(NO_WORKER.match, warnings.texts)):
                text = "no worker can begin the probe"
        self._add(check, "failed", f"{text}{': ' if said else ''}{said}", remedy)

    def _check_worker(self, value: Mapping[str, Any], address: str | None) -> None:
        self._add("worker", "ok", f"process {value['pid']} on {value['host']}, in {value['cwd']}")
        if address is not None:
            self._add("callback", "ok", f"the worker reports to {address}")
        if self._config.get("security") not in (None, "none"):
            self._add("secret", "ok", "both sides have the same")
        self._check_versions(value)

        for name in self._modules:
            error = value["failed_modules"].get(name)
            if error is None:
                self._add("modules", "ok", f"the worker imports {name}")
            else:
                remedy = f"install {name} where the worker runs, or start the worker in its folder"
                self._add("modules", "failed", f"the worker cannot import {name}: {error}", remedy)

    def _check_versions(self, value: Mapping[str, Any]) -> None:
        python, wove = str(value["python"]), value["wove"]
        here = f"Python {platform.python_version()} and wove {__version__} here"
        there = f"Python {python} and wove {wove.get('version', 'unknown')} there"
        if python.split(".")[:2] != platform.python_version().split(".")[:2]:
            text, remedy = f"{here}, {there}", "use the same minor version of Python on both sides"
            self._add("versions", "failed", text, remedy)
        elif wove.get("version") != __version__:
            text = f"{here}, {there} ({wove.get('file') or wove.get('error')})"
            self._add("versions", "failed", text, OTHER_WOVE)
        else:
            self._add("versions", "ok", f"{here}, the same there")

    # ------------------------------------------------------------------ the way

    async def _check_latency(self, session: ProbeSession) -> None:
        """Measure the way there and back, and how far apart the clocks are, with a worker that is warm."""
        probe = await session.send(limit=self._limits.seconds)
        try:
            if not await self._ended(session, probe, Warnings()) or probe.ended is None:
                raise TimeoutError("a second probe did not come back")
            value = await session.result(probe)
        except BaseException as error:
            self._add("latency", "failed", _worded(error), "look into the log of the worker")
            return

        started = probe.started if probe.started is not None else probe.ended
        text = f"{started * 1000:.0f} ms until a worker reports the start, {probe.ended * 1000:.0f} ms in all"
        self._add("latency", "ok", text)
        self._check_clock(value["clock"] - probe.sent_at - probe.ended / 2, probe.ended)

    async def _check_clock_of_service(self) -> None:
        """Find out whether a signature was refused because of the clocks: a response over HTTP has a date."""
        for place in places_of(self._config):
            ahead = await run_in_thread(clock_ahead, place, self._config)
            if ahead is not None and abs(ahead) > CLOCK_FAILED_SECONDS:
                self._check_clock(ahead, 0.0)

    def _check_clock(self, ahead: float, trip: float) -> None:
        """Judge a clock that is *ahead* seconds ahead of ours, give or take half of *trip*."""
        apart = max(0.0, abs(ahead) - trip / 2)
        if apart <= CLOCK_WARNING_SECONDS:
            self._add("clock", "ok", f"the clocks are at most {abs(ahead) + trip / 2:.2f} s apart")
            return

        status: Status = "failed" if apart > CLOCK_FAILED_SECONDS else "warning"
        text = (
            f"the worker's clock is {apart:.0f} s {'ahead of' if ahead > 0 else 'behind'} this one"
        )
        self._add(
            "clock", status, text, "set both clocks right with NTP; signatures depend on them"
        )

    async def _check_payloads(self, session: ProbeSession, warnings: Warnings) -> None:
        passed = 0
        sizes = [size for size in SIZES if size < self._limits.payload_bytes]
        for size in (*sizes, self._limits.payload_bytes):
            probe = await session.send(content=bytes(size), limit=self._limits.seconds)
            try:
                if not await self._ended(session, probe, warnings):
                    raise TimeoutError(f"it did not come back within {self._limits.seconds:g} s")
                await session.result(probe)
            except BaseException as error:
                check, remedy = _classified(str(error), "payload", PAYLOAD_REMEDY)
                text = f"{size:,} bytes do not pass, {passed:,} do: {_worded(error)}"
                self._add(check if check == "callback" else "payload", "failed", text, remedy)
                return
            passed = size

        self._add("payload", "ok", f"{passed:,} bytes go there and come back")

    async def _check_stream(self, session: ProbeSession) -> None:
        """See whether an event arrives when it is sent, or only with the end of the response."""
        late = 0.0
        for seconds in STREAM_SECONDS:
            probe = await session.send(seconds=seconds, limit=self._limits.seconds)
            if not await self._ended(session, probe, Warnings()) or probe.ended is None:
                return
            if probe.started is None:
                text = "the service answers when a run has ended, and sends no events before"
                self._add("stream", "ok", text)
                return
            if probe.ended - probe.started >= seconds / 2:
                self._add("stream", "ok", "events arrive when they are sent")
                return
            late = probe.started

        text = (
            f"the start of a run arrived {late:.1f} s late, together with its end: a proxy keeps the response back "
            "until it is complete"
        )
        self._add("stream", "warning", text, BUFFERING_REMEDY)

    async def _check_cancel(self, session: ProbeSession) -> None:
        probe = await session.send(seconds=CANCEL_SECONDS, limit=CANCEL_SECONDS)
        waiting = asyncio.ensure_future(probe.begun.wait())
        await asyncio.wait({waiting}, timeout=BEGIN_SECONDS)
        waiting.cancel()

        began = time.monotonic()
        await session.cancel(probe)
        over = asyncio.ensure_future(probe.over.wait())
        await asyncio.wait({over}, timeout=CANCEL_WAIT_SECONDS)
        over.cancel()
        if probe.event is not None:
            self._add(
                "cancel", "ok", f"a run ends {time.monotonic() - began:.1f} s after its cancel"
            )
        else:
            text = f"a run did not end within {CANCEL_WAIT_SECONDS:g} s of its cancel"
            remedy = "set 'timeout' for tasks that must not go on when nobody waits for them"
            self._add("cancel", "warning", text, remedy)


# ------------------------------------------------------------------ words

PAYLOAD_REMEDY: Final = (
    "raise the limit of the service or proxy (nginx: client_max_body_size), or pass a path"
)
BUFFERING_REMEDY: Final = (
    "switch the buffering of responses off in the proxy (nginx: proxy_buffering off); without that, heartbeats and "
    "progress do not arrive"
)

_CAUSES: Final[Sequence[tuple[str, str, str]]] = (
    (
        r"callback port|may not listen on|callback_host",
        "callback",
        "choose another 'callback_port'",
    ),
    (
        r"timestamp is|set both clocks",
        "clock",
        "set the clocks of both machines with NTP",
    ),
    (
        r"ACCESS_REFUSED|access to .* refused|NOPERM|NOAUTH|NoPermission|WRONGPASS|no permissions",
        "rights",
        "give the broker's user the right to read, write and configure the queues, or correct its password",
    ),
    (r"package index has another package", "versions", OTHER_WOVE),
    (
        r"\b40[13]\b.*security|not auth|UNAUTHENTICATED|signature|PermissionError|exit status 77|is not signed",
        "secret",
        "set the same secret on both sides (executor_config 'security', and WOVE_WORKER_SECRET for the worker)",
    ),
    (
        r"pickled by Python|same minor version",
        "versions",
        "use the same minor version of Python on both sides",
    ),
    (
        r"No module named '?(wove|cloudpickle)|cannot import name .* from 'wove|needs cloudpickle",
        "packages",
        "install this wove with its extra where the worker runs",
    ),
    (
        r"No module named",
        "modules",
        "install this module where the worker runs, or start the worker where it can be imported",
    ),
    (
        r"no worker has the message|unregistered|no worker knows|NotRegistered|function .* not found",
        "worker",
        "register Wove's task in the worker, and give both sides the same 'task_name'",
    ),
    (
        r"could not reach|could not be reported|cannot connect to http|callback",
        "callback",
        "set 'callback_url' to an address of this machine that the worker can reach, and open its port",
    ),
    (r"\b413\b", "payload", PAYLOAD_REMEDY),
    (r"\b40[45]\b", "address", "correct the path in executor_config 'url'"),
    (r"[Cc]ertificate|SSL|TLS", "certificate", "correct the certificates on both sides"),
)
"""Patterns in the text of an error, each with its check and a remedy. The first that matches counts."""


def _classified(text: str, check: str, remedy: str = "see the message") -> tuple[str, str]:
    for pattern, found, helps in _CAUSES:
        if re.search(pattern, text):
            return found, helps
    return check, remedy


def _worded(error: BaseException) -> str:
    return "; ".join([str(error) or type(error).__name__, *getattr(error, "__notes__", ())])


def _packages_here() -> str:
    version = importlib.metadata.version("cloudpickle")
    return f"cloudpickle {version}, and what the executor needs"


def check_installation() -> list[Finding]:
    """Return findings about Wove itself in this process."""
    found = sorted({each.version for each in importlib.metadata.distributions(name="wove")})
    text = (
        f"wove {__version__} in {sys.modules['wove'].__file__}, Python {platform.python_version()}"
    )
    if [version for version in found if version != __version__]:
        text += f"; installed packages named wove: {', '.join(found)}"
        return [Finding("", "versions", "failed", text, OTHER_WOVE)]
    if importlib.util.find_spec("cloudpickle") is None:
        return [Finding("", "packages", "warning", f"{text}; cloudpickle is missing", "")]
    return [Finding("", "versions", "ok", text)]
