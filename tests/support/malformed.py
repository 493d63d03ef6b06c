"""What no worker service should be sent: frames, pickles, signatures and bytes that are wrong, of every kind.

All of it comes from a `random.Random`, so that a seed tells what was sent. Nothing here knows Wove: frames and
signatures are made from the description of the protocol.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import pickle
import time
from collections.abc import Callable
from random import Random
from typing import Any

__all__ = [
    "Marker",
    "b64",
    "bad_signature",
    "body",
    "frame",
    "mutated",
    "raw_http",
    "raw_http2",
    "raw_websocket",
    "signature",
]

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1 << 70, 1.5, -0.0, 1e308, float("nan"), float("inf"), "", " ", "\x00", "ü\ud800",
    "../../x", "x" * 300, "1", "null", "%s%n", "\r\nX-Evil: 1", [], [None], [[[[]]]], {}, {"": None}, {"run_id": {}},
    [1, "a", {}],
)  # fmt: skip
"""Values of the wrong type, or at the end of a right one."""


# --------------------------------------------------------------------------------------------------- pickles


class Marker:
    """A value whose pickle, when it is loaded, makes a file: whoever loads it betrays itself."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


class _Fails:
    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


class _Missing:
    def __reduce__(self) -> str:
        return "no_such_name"


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def marker(path: str) -> str:
    return b64(pickle.dumps(Marker(path)))


def _pickle(rng: Random) -> bytes:
    """A pickle that does not load, or is not what it should be."""
    # Without LONG_BINPUT, whose argument makes the unpickler allocate (and fill) up to 64 GiB: that would be a test of
    # the machine. Whoever has the secret may run any code, so a service need not be safe from it. And without
    # BYTEARRAY8: where there is no room for the length announced, CPython (3.11 to 3.13) looks at a field it has not
    # set, and by chance writes "SystemError: deallocated bytearray object has exported buffers" to stderr.
    return _any_pickle(rng).replace(pickle.LONG_BINPUT, b"s").replace(pickle.BYTEARRAY8, b"s")


def _any_pickle(rng: Random) -> bytes:
    right = pickle.dumps(rng.choice([len, {"obj": [1, 2]}, b"x" * 100]))
    kind = rng.randrange(8)
    if kind == 0:
        return rng.randbytes(rng.randrange(200))
    if kind == 1:
        return right[: rng.randrange(len(right))]
    if kind == 2:
        return _flip(rng, right)
    if kind == 3:
        return pickle.dumps(_Fails())
    if kind == 4:
        return b"cno_such_module\nname\n."
    if kind == 5:
        return b"\x80\x05" + b"(" * rng.randrange(5000)
    if kind == 6:
        return b"\x80\x05\x95" + rng.randbytes(8) + b"."  # a frame that announces any length
    return pickle.dumps(rng.choice([None, 5, "text", [], ("a",), {1: 2}, {"no such parameter": 1}]))


# ---------------------------------------------------------------------------------------------------- frames


def frame(rng: Random, function: str, arguments: str) -> dict[str, Any]:
    """A frame in which nothing is wrong."""
    return {
        "type": "run_task",
        "run_id": f"fuzz-{rng.getrandbits(64):x}",
        "task_id": "fuzz",
        "callable_pickle": function,
        "args_pickle": arguments,
        "delivery": {
            "delivery_timeout": None,
            "delivery_heartbeat_seconds": None,
            "delivery_cancel_mode": "best_effort",
        },
        "deadline": 5.0,
    }


