"""A client as somebody else would write it, from the documentation of the protocol alone: no Wove in here.

``python grpc_client.py TARGET [SECRET]`` sends three runs, cancels the third from beside it, and prints, as JSON, how
each ended, which types of events came for it, what a request whose signature is not right was answered, and what the
health checks say.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import sys
import threading
import time

import cloudpickle
import grpc

METHOD = "/wove.network_executor.WorkerService/Send"
SECRET = sys.argv[2] if len(sys.argv) > 2 else None
ENDS = ("task_result", "task_error", "task_cancelled")

channel = grpc.insecure_channel(sys.argv[1])
send = channel.unary_unary(METHOD)
check = channel.unary_unary("/grpc.health.v1.Health/Check")


def signature(body, secret):
    stamp, nonce = str(int(time.time())), secrets.token_hex(16)
    lines = ["wove-v1", "grpc", METHOD, stamp, nonce, hashlib.sha256(body).hexdigest()]
    digest = hmac.new(secret.encode(), "\n".join(lines).encode(), hashlib.sha256).hexdigest()
    return [
        ("x-wove-key", "default"),
        ("x-wove-timestamp", stamp),
        ("x-wove-nonce", nonce),
        ("x-wove-body-digest", hashlib.sha256(body).hexdigest()),
        ("x-wove-signature", f"v1={digest}"),
    ]


def post(frame, secret=SECRET):
    body = json.dumps(frame).encode()
    text = send(body, metadata=signature(body, secret) if secret else [], timeout=60)
    if not text.strip():
        return []
    found = json.loads(text)
    if isinstance(found, dict):
        found = found.get("events", [found])
    return found


def command(run_id, function, **arguments):
    def text(value):
        return base64.b64encode(cloudpickle.dumps(value)).decode()

    frame = {"type": "run_task", "run_id": run_id, "task_id": function.__name__, "delivery": {}}
    return {**frame, "callable_pickle": text(function), "args_pickle": text(arguments)}


def double(n):
    return 2 * n


def fail(n):
    raise ValueError(f"{n} is too large")


async def wait_long(n):
    import asyncio

    await asyncio.sleep(3600 + n)


ends, kinds = {}, {}


def run(run_id, function):
    for event in post(command(run_id, function, n=21)):
        assert event["run_id"] == run_id, event
        kinds.setdefault(run_id, []).append(event["type"])
        if event["type"] == "task_result":
            ends[run_id] = cloudpickle.loads(base64.b64decode(event["result_pickle"]))
        elif event["type"] in ENDS:
            ends[run_id] = (event.get("error") or {}).get("message", event["type"])


def status_of(call, *args):
    try:
        return call(*args).hex()
    except grpc.RpcError as error:
        return error.code().name


run("one", double)
run("two", fail)
third = threading.Thread(target=run, args=("three", wait_long))
third.start()
while third.is_alive():
    post({"type": "cancel_task", "run_id": "three", "task_id": "wait_long"})
    third.join(0.2)
forged = status_of(
    lambda: (
        b"" if not SECRET else json.dumps(post(command("four", double, n=1), "another")).encode()
    )
)
# HealthCheckRequest{service: ...} of grpc/health/v1/health.proto: field 1, a text.
asked = {
    name: bytes([10, len(name)]) + name.encode() if name else b""
    for name in ("", METHOD[1:-5], "liveness", "x")
}
health = {name: status_of(check, request) for name, request in asked.items()}
print(json.dumps({"ends": ends, "kinds": kinds, "forged": forged, "health": health}))
