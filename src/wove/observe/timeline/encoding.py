"""A model as the few bytes that a page carries: columns of whole numbers, each as differences, compressed.

The layout, which ``timeline.js`` reads: a zlib stream of a 32-bit length, a JSON header of so many bytes, and for
each of the header's ``columns`` one signed 32-bit number a run. Columns of zeros are left out. Each number is the
difference to the one before, and the four bytes of the numbers lie apart, all lowest bytes first: what is alike
then lies together.
"""

from __future__ import annotations

import json
import sys
import zlib
from array import array
from base64 import b64encode
from collections.abc import Sequence
from itertools import chain
from operator import sub
from typing import Any, Final, NamedTuple, TypeAlias

from wove.observe.timeline.model import PHASES, WORK, Bar, ColumnBars, Model

__all__ = ["COLUMNS", "encode"]

COLUMNS: Final = ("task", "item", "state", "attempt", "losses", "error", "out", "in")
"""The columns that are fields of a bar. Before them comes its lane, behind them `Bar.begun` and its parts."""

MAX_NUMBER: Final = 2**31 - 2
MIN_UNIT_SECONDS: Final = 2.0**-20
"""About a microsecond. A power of two, so that a float becomes a whole number of units by an addition: see `_bits`."""


def encode(model: Model, **header: Any) -> str:
    """Return *model* as base64.

    Args:
        model: What is to be shown.
        **header: What else the page is to know, as JSON.
    """
    unit = MIN_UNIT_SECONDS
    while 2 * model.seconds / unit > MAX_NUMBER:
        unit *= 2

    columns = {
        name: pieces for name, pieces in _columns(model, unit).items() if not _is_zero(pieces)
    }
    names = {
        "origin": model.origin,
        "seconds": model.seconds,
        "unit": unit,
        "runs": sum(map(len, model.bars)),
        "tasks": model.tasks,
        "errors": model.errors,
        "lanes": [[lane.environment, lane.worker, lane.short, lane.slot] for lane in model.lanes],
        "columns": list(columns),
        "phases": PHASES,
        **header,
    }
    text = json.dumps(names, separators=(",", ":")).encode()

    packer = zlib.compressobj(level=1)  # the bytes lie so that more effort would save a tenth
    packed = [packer.compress(len(text).to_bytes(4, "little")), packer.compress(text)]
    packed += [packer.compress(_column(pieces)) for pieces in columns.values()]
    packed.append(packer.flush())
    return b64encode(b"".join(packed)).decode()


class _Constant(NamedTuple):
    """The same number for each of some runs."""

    number: int
    length: int


class _Shifted(NamedTuple):
    """Numbers that are too large by *base*."""

    numbers: Sequence[int]
    base: int


_Piece: TypeAlias = "Sequence[int] | _Constant | _Shifted"
"""The numbers of one lane in one column."""

_NAMES: Final = ("lane", *COLUMNS, "begun", *PHASES)


def _columns(model: Model, unit: float) -> dict[str, list[_Piece]]:
    columns: dict[str, list[_Piece]] = {name: [] for name in _NAMES}

    for lane, row in enumerate(model.bars):
        pieces: dict[str, _Piece] = {name: _Constant(0, len(row)) for name in _NAMES}
        pieces["lane"] = _Constant(lane, len(row))
        pieces.update(_of_items(row, unit) if isinstance(row, ColumnBars) else _of_bars(row, unit))
        for name, piece in pieces.items():
            columns[name].append(piece)

    return columns


def _of_bars(bars: Sequence[Bar], unit: float) -> dict[str, _Piece]:
    *whole, begun, parts = zip(*bars, strict=True)
    pieces: dict[str, _Piece] = {}
    for name, column in zip(COLUMNS, whole, strict=True):
        fits = max(column) <= MAX_NUMBER
        pieces[name] = column if fits else [min(number, MAX_NUMBER) for number in column]

    pieces["begun"] = _whole(begun, unit)
    for name, seconds in zip(PHASES, zip(*parts, strict=True), strict=True):
        if any(seconds):
            pieces[name] = _whole(seconds, unit)
    return pieces


def _of_items(row: ColumnBars, unit: float) -> dict[str, _Piece]:
    count = len(row)
    started, ended = _bits(row.started, unit), _bits(row.ended, unit)
    origin = _bits((row.origin,), unit)[0]
    return {
        "task": _Constant(row.task, count),
        "item": row.positions,
        "attempt": _Constant(1, count),
        "error": _Constant(-1, count),
        "begun": _Shifted(started, origin),
        PHASES[WORK]: array("q", map(sub, ended, started)),
    }


def _bits(seconds: Sequence[float], unit: float) -> array[int]:
    """Return whole numbers that differ by as many units as *seconds* do, three times as fast as `_whole`.

    A float from 2**52 units up to twice that has one bit for each unit, and read as an integer it counts them.
    """
    return array("q", array("d", map((unit * 2**52).__add__, seconds)).tobytes())


def _whole(seconds: Sequence[float], unit: float) -> array[int]:
    return array("q", map(int, map((1 / unit).__mul__, seconds)))


def _is_zero(pieces: list[_Piece]) -> bool:
    return not any(
        piece.number if isinstance(piece, _Constant) else any(_numbers(piece)) for piece in pieces
    )


def _numbers(piece: Sequence[int] | _Shifted) -> Sequence[int]:
    return piece.numbers if isinstance(piece, _Shifted) else piece


def _column(pieces: list[_Piece]) -> bytes:
    # Numbers are from -1 to `MAX_NUMBER`, so that every difference fits.
    column = array("i")
    before = 0

    for piece in pieces:
        if isinstance(piece, _Constant):
            column.append(piece.number - before)
            column.frombytes(bytes(column.itemsize * (piece.length - 1)))
            before = piece.number
        elif isinstance(piece, range):
            column.append(piece[0] - before)
            column.extend(array("i", (1,)) * (len(piece) - 1))
            before = piece[-1]
        else:
            numbers, base = piece if isinstance(piece, _Shifted) else (piece, 0)
            column.extend(map(sub, numbers, chain((before + base,), numbers)))
            before = numbers[-1] - base

    if sys.byteorder == "big":
        column.byteswap()
    data = column.tobytes()
    return b"".join([data[place :: column.itemsize] for place in range(column.itemsize)])
