"""The agreement of Wove's two sides about replies that come in parts: over HTTP, gRPC and WebSockets.

A service answers a run that takes longer than a moment with its events as they come: ``task_started`` when the run
begins, ``heartbeat`` events, and its end. So a client can tell the wait in the service's queue from the run itself.

The names are those of `wove.protocol.names`.

* Over HTTP, a client names `LINES_TYPE` in ``Accept``, or `SIGNED_LINES_TYPE` where it takes signed replies only. The
  service answers with one event a line; with `SIGNED_LINES_TYPE`, a line with its signature precedes each.
* Over gRPC, a client sends the metadata `STREAM_METADATA` with the value ``1``. The service answers with the same in
  its initial metadata, and with one message or several. Where replies are signed, each message begins with a line that
  is its signature.
* Over a WebSocket, a message begins with such a line where replies are signed.

The signatures of one reply are numbered from 0. A reply in one piece has its signature in a header, or in trailing
metadata.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

__all__ = ["add_signature", "split_signature"]

_MAX_SIGNATURE_BYTES: Final = 16 * 68
"""Maximum size of a line of signatures: a service that is changing its secret signs with several, joined by commas."""


def add_signature(chunks: Sequence[bytes], signature: str | None) -> list[bytes]:
    """Return the text *chunks* with a first line that is its signature; as it is without one."""
    if signature is None:
        return list(chunks)
    return [signature.encode("ascii") + b"\n" + chunks[0], *chunks[1:]]


def split_signature(chunks: Sequence[bytes]) -> tuple[str | None, list[bytes]]:
    """Return the signature on the first line of a message, and the rest of it; ``None`` if it has none."""
    found = list(chunks)
    if not found or not b"v1=".startswith(found[0][:3]):
        return None, found

    while len(found) > 1 and len(found[0]) < _MAX_SIGNATURE_BYTES and b"\n" not in found[0]:
        found[:2] = [found[0] + found[1]]

    end = found[0].find(b"\n", 0, _MAX_SIGNATURE_BYTES)
    if end < 0:
        return None, found
    return found[0][:end].decode("ascii", "replace"), [found[0][end + 1 :], *found[1:]]
