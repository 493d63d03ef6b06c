"""The runs in flight that have a ``delivery_idempotency_key``."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from wove.concurrency import forks

if TYPE_CHECKING:
    from wove.delivery.run import RemoteRun

__all__ = ["SharedRuns", "shared"]


class SharedRuns:
    """The runs in flight that have an idempotency key, by environment and key. Thread-safe."""

    def __init__(self) -> None:
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """Forget all runs: in a forked child, none of them is in flight."""
        self._lock = threading.Lock()
        self._runs: dict[tuple[str, str], RemoteRun] = {}

    def claim(self, environment: str, key: str, run: RemoteRun) -> RemoteRun:
        """Return the run in flight with this *key*. If there was none, that is *run* from now on."""
        with self._lock:
            return self._runs.setdefault((environment, key), run)

    def drop(self, run: RemoteRun) -> None:
        """Let no caller join *run* any more."""
        if run.key is None:
            return
        name = (run.request.settings.environment.name, run.key)
        with self._lock:
            if self._runs.get(name) is run:
                del self._runs[name]

    def __len__(self) -> int:
        return len(self._runs)


shared: Final = SharedRuns()
"""The shared runs of this process."""

forks.after_in_child(forks.Phase.CACHES, shared.reset_after_fork)
