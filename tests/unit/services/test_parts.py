from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from tests.support.certificates import Certificates

from wove.concurrency.thread_pool import run_in_thread
from wove.protocol import codec
from wove.protocol.codec import encode_events
from wove.protocol.completed_runs import CompletedRuns
from wove.protocol.frames import FrameError
from wove.protocol.pickling import Pickled, dumps, loads
from wove.services.binding import Bind, ServerTLS, refuse_exposed
from wove.services.options import service_options
from wove.services.wire import decode_command

CALL = dumps(len, label="f")


def command(**fields: Any) -> list[bytes]:
    return codec.encode(
        {"type": "run_task", "run_id": "r", "task_id": "t", "callable_pickle": CALL, **fields}
    )


# --- commands ---------------------------------------------------------------------------------------------


def test_a_command_is_put_in_order() -> None:
    frame = decode_command(
        command(
            callable_id="wrong",
            deadline="soon",
            delivery=[1],
            callable="os.system",
            args={},
            task_id=7,
            extra=1,
        )
    )
    assert frame["callable_id"] == hashlib.sha256(b"".join(CALL.chunks)).hexdigest()
    assert "deadline" not in frame and "callable" not in frame and "args" not in frame
    assert frame["delivery"] == {} and frame["task_id"] == "?" and frame["extra"] == 1
    assert loads(frame["args_pickle"], label="a") == {}


@pytest.mark.parametrize("seconds", [-1, 1e300, 10**400, True, "1", [], None])
def test_a_deadline_that_no_clock_knows_is_none(seconds: Any) -> None:
    frame = decode_command(
        command(deadline=seconds, delivery={"delivery_heartbeat_seconds": seconds})
    )
    assert frame.get("deadline") is None
    assert frame["delivery"].get("delivery_heartbeat_seconds") is None


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"1", "a number"),
        (b"[]", "one command at a time"),
        (b"{}", "needs a run_id"),
        (b'{"type":"run_task","run_id":""}', "needs a run_id"),
        (b'{"type":"run_task","run_id":"a b"}', "needs a run_id"),
        (b'{"type":"run_task","run_id":"a\\nb"}', "needs a run_id"),
        (b'{"type":"run_task","run_id":1}', "needs a run_id"),
        (b'{"type":"shutdown","run_id":"r"}', "not a command of a worker service"),
        (b'{"type":["x"],"run_id":"r"}', "not a command of a worker service"),
        (b'{"type":"run_task","run_id":"r"}', "callable_pickle"),
        (b'{"type":"run_task","run_id":"r","callable_pickle":"AAAAA"}', "base64"),
        (b'{"type":"run_task","run_id":"r","callable_pickle":{}}', "base64"),
    ],
)
def test_what_is_no_command(text: bytes, wrong: str) -> None:
    with pytest.raises(FrameError, match=wrong):
        decode_command([text])


NAMES = [
    "type",
    "run_id",
    "task_id",
    "delivery",
    "deadline",
    "callable_pickle",
    "args_pickle",
    "events",
]
ANY_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers()
    | st.text()
    | st.sampled_from(["run_task", "r"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=6)
    ),
)


@given(ANY_JSON)
def test_any_json_is_a_command_or_a_frame_error(value: Any) -> None:
    try:
        frame = decode_command([json.dumps(value).encode()])
    except FrameError:
        return
    assert frame["type"] in ("run_task", "cancel_task") and isinstance(frame["task_id"], str)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_frame_error(data: bytes) -> None:
    with pytest.raises(FrameError):
        decode_command([data])


def test_events_are_one_json_text() -> None:
    big = Pickled([b"x" * 200_000])
    events = [
        {"type": "task_started", "run_id": "r"},
        {"type": "task_result", "run_id": "r", "result_pickle": big},
    ]
    found = json.loads(b"".join(encode_events(events)))
    assert [event["type"] for event in found["events"]] == ["task_started", "task_result"]
    assert encode_events([]) == [b'{"events":[]}']