def _flip(rng: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 8)):
        if changed:
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def mutated(rng: Random, right: dict[str, Any]) -> bytes:
    """A frame with something wrong in it. It may still be one that can be run."""
    wrong = dict(right)
    kind = rng.randrange(9)
    if kind == 0:  # a wrong type in any field
        wrong[rng.choice([*right, "callable_id", "python", "error", "events", "result_pickle"])] = (
            rng.choice(ODD)
        )
    elif kind == 1:
        del wrong[rng.choice(list(right))]
    elif kind == 2:
        wrong["type"] = rng.choice(
            [
                "task_result",
                "task_error",
                "heartbeat",
                "shutdown",
                "log",
                "run_tasks",
                "RUN_TASK",
                "cancel_task",
                "\x00",
            ]
        )
    elif kind == 3:
        wrong["run_id"] = rng.choice(
            ["", "x" * 100_000, "a b", "a\nb", "\u202e", "../../etc", "a" * 201, "ü"]
        )
    elif kind == 4:
        field = rng.choice(["callable_pickle", "args_pickle"])
        wrong[field] = (
            b64(_pickle(rng))
            if rng.random() < 0.8
            else rng.choice(["====", "ü", "AAA", "A" * 5001, "\n"])
        )
    elif kind == 5:
        wrong["delivery"] = {
            name: rng.choice(ODD) for name in [*right["delivery"], "delivery_idempotency_key"]
        }
        wrong["delivery"]["delivery_idempotency_key"] = rng.choice([*ODD, "k" * 10_000])
    elif kind == 6:
        wrong["deadline"] = rng.choice([*ODD, -5, 1e-9, 1e300])
    elif kind == 7:
        wrong |= {f"field {n}": rng.choice(ODD) for n in range(rng.randrange(1, 50))}
        del wrong[rng.choice(["run_id", "type", "callable_pickle"])]
    else:
        return _wrapped(rng, json.dumps(wrong).encode())
    return json.dumps(wrong).encode()


def _wrapped(rng: Random, text: bytes) -> bytes:
    """A frame in something that a command does not come in."""
    return rng.choice(
        [
            b"[" + text + b"," + text + b"]",
            b'{"events":[' + text + b"," + text + b"]}",
            b"[[" + text + b"]]",
            b"[]",
            b'{"events":[]}',
            b'{"events":5}',
            text + text,
            text + b"\x00",
            text.replace(b'"run_id"', b'"run_id": 5, "run_id"'),
            json.dumps(text.decode()).encode(),
        ]
    )


def body(rng: Random, right: dict[str, Any]) -> bytes:
    """Bytes that are not a command, or a wrong one."""
    text = json.dumps(right).encode()
    kind = rng.randrange(12)
    if kind == 0:
        return rng.randbytes(rng.randrange(400))
    if kind == 1:
        return text[: rng.randrange(len(text))]
    if kind == 2:
        cut = text.index(b'"callable_pickle"')  # not what is in the pickles: see _pickle
        return _flip(rng, text[:cut]) + text[cut:]
    if kind == 3:  # deeper than any parser goes
        opening, closing = rng.choice([(b"[", b"]"), (b'{"a":', b"}")])
        depth = rng.choice([500, 2000, 20_000])
        return opening * depth + b"1" + closing * rng.choice([0, depth])
    if kind == 4:
        return text.decode().encode(rng.choice(["utf-16", "utf-32", "utf-8-sig", "cp500"]))
    if kind == 5:
        return rng.choice(
            [
                b"",
                b" ",
                b"null",
                b"1",
                b'"',
                b"NaN",
                b"{}",
                b"[{}]",
                b"\xff\xfe",
                b"\x80\x04N.",
                b"-",
                b"1e9999",
            ]
        )
    if kind == 6:
        return b"1" * rng.choice([100, 5000])  # an int with more digits than Python takes
    return mutated(rng, right)


# ------------------------------------------------------------------------------------------------ signatures


def signature(
    secret: str, transport: str, target: str, content: bytes, *, nonce: str, at: float | None = None
) -> dict[str, str]:
    """The headers of a request in which nothing is wrong."""
    timestamp = str(int(time.time() if at is None else at))
    text = "\n".join(
        ["wove-v1", transport, target, timestamp, nonce, hashlib.sha256(content).hexdigest()]
    )
    return {
        "X-Wove-Key": "default",
        "X-Wove-Timestamp": timestamp,
        "X-Wove-Nonce": nonce,
        "X-Wove-Body-Digest": hashlib.sha256(content).hexdigest(),
        "X-Wove-Signature": f"v1={hmac.new(secret.encode(), text.encode(), 'sha256').hexdigest()}",
    }


