"""The resource tracker of `multiprocessing`, which worker processes share with this one.

A worker sends its messages (a line for each shared memory segment or semaphore that it opens or removes) through a
pipe to this process, which passes them on. Its own tracker is started only then: most programs need none.
"""

from __future__ import annotations

import logging
import os
from typing import cast

from wove.concurrency import forks

__all__ = ["authentication_key", "forward"]

logger = logging.getLogger("wove")


def authentication_key() -> bytes:
    """Return the key with which proxies of a manager that this process has started connect to it."""
    with forks.importing:
        from multiprocessing import process

    return bytes(process.current_process().authkey)


def forward(data: bytes) -> bytes:
    """Pass whole lines of *data* on to the tracker; return the rest, the beginning of the next line."""
    *lines, rest = data.split(b"\n")
    # A probe asks whether the tracker runs, and what follows it says so as well.
    messages = [line for line in lines if not line.startswith(b"PROBE")]

    if messages:
        with forks.importing:
            from multiprocessing import resource_tracker

        try:
            descriptor = cast("int", resource_tracker.getfd())
            for message in messages:  # one write each, because only a short one is atomic
                os.write(descriptor, message + b"\n")
        except (OSError, RuntimeError) as error:
            logger.warning("the resource tracker of multiprocessing cannot be reached: %s", error)

    return rest
