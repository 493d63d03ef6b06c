"""``executor="stdio"``: worker processes, here or behind a launcher, one JSON frame a line."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, Literal, cast

from wove.concurrency import forks
from wove.errors import DeliveryError, MissingDispatchFeatureError
from wove.executors.base import CancelReach, EnvironmentExecutor, Frame
from wove.executors.event_queue import EventQueue
from wove.executors.stdio.pool import Pool
from wove.executors.stdio.process import WATCHES_PIPES, interpreter_flags
from wove.executors.stdio.worker import Plan
from wove.settings import config_readers

__all__ = ["StdioExecutor", "worker_command"]

KEYS: Final = (
    "command",
    "launcher",
    "python",
    "processes",
    "min_processes",
    "idle_seconds",
    "terminate_on_cancel",
    "start_timeout",
    "send_timeout",
    "stop_timeout",
    "cancel_ack_timeout",
)


_ISOLATED_START: Final = (
    "import sys; sys.path.insert(0, {!r}); from wove.worker.stdio import main; main()"
)
"""The worker of an interpreter that was started with -I, -E or -S."""


class StdioExecutor(EnvironmentExecutor):
    """A pool of worker processes that read commands on stdin and write events to stdout.

    Keys of ``executor_config``, beside the timeouts of every executor:

    * ``launcher`` (list, or text as for a shell): a command that starts the worker elsewhere: ``srun``, ``ssh host``,
      ``docker run -i image``. The worker's command follows it. It must last as long as the worker does.
    * ``python`` (list or text): the interpreter of Wove's own worker. Default: this one.
    * ``command`` (list or text): another worker. Default: ``python -m wove.stdio_worker``.
    * ``processes``: maximum number of processes. Default: the CPUs that this process may use; 1 with a ``launcher``
      or a ``command``.
    * ``min_processes`` (0): how many are started with the first run, and stay when they are idle.
    * ``idle_seconds`` (``None``: for ever): how long a process without work stays.
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
        """Return whether the worker is Wove's own: others do not know of shared arguments."""
        return config.get("command") is None

    def __init__(self) -> None:
        self._inbox = EventQueue()

    def check(self, environment_name: str, environment_config: Mapping[str, Any]) -> None:
        _plan(environment_name, environment_config, {})

    async def start(
        self,
        *,
        environment_name: str,
        environment_config: Mapping[str, Any],
        run_config: Mapping[str, Any],
    ) -> None:
        plan = _plan(environment_name, environment_config, run_config)
        self._pool = Pool(plan, self._inbox.put)
        self._pool.start()

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
    """Return the plan of the pool of an environment, from its checked configuration.

    Raises:
        ValueError, TypeError: A key or value of *config* is wrong.
        MissingDispatchFeatureError: cloudpickle is not installed.
    """
    label = f"environment {name!r}"
    config_readers.check_keys(label, "stdio", config, KEYS)
    command = config_readers.command(config, "command", label=label)
    launcher = config_readers.command(config, "launcher", label=label)
    python = config_readers.command(config, "python", label=label)
    if command is not None and python is not None:
        raise ValueError(
            f"{label}: executor_config 'python' is for Wove's own worker, and 'command' names another; "
            "leave one of them out"
        )

    elsewhere = launcher is not None or command is not None
    processes = config_readers.whole(
        config, "processes", 1 if elsewhere else _processors(), label=label
    )
    min_processes = config_readers.whole(config, "min_processes", 0, label=label, minimum=0)
    if min_processes > processes:
        raise ValueError(
            f"{label}: executor_config 'min_processes' ({min_processes}) is more than 'processes' ({processes})"
        )

    if importlib.util.find_spec("cloudpickle") is None:
        raise MissingDispatchFeatureError
    environ = cast("Mapping[str, str]", state.get("environ", os.environ))
    # A worker that inherits no descriptors is started as one on another machine is.
    launched = launcher is not None or (command is None and not WATCHES_PIPES)
    boot: dict[str, Any] | None = None

    if command is None:
        with forks.importing:
            from wove.worker.stdio import boot_record, child_environment

        # Another interpreter has a path of its own, and maybe a file system of its own.
        boot = boot_record(environ, state.get("path", sys.path) if python is None else None)
        if launcher is None:
            environ = child_environment(environ)
        command = tuple(worker_command(python, launched=launched))

    return Plan(
        environment=name,
        command=[*(launcher or ()), *command],
        boot=boot,
        launched=launched,
        processes=processes,
        min_processes=min_processes,
        idle_seconds=config_readers.number(config, "idle_seconds", None, label=label),
        terminate=config_readers.flag(config, "terminate_on_cancel", True, label=label),
        start_seconds=config.get("start_timeout", None if launcher else 60.0),
        cwd=state.get("cwd"),
        environ=dict(environ),
    )


def worker_command(python: Sequence[str] | None = None, *, launched: bool = False) -> list[str]:
    """Return the command that starts a worker process of Wove's own.

    Args:
        python: The interpreter and its options; ``None``: this one, with the options that it was started with.
        launched: Whether a launcher starts it, so that it may be on another machine.

    Raises:
        DeliveryError: There is no interpreter that could be started.
    """
    with forks.importing:
        from wove.worker.stdio import LAUNCHED_FLAG, REPORT_LOAD_FLAG, source_root

    # -P, because the worker gets this process's sys.path instead of the working directory.
    start, options = ["-P", "-m", "wove.stdio_worker"], [REPORT_LOAD_FLAG]
    if launched:
        options.append(LAUNCHED_FLAG)
    if python is not None:
        return [*python, *start, *options]

    if not sys.executable:
        raise DeliveryError(
            "this interpreter does not know its own executable (sys.executable is empty): "
            "set executor_config 'python' or 'command' for stdio"
        )

    if getattr(sys, "frozen", False):
        raise DeliveryError(
            f"this is a frozen application, and {sys.executable!r} would start it again instead of a worker: set "
            f"executor_config 'python' for stdio, to a Python with wove and cloudpickle, or 'command', to a program "
            f"of yours that calls wove.worker.stdio.main()"
        )

    # A launcher may be a shell on another machine, which takes the words apart again: no option with spaces or quotes.
    if launched:
        return [sys.executable, *start, *options]
    if (
        sys.flags.ignore_environment or sys.flags.no_site
    ):  # PYTHONPATH does not help it to find wove
        start = ["-c", _ISOLATED_START.format(source_root())]
    return [sys.executable, *interpreter_flags(), *start, *options]


def _processors() -> int:
    """Return the number of CPUs that this process may use, not of those that the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1