SPOILED = ("X-Wove-Key", "X-Wove-Timestamp", "X-Wove-Nonce", "X-Wove-Signature")
"""Headers without which no request is signed. The digest of the body may be left out: it only saves reading one."""

Headers = list[tuple[str, str]]

Spoil = Callable[[Random, dict[str, str]], None]

_SPOILS: tuple[Spoil, ...] = (
    lambda rng, headers: headers.clear(),
    lambda rng, headers: headers.pop(rng.choice(SPOILED)) and None,
    lambda rng, headers: headers.update({"X-Wove-Signature": "v1=" + "0" * 64}),
    lambda rng, headers: headers.update({"X-Wove-Signature": headers["X-Wove-Signature"].upper()}),
    lambda rng, headers: headers.update(
        {"X-Wove-Signature": headers["X-Wove-Signature"].replace("v1", "v2")}
    ),
    lambda rng, headers: headers.update({"X-Wove-Signature": headers["X-Wove-Signature"][:-1]}),
    lambda rng, headers: headers.update(
        {"X-Wove-Signature": rng.choice(["", "v1=", "x" * 5000, "v1=" + "z" * 64])}
    ),
    lambda rng, headers: headers.update(
        {"X-Wove-Key": rng.choice(["", "other", "default,default", "DEFAULT", "a" * 999])}
    ),
    lambda rng, headers: headers.update(
        {"X-Wove-Nonce": rng.choice(["", "n" * 5000, "a,b", "a b", "another"])}
    ),
    lambda rng, headers: headers.update(
        {
            "X-Wove-Timestamp": rng.choice(
                ["", "0", "-1", "1e9", "9" * 500, "0x10", "nan", " 1", "1700000000.5"]
            )
        }
    ),
    lambda rng, headers: headers.update(
        {rng.choice(SPOILED): rng.choice(["\t", "~" * 300, "\x7f", "%00", "==="])}
    ),
    lambda rng, headers: (
        headers.update({"Authorization": "Bearer guessed"})
        or (headers.pop("X-Wove-Signature") and None)
    ),
)


def bad_signature(rng: Random, secret: str, transport: str, target: str, content: bytes) -> Headers:
    """Headers that must not be accepted for *content*."""
    nonce = f"{rng.getrandbits(96):x}"
    kind = rng.randrange(len(_SPOILS) + 6)
    if kind < len(_SPOILS):
        headers = signature(secret, transport, target, content, nonce=nonce)
        _SPOILS[kind](rng, headers)
        return list(headers.items())
    kind -= len(_SPOILS)
    if kind == 0:
        return list(signature("another secret", transport, target, content, nonce=nonce).items())
    if kind == 1:
        other = rng.choice([name for name in ("http", "grpc", "websocket") if name != transport])
        return list(signature(secret, other, target, content, nonce=nonce).items())
    if kind == 2:
        return list(
            signature(
                secret, transport, target + rng.choice(["x", "?", "/"]), content, nonce=nonce
            ).items()
        )
    if kind == 3:
        return list(signature(secret, transport, target, content + b" ", nonce=nonce).items())
    if kind == 4:
        off = rng.choice([-1e6, -400.0, 400.0, 1e6])
        return list(
            signature(secret, transport, target, content, nonce=nonce, at=time.time() + off).items()
        )
    headers = signature(secret, transport, target, content, nonce=nonce)
    name = rng.choice(SPOILED)
    return [*headers.items(), (name, headers[name])]  # one of them twice


# ------------------------------------------------------------------------------------------------- raw bytes


