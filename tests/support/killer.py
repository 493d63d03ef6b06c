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
        most: After so many deaths it is left alone: on a machine that is busy with other things, nothing may get done
            in the time between two.

    Attributes:
        kills: How often it did.
        error: What ended it before its time; `at_work` raises that.
    """

    def __init__(
        self,
        ready: Callable[[], object],
        kill: Callable[[], object],
        *,
        every: float,
        alive: float = 0.0,
        most: int,
    ) -> None:
        self._ready, self._kill = ready, kill
        self._pause, self._alive, self._most = every - alive, alive, most
        self.kills = 0
        self.error: BaseException | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            while self.kills < self._most and not self._over.wait(self._pause):
                self._ready()
                if self._alive and self._over.wait(self._alive):
                    return
                self._kill()
                self.kills += 1
        except BaseException as error:
            self.error = error

    @contextmanager
    def at_work(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._over.set()
            self._thread.join()
        if self.error is not None:
            raise self.error
