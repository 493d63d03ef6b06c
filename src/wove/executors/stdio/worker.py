"""A pool's record of one worker process: its runs, how far each has come, and how the process is to end."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wove.executors.base import Frame
from wove.executors.stdio.balance import WorkerLoad
from wove.executors.stdio.process import WorkerProcess
from wove.protocol.callables import CallableCache
from wove.protocol.limits import SHARED_KEPT
from wove.worker.run_marks import RETURNED, UNPICKLING, RunMarks

__all__ = ["Plan", "PoolWorker"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The settings of a pool.

    Attributes:
        environment: The environment's name.
        command: Program and arguments of a worker.
        boot: What Wove's own worker starts with, which says more than a plain one needs to; ``None``: it is not ours.
        launched: Whether a launcher starts it, so that it may be elsewhere and may start late.
        processes: Maximum number of processes.
        min_processes: How many are started at once, and stay when they are idle.
        idle_seconds: How long a process without work stays; ``None``: for ever.
        terminate: Whether a cancelled run that does not end costs its process.
        start_seconds: How long a worker of ours may take until it says something; ``None`` for no limit.
        cwd: Working directory; ``None`` for this process's.
        environ: Environment variables.
    """

    environment: str
    command: Sequence[str]
    boot: Mapping[str, Any] | None
    launched: bool = False
    processes: int
    min_processes: int = 0
    idle_seconds: float | None = None
    terminate: bool
    start_seconds: float | None
    cwd: str | None
    environ: Mapping[str, str]

    @property
    def ours(self) -> bool:
        """Return whether the worker is Wove's own."""
        return self.boot is not None

    @property
    def says_ready(self) -> bool:
        """Return whether a worker says when it has started, and gets no run before that."""
        return self.launched and self.ours


class PoolWorker:
    """One process of the pool, and what it has to do.

    Args:
        process: The process.
        marks: How far its runs have come; ``None``: it does not say.
        limit: How many runs it may have at once, to begin with; ``None``: any number.
        now: The loop's time.
    """

    __slots__ = (
        "answered",
        "cancelled",
        "capacity",
        "decoding",
        "draining",
        "encoding",
        "idle_since",
        "kept",
        "marks",
        "not_begun",
        "process",
        "reason",
        "runs",
        "shared",
        "slots",
    )

    def __init__(
        self, process: WorkerProcess, marks: RunMarks | None, limit: int | None, now: float
    ) -> None:
        self.process = process
        self.idle_since = now  # when it last had a run
        self.marks = marks
        self.slots: dict[str, int] = {}
        self.not_begun: dict[str, Frame] = {}  # by run id, to be given to another one if it ends
        self.capacity = WorkerLoad(limit)
        self.kept = CallableCache[bool]()
        self.shared = CallableCache[bool](SHARED_KEPT)
        self.runs: dict[str, str] = {}  # task by run id
        self.cancelled: set[str] = set()  # those of them that were told to end
        self.draining = False  # gets no new runs any more, and ends when it has none
        self.encoding = False  # a large frame for it is being made, and nothing may overtake that
        self.decoding = 0  # large lines of it that are being taken apart
        self.answered = False
        self.reason = ""  # why we have ended it

    def lost_runs(
        self, suspects: Collection[str], *, stopping: bool
    ) -> tuple[list[str], list[str], list[str]]:
        """Return what becomes of the runs of this process, which has ended.

        A run that was being unpickled is lost if the process crashed in its thread, or if that happens to it a second
        time; otherwise it waits again. At least one run is lost, so that a run that ends each process before it is
        begun is not given to process after process.

        Args:
            suspects: Runs that were being unpickled when an earlier process ended.
            stopping: Whether the pool ends, so that all are lost.

        Returns:
            Three lists of run ids: those whose call had begun, the culprit first; those whose call had returned; and
            those that are suspects from now on. The first two are lost.
        """
        runs = [run_id for run_id in self.runs if run_id not in self.cancelled]
        marks = self.marks
        if marks is None or stopping:
            return runs, [], []

        crashed = self.process.crashed_thread
        begun: list[str] = []
        returned: list[str] = []
        unpickling: list[str] = []

        for run_id in runs:
            slot = self.slots[run_id]
            state = marks.state(slot)
            if state == RETURNED:
                returned.append(run_id)
            elif state == UNPICKLING and run_id in self.not_begun:
                culprit = marks.thread(slot) == crashed or run_id in suspects
                (begun if culprit else unpickling).append(run_id)
            elif state or run_id not in self.not_begun:
                begun.append(run_id)

        # Of several that ran at once: the one in whose thread the process crashed, otherwise the last to begin.
        begun.reverse()
        begun.sort(key=lambda run_id: marks.thread(self.slots[run_id]) != crashed)
        if not (begun or returned):
            begun, unpickling = [*unpickling, *runs][:1], unpickling[1:]
        return begun, returned, unpickling
