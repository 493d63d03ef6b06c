"""The results of a weave, and the record of every run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from wove.errors import ResultNotKeptError, TaskCancelledError
from wove.graph.options import suggest

__all__ = ["RESERVED", "Failure", "RunRecord", "Trip", "WoveResult", "worded"]


@dataclass(slots=True)
class Trip:
    """When a remote run passed each point of its way, in seconds since the epoch; ``None``: it did not.

    Attributes:
        admitted: It had a slot of its environment.
        handed_over: Its bytes were ready, and it was handed to the executor.
        sent: The executor had sent it.
        start_seen: The news that a worker had begun it arrived. It may come together with the end.
        end_seen: The news of its end arrived.
        worker_began: The worker began it, by the clock of the worker's host; ``None`` also for workers
            that do not say so.
        worker_spent: For how many seconds the worker then unpickled the call, ran it, and pickled the result.
    """

    admitted: float | None = None
    handed_over: float | None = None
    sent: float | None = None
    start_seen: float | None = None
    end_seen: float | None = None
    worker_began: float | None = None
    worker_spent: tuple[float, float, float] | None = None


@dataclass(slots=True)
class RunRecord:
    """One attempt of one task, or of one item of a mapped task.

    Attributes:
        task: The task's name.
        item: The item's position in a mapped task, from 0; ``None`` for an unmapped task.
        attempt: Counted from 1. In this process, the attempts of one call share one record, which has
            the number of the last one.
        environment: The name of the environment in which it ran.
        started: When the attempt began, in seconds since the epoch.
        ended: When it ended; ``None`` if it had not when the weave did.
        run_id: The id it had outside this process; ``None`` for a local run.
        host: The worker's host name; ``None`` for a local run.
        pid: The worker's process id; ``None`` for a local run.
        thread: The number of the thread that ran it, counted from 1 in each weave; ``None`` for a remote
            run, and where it ran on the loop.
        bytes_out: Bytes of the pickled callable and arguments that were sent.
        bytes_in: Bytes of the pickled result that came back.
        losses: How often it was submitted again because its worker was lost.
        error: The type and message of the exception it ended with, if any.
        trip: When a remote run passed each point of its way; ``None`` for a local run.
    """

    task: str
    item: int | None = None
    attempt: int = 1
    environment: str = "default"
    started: float = 0.0
    ended: float | None = None
    run_id: str | None = None
    host: str | None = None
    pid: int | None = None
    thread: int | None = None
    bytes_out: int = 0
    bytes_in: int = 0
    losses: int = 0
    error: str | None = None
    trip: Trip | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure in a weave.

    Attributes:
        task: The task's name.
        item: The item's position in a mapped task, or ``None``.
        exception: The exception that it raised.
    """

    task: str
    item: int | None
    exception: BaseException