def raw_http(rng: Random) -> bytes:
    """What no HTTP server can make sense of, or should not."""
    kind = rng.randrange(12)
    if kind == 0:
        return rng.randbytes(rng.randrange(1, 600))
    if kind == 1:
        return (
            b"POST /wove/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: "
            + rng.choice(
                [
                    b"-1",
                    b"999999999999999999999",
                    b"0x10",
                    b"1, 2",
                    b"abc",
                    b"",
                    b"+5",
                    b"1e3",
                    b"99999999",
                ]
            )
            + b"\r\n\r\n{}"
        )
    if kind == 2:
        return (
            b"POST /wove/tasks HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            + rng.choice(
                [
                    b"zz\r\n",
                    b"ffffffffffffffffff\r\n",
                    b"-5\r\n{}",
                    b"5\r\n{}\r\n0\r\n\r\n",
                    b"2\r\n{}",
                    b"2;" + b"x" * 9000,
                ]
            )
        )
    if kind == 3:
        return b"GET " + b"/" + b"a" * rng.choice([10, 9000, 70_000]) + b" HTTP/1.1\r\n\r\n"
    if kind == 4:
        many = b"".join(b"X-%d: y\r\n" % n for n in range(rng.choice([100, 2000])))
        return b"POST / HTTP/1.1\r\n" + many + b"\r\n"
    if kind == 5:
        return (
            b"POST / HTTP/1.1\r\nHost: x\r\nX: "
            + rng.randbytes(60).replace(b"\r", b"").replace(b"\n", b"")
            + b"\r\n\r\n"
        )
    if kind == 6:
        return rng.choice(
            [
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
                b"\n" * 500,
            ]
        )
    if kind == 7:
        method = rng.choice(
            [b"get", b"CONNECT", b"TRACE", b"\x00", b"P" * 9000, b"OPTIONS *", b"DELETE"]
        )
        return method + b" /wove/tasks HTTP/1.1\r\nHost: x\r\n\r\n"
    if kind == 8:
        return (
            b"POST /wove/tasks HTTP/"
            + rng.choice([b"9.9", b"1", b"", b"0.9", b"1.1.1", b"2"])
            + b"\r\nHost: x\r\n\r\n"
        )
    if kind == 9:
        return (
            b"POST /wove/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Length: 7\r\n\r\n{}"
        )
    if kind == 10:
        path = rng.choice(
            [
                b"/%00",
                b"/%ff%fe",
                b"//",
                b"/../..",
                b"http://x:99999/",
                b"*",
                b"/?\xff",
                b"/healthz/%2e%2e",
            ]
        )
        return b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
    return b"POST /wove/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n" + rng.randbytes(
        100
    )  # cut off


def raw_http2(rng: Random) -> bytes:
    """After the preface, frames (RFC 9113, 4.1) of any type, length and flags. Or no preface."""
    if rng.random() < 0.3:
        return rng.randbytes(rng.randrange(1, 600))
    settings = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    frames = []
    for _ in range(rng.randrange(1, 6)):
        payload = rng.randbytes(rng.randrange(60))
        size = len(payload) if rng.random() < 0.7 else rng.randrange(1 << 24)
        stream = rng.choice([0, 1, 2, 3, 5, 0x7FFFFFFF])
        head = (
            size.to_bytes(3, "big")
            + bytes([rng.randrange(12), rng.randrange(256)])
            + stream.to_bytes(4, "big")
        )
        frames.append(head + payload)
    return (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + (settings if rng.random() < 0.7 else b"")
        + b"".join(frames)
    )


def raw_websocket(rng: Random) -> bytes:
    """Frames (RFC 6455, 5.2) that break the rules, for an open connection."""
    first = rng.choice([0x81, 0x82, 0x80, 0x01, 0x83, 0xF1, 0x8B, 0x89, 0x88, rng.randrange(256)])
    masked = rng.choice([0x80, 0x80, 0x80, 0])
    payload = rng.randbytes(rng.randrange(100))
    kind = rng.randrange(3)
    if kind == 0:
        announced = bytes([masked | len(payload)])
    elif kind == 1:
        announced = bytes([masked | 126]) + rng.randbytes(2)
    else:
        announced = bytes([masked | 127]) + rng.randbytes(8)
    return bytes([first]) + announced + (rng.randbytes(4) if masked else b"") + payload
