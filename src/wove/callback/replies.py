"""The responses of the receiver."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final, NamedTuple

__all__ = ["ACCEPTED", "Refusal", "Reply", "bulk_head"]


MAX_CHARACTERS: Final = 500
"""Maximum length of the sentence in a response."""


class Reply(NamedTuple):
    """A response that has no body but a sentence for the reader of the worker's log.

    Attributes:
        status: 200 to 599.
        text: One sentence: what is wrong, and what to do.
        fields: More header fields.
    """

    status: int
    text: str = ""
    fields: tuple[tuple[str, str], ...] = ()

    def encode(self, *, minor: int, keep: bool, bodiless: bool = False) -> bytes:
        """Return the response as bytes.

        Args:
            minor: Minor version of the request, HTTP/1.x.
            keep: Whether the connection stays open.
            bodiless: Whether it answers a HEAD.
        """
        fields = [*self.fields, *_persistence(minor, keep)]
        body = b""

        if self.status != 204:  # RFC 9110, 8.6: it has no Content-Length
            # The sentence may quote the request.
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
    """Return the fields for a connection that stays open or not. HTTP/1.1 stays open by default (RFC 9112, 9.3)."""
    if not keep:
        return [("Connection", "close")]
    return [("Connection", "keep-alive")] if minor < 1 else []


def _head(status: int, fields: list[tuple[str, str]]) -> bytes:
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        *(f"{name}: {value}" for name, value in fields),
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


ACCEPTED: Final = Reply(204)
"""The response to events that were accepted."""


class Refusal(Exception):
    """The request is refused.

    Attributes:
        reply: The response.
        why: The reason for the log, where the response must not tell it.
        ends: A terminal event for the run that the request was about: its worker's own report is unusable.
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
