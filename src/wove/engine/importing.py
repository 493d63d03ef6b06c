"""Refuses remote tasks of a module that is still being imported: they cannot be pickled by its name yet."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import partial
from types import FrameType
from typing import Any

from wove.engine import loops
from wove.errors import WeaveStateError

__all__ = ["refuse_while_importing"]


def refuse_while_importing(fn: Callable[..., Any], arguments: Iterable[object], task: str) -> None:
    """Refuse to pickle *fn* and *arguments* while the import of their module waits for this weave.

    They are pickled in another thread by the name of their module, which that thread can look up only
    when the import is over. Each would wait for the other, for ever.

    Raises:
        WeaveStateError: They are of such a module.
    """
    while isinstance(fn, partial):
        fn = fn.func
    homes = {getattr(fn, "__module__", None), *(type(value).__module__ for value in arguments)}
    for name in homes:
        if isinstance(name, str) and _is_initializing(name) and _waits_for_weave(name):
            raise WeaveStateError(
                f"task {task!r} cannot leave the process while its module {name!r} is being imported: "
                f"a worker would have to import it as well. Run the weave in a function that is called "
                f"after the import, or under `if __name__ == '__main__':`"
            )


def _is_initializing(name: str) -> bool:
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return bool(getattr(spec, "_initializing", False))


def _waits_for_weave(name: str) -> bool:
    """Return whether a thread imports the module *name*, and runs a weave meanwhile."""
    return any(_imports(frame, name) for frame in _frames())


def _frames() -> list[FrameType]:
    frames: dict[int, FrameType] = sys._current_frames()  # pyright: ignore[reportPrivateUsage]
    return list(frames.values())


def _imports(frame: FrameType | None, name: str) -> bool:
    weaves = False

    while frame is not None:
        code = frame.f_code
        weaves = weaves or code is loops.run_blocking.__code__
        if weaves and code.co_name == "<module>" and frame.f_globals.get("__name__") == name:
            return True
        frame = frame.f_back

    return False
