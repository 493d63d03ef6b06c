"""The runs that were sent while environments ran in this process, and the faults that are still to come."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["Fault", "Recorder", "SentRun"]

MAX_SENT: Final = 100_000
"""Maximum number of runs that a recorder keeps; the oldest go first. Their arguments are kept alive."""


@dataclass(frozen=True, slots=True)
class SentRun:
    """One run that a weave handed to an environment.

    Attributes:
        environment: The environment's name.
        task: The task's name.
        run_id: The run's id, unique for each attempt.
        delivery: The run's ``delivery_*`` settings.
        arguments: The keyword arguments; with the codec they are unpickled each time that this is called.
    """

    environment: str
    task: str
    run_id: str
    delivery: Mapping[str, Any]
    arguments: Callable[[], dict[str, Any]]

    @property
    def args(self) -> dict[str, Any]:
        """The keyword arguments of the call, by name."""
        return self.arguments()


@dataclass(frozen=True, slots=True)
class Fault:
    """The fault that happens to a run.

    Attributes:
        delay: Seconds before the run begins.
        copies: How often each of its events arrives.
        error: How the run ends instead of by its own result; ``None``: by its own result.
        runs: Whether the task is executed although its result is lost.
    """

    delay: float = 0.0
    copies: int = 1
    error: BaseException | None = None
    runs: bool = True


class _Rule:
    __slots__ = ("fault", "left", "task")

    def __init__(self, task: str | None, times: int | None, fault: Fault) -> None:
        if times is not None and times < 1:
            raise ValueError(f"times must be at least 1, or None for every run, not {times!r}")

        self.task = task
        self.left = times
        self.fault = fault


class Recorder:
    """Records the runs of environments, and decides which faults happen to them.

    Its methods may be called from any thread. The rule that was added first and still applies is the
    one that counts for a run.

    Attributes:
        sent: The runs that were sent, in their order.

    Example::

        with in_process() as recorder:
            recorder.lose("pdf")
            make_reports()
        assert [run.args["invoice"] for run in recorder.of("pdf")] == [1, 1, 2, 3]
    """

    def __init__(self) -> None:
        self.sent: list[SentRun] = []
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[SentRun]:
        return iter(list(self.sent))

    def __len__(self) -> int:
        return len(self.sent)

    def of(self, task: str) -> list[SentRun]:
        """Return the runs of *task*, in the order in which they were sent."""
        return [run for run in self if run.task == task]

    def lose(self, task: str | None = None, *, times: int | None = 1, runs: bool = True) -> None:
        """Lose the worker of the next runs: they end with `WorkerLostError`.

        Args:
            task: The task's name; ``None``: any.
            times: How many runs are lost; ``None``: all that follow.
            runs: Whether the task is executed before its result is lost, as when a worker is killed right
                after its work.
        """
        from wove.errors import WorkerLostError

        error = WorkerLostError("the worker was lost, as the test asked for (wove.testing)")
        self._add(task, times, Fault(error=error, runs=runs))

    def fail(self, task: str | None, error: BaseException, *, times: int | None = 1) -> None:
        """Have the next runs end with *error*; the task is not executed.

        Args:
            task: The task's name; ``None``: any.
            error: What the task raises, as the weave sees it.
            times: How many runs fail; ``None``: all that follow.
        """
        self._add(task, times, Fault(error=error, runs=False))

    def delay(self, task: str | None, seconds: float, *, times: int | None = None) -> None:
        """Let the next runs wait in the queue before they begin.

        Args:
            task: The task's name; ``None``: any.
            seconds: How long.
            times: How many runs wait; ``None``: all that follow.
        """
        self._add(task, times, Fault(delay=seconds))

    def duplicate(self, task: str | None = None, *, times: int | None = None) -> None:
        """Deliver each event of the next runs twice, as a network that repeats itself does.

        Args:
            task: The task's name; ``None``: any.
            times: How many runs it concerns; ``None``: all that follow.
        """
        self._add(task, times, Fault(copies=2))

    def record(self, run: SentRun) -> Fault:
        """Note *run*, and return what is to happen to it. Called by the executor."""
        with self._lock:
            self.sent.append(run)
            if len(self.sent) > MAX_SENT:
                del self.sent[0]

            for rule in self._rules:
                if rule.task in (None, run.task):
                    if rule.left is not None:
                        rule.left -= 1
                        if rule.left == 0:
                            self._rules.remove(rule)
                    return rule.fault

        return Fault()

    def _add(self, task: str | None, times: int | None, fault: Fault) -> None:
        with self._lock:
            self._rules.append(_Rule(task, times, fault))
