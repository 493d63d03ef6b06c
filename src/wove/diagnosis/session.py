"""One executor, started for the doctor: it sends probes, and notes when which event of theirs arrives."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self

from wove import __version__
from wove.concurrency.thread_pool import run_in_thread
from wove.diagnosis.probe import make_probe
from wove.executors.base import EnvironmentExecutor
from wove.protocol import faults, pickling
from wove.protocol.frames import PYTHON, TERMINAL, check_python

if TYPE_CHECKING:
    from wove.settings.model import Environment

__all__ = ["Probe", "ProbeSession", "Warnings"]

TASK: Final = "wove_doctor"
"""The name under which a probe appears in logs and monitors of the backend."""

CLOSE_SECONDS: Final = 10.0


@dataclass
class Probe:
    """One run of the probe.

    Attributes:
        run_id: Of the run.
        sent_at: When it was handed over, in Unix seconds of this machine.
        started: Seconds from there to its ``task_started``; ``None``: there was none.
        ended: Seconds from there to its end; ``None``: it has not ended.
        event: Its terminal event.
        value: What the task returned.
        error: Why it failed.
    """

    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    sent_at: float = 0.0
    started: float | None = None
    ended: float | None = None
    event: Mapping[str, Any] | None = None
    value: Any = None
    error: BaseException | None = None
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Warnings(logging.Handler):
    """Collects what Wove logs as a warning or an error meanwhile; a context."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []
        self._logger = logging.getLogger("wove")

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self.texts:
            self.texts.append(text)

    def __enter__(self) -> Self:
        self._logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)


class ProbeSession:
    """A started executor. For one event loop.

    Args:
        executor: The executor, which nobody has started.
        environment: The environment that it belongs to.
        run_config: The ``run_config`` of `EnvironmentExecutor.start`.
    """

    def __init__(
        self, executor: EnvironmentExecutor, environment: Environment, run_config: Mapping[str, Any]
    ) -> None:
        self._executor = executor
        self._environment = environment
        self._run_config = run_config
        self._probes: dict[str, Probe] = {}
        self._reader: asyncio.Task[None] | None = None
        self._callable: Any = make_probe()

    @property
    def callback_url(self) -> str | None:
        """Return where workers report, without its token; ``None`` where they answer in another way."""
        url: object = getattr(self._executor, "url", None)
        return url if isinstance(url, str) else None

    async def start(self, seconds: float) -> None:
        """Start the executor within *seconds*.

        Raises:
            Exception: Whatever the executor raises; `TimeoutError`.
        """
        async with asyncio.timeout(seconds):
            await self._executor.start(
                environment_name=self._environment.name,
                environment_config=self._environment.executor_config,
                run_config=self._run_config,
            )
        if self._executor.wire:
            dump = partial(pickling.dumps, label="the probe of wove doctor")
            self._callable = await run_in_thread(dump, self._callable)
        self._reader = asyncio.create_task(self._read())

    async def stop(self) -> None:
        """Stop the executor; what it raises then concerns nobody."""
        if self._reader is None:
            return
        self._reader.cancel()
        with contextlib.suppress(Exception):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._executor.stop()

    async def send(
        self,
        *,
        modules: tuple[str, ...] = (),
        content: bytes = b"",
        seconds: float = 0.0,
        limit: float,
    ) -> Probe:
        """Hand a probe over, and return it; it may go on for *limit* seconds."""
        probe = Probe()
        self._probes[probe.run_id] = probe
        args = {"modules": modules, "content": content, "seconds": seconds}
        frame: dict[str, Any] = {
            "type": "run_task",
            "run_id": probe.run_id,
            "task_id": TASK,
            "delivery": {"delivery_cancel_mode": "best_effort", "delivery_orphan_policy": "cancel"},
            "deadline": limit,
        }
        if self._executor.wire:
            dump = partial(pickling.dumps, label="the arguments of the probe of wove doctor")
            pickled = await run_in_thread(dump, args)
            frame |= {"callable_pickle": self._callable, "args_pickle": pickled}
            frame |= {"python": PYTHON, "wove": __version__}
        else:
            frame |= {"callable": self._callable, "args": args}

        probe.sent_at = time.time()
        try:
            async with asyncio.timeout(limit):
                await self._executor.send(frame)
        except Exception as error:
            probe.error = error
            probe.over.set()
        return probe

    async def why_waiting(self, probe: Probe) -> str:
        """Return why no worker has begun *probe*, as the executor tells it; ``""``: it does not know."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                return await self._executor.why_waiting([probe.run_id])
        except Exception as error:
            return f"its backend cannot say why: {type(error).__name__}: {error}"

    async def cancel(self, probe: Probe) -> None:
        """Have *probe* cancelled."""
        frame = {
            "type": "cancel_task",
            "run_id": probe.run_id,
            "task_id": TASK,
            "delivery_cancel_mode": "require_ack",
            "delivery_orphan_policy": "cancel",
        }
        async with asyncio.timeout(CLOSE_SECONDS):
            await self._executor.send(frame)

    # ------------------------------------------------------------------ back

    async def _read(self) -> None:
        try:
            while True:
                got = await self._executor.recv()
                now = time.time()
                for event in got if isinstance(got, list) else [got]:
                    self._note(event, now)
        except Exception as error:
            for probe in self._probes.values():
                probe.error = probe.error or error
                probe.over.set()

    def _note(self, event: Mapping[str, Any], now: float) -> None:
        probe = self._probes.get(str(event.get("run_id")))
        if probe is None or probe.event is not None:
            return
        if event["type"] == "task_started":
            probe.started = now - probe.sent_at
            probe.begun.set()
        elif event["type"] in TERMINAL:
            probe.ended = now - probe.sent_at
            probe.event = event
            probe.over.set()

    async def result(self, probe: Probe) -> Any:
        """Return what *probe*, which is over, has returned; ``None`` if it was cancelled.

        Raises:
            BaseException: Why it failed.
        """
        if probe.error is not None or probe.event is None:
            raise probe.error or RuntimeError("the probe has no end")
        return await run_in_thread(_value_of, probe.event)


def _value_of(event: Mapping[str, Any]) -> Any:
    if event["type"] == "task_cancelled":
        return None
    if event["type"] == "task_error":
        raise faults.to_exception(event, task=TASK)
    if "result" in event:
        return event["result"]
    check_python(event, label="the answer of the worker")
    return pickling.loads(event["result_pickle"], label="the answer of the worker")
