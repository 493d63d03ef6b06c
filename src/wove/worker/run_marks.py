"""The states of a worker process's runs, in memory that outlives the process.

The events of a process that is killed may never be written. So the process notes in memory that it shares with its
parent which runs it has begun, and which calls have returned.
"""

from __future__ import annotations

import mmap
import os
import threading
from typing import Final

__all__ = ["BEGUN", "RETURNED", "UNPICKLING", "RunMarks", "shared_file"]

SLOTS: Final = 2048
"""Maximum number of runs of one process that are marked, in four pages of memory. Further runs have no slot."""

_BYTES: Final = 8
_STATES: Final = 4

UNPICKLING: Final = 1
"""A thread unpickles the callable and the arguments, which may run the user's code; the call has not begun."""
BEGUN: Final = 2
"""The call has begun."""
RETURNED: Final = 3
"""The call has returned; its result is on its way."""


class RunMarks:
    """The state of each run of a process, and the thread that noted it.

    Args:
        descriptor: Descriptor of a file that both processes have open. It may be closed afterwards.
    """

    def __init__(self, descriptor: int) -> None:
        os.ftruncate(descriptor, SLOTS * _BYTES)
        self._memory = mmap.mmap(descriptor, SLOTS * _BYTES)
        self._marks = memoryview(self._memory).cast("Q")
        self._free = list(range(SLOTS - 1, -1, -1))

    def acquire(self) -> int:
        """Return a slot for a run that has not begun; -1 where all are in use."""
        return self._free.pop() if self._free else -1

    def release(self, slot: int) -> None:
        """Free *slot* for another run."""
        if slot >= 0:
            self._marks[slot] = 0
            self._free.append(slot)

    def mark(self, slot: int, state: int) -> None:
        """Note that the run of *slot* has reached *state*, in the calling thread."""
        if 0 <= slot < SLOTS:
            self._marks[slot] = threading.get_ident() * _STATES + state

    def state(self, slot: int) -> int:
        """Return the last state, 0 if there is none. A run without a slot counts as `BEGUN`, to be on the safe side."""
        return self._marks[slot] % _STATES if slot >= 0 else BEGUN

    def thread(self, slot: int) -> int:
        """Return the identity of the thread that marked last."""
        return self._marks[slot] // _STATES if slot >= 0 else 0

    def close(self) -> None:
        """Release the memory."""
        self._marks.release()
        self._memory.close()


def shared_file(content: bytes = b"") -> int:
    """Return the descriptor of a file without a name, at its beginning."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("wove")
    else:
        import tempfile

        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())

    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
