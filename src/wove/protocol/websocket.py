"""The agreement of two Wove sides over a WebSocket, beyond one JSON message for each command.

The plain form is the default: each command is a message, with its callable. A client of ours offers two subprotocols
(RFC 6455, section 1.9), `PLAIN` and `OURS`. Where the service chooses `OURS`,

* a message from the client is a command, or a list of commands;
* a command whose callable has gone over this connection before has only its ``callable_id``, by the rule of
  `wove.protocol.callables.CallableCache` with `KEPT_BYTES`;
* a service that sends `GOODBYE` and closes the connection has answered every run that it accepted: the other runs
  were not begun, and may be sent elsewhere. The close code `RESTARTING` alone does not say so: proxies send it, too,
  and it is not signed.

`PLAIN` comes first in the offer, because some servers choose the first offer, whatever it means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

__all__ = [
    "GOODBYE",
    "KEPT_BYTES",
    "OFFERED",
    "OURS",
    "PLAIN",
    "RESTARTING",
    "joined",
]

PLAIN: Final = "wove"
OURS: Final = "wove.v1"
OFFERED: Final = (PLAIN, OURS)

#: Maximum size of the callables that both sides of a connection keep. A service has many connections.
KEPT_BYTES: Final = 64 * 1024 * 1024

#: Close code 1012, "service restart", of IANA's registry for RFC 6455.
RESTARTING: Final = 1012

#: The last message of a service that is about to stop. Signed as all others, where they are.
GOODBYE: Final = b'{"type":"goodbye"}'


def joined(frame: Sequence[bytes], field: Sequence[bytes]) -> list[bytes]:
    """Return two JSON objects, neither of them empty, as one. Both, and the result, are texts in chunks."""
    return [*frame[:-1], frame[-1][:-1] + b"," + field[0][1:], *field[1:]]
