"""The task that doctor runs in an environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["make_probe"]


def make_probe() -> Callable[..., dict[str, Any]]:
    """Return the probe.

    It is a nested function on purpose: such a function travels by value, so that a worker with another version of
    Wove can run it too. It imports what it needs.
    """

    def probe(modules: Sequence[str], content: bytes, seconds: float) -> dict[str, Any]:
        """Report on the worker, send *content* back, and take *seconds* for that."""
        import importlib
        import os
        import platform
        import time

        clock = time.time()
        until = time.monotonic() + seconds
        while time.monotonic() < until:  # in steps, so that a cancel gets through
            time.sleep(0.05)

        wove: dict[str, str] = {}
        try:
            import wove as package

            wove = {"version": package.__version__, "file": str(package.__file__)}
        except Exception as error:
            wove = {"error": f"{type(error).__name__}: {error}"}

        failed: dict[str, str] = {}
        for name in modules:
            try:
                importlib.import_module(name)
            except BaseException as error:
                failed[name] = f"{type(error).__name__}: {error}"

        return {
            "python": platform.python_version(),
            "host": platform.node(),
            "pid": os.getpid(),
            "cwd": os.getcwd(),
            "clock": clock,
            "wove": wove,
            "failed_modules": failed,
            "content": content,
        }

    return probe
