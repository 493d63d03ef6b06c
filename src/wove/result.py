"""What a weave leaves behind: its results, and the record of every run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class RunRecord:
    """One attempt of one task, or of one item of a mapped task.

    Attributes:
        task: The task's name.
        item: The item's position in a mapped task, from 0; ``None`` for an unmapped task.
        attempt: Counted from 1.
        environment: Where it ran: the name of the environment.
        started: When the attempt began, in seconds since the epoch.
        ended: When it ended; ``None`` while it runs.
        run_id: The id it had outside this process; ``None`` for a local run.
        host: The worker's host name; ``None`` for a local run.
        pid: The worker's process id; ``None`` for a local run.
        bytes_out: Bytes of the pickled callable and arguments that were sent.
        bytes_in: Bytes of the pickled result that came back.
        error: The type and message of the exception it ended with, if any.
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
    bytes_out: int = 0
    bytes_in: int = 0
    error: str | None = None
