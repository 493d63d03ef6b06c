"""Descriptors that belong to this process alone: a forked child closes its copies.

A child that keeps the write end of a worker's stdin open keeps that worker alive after the parent is
gone; one that keeps a socket open keeps a connection half alive. So whatever an executor opens and
keeps is registered here.
"""

from __future__ import annotations

import contextlib
import os

__all__ = ["release", "track"]

_descriptors: set[int] = set()


def track(*descriptors: int) -> None:
    """Have a forked child close *descriptors*."""
    _descriptors.update(descriptors)


def release(*descriptors: int) -> None:
    """Close *descriptors* here, and forget them. Negative ones are ignored."""
    for descriptor in descriptors:
        _descriptors.discard(descriptor)  # first: the number may be taken by another thread once it is closed
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _close_in_child() -> None:
    for descriptor in list(_descriptors):
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _descriptors.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
