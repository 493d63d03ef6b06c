"""Frames to JSON bytes and back.

Pickles are the only part of a frame that can be large. They never pass through the JSON module: base64 needs no
escaping, so that it is written between two quotes in pieces, and cut out of a text before the rest is parsed. No step
holds the interpreter lock for long.
"""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, cast

from wove.protocol.frames import FrameError
from wove.protocol.json_text import parse_json
from wove.protocol.limits import INLINE_BYTES, PIECE_BYTES, QUOTED_CHARACTERS
from wove.protocol.pickling import Pickled

__all__ = ["Encoded", "FrameError", "decode", "encode", "encode_events", "find_run_id"]

_PICKLES: Final = (
    "result_pickle",
    "args_pickle",
    "shared_pickle",
    "callable_pickle",
    "exception_pickle",
    "error_pickle",
)
_WINDOW: Final = 8 * PIECE_BYTES  # searched in one step, in about a millisecond

_to_json = json.JSONEncoder(separators=(",", ":")).encode
_quoted: Final = json.encoder.encode_basestring_ascii


class Encoded(dict[str, Any]):
    """A part of many frames, made into JSON once. Not to be changed.

    Attributes:
        text: The JSON.
    """

    __slots__ = ("text",)

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__(fields)
        self.text = _to_json(fields)


def encode(frame: Mapping[str, Any]) -> list[bytes]:
    """Return *frame* as one JSON object without line breaks, in chunks to be written one after the other.

    Raises:
        FrameError: A field is neither JSON nor a pickle.
    """
    # Written out field by field: most are short texts, and the JSON module takes as long for a dict of ten of
    # them as everything else here takes together.
    fields: list[str] = []
    pickles: list[tuple[str, Pickled]] = []

    try:
        for name, value in frame.items():
            kind = cast("type[object]", type(value))
            if kind is str:
                fields.append(f"{_quoted(name)}:{_quoted(value)}")
            elif kind is Pickled:
                pickles.append((name, value))
            else:
                fields.append(
                    f"{_quoted(name)}:{value.text if kind is Encoded else _to_json(value)}"
                )
    except (TypeError, ValueError) as error:
        raise FrameError(
            f"a frame has a field that is not JSON: {error}", _run_id(frame)
        ) from error

    text = "{" + ",".join(fields)
    if not pickles:
        return [f"{text}}}".encode("ascii")]
    chunks: list[bytes] = []
    small = [text.encode("ascii")]
    comma = b"," if fields else b""

    for name, pickled in pickles:
        small.append(b'%b"%b":"' % (comma, name.encode("ascii")))
        comma = b","
        if pickled.size <= INLINE_BYTES:
            small.append(binascii.b2a_base64(b"".join(pickled.chunks), newline=False))
        else:
            chunks.append(b"".join(small))
            chunks.extend(_base64_pieces(pickled.chunks))
            small.clear()
        small.append(b'"')

    small.append(b"}")
    chunks.append(b"".join(small))
    return chunks


def encode_events(events: Sequence[Mapping[str, Any]]) -> list[bytes]:
    """Return ``{"events": [...]}`` in chunks; in one chunk if it is small.

    Raises:
        FrameError: As `encode`.
    """
    chunks: list[bytes] = [b'{"events":[']
    for index, event in enumerate(events):
        if index:
            chunks.append(b",")
        chunks.extend(encode(event))

    chunks.append(b"]}")
    return chunks if sum(map(len, chunks)) > 2 * INLINE_BYTES else [b"".join(chunks)]


