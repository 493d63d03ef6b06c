"""The contract of every way out of this process."""

from __future__ import annotations

import abc
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Literal, TypeAlias

__all__ = ["CancelReach", "EnvironmentExecutor", "Frame"]

Frame: TypeAlias = dict[str, Any]
"""A command (``run_task``, ``cancel_task``, ``shutdown``) or an event, by its ``type``."""

CancelReach: TypeAlias = Literal["none", "queued", "cooperative", "process"]
"""How far a cancel gets: nowhere, to runs not yet started, to code that cooperates, or to any process."""


class EnvironmentExecutor(abc.ABC):
    """Carries commands out of a weave, and events back into it.

    An instance of a subclass is the ``executor`` of an environment. Its methods are called on one
    event loop, between a `start` and its `stop`; `send` may be called again while another `send` is
    still waiting, and `recv` is awaited by one reader.

    Which loop, and how long, is a matter of `scope`:

    * ``"run"`` (default): around each weave, on the weave's own loop. Weaves that overlap on one
      loop share one started executor, which stops when the last of them ends. A weave that needs the
      instance while another loop (another thread) has it started gets a `DeliveryError`: one instance
      cannot serve two loops. Declare it process-scoped, or give each its own environment.
    * ``"process"``: once, on Wove's background loop, for all weaves of the process and all threads,
      until the configuration changes, ``wove.shutdown()`` or the end of the process.

    Whatever an executor does, no run hangs. If `start` raises, the runs that need it fail with that
    exception and the next run tries again; it has ``start_timeout`` seconds (60). If `send` raises, that
    run fails with the exception; it has ``send_timeout`` seconds (60), because it only hands over and
    does not wait for the run. If `recv` raises, every run in flight fails with `WorkerLostError`, the
    executor is stopped, and the next run starts it again. `stop` has ``stop_timeout`` seconds (10). These
    four are keys of ``executor_config``; the fourth is ``cancel_ack_timeout`` (30), which bounds the wait of
    ``delivery_cancel_mode="require_ack"``. ``None`` there means no limit.

    A ``run_task`` frame holds ``run_id`` (unique per submission), ``task_id`` (the task's name), ``delivery``
    (the run's ``delivery_*`` settings, the key already made text), where there is one ``deadline`` (seconds
    that the run may take once it has begun), and:

    * with ``wire = False`` (default): ``callable`` and ``args`` (a dict of keyword arguments), live. The
      events hold ``result`` or ``exception``, live.
    * with ``wire = True``: ``callable_pickle`` and ``args_pickle``, each a `wove.protocol.pickling.Pickled`,
      for `wove.protocol.codec`. The events hold ``result_pickle`` and the like as the codec gives them.

    Every run ends with one ``task_result``, ``task_error`` or ``task_cancelled`` event; before it may come
    ``task_started``, ``heartbeat`` and ``log``. An executor that finds out that a worker is gone reports
    its runs with ``{"type": "task_error", "run_id": ..., "exception": WorkerLostError(...)}``.

    Example:
        >>> class Inline(EnvironmentExecutor):
        ...     async def start(self, *, environment_name, environment_config, run_config):
        ...         self.events = asyncio.Queue()
        ...
        ...     async def send(self, frame):
        ...         if frame["type"] == "run_task":
        ...             result = frame["callable"](**frame["args"])
        ...             event = {"type": "task_result", "run_id": frame["run_id"], "result": result}
        ...             await self.events.put(event)
        ...
        ...     async def recv(self):
        ...         return await self.events.get()
        ...
        ...     async def stop(self):
        ...         pass
    """

    submit_patience_seconds: float = 0.0
    """How long `send` may wait for something that is away, beside its ``send_timeout``."""

    scope: ClassVar[Literal["run", "process"]] = "run"
    """Whether it is started around each weave, or once for the process."""

    wire: ClassVar[bool] = False
    """Whether it takes and gives pickled values, for another process, instead of live ones."""

    says_started: ClassVar[bool] = False
    """Whether its workers are sure to send ``task_started`` when they begin a run. Otherwise the time limit of an
    attempt counts from its hand-over. An executor that learns only later which workers do can say so for each run: the
    limit counts from a ``task_sent`` event on, and a ``heartbeat`` before ``task_started`` says that the run still
    waits."""

    external_workers: ClassVar[bool] = False
    """Whether its workers are started by others, so that there may be none. A warning then tells of runs that no worker
    has begun for ``delivery_notice_seconds``. Requires `says_started`."""

    cancel_reach: ClassVar[CancelReach] = "cooperative"
    """How far a ``cancel_task`` reaches."""

    resources: ClassVar[frozenset[str]] = frozenset()
    """Names of the resources, of those of the option ``resources``, that it can ask for. A task that asks for another
    one is refused. ``frame["resources"]`` has their amounts, in cores, bytes and seconds."""

    inherits: ClassVar[bool] = False
    """Whether its workers take over this process's working directory, environment variables and
    ``sys.path``, so that a session started under others must be replaced. They are in ``run_config`` as
    ``cwd``, ``environ`` and ``path``. Process-scoped executors only."""

    needs_caller_loop: ClassVar[bool] = False
    """Whether it may be given clients that belong to an event loop of the user's. Then ``run_config`` has
    ``caller_loop``, where the weave that needs it first runs on such a loop. Process-scoped executors only."""

    @classmethod
    def shares_arguments(cls, config: Mapping[str, Any]) -> bool:
        """Return whether its ``run_task`` frames may have what the items of a map share in ``shared_pickle``.

        Args:
            config: The environment's ``executor_config``.
        """
        del config
        return False

    def check(self, environment_name: str, environment_config: Mapping[str, Any]) -> None:  # noqa: B027  # optional
        """Check a configuration before the first task of a weave runs. No I/O, and nothing of the executor changes.

        Called in any thread, once for each configuration.

        Args:
            environment_name: The name of the environment.
            environment_config: Its ``executor_config``.

        Raises:
            ValueError: A key is unknown, or a value is out of range; the message names the key.
            TypeError: A value is of the wrong type.
            MissingDependencyError: A package is not installed; packages are looked for, not imported.
        """

    @abc.abstractmethod
    async def start(
        self,
        *,
        environment_name: str,
        environment_config: Mapping[str, Any],
        run_config: Mapping[str, Any],
    ) -> None:
        """Get ready to send.

        Args:
            environment_name: The name of the environment.
            environment_config: Its ``executor_config``.
            run_config: What else the start depends on; see `inherits`.
        """

    @abc.abstractmethod
    async def send(self, frame: Frame) -> None:
        """Hand *frame* over. Not to wait for the run itself."""

    @abc.abstractmethod
    async def recv(self) -> Frame | list[Frame]:
        """The next event, or several; waits until there is one."""

    @abc.abstractmethod
    async def stop(self) -> None:
        """End everything that `start` and `send` began."""

    async def why_waiting(self, run_ids: Collection[str]) -> str:
        """Return why no worker has begun these runs, as text for a warning; ``""``: it is not known.

        Args:
            run_ids: The ids of the runs. Some may have begun or ended meanwhile.
        """
        del run_ids
        return ""

    def send_nowait(self, frame: Frame) -> bool:
        """Hand *frame* over without waiting, if that is possible now.

        Returns:
            Whether it was done. If not, `send` is awaited instead. An executor that only queues what it
            sends saves a task per frame with this.
        """
        del frame
        return False
