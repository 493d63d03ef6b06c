"""The kernel's settings for every TCP connection of Wove."""

from __future__ import annotations

import socket
from typing import Final

__all__ = ["UNACKNOWLEDGED_SECONDS", "UNREAD_SECONDS", "keep_alive"]

IDLE_SECONDS: Final = 15
PROBE_SECONDS: Final = 5
PROBES: Final = 3

UNACKNOWLEDGED_SECONDS: Final = 30.0
"""After which a host that does not acknowledge what was written to it is gone."""

UNREAD_SECONDS: Final = 40.0
"""How long a client of a service may read nothing of what is sent to it, or be gone without a word. Longer than what
a service may take, because clients are stopped in debuggers and by Ctrl-Z."""


def keep_alive(sock: socket.socket, *, unacknowledged: float | None = None) -> None:
    """Have the kernel check whether the peer is there: a host that vanishes sends no notice.

    It is asked after 15 s of silence, then every 5 s; after three without an answer the connection is dead
    (tcp(7), TCP_KEEPIDLE and others). What a system does not know is left as it is there.

    Args:
        sock: A connection.
        unacknowledged: Seconds after which it is dead, too, if what was written to it is not acknowledged; by default
            the system's own, some fifteen minutes (tcp(7), TCP_USER_TIMEOUT).

    Raises:
        OSError: It has ended already.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    values: list[tuple[str, int]] = [
        ("TCP_KEEPIDLE", IDLE_SECONDS),
        ("TCP_KEEPINTVL", PROBE_SECONDS),
        ("TCP_KEEPCNT", PROBES),
    ]
    if unacknowledged is not None:
        values.append(("TCP_USER_TIMEOUT", int(unacknowledged * 1000)))
    for name, value in values:
        if (option := getattr(socket, name, None)) is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
