"""A worker service as somebody else would write it, from the documentation of the protocol alone: no Wove in here.

``python websocket_service.py [SECRET]`` prints the port that it listens on. It takes each command as one JSON message,
answers with one event a message, and verifies the signature of the handshake if it has a secret.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import sys
import time
import traceback

import cloudpickle
from websockets.asyncio.server import serve

SECRET = sys.argv[1].encode() if len(sys.argv) > 1 else None
NONCES = set()


def refuse_strangers(connection, request):
    if SECRET is None:
        return None
    try:
        stamp, nonce = request.headers["X-Wove-Timestamp"], request.headers["X-Wove-Nonce"]
        given = request.headers["X-Wove-Signature"]
    except KeyError:
        return connection.respond(401, "this service wants signed handshakes\n")
    lines = ["wove-v1", "websocket", request.path, stamp, nonce, hashlib.sha256(b"").hexdigest()]
    expected = "v1=" + hmac.new(SECRET, "\n".join(lines).encode(), hashlib.sha256).hexdigest()
    if (
        not hmac.compare_digest(given, expected)
        or abs(time.time() - float(stamp)) > 300
        or nonce in NONCES
    ):
        return connection.respond(403, "that signature is not right\n")
    NONCES.add(nonce)
    return None


async def serve_one(socket):
    running = {}
    async for message in socket:
        frame = json.loads(message)
        if frame["type"] == "run_task":
            running[frame["run_id"]] = asyncio.create_task(run(socket, frame))
        elif frame["type"] == "cancel_task" and frame["run_id"] in running:
            running[frame["run_id"]].cancel()
    for task in running.values():
        task.cancel()


async def run(socket, frame):
    names = {"run_id": frame["run_id"], "task_id": frame["task_id"]}

    async def tell(kind, **fields):
        await socket.send(json.dumps({"type": kind, **names, **fields}))

    async def beat(seconds):
        while True:
            await asyncio.sleep(seconds / 3)
            await tell("heartbeat")

    await tell("task_started")
    interval = frame["delivery"].get("delivery_heartbeat_seconds")
    beats = asyncio.create_task(beat(interval)) if interval else None
    try:
        function = cloudpickle.loads(base64.b64decode(frame["callable_pickle"]))
        arguments = cloudpickle.loads(base64.b64decode(frame["args_pickle"]))
        if asyncio.iscoroutinefunction(function):
            value = await function(**arguments)
        else:
            value = await asyncio.to_thread(function, **arguments)
        result = base64.b64encode(cloudpickle.dumps(value)).decode()
    except asyncio.CancelledError:
        await tell("task_cancelled")
    except Exception as error:
        report = {
            "kind": type(error).__name__,
            "message": str(error),
            "traceback": traceback.format_exc(),
            "retryable": False,
            "source": "task",
        }
        await tell("task_error", error=report)
    else:
        await tell("task_result", result_pickle=result)
    finally:
        if beats is not None:
            beats.cancel()


async def main():
    limit = 64 * 1024 * 1024
    async with serve(
        serve_one, "127.0.0.1", 0, process_request=refuse_strangers, max_size=limit
    ) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()


asyncio.run(main())
