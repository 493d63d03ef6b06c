"""Releases in a child that a task forks: the sockets and the signal handling of its service.

Without this, a child that outlives a killed service would hold its port and all its connections, so that no
client would learn of the end; and a signal for the child would stop the service, because both would share the
descriptor by which asyncio learns of signals.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
from collections.abc import Generator
from typing import Final

from wove.concurrency import forks

__all__ = ["handles_signals", "owns_port"]

DESCRIPTORS: Final = "/dev/fd"

_ports: set[int] = set()
_signals: set[int] = set()


@contextlib.contextmanager
def owns_port(port: int) -> Generator[None]:
    """Have forked children close every TCP socket whose local port is *port*, meanwhile.

    By the port, because gRPC does not tell which descriptors it uses.
    """
    _ports.add(port)
    try:
        yield
    finally:
        _ports.discard(port)


@contextlib.contextmanager
def handles_signals(*numbers: int) -> Generator[None]:
    """Have forked children treat the signals *numbers* as a fresh process does, meanwhile."""
    _signals.update(numbers)
    try:
        yield
    finally:
        _signals.difference_update(numbers)


def reset_after_fork() -> None:
    if _signals:
        signal.set_wakeup_fd(-1)
        for number in _signals:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)
        _signals.clear()

    if _ports:
        with contextlib.suppress(OSError):
            _blank_sockets()
        _ports.clear()


def _blank_sockets() -> None:
    # An empty file in their place: objects that are garbage in the child close the number later.
    nothing = os.open(os.devnull, os.O_RDWR)

    try:
        for name in os.listdir(DESCRIPTORS):
            descriptor = int(name)
            with contextlib.suppress(OSError):
                if _is_ours(descriptor):
                    os.dup2(nothing, descriptor, inheritable=False)
    finally:
        os.close(nothing)


def _is_ours(descriptor: int) -> bool:
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        return False
    sock = socket.socket(fileno=descriptor)

    try:
        inet = sock.family in (socket.AF_INET, socket.AF_INET6)
        return inet and sock.type == socket.SOCK_STREAM and sock.getsockname()[1] in _ports
    finally:
        sock.detach()


forks.after_in_child(forks.Phase.CLIENTS, reset_after_fork)