def decode(data: bytes | Sequence[bytes], *, most_text: int | None = None) -> list[dict[str, Any]]:
    """Return the frames in *data*: one object, a list of objects, or ``{"events": [...]}``.

    The ``*_pickle`` fields become :class:`Pickled`.

    Args:
        data: The text, UTF-8; a sequence is one text in chunks.
        most_text: Maximum size of a large text beside its pickles; ``None``: no limit. A list of empty lists takes
            twenty times as much memory as its JSON.

    Raises:
        FrameError: *data* holds something else; the message says what, and how it starts.
    """
    chunks: Sequence[bytes] = (data,) if isinstance(data, bytes) else data
    cuts: list[list[memoryview]] = []
    small = sum(map(len, chunks)) <= 2 * INLINE_BYTES
    text = b"".join(chunks) if small else _without_pickles(chunks, cuts, most_text)

    try:
        found: object = parse_json(text)
    except ValueError as error:
        raise FrameError(
            f"this is not JSON ({error}): {_start(text)}", find_run_id(text)
        ) from error

    if isinstance(found, dict) and isinstance(
        events := cast(dict[str, object], found).get("events"), list
    ):
        found = cast(list[object], events)

    frames: list[dict[str, Any]] = []
    items: list[object] = cast(list[object], found) if isinstance(found, list) else [found]
    for item in items:
        if not isinstance(item, dict):
            raise FrameError(
                f"a frame is a JSON object, and this is {_json_type(item)}: {_start(text)}"
            )
        frame = cast(dict[str, Any], item)
        _unpack_pickles(frame, cuts)
        frames.append(frame)

    return frames


# --- base64, in pieces ------------------------------------------------------------------------------------


def _base64_pieces(chunks: Sequence[bytes | memoryview]) -> Iterator[bytes]:
    """Yield the base64 of all *chunks*, as one text in pieces."""
    kept = b""  # less than three bytes, waiting for the next chunk

    for chunk in chunks:
        view = memoryview(chunk)
        for start in range(0, len(view), PIECE_BYTES):
            part = view[start : start + PIECE_BYTES]
            piece = kept + bytes(part) if kept else part
            whole = len(piece) - len(piece) % 3
            kept = bytes(piece[whole:])
            if whole:
                yield binascii.b2a_base64(piece[:whole], newline=False)

    if kept:
        yield binascii.b2a_base64(kept, newline=False)


def _unpack_pickles(frame: dict[str, Any], cuts: Sequence[list[memoryview]]) -> None:
    for name in _PICKLES:
        value = frame.get(name)
        if value is not None:
            frame[name] = _unpacked(name, value, cuts, frame)


def _unpacked(
    name: str, value: object, cuts: Sequence[list[memoryview]], frame: Mapping[str, Any]
) -> Pickled:
    if not isinstance(value, str):
        raise FrameError(f"{name} is not base64 text but {_json_type(value)}", _run_id(frame))
    try:
        if value.startswith(_MARK):
            pieces = _unescaped(cuts[int(value[1:])])
        elif len(value) <= 2 * INLINE_BYTES:
            return Pickled((binascii.a2b_base64(value),))
        else:
            pieces = iter([value.encode("ascii")])
        return Pickled(list(_bytes_of(pieces)))
    except (ValueError, IndexError) as error:
        start = value[:QUOTED_CHARACTERS]
        raise FrameError(f"{name} is not base64 ({error}): {start!r}", _run_id(frame)) from error


def _bytes_of(texts: Iterator[bytes]) -> Iterator[bytes]:
    """Decode the base64 *texts* (one text, in pieces)."""
    kept = b""

    for text in texts:
        piece = kept + text if kept else text
        if b"\n" in piece or b"\r" in piece:  # some encoders break lines
            piece = piece.translate(None, b"\r\n")
        whole = len(piece) - len(piece) % 4
        kept = piece[whole:]
        if whole:
            yield binascii.a2b_base64(piece[:whole] if kept else piece)

    if kept:
        yield binascii.a2b_base64(kept)