def test_elsewhere_is_another_thread() -> None:
    async def main() -> None:
        assert await run_in_thread(threading.current_thread) is not threading.current_thread()
        with pytest.raises(ZeroDivisionError):
            await run_in_thread(lambda: 1 // 0)

    asyncio.run(main())


# --- memory -----------------------------------------------------------------------------------------------


def event(size: int) -> dict[str, Any]:
    return {"type": "task_result", "result_pickle": Pickled([b"x" * size])}


def test_memory_is_bounded_in_number_bytes_and_time() -> None:
    memory = CompletedRuns(runs=3, size=20_000, seconds=10)
    for number in range(5):
        memory.put(("", "t", str(number)), event(1), float(number))
    assert [number for number in range(5) if memory.get(("", "t", str(number)), 4.0)] == [2, 3, 4]
    memory.put(("", "t", "large"), event(15_000), 5.0)
    assert len(memory) == 3 and memory.get(("", "t", "2"), 5.0) is None
    memory.put(("", "t", "larger"), event(18_000), 6.0)
    assert len(memory) == 1
    memory.put(("", "t", "too large"), event(20_000), 6.0)
    assert memory.get(("", "t", "too large"), 6.0) is None and len(memory) == 1
    assert memory.get(("", "t", "larger"), 15.9) is not None
    assert memory.get(("", "t", "larger"), 16.0) is None and len(memory) == 0
    memory.put(("", "t", "after"), event(18_000), 16.0)
    assert len(memory) == 1


def test_a_memory_of_none() -> None:
    memory = CompletedRuns(runs=0, size=1000, seconds=1)
    memory.put(("", "t", "k"), event(1), 0.0)
    assert len(memory) == 0


# --- options ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "kind", "message"),
    [
        ({}, TypeError, "needs security"),
        ({"security": None}, TypeError, "needs security"),
        ({"security": "none", "concurency": 1}, TypeError, "concurrency"),
        ({"security": "none", "concurrency": 0}, ValueError, "at least 1"),
        ({"security": "none", "concurrency": True}, TypeError, "whole number"),
        ({"security": "none", "processes": 0}, ValueError, "at least 1"),
        ({"security": "none", "backlog": -1}, ValueError, "at least 0"),
        ({"security": "none", "drain_timeout": float("nan")}, ValueError, "drain_timeout"),
        ({"security": "none", "drain_timeout": "1"}, TypeError, "drain_timeout"),
        ({"security": "env:WOVE_NO_SUCH_VARIABLE"}, ValueError, "WOVE_NO_SUCH_VARIABLE"),
    ],
)
def test_options_are_checked(keywords: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        service_options(**keywords)


def test_options_do_not_show_the_secret() -> None:
    assert "hunter" not in repr(
        service_options(security={"type": "signed", "secret": "hunter" * 8})
    )


# --- where it listens -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8800", "127.0.0.1", 8800),
        ("[::1]:0", "::1", 0),
        ("workers.internal:1", "workers.internal", 1),
    ],
)
def test_an_address(text: str, host: str, port: int) -> None:
    bind = Bind.parse(text)
    assert (bind.host, bind.port) == (host, port)
    assert str(bind) == text


@pytest.mark.parametrize(
    "text", ["", "8800", ":8800", "localhost", "localhost:", "::1:80", "a:b", "a:-1", "a:65536"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"HOST:PORT|in brackets"):
        Bind.parse(text)


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}.*another program"):
            Bind("127.0.0.1", port).listen()


def test_it_listens() -> None:
    with Bind("127.0.0.1", 0).listen() as listener:
        at = Bind("127.0.0.1", 0).at(listener)
        with socket.create_connection(("127.0.0.1", at.port)) as connection:
            assert listener.fileno() > connection.fileno(), (
                "it is to be closed first when the process is killed"
            )


SIGNED = {"type": "signed", "secret": "s" * 40}


@pytest.mark.parametrize(
    ("host", "security", "tls", "switches", "refused"),
    [
        ("127.0.0.1", "none", False, set(), None),
        ("localhost", "none", False, set(), None),
        ("0.0.0.0", "none", False, set(), "without TLS.*without asking"),
        ("0.0.0.0", SIGNED, False, set(), "without TLS"),
        ("0.0.0.0", "none", True, set(), "without asking"),
        ("0.0.0.0", SIGNED, True, set(), None),
        ("0.0.0.0", SIGNED, False, {"tls_at_proxy"}, None),
        ("0.0.0.0", "none", False, {"tls_at_proxy"}, "without asking"),
        ("0.0.0.0", SIGNED, False, {"insecure"}, None),
        ("::", "none", False, {"insecure"}, "without asking"),
        ("::", "none", True, {"unauthenticated"}, None),
        ("::", "none", False, {"unauthenticated"}, "without TLS"),
        ("::", "none", False, {"insecure", "unauthenticated"}, None),
    ],
)
def test_who_may_reach_it(
    host: str,
    security: Any,
    tls: bool,
    switches: set[str],
    refused: str | None,
    certificates: Certificates,
) -> None:
    pair = certificates.server
    files = ServerTLS.load(pair.certificate, pair.key) if tls else None
    flags = {name: name in switches for name in ("insecure", "unauthenticated", "tls_at_proxy")}
    options = service_options(security=security)
    if refused is None:
        refuse_exposed(Bind(host, 1), files, options, **flags)
    else:
        with pytest.raises(ValueError, match=refused):
            refuse_exposed(Bind(host, 1), files, options, **flags)


def test_certificates_are_checked_before_it_listens(
    certificates: Certificates, tmp_path: Path
) -> None:
    pair = certificates.server
    assert ServerTLS.load(pair.certificate, pair.key, certificates.authority).pem()[2]
    nothing = tmp_path / "nothing.pem"
    with pytest.raises(ValueError, match="nothing.pem"):
        ServerTLS.load(nothing, pair.key)
    nothing.write_text("nothing")
    with pytest.raises(ValueError, match="cannot be used"):
        ServerTLS.load(pair.certificate, nothing)
    with pytest.raises(ValueError, match="client authorities"):
        ServerTLS.load(pair.certificate, pair.key, nothing)
