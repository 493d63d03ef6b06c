"""``executor="stdio"``: worker processes on this machine, one JSON frame a line."""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, Literal, cast

from wove.concurrency import forks
from wove.errors import DeliveryError, MissingDispatchFeatureError
from wove.executors.base import CancelReach, EnvironmentExecutor, Frame
from wove.executors.event_queue import EventQueue
from wove.executors.stdio.pool import Plan, Pool
from wove.executors.stdio.process import interpreter_flags
from wove.graph.options import suggest

__all__ = ["StdioExecutor", "worker_command"]

KEYS: Final = (
    "command",
    "processes",
    "terminate_on_cancel",
    "start_timeout",
    "send_timeout",
    "stop_timeout",
    "cancel_ack_timeout",
)


class StdioExecutor(EnvironmentExecutor):
    """A pool of worker processes that read commands on stdin and write events to stdout.

    Keys of ``executor_config``, beside the timeouts of every executor:

    * ``command`` (list, or text as for a shell): the worker. Default: ``python -m wove.stdio_worker``, with
      this interpreter.
    * ``processes``: the most processes. Default: the CPUs that this process may use; 1 with a ``command``.
    * ``terminate_on_cancel`` (default true): whether a process is ended when a run in it was cancelled, does
      not end, and the process has nothing else to do.

    The default worker gets one run at a time as long as runs compute, and as many as there are while they
    wait. A worker of your own gets all runs at once.
    """

    scope: ClassVar[Literal["run", "process"]] = "process"
    wire: ClassVar[bool] = True
    says_started: ClassVar[bool] = True
    cancel_reach: ClassVar[CancelReach] = "process"
    inherits: ClassVar[bool] = True

    @classmethod
    def shares_arguments(cls, config: Mapping[str, Any]) -> bool:
        """A worker of the user's own does not know of them."""
        return config.get("command") is None

    def __init__(self) -> None:
        self._inbox = EventQueue()

    async def start(
        self,
        *,
        environment_name: str,
        environment_config: Mapping[str, Any],
        run_config: Mapping[str, Any],
    ) -> None:
        plan = _plan(environment_name, environment_config, run_config)
        if importlib.util.find_spec("cloudpickle") is None:
            raise MissingDispatchFeatureError
        self._pool = Pool(plan, self._inbox.put)
        self._pool.spawn()  # it starts while the first run is on its way

    async def send(self, frame: Frame) -> None:
        self.send_nowait(frame)

    def send_nowait(self, frame: Frame) -> bool:
        if frame["type"] == "run_task":
            self._pool.run(frame)
        elif frame["type"] == "cancel_task":
            self._pool.cancel(frame)
        return True

    async def recv(self) -> list[Frame]:
        return await self._inbox.get()

    async def stop(self) -> None:
        await self._pool.stop()


def _plan(name: str, config: Mapping[str, Any], state: Mapping[str, Any]) -> Plan:
    """The checked configuration of an environment."""
    label = f"environment {name!r}"

    for key in config:
        if key not in KEYS:
            raise ValueError(
                f"{label}: stdio has no executor_config key {key!r}.{suggest(key, KEYS)} "
                f"Its keys are: {', '.join(KEYS)}"
            )

    command = config.get("command")
    processes = config.get("processes")
    if processes is None:
        processes = _processors() if command is None else 1
    elif isinstance(processes, bool) or not isinstance(processes, int) or processes < 1:
        raise ValueError(
            f"{label}: executor_config 'processes' must be a whole number of at least 1, not {processes!r}"
        )

    terminate = config.get("terminate_on_cancel", True)
    if not isinstance(terminate, bool):
        raise TypeError(
            f"{label}: executor_config 'terminate_on_cancel' must be True or False, not {terminate!r}"
        )

    environ = cast("Mapping[str, str]", state.get("environ", os.environ))
    boot: dict[str, Any] | None = None

    if command is None:
        with forks.importing:
            from wove.worker.stdio import boot_record, child_environment

        boot = boot_record(environ, state.get("path", sys.path))
        environ = child_environment(environ)

    return Plan(
        environment=name,
        command=worker_command() if command is None else _split(command, label),
        boot=boot,
        processes=processes,
        terminate=terminate,
        start_seconds=config.get("start_timeout", 60.0),
        cwd=state.get("cwd"),
        environ=dict(environ),
    )


def worker_command() -> list[str]:
    """The command that starts a worker process of Wove's own."""
    if not sys.executable:
        raise DeliveryError(
            "this interpreter does not know its own executable (sys.executable is empty): "
            "set executor_config 'command' for stdio"
        )

    if getattr(sys, "frozen", False):
        raise DeliveryError(
            f"this is a frozen application, and {sys.executable!r} would start it again instead of a worker: set "
            f"executor_config 'command' for stdio, to a Python with wove and cloudpickle that runs "
            f"'-m wove.stdio_worker', or to a program of yours that calls wove.worker.stdio.main()"
        )

    with forks.importing:
        from wove.worker.stdio import REPORT_LOAD_FLAG

    # -P, because the worker gets this process's sys.path instead of the working directory.
    return [sys.executable, *interpreter_flags(), "-P", "-m", "wove.stdio_worker", REPORT_LOAD_FLAG]


def _split(command: object, label: str) -> list[str]:
    parts: list[str]

    if isinstance(command, str):
        parts = shlex.split(command)
    elif isinstance(command, (list, tuple)):
        parts = [os.fspath(part) for part in cast("Sequence[Any]", command)]
    else:
        raise TypeError(
            f"{label}: executor_config 'command' must be a list or text, not {type(command).__name__}"
        )

    if not parts:
        raise ValueError(f"{label}: executor_config 'command' is empty")
    return parts


def _processors() -> int:
    """The CPUs that this process may use, not those that the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1
