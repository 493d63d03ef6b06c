"""Messages about failed handshakes and close codes. Imported only when an executor starts."""

from __future__ import annotations

from typing import Final

from websockets.exceptions import InvalidHandshake, InvalidMessage, InvalidStatus

from wove.errors import EnvironmentExecutionError, WorkerLostError

__all__ = ["HandshakeRefused", "close_code_meaning", "handshake_error"]

QUOTED: Final = 300
"""Maximum number of characters of a refusing response's body that are quoted."""


class HandshakeRefused(EnvironmentExecutionError):
    """The service answered the handshake with something else than a WebSocket connection.

    Attributes:
        status: The HTTP status; 0 where the answer was not HTTP.
    """

    status = 0

    @classmethod
    def of(cls, text: str, status: int) -> HandshakeRefused:
        """Return the error with message *text*."""
        report = {
            "kind": "TransportError",
            "message": text,
            "retryable": False,
            "source": "transport",
        }
        answer = cls(text, report)
        answer.status = status
        return answer


def close_code_meaning(code: int) -> str:
    """Return the meaning of a close code, to be added to a sentence that names it."""
    meanings = {
        1009: ": a message is too large for it",  # RFC 6455, section 7.4.1
        1011: ": an error in the service",
        1012: ": it is being restarted",  # IANA's registry of close codes
        1013: ": it is overloaded",
    }
    return meanings.get(code, "")


def handshake_error(error: Exception) -> BaseException:
    """Return the error for a handshake that failed with *error*."""
    if isinstance(error, InvalidStatus):
        response = error.response
        said = f"HTTP status {response.status_code} {response.reason_phrase}".rstrip()
        where = response.headers.get_all("Location")
        moved = (
            f" and a redirect to {where[0]!r:.200}, which is not followed: set that 'url'"
            if where
            else ""
        )
        body = bytes(response.body or b"")[: 4 * QUOTED].decode("utf-8", "replace").strip()
        quoted = f": {body[:QUOTED]!r}" if body else ""
        return HandshakeRefused.of(
            f"it answered the handshake with {said}{moved}{quoted}", response.status_code
        )

    if isinstance(error, InvalidMessage):
        cause = error.__cause__
        if isinstance(cause, EOFError):
            return WorkerLostError("it closed the connection before the handshake was done")
        return HandshakeRefused.of(
            f"it is not a WebSocket server: its answer to the handshake is not HTTP ({cause or error})",
            0,
        )

    if isinstance(error, InvalidHandshake):
        return HandshakeRefused.of(
            f"its answer to the handshake is not that of a WebSocket server: {error}", 0
        )

    return HandshakeRefused.of(f"its answer to the handshake cannot be used: {error}", 0)
