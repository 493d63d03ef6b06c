"""All exceptions that Wove itself raises.

Each can also be caught as the built-in type in brackets::

    WoveError
    ├── UnresolvedSignatureError      (NameError)      a parameter names nothing
    ├── WeaveStateError               (RuntimeError)   a weave used at the wrong moment
    ├── TaskTimeoutError              (TimeoutError)   one attempt took longer than `timeout`
    ├── TaskCancelledError            (RuntimeError)   the result of a task that was cancelled
    ├── ResultNotKeptError            (RuntimeError)   the result of a task with keep=False
    ├── SerializationError            (TypeError)      a value cannot leave or enter the process
    ├── CacheError                    (RuntimeError)   a store of results is damaged, or not one of ours
    ├── EnvironmentExecutionError     (RuntimeError)   a remote error without an exception object
    ├── MissingDependencyError        (RuntimeError)   a package is not installed
    │   └── MissingDispatchFeatureError                cloudpickle is not installed
    ├── WorkerSetupError              (RuntimeError)   what a worker calls before its first task has failed
    └── DeliveryError                 (RuntimeError)   between this process and a worker
        ├── DeliveryTimeoutError      (TimeoutError)   no terminal event, or no heartbeat, in time
        └── DeliveryOrphanedError                      the run and its weave lost each other
            └── WorkerLostError                        the worker or its backend lost the run

`WoveWarning` is a `UserWarning`.

An error raised by a task is never wrapped: it comes out as the object that the task raised.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from wove import __version__

__all__ = [
    "CacheError",
    "DeliveryError",
    "DeliveryOrphanedError",
    "DeliveryTimeoutError",
    "EnvironmentExecutionError",
    "MissingDependencyError",
    "MissingDispatchFeatureError",
    "ResultNotKeptError",
    "SerializationError",
    "TaskCancelledError",
    "TaskTimeoutError",
    "UnresolvedSignatureError",
    "WeaveStateError",
    "WorkerLostError",
    "WorkerSetupError",
    "WoveError",
    "WoveWarning",
]


HELP_PAGE: Final = "docs/troubleshooting.md lists causes and remedies, by symptom."
"""Part of the note on an error of a run that did not reach its worker, or did not come back."""


class WoveError(Exception):
    """Base of every exception that Wove itself raises."""


class WoveWarning(UserWarning):
    """Something that works, and is most likely not what was meant."""


class UnresolvedSignatureError(WoveError, NameError):
    """A task's parameter names neither a task nor an initial value, and has no default."""


class WeaveStateError(WoveError, RuntimeError):
    """A weave was used at the wrong moment: twice, after its block, or before its result exists."""


class TaskTimeoutError(WoveError, TimeoutError):
    """One attempt of a task took longer than its ``timeout``.

    Attributes:
        task: The task's name, or ``None`` when unknown.
        attempt: The number of the attempt, counted from 1.
        limit: The time limit, in seconds.
    """

    task: str | None = None
    attempt: int | None = None
    limit: float | None = None

    @classmethod
    def of(cls, task: str, attempt: int, limit: float, item: int | None = None) -> TaskTimeoutError:
        """Return the error for *attempt* (from 1) of *task*, which had *limit* seconds."""
        which = f"task {task!r}" if item is None else f"item {item} of task {task!r}"
        error = cls(f"{which} timed out: attempt {attempt} took longer than {limit:g} s")
        error.task, error.attempt, error.limit = task, attempt, limit
        return error


class TaskCancelledError(WoveError, RuntimeError):
    """The result of a task was read, but the task was cancelled before it had one."""


class ResultNotKeptError(WoveError, RuntimeError):
    """The result of a task with ``keep=False`` was read: it was released when no task needed it any more."""


class SerializationError(WoveError, TypeError):
    """A callable, argument or result cannot be pickled, or cannot be rebuilt on the other side."""


class CacheError(WoveError, RuntimeError):
    """A store of kept results is damaged or foreign; the message names it. Nothing of it was unpickled."""


class EnvironmentExecutionError(WoveError, RuntimeError):
    """A remote task failed, and the report has no exception object.

    Attributes:
        payload: The report as it came: ``kind``, ``message``, ``traceback``, ``retryable`` and
            ``source`` (``"task"``, ``"executor"``, ``"transport"`` or ``"config"``), as far as given.
    """

    payload: Mapping[str, Any]

    def __init__(self, message: str = "", payload: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.payload = dict(payload or {})

    @classmethod
    def of_transport(
        cls, message: str, *, kind: str, retryable: bool = False
    ) -> EnvironmentExecutionError:
        """Return the error for an answer that cannot be used; *kind* is the type that the report names."""
        report = {"kind": kind, "message": message, "retryable": retryable, "source": "transport"}
        return cls(message, report)

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (str(self), dict(self.payload)))


def install_command(extra: str) -> str:
    """Return the shell command that installs the packages of *extra* beside this very Wove.

    The package index may have another package named ``wove``. With the version given, pip keeps the Wove that is
    installed, whether it came from a checkout or from a wheel, and installs only what *extra* adds.
    """
    return f'pip install "wove[{extra}]=={__version__}"'


def is_other_wove(version: object) -> bool:
    """Return whether *version* is one of another package that is called ``wove``: its major number is another."""
    return isinstance(version, str) and version.partition(".")[0] != __version__.partition(".")[0]


def advice_on_other_wove(text: str) -> str:
    """Return the advice for an error whose *text* shows that another package named ``wove`` runs; otherwise ``""``."""
    signs = ("No module named 'wove", "cannot import wove", "from 'wove", "module 'wove")
    return f". {OTHER_WOVE}" if any(sign in text for sign in signs) else ""


OTHER_WOVE = (
    f"This is wove {__version__}. The package index has another package of this name, with versions that begin with 2: "
    "pip uninstall wove on the side that has that one, and install this one there, from its checkout or its wheel"
)


class MissingDependencyError(WoveError, RuntimeError):
    """An optional package is not installed; the message has the exact install command."""


class MissingDispatchFeatureError(MissingDependencyError):
    """cloudpickle is not installed: nothing can leave this process without it."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(
            message
            or "this needs cloudpickle to carry tasks out of the process. "
            f"Install it with: {install_command('dispatch')}"
        )


class WorkerSetupError(WoveError, RuntimeError):
    """The set-up that a worker process calls before its first task has failed; the cause is in the message."""


class DeliveryError(WoveError, RuntimeError):
    """Something between this process and a worker went wrong, not the task itself."""


class DeliveryTimeoutError(DeliveryError, TimeoutError):
    """No terminal event within ``delivery_timeout``, or no event within ``delivery_heartbeat_seconds``."""


class DeliveryOrphanedError(DeliveryError):
    """A remote run and its weave lost each other; ``delivery_orphan_policy`` says what became of it."""


class WorkerLostError(DeliveryOrphanedError):
    """The worker died, or the backend failed, evicted or lost the run; the message has its own words."""
