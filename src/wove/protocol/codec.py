"""Frames to JSON bytes and back.

Pickles are the bulk of a frame, and the only part of it that can be large. They never pass through the JSON
module: base64 needs no escaping, so on the way out the text is put between two quotes in pieces, and on the
way in it is cut out of the line before the rest is parsed. No step holds the interpreter lock for long.
"""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from wove.protocol.frames import FrameError
from wove.protocol.limits import INLINE_BYTES, PIECE_BYTES, QUOTED_CHARACTERS
from wove.protocol.pickling import Pickled

__all__ = ["FrameError", "decode", "encode"]

_SUFFIX: Final = "_pickle"
_WINDOW: Final = 8 * PIECE_BYTES  # searched at a time: about a millisecond

_to_json = json.JSONEncoder(separators=(",", ":")).encode
_from_json = json.JSONDecoder().decode


def encode(frame: Mapping[str, Any]) -> list[bytes]:
    """*frame* as one JSON object, without a line break, in chunks to be written one after the other.

    Raises:
        FrameError: A field is neither JSON nor a pickle.
    """
    fields: dict[str, Any] = {}
    pickles: list[tuple[str, Pickled]] = []
    for name, value in frame.items():
        if isinstance(value, Pickled):
            pickles.append((name, value))
        else:
            fields[name] = value
    try:
        text = _to_json(fields)
    except (TypeError, ValueError) as error:
        raise FrameError(f"a frame has a field that is not JSON: {error}", _run_id(frame)) from error
    if not pickles:
        return [text.encode("ascii")]
    chunks: list[bytes] = []
    small = [text[:-1].encode("ascii")]
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


