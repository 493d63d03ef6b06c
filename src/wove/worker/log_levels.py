"""The log levels of a process, taken over by the workers that it starts.

A worker configures no handlers: a task may still do that, with `logging.basicConfig` for example. What has no handler
goes to stderr, as Python does it for warnings, and from the level on that the parent shows.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

__all__ = ["adopt", "current"]


def current() -> dict[str, Any]:
    """Return the levels of this process: JSON for `adopt`."""
    loggers = dict(logging.root.manager.loggerDict)
    levels = {
        name: logger.level
        for name, logger in loggers.items()
        if isinstance(logger, logging.Logger) and logger.level
    }
    # Records for a file do not belong on the screen.
    screens = (sys.stderr, sys.stdout, sys.__stderr__, sys.__stdout__)
    shown = [
        handler.level
        for handler in logging.root.handlers
        if getattr(handler, "stream", None) in screens
    ]
    return {
        "root": logging.root.level,
        "loggers": levels,
        "shown": min(shown, default=logging.WARNING),
    }


def adopt(levels: Mapping[str, Any]) -> None:
    """Log here what the process logs that *levels* come from."""
    logging.root.setLevel(levels["root"])
    for name, level in levels["loggers"].items():
        logging.getLogger(name).setLevel(level)
    if logging.lastResort is not None:
        logging.lastResort.setLevel(levels["shown"])
