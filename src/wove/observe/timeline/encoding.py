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
from collections.abc import Iterator, Sequence
from itertools import chain
from operator import sub
from typing import Any, Final

from wove.observe.timeline.model import PHASES, Model

__all__ = ["COLUMNS", "encode"]

COLUMNS: Final = ("task", "item", "state", "attempt", "losses", "error", "out", "in")
"""The columns that are fields of a bar. Before them comes its lane, behind them `Bar.begun` and its parts."""

MAX_NUMBER: Final = 2**31 - 2
MIN_UNIT_SECONDS: Final = 1e-6


def encode(model: Model, **header: Any) -> str:
    """Return *model* as base64.

    Args:
        model: What is to be shown.
        **header: What else the page is to know, as JSON.
    """
    unit = MIN_UNIT_SECONDS
    while 2 * model.seconds / unit > MAX_NUMBER:
        unit *= 10

    columns = {name: numbers for name, numbers in _columns(model, unit) if any(numbers)}
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
    packed += [packer.compress(_column(numbers)) for numbers in columns.values()]
    packed.append(packer.flush())
    return b64encode(b"".join(packed)).decode()


def _columns(model: Model, unit: float) -> Iterator[tuple[str, Sequence[int]]]:
    bars = [bar for row in model.bars for bar in row]
    if not bars:
        return
    yield "lane", [lane for lane, row in enumerate(model.bars) for _ in row]
    *whole, begun, parts = zip(*bars, strict=True)
    for name, column in zip(COLUMNS, whole, strict=True):
        fits = max(column) <= MAX_NUMBER
        yield name, column if fits else [min(number, MAX_NUMBER) for number in column]

    yield "begun", _whole(begun, unit)
    for name, seconds in zip(PHASES, zip(*parts, strict=True), strict=True):
        if any(seconds):
            yield name, _whole(seconds, unit)


def _whole(seconds: Sequence[float], unit: float) -> list[int]:
    return list(map(int, map((1 / unit).__mul__, seconds)))


def _column(numbers: Sequence[int]) -> bytes:
    # Numbers are from -1 to `MAX_NUMBER`, so that every difference fits.
    column = array("i", map(sub, numbers, chain((0,), numbers)))
    if sys.byteorder == "big":
        column.byteswap()
    data = column.tobytes()
    return b"".join([data[place :: column.itemsize] for place in range(column.itemsize)])
