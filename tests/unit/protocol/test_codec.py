from __future__ import annotations

import base64
import json
import os
from typing import Any

import pytest

from wove.protocol.codec import FrameError, decode, encode
from wove.protocol.limits import INLINE_BYTES, PIECE_BYTES
from wove.protocol.pickling import Pickled

SIZES = [
    0,
    1,
    2,
    3,
    4,
    INLINE_BYTES,
    INLINE_BYTES + 1,
    PIECE_BYTES - 1,
    PIECE_BYTES,
    2 * PIECE_BYTES + 5,
]


def data_of(pickled: Pickled) -> bytes:
    return b"".join(pickled.chunks)


def in_chunks(data: bytes, size: int) -> list[bytes]:
    return [data[i : i + size] for i in range(0, len(data), size)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("chunk", [7, 65_536, 10**9])
def test_round_trip(size: int, chunk: int) -> None:
    data = os.urandom(size)
    frame = {
        "type": "run_task",
        "args_pickle": Pickled(in_chunks(data, max(chunk, size // 1000 + 1))),
    }
    text = b"".join(encode(frame | {"run_id": "r", "delivery": {"x": None, "ü": "€"}}))
    assert b"\n" not in text
    assert base64.b64decode(json.loads(text)["args_pickle"], validate=True) == data
    for given in (text, in_chunks(text, max(chunk, len(text) // 1000 + 1)), [text]):
        (again,) = decode(given)
        assert data_of(again.pop("args_pickle")) == data
        assert again == {"type": "run_task", "run_id": "r", "delivery": {"x": None, "ü": "€"}}


def test_large_values_are_not_joined() -> None:
    chunks = encode({"result_pickle": Pickled([bytes(4 * PIECE_BYTES)])})
    assert max(map(len, chunks)) <= PIECE_BYTES * 4 // 3
    (frame,) = decode(chunks)
    assert frame["result_pickle"].size == 4 * PIECE_BYTES and len(frame["result_pickle"].chunks) > 1


def test_a_frame_of_pickles_only_and_one_of_none() -> None:
    assert encode({"result_pickle": Pickled([b"abc"])}) == [b'{"result_pickle":"YWJj"}']
    assert encode({"type": "shutdown"}) == [b'{"type":"shutdown"}']
    assert decode(b'{"result_pickle": null}') == [{"result_pickle": None}]


@pytest.mark.parametrize("padding", ["", " " * 200_000, "\ufeff", "\ufeff\r\n" + " " * 200_000])
def test_one_many_or_a_list_of_events(padding: str) -> None:
    one = {"type": "task_started", "run_id": "1"}
    two = {"type": "task_result", "run_id": "1", "result_pickle": "YWJj"}
    for value in ([one, two], {"events": [one, two], "more": 1}):
        first, second = decode((padding + json.dumps(value)).encode())
        assert first == one and data_of(second["result_pickle"]) == b"abc"
    assert decode(b"[]") == [] == decode(b'{"events": []}')


@pytest.mark.parametrize("size", [10, 3 * PIECE_BYTES + 17])
@pytest.mark.parametrize("chunk", [1000, PIECE_BYTES, 10**9])
@pytest.mark.parametrize("style", ["php", "net", "mime"])
def test_the_spelling_of_other_encoders(size: int, chunk: int, style: str) -> None:
    data = (b"\xfb\xff\xfe" * (size // 3 + 1))[:size]  # base64 of it is full of + and /
    text = base64.b64encode(data).decode()
    if style == "php":
        text = text.replace("/", "\\/")
    elif style == "net":
        text = text.replace("+", "\\u002B").replace("=", "\\u003d")
    else:
        text = base64.encodebytes(data).decode().replace("\n", "\\r\\n")
    line = f'{{"run_id":"r", "result_pickle" : "{text}", "other": 1}}'.encode()
    (frame,) = decode(in_chunks(line, max(chunk, len(line) // 3000 + 1)))
    assert data_of(frame["result_pickle"]) == data and frame["other"] == 1


def test_many_pickles_in_one_large_text() -> None:
    events = [
        {
            "run_id": str(i),
            "result_pickle": base64.b64encode(bytes([i % 256]) * i).decode(),
            "text": 'a "_pickle": "b',
        }
        for i in range(800)
    ]
    frames = decode(json.dumps({"events": events}, indent=1).encode())
    assert [data_of(frame["result_pickle"]) for frame in frames] == [
        bytes([i % 256]) * i for i in range(800)
    ]
    assert {frame["text"] for frame in frames} == {'a "_pickle": "b'}


def test_a_key_across_two_chunks() -> None:
    data = os.urandom(300_000)
    line = b"".join(encode({"run_id": "r", "result_pickle": Pickled([data])}))
    for cut in range(10, 50):
        (frame,) = decode([line[:cut], line[cut:]])
        assert data_of(frame["result_pickle"]) == data


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"Traceback (most recent call last):", r"not JSON .*: 'Traceback"),
        (b"", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"3", "a number: '3'"),
        (b'["x"]', "a text"),
        (b"null", "null"),
        (b"[true]", "a boolean"),
        (b'{"run_id": "r9", "args_pickle": 5}', "args_pickle is not base64 text but a number"),
        (b'{"run_id": "r9", "args_pickle": "abc"}', "args_pickle is not base64"),
        (b'{"run_id": "r9", "args_pickle": "@7"}', "args_pickle is not base64"),
        (b"[" * 100_000, "not JSON"),
        (b'{"result_pickle": "' + b"A" * 400_000, "not JSON"),
        (b'{"result_pickle": "' + b"A" * 400_001 + b'"}', "not base64"),
    ],
)
def test_what_is_no_frame(text: bytes, message: str) -> None:
    with pytest.raises(FrameError, match=message) as caught:
        decode(text)
    assert caught.value.run_id == ("r9" if b"r9" in text else None)


def test_the_run_of_a_broken_frame_is_found() -> None:
    with pytest.raises(FrameError) as caught:
        decode(b'{"type": "run_task", "run_id": "r-7_x", "args_pickle": "AAA')
    assert caught.value.run_id == "r-7_x"


@pytest.mark.parametrize("value", [object(), {1, 2}, {"x": b"y"}])
def test_a_field_that_is_not_json(value: Any) -> None:
    with pytest.raises(FrameError, match="not JSON") as caught:
        encode({"run_id": "r", "field": value})
    assert caught.value.run_id == "r"


@pytest.mark.parametrize(
    "text", [b"[" + b"1," * 2_000_000 + b"1]", b"[" + b'{"args_pickle":""},' * 200_000 + b"{}]"]
)
def test_what_is_beside_its_pickles_may_be_limited(text: bytes) -> None:
    with pytest.raises(FrameError, match="more than 1000000 bytes beside its pickles"):
        decode(in_chunks(text, 100_000), most_text=1_000_000)
    (frame,) = decode(b'{"args_pickle":"' + b"A" * 4_000_000 + b'"}', most_text=1_000_000)
    assert frame["args_pickle"].size == 3_000_000