class WoveResult:
    """The results of a weave, by name and in the order of definition.

    Reading a failed task raises its exception, or returns it in the error modes ``"return"`` and
    ``"continue"``; reading a cancelled one raises :class:`~wove.errors.TaskCancelledError`, and reading one with
    ``keep=False`` :class:`~wove.errors.ResultNotKeptError`. Initial
    values can be read by name too, but only tasks count, for ``len`` and in iteration.

    Attributes:
        timings: Seconds each task took, by name; a mapped task from its first start to its last end.
        cancelled: Names of the tasks that were cancelled before they had a result.
        exception: The first exception recorded, or ``None``.
        failures: Everything that failed, in order, further failures beside the first among them.

    Example:
        >>> with weave(n=2) as w:
        ...     @w.do
        ...     def double(n): return 2 * n
        >>> w.result.double, w.result["double"], w.result.final
        (4, 4, 4)
    """

    cancelled: tuple[str, ...]
    exception: BaseException | None
    failures: tuple[Failure, ...]
    timings: Mapping[str, float]

    def __init__(
        self,
        names: tuple[str, ...],
        *,
        values: Mapping[str, Any],
        errors: Mapping[str, BaseException],
        initial: Mapping[str, Any],
        timings: Mapping[str, float],
        cancelled: tuple[str, ...],
        exception: BaseException | None,
        failures: tuple[Failure, ...],
        run_records: Callable[[], tuple[RunRecord, ...]],
        returns_errors: bool,
        unkept: tuple[str, ...] = (),
    ) -> None:
        self._names = names
        self._unkept = unkept
        self._values = values
        self._errors = errors
        self._tracebacks = {name: error.__traceback__ for name, error in errors.items()}
        self._initial = initial
        self._returns_errors = returns_errors
        self.timings = timings
        self.cancelled = cancelled
        self.exception = exception
        self.failures = failures
        self._run_records = run_records

    @property
    def run_records(self) -> tuple[RunRecord, ...]:
        """Return what ran when and where: one record an attempt, or a local item."""
        return self._run_records()

    @property
    def final(self) -> Any:
        """Return the result of the task that was declared last; ``None`` where none was."""
        return self[self._names[-1]] if self._names else None

    def __getitem__(self, name: str) -> Any:
        if name in self._values:
            return self._values[name]
        if name in self._errors:
            error = self._errors[name]
            if self._returns_errors:
                return error
            # Each reading starts with the traceback of the task; otherwise they would add up.
            raise error.with_traceback(self._tracebacks.get(name))

        if name in self._initial:
            return self._initial[name]
        if name in self._unkept:
            raise ResultNotKeptError(
                f"the result of task {name!r} was not kept: the task has keep=False. It ended without an error, "
                "and its result went to the tasks that needed it"
            )
        if name in self._names:
            self._raise_cancelled(name)
        raise KeyError(self._unknown(name))

    def __getattr__(self, name: str) -> Any:
        # Only called for names that are not attributes. An object that is being unpickled has no state yet.
        values = self.__dict__.get("_values")
        if values is not None and name in values:
            return values[name]
        if name.startswith("__") or "_names" not in self.__dict__:
            raise AttributeError(name)
        if name not in self:
            raise AttributeError(self._unknown(name), name=name, obj=None)
        return self[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names or name in self._initial

    def __iter__(self) -> Iterator[Any]:
        return (self[name] for name in self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __dir__(self) -> list[str]:
        return [*object.__dir__(self), *self._names]

    def __repr__(self) -> str:
        parts: list[str] = []

        for name in self._names:
            if name in self._values:
                text = _short(self._values[name])
            elif name in self._errors:
                text = f"failed: {_short(self._errors[name])}"
            elif name in self._unkept:
                text = "not kept"
            else:
                text = "cancelled"
            parts.append(f"{name}={text}")

        return f"<WoveResult {', '.join(parts) or 'of no tasks'}>"

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            **self.__dict__,
            "_tracebacks": {},
            "_run_records": _Kept(self.run_records),
        }
        rebuilt = {id(error): _portable(error) for error in self._all_errors()}
        state["_errors"] = {name: rebuilt[id(error)] for name, error in self._errors.items()}
        state["exception"] = rebuilt[id(self.exception)] if self.exception is not None else None
        state["failures"] = tuple(
            Failure(failure.task, failure.item, rebuilt[id(failure.exception)])
            for failure in self.failures
        )
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def _all_errors(self) -> Iterator[BaseException]:
        yield from self._errors.values()
        yield from (failure.exception for failure in self.failures)
        if self.exception is not None:
            yield self.exception

    def _raise_cancelled(self, name: str) -> NoReturn:
        reason = f" after {_short(self.exception)}" if self.exception is not None else ""
        raise TaskCancelledError(
            f"task {name!r} has no result: it was cancelled{reason}"
        ) from self.exception

    def _unknown(self, name: str) -> str:
        names = ", ".join(map(repr, self._names)) or "none"
        return f"no task {name!r} in this weave.{suggest(name, self._names)} Its tasks: {names}"


class _Kept:
    """Returns the records of a result that was pickled."""

    def __init__(self, records: tuple[RunRecord, ...]) -> None:
        self.records = records

    def __call__(self) -> tuple[RunRecord, ...]:
        return self.records


def _short(value: object) -> str:
    try:
        text = repr(value)
    except Exception:
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _portable(error: BaseException) -> BaseException:
    """Return *error*, or one with the same message if *error* cannot be pickled and rebuilt."""
    import pickle

    from wove.errors import EnvironmentExecutionError

    try:
        rebuilt = pickle.loads(pickle.dumps(error))
    except Exception:
        rebuilt = None

    if type(rebuilt) is type(error):
        return error
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    message = _message(error)
    return EnvironmentExecutionError(f"{kind}: {message}", {"kind": kind, "message": message})


def worded(error: BaseException) -> str:
    """Return the type and message of *error*."""
    return f"{type(error).__name__}: {_message(error)}"


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "(its message cannot be shown)"


RESERVED = frozenset(
    dir(
        WoveResult(
            (),
            values={},
            errors={},
            initial={},
            timings={},
            cancelled=(),
            exception=None,
            failures=(),
            run_records=tuple,
            returns_errors=False,
        )
    )
)
"""Names that a task or initial value cannot have, because the result has an attribute of that name."""
