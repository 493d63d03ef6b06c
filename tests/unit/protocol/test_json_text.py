"""JSON that is nested too deeply is an error like any other."""

from __future__ import annotations

import pytest

from wove.protocol import codec, payload
from wove.protocol.frames import FrameError
from wove.protocol.json_text import check_depth, parse_json
from wove.protocol.limits import MAX_DEPTH

TOO_DEEP = f"nested more than {MAX_DEPTH} deep"
DEPTHS = [MAX_DEPTH + 1, 900, 5000, 100_000]


def lists(depth: int) -> str:
    return "[" * depth + "]" * depth


def nested(depth: int) -> object:
    value: object = 1
    for number in range(depth):
        value = [value] if number % 2 else {"a": value}
    return value


@pytest.mark.parametrize("depth", DEPTHS)
def test_it_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=TOO_DEEP):
        parse_json(lists(depth))


def test_what_is_not_too_deep_is_parsed() -> None:
    assert parse_json(lists(MAX_DEPTH)) is not None
    assert parse_json("7") == 7
    check_depth(nested(MAX_DEPTH))


@pytest.mark.parametrize("depth", DEPTHS)
def test_frames(depth: int) -> None:
    text = f'{{"type":"run_task","run_id":"r-1","task_id":"t","delivery":{lists(depth)}}}'
    with pytest.raises(FrameError, match=TOO_DEEP) as caught:
        codec.decode(text.encode())
    assert caught.value.run_id == "r-1"


@pytest.mark.parametrize("depth", DEPTHS)
def test_payloads(depth: int) -> None:
    fields = {
        "version": 1,
        "run_id": "r-1",
        "callback_url": "http://h:1/",
        "delivery": nested(depth),
    }
    with pytest.raises(FrameError, match=TOO_DEEP):
        payload.parse(fields)
    with pytest.raises(FrameError, match=TOO_DEEP):
        payload.parse(f'{{"version": 1, "run_id": "r-1", "delivery": {lists(depth)}}}')