def _unescaped(views: Sequence[memoryview]) -> Iterator[bytes]:
    r"""Yield the text of a JSON string, in pieces. Some encoders write ``\/`` for ``/``, ``\u002b`` for ``+``."""
    kept = b""

    for view in views:
        for start in range(0, len(view), PIECE_BYTES):
            piece = kept + bytes(view[start : start + PIECE_BYTES])
            kept = b""
            if b"\\" in piece:
                # An escape has at most six characters; one at the very end may go on in the next piece.
                last = piece.rfind(b"\\", max(0, len(piece) - 5))
                if last >= 0:
                    piece, kept = piece[:last], piece[last:]
                piece = _json_text(piece)
            yield piece

    if kept:
        yield _json_text(kept)


def _json_text(inner: bytes) -> bytes:
    text: str = parse_json(f'"{inner.decode("ascii")}"')
    return text.encode("ascii")


# --- cutting the pickles out ------------------------------------------------------------------------------

_MARK: Final = "@"
_OPENING: Final = re.compile(rb'_pickle"\s*:\s*"')
_OVERLAP: Final = 32  # an opening that two chunks share is found if it is shorter than this


def _without_pickles(
    chunks: Sequence[bytes], cuts: list[list[memoryview]], most: int | None
) -> bytes:
    """Return the text with ``"@0"``, ``"@1"``, ... for the values of its ``*_pickle`` keys, which go to *cuts*.

    Inside a JSON string a quote is escaped, so an unescaped ``_pickle"`` is the end of a string, and one that
    a colon and a quote follow is a key with a text as its value. Base64 itself holds neither ``"`` nor ``@``.
    The value of a key that is missed here is parsed with the rest, which only takes longer.
    """
    rest = bytearray()
    searched = 0  # no opening begins before here
    inside = False

    for chunk in chunks:
        view = memoryview(chunk)
        position = 0
        while position < len(chunk):
            if inside:
                end = _find_quote(chunk, position)
                inside = end < 0
                stop = len(chunk) if inside else end
                cuts[-1].append(view[position:stop])
                position = stop
                continue
            known = len(rest)
            if most is not None and known > most:
                start = _start(bytes(rest[: 2 * QUOTED_CHARACTERS]))
                raise FrameError(f"this has more than {most} bytes beside its pickles: {start}")
            rest += view[position : position + INLINE_BYTES]
            opening = _OPENING.search(rest, max(searched, known - _OVERLAP))
            if opening is None:
                position += len(rest) - known
                continue
            inside = True
            position += opening.end() - known
            del rest[opening.end() :]
            rest += f"{_MARK}{len(cuts)}".encode("ascii")
            cuts.append([])
            searched = len(rest)

    return bytes(rest)


def _find_quote(text: bytes, start: int) -> int:
    """Return ``text.find(b'"', start)``, found in steps between which other threads can run."""
    while start < len(text):
        found = text.find(b'"', start, start + _WINDOW)
        if found >= 0:
            return found
        start += _WINDOW
    return -1


# --- messages ---------------------------------------------------------------------------------------------

_RUN_ID: Final = re.compile(rb'"run_id"\s*:\s*"([A-Za-z0-9_-]{1,200})"')


def _run_id(frame: Mapping[str, Any]) -> str | None:
    found = frame.get("run_id")
    return found if isinstance(found, str) else None


def find_run_id(text: bytes, *more: bytes) -> str | None:
    """Return the id of the run that a broken frame is about, if the beginning or the end of the frame names it."""
    for part in (text[:4096], (more[-1] if more else text)[-4096:]):
        if match := _RUN_ID.search(part):
            return match[1].decode("ascii")
    return None


def _start(text: bytes) -> str:
    start = text[: QUOTED_CHARACTERS * 4].decode("utf-8", "replace")
    return repr(start[:QUOTED_CHARACTERS]) + ("..." if len(text) > QUOTED_CHARACTERS else "")


def _json_type(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    names = {
        "int": "a number",
        "float": "a number",
        "str": "a text",
        "list": "a list",
        "dict": "an object",
    }
    return names.get(type(value).__name__, type(value).__name__)