def decode(data: bytes | bytearray | Sequence[bytes]) -> list[dict[str, Any]]:
    """The frames in *data*: one object, a list of them, or ``{"events": [...]}``.

    The ``*_pickle`` fields become :class:`Pickled`.

    Args:
        data: The text, UTF-8; a list is one text in chunks.

    Raises:
        FrameError: It is something else; the message says what, and how it starts.
    """
    cuts: list[memoryview] = []
    text = data if isinstance(data, (bytes, bytearray)) else _joined(data)
    rest = text if len(text) <= 2 * INLINE_BYTES else b"".join(_without_pickles(text, cuts))
    try:
        found = _from_json(rest.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FrameError(f"this is not JSON ({error}): {_start(text)}", _run_id_in(text)) from error
    if isinstance(found, dict) and isinstance(found.get("events"), list):
        found = found["events"]
    frames = found if isinstance(found, list) else [found]
    for frame in frames:
        if not isinstance(frame, dict):
            raise FrameError(f"a frame is a JSON object, and this is {_json_type(frame)}: {_start(text)}")
        for name, value in frame.items():
            if name.endswith(_SUFFIX) and value is not None:
                frame[name] = _unpacked(name, value, cuts, frame)
    return frames


# --- base64, in pieces ------------------------------------------------------------------------------------


def _base64_pieces(chunks: Sequence[bytes | memoryview]) -> Iterator[bytes]:
    """The base64 of all *chunks* as one text."""
    kept = b""  # less than three bytes, waiting for the next chunk
    for chunk in chunks:
        view = memoryview(chunk)
        for start in range(0, len(view), PIECE_BYTES):
            piece = b"".join((kept, view[start : start + PIECE_BYTES])) if kept else view[start : start + PIECE_BYTES]
            whole = len(piece) - len(piece) % 3
            kept = bytes(piece[whole:])
            if whole:
                yield binascii.b2a_base64(piece[:whole], newline=False)
    if kept:
        yield binascii.b2a_base64(kept, newline=False)


def _unpacked(name: str, value: object, cuts: Sequence[memoryview], frame: Mapping[str, Any]) -> Pickled:
    if not isinstance(value, str):
        raise FrameError(f"{name} is not base64 text but {_json_type(value)}", _run_id(frame))
    try:
        if not value.startswith("@"):  # nothing was cut out here
            if len(value) <= INLINE_BYTES:
                return Pickled((binascii.a2b_base64(value),))
            return Pickled(list(_bytes_of([value.encode("ascii")])))
        return Pickled(list(_bytes_of(_unescaped(cuts[int(value[1:])]))))
    except (ValueError, IndexError) as error:
        raise FrameError(f"{name} is not base64 ({error}): {value[:QUOTED_CHARACTERS]}", _run_id(frame)) from error


def _bytes_of(texts: Iterator[bytes] | list[bytes]) -> Iterator[bytes]:
    """What the base64 *texts* (one text, in pieces) stand for."""
    kept = b""
    for text in texts:
        view = memoryview(text)
        for start in range(0, len(view), PIECE_BYTES):
            piece = kept + bytes(view[start : start + PIECE_BYTES])
            if b"\n" in piece or b"\r" in piece:  # some encoders break lines
                piece = piece.translate(None, b"\r\n")
            whole = len(piece) - len(piece) % 4
            kept = piece[whole:]
            if whole:
                yield binascii.a2b_base64(piece[:whole])
    if kept:
        yield binascii.a2b_base64(kept)


def _unescaped(view: memoryview) -> Iterator[bytes]:
    r"""The text of a JSON string, in pieces. Some encoders write ``\/`` for ``/``, or ``\u002b`` for ``+``."""
    start = 0
    while start < len(view):
        piece = bytes(view[start : start + PIECE_BYTES])
        if b"\\" in piece:
            # Do not cut an escape (at most six characters) in two.
            last = piece.rfind(b"\\", max(0, len(piece) - 5))
            if last > 0 and start + len(piece) < len(view):
                piece = piece[:last]
            start += len(piece)
            yield str(_from_json(f'"{piece.decode("ascii")}"')).encode("ascii")
        else:
            start += len(piece)
            yield piece


# --- cutting the pickles out ------------------------------------------------------------------------------


_KEY_END: Final = b'_pickle"'
_VALUE_START: Final = re.compile(rb'\s*:\s*"')


def _without_pickles(text: bytes | bytearray, cuts: list[memoryview]) -> Iterator[bytes | memoryview]:
    """*text* with ``"@0"``, ``"@1"``, ... for the values of its ``*_pickle`` keys, which go to *cuts*.

    Inside a JSON string a quote is escaped, so an unescaped ``_pickle"`` is the end of a string, and one that
    a colon and a quote follow is a key with a text as its value. Base64 itself holds neither ``"`` nor ``@``.
    """
    view = memoryview(text)
    done = position = 0
    while (position := _find(text, _KEY_END, position)) >= 0:
        position += len(_KEY_END)
        opening = _VALUE_START.match(text, position)
        if opening is None:
            continue
        start = opening.end()
        end = _find(text, b'"', start)
        if end < 0:
            break
        yield view[done:start]
        yield b"@%d" % len(cuts)
        cuts.append(view[start:end])
        done = position = end
    yield view[done:]


def _find(text: bytes | bytearray, sought: bytes, start: int) -> int:
    """``text.find(sought, start)``, which other threads can interrupt."""
    while start < len(text):
        found = text.find(sought, start, start + _WINDOW + len(sought) - 1)
        if found >= 0:
            return found
        start += _WINDOW
    return -1


def _joined(chunks: Sequence[bytes]) -> bytes | bytearray:
    size = sum(len(chunk) for chunk in chunks)
    if len(chunks) == 1:
        return chunks[0]
    if size <= PIECE_BYTES:
        return b"".join(chunks)
    text = bytearray(size)
    position = 0
    for chunk in chunks:
        view = memoryview(chunk)
        for start in range(0, len(view), PIECE_BYTES):
            piece = view[start : start + PIECE_BYTES]
            text[position : position + len(piece)] = piece
            position += len(piece)
    return text


# --- saying what is wrong ---------------------------------------------------------------------------------

_RUN_ID: Final = re.compile(rb'"run_id"\s*:\s*"([A-Za-z0-9_-]{1,200})"')


def _run_id(frame: Mapping[str, Any]) -> str | None:
    found = frame.get("run_id")
    return found if isinstance(found, str) else None


def _run_id_in(text: bytes | bytearray) -> str | None:
    """The run that a broken frame was about, if its beginning or its end says so."""
    for part in (bytes(text[:4096]), bytes(text[-4096:])):
        if match := _RUN_ID.search(part):
            return match[1].decode("ascii")
    return None


def _start(text: bytes | bytearray) -> str:
    start = bytes(text[: QUOTED_CHARACTERS * 4]).decode("utf-8", "replace")
    return repr(start[:QUOTED_CHARACTERS]) + ("..." if len(text) > QUOTED_CHARACTERS else "")


def _json_type(value: object) -> str:
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
