"""Something that kills what runs beside a test, again and again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Killer"]


class Killer:
    """Kills, whenever what it kills is there again, in a thread of its own.

    Args:
        ready: Waits until it takes work.
        kill: Kills it.
        every: Seconds between two deaths, or more where it needs longer to come up.
        alive: How many of them it takes work before it dies.

    Attributes:
        kills: How often it did.
    """

    def __init__(
        self,
        ready: Callable[[], object],
        kill: Callable[[], object],
        *,
        every: float,
        alive: float = 0.0,
    ) -> None:
        self._ready, self._kill = ready, kill
        self._pause, self._alive = every - alive, alive
        self.kills = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._over.wait(self._pause):
            self._ready()
            if self._alive and self._over.wait(self._alive):
                return
            self._kill()
            self.kills += 1

    @contextmanager
    def at_work(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._over.set()
            self._thread.join()
