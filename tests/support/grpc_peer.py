"""A gRPC service that misbehaves as the names of its tasks say: ``bad_NAME`` always, ``once_NAME`` the first time.

``python grpc_peer.py [PORT]`` prints the port that it listens on. What it does is one function a name, below; a task of
any other name is run as it should be.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import sys
from typing import Any

import cloudpickle
import grpc
import grpc.aio

from wove.security import NetworkExecutorSecurity

METHOD = "/wove.network_executor.WorkerService/Send"
SECURITY = {"type": "signed", "secret": "that of the peer", "sign_replies": True}
seen: set[str] = set()


def good(frame: dict[str, Any], **changes: Any) -> list[dict[str, Any]]:
    def load(name: str) -> Any:
        return cloudpickle.loads(base64.b64decode(frame[name]))

    names = {"run_id": frame["run_id"], "task_id": frame["task_id"], **changes}
    result = base64.b64encode(
        cloudpickle.dumps(load("callable_pickle")(**load("args_pickle")))
    ).decode()
    return [
        {"type": "task_started", **names},
        {"type": "task_result", **names, "result_pickle": result},
    ]


def reply(events: Any) -> bytes:
    return json.dumps({"events": events}).encode()


def with_pickle(frame: dict[str, Any], text: str) -> bytes:
    events = good(frame)
    events[1]["result_pickle"] = text
    return reply(events)


BODIES = {
    "invalid_json": lambda frame: b'{"events": [',
    "page": lambda frame: b"<h1>Welcome!</h1>",
    "no_event": lambda frame: b'"done"',
    "object": lambda frame: b'{"ok": true}',
    "unknown": lambda frame: reply([{"type": "task_pending", "run_id": frame["run_id"]}]),
    "foreign": lambda frame: reply(good(frame, run_id="somebody-elses")),
    "only_started": lambda frame: reply(good(frame)[:1]),
    "no_events": lambda frame: reply([]),
    "empty": lambda frame: b"",
    "pickle": lambda frame: with_pickle(frame, base64.b64encode(b"\x80\x05garbage").decode()),
    "base64": lambda frame: with_pickle(frame, "no base64 at all!"),
    "too_large": lambda frame: b" " * 3_000_000,
}


def signed(frame: dict[str, Any], context: Any, how: str) -> bytes:
    """A reply that is not signed as it should be, and whose pickle ends the process that loads it. One is right."""
    if how == "rightly":
        body = reply(good(frame))
    else:
        body = with_pickle(frame, base64.b64encode(b"cos\nabort\n(tR.").decode())
    secret = "of another" if how == "by_another" else SECURITY["secret"]
    headers = {
        name: value for name, value in context.invocation_metadata() if name.startswith("x-wove-")
    }
    if how == "for_another":
        headers["x-wove-nonce"] = "0" * 32
    signature = NetworkExecutorSecurity.from_config({**SECURITY, "secret": secret}).reply_signature(
        transport="grpc",
        target=METHOD,
        headers=headers,
        body=body + (b" " if how == "and_changed" else b""),
    )
    if how != "not_at_all":
        context.set_trailing_metadata((("x-wove-reply-signature", signature),))
    return body


async def send(request: bytes, context: Any) -> bytes:
    frame = json.loads(request)
    if frame["type"] != "run_task":
        return reply([])
    kind, _, name = frame["task_id"].partition("_")
    if kind == "once" and name not in seen:
        seen.add(name)
        kind = "bad"
    if kind != "bad":
        return reply(good(frame))
    if name in BODIES:
        return BODIES[name](frame)
    if name.startswith("signed_"):
        return signed(frame, context, name.removeprefix("signed_"))
    if name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif name == "raises":
        raise RuntimeError("the disk is full")
    elif name == "silent":
        await asyncio.sleep(3600)
    elif name == "long_details":
        await context.abort(grpc.StatusCode.INTERNAL, "a long story " * 300)
    await context.abort(grpc.StatusCode[name.upper()], f"so says the service: {name}")
    return b""


class Handler(grpc.GenericRpcHandler):
    def service(self, details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(send) if details.method == METHOD else None


async def main() -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Handler(),))
    print(
        server.add_insecure_port(f"127.0.0.1:{sys.argv[1] if len(sys.argv) > 1 else 0}"), flush=True
    )
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
