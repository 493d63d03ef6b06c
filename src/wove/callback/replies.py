"""The answers of the receiver."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final, NamedTuple

__all__ = ["TAKEN", "Refusal", "Reply", "bulk_head"]


MAX_CHARACTERS: Final = 500


class Reply(NamedTuple):
    """An answer without a body of its own: what *text* says is for who reads the log of the other side.

    Attributes:
        status: 200 to 599.
        text: One sentence: what is wrong, and what to do.
        fields: More header fields.
    """

    status: int
    text: str = ""
    fields: tuple[tuple[str, str], ...] = ()

    def encode(self, *, minor: int, keep: bool, bodiless: bool = False) -> bytes:
        """The bytes of it.

        Args:
            minor: Of the request's version, HTTP/1.x.
            keep: Whether the connection stays open.
            bodiless: Whether it answers a HEAD.
        """
        fields = [*self.fields, *_persistence(minor, keep)]
        body = b""

        if self.status != 204:  # RFC 9110, 8.6: it has no Content-Length
            # Of what came there may be a part in it.
            text = "".join(
                character if character.isprintable() else "?"
                for character in self.text[:MAX_CHARACTERS]
            )
            body = f"{text}\n".encode("utf-8", "replace")
            fields += [
                ("Content-Type", "text/plain; charset=utf-8"),
                ("Content-Length", str(len(body))),
            ]

        return _head(self.status, fields) + (b"" if bodiless else body)


def bulk_head(size: int, *, minor: int, keep: bool) -> bytes:
    """Return the head of a reply with *size* bytes of body. For the arguments see `Reply.encode`."""
    fields = [("Content-Type", "application/octet-stream"), ("Content-Length", str(size))]
    return _head(200, [*fields, *_persistence(minor, keep)])


def _persistence(minor: int, keep: bool) -> list[tuple[str, str]]:
    """RFC 9112, 9.3: HTTP/1.1 stays, and HTTP/1.0 does not, unless it is said."""
    if not keep:
        return [("Connection", "close")]
    return [("Connection", "keep-alive")] if minor < 1 else []


def _head(status: int, fields: list[tuple[str, str]]) -> bytes:
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        *(f"{name}: {value}" for name, value in fields),
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


TAKEN: Final = Reply(204)


class Refusal(Exception):
    """A request is not granted.

    Attributes:
        reply: What is answered.
        why: What the log says instead of that, if anything.
        ends: The end of a run that comes of it: its worker has reported what nobody can use.
    """

    def __init__(
        self,
        status: int,
        text: str,
        *fields: tuple[str, str],
        why: str = "",
        ends: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(text)
        self.reply = Reply(status, text, fields)
        self.why = why
        self.ends = ends
