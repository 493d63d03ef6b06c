"""A client as somebody else would write it, from the documentation of the protocol alone: no Wove in here.

``python websocket_client.py URL [SECRET]`` sends three runs in three messages, cancels the third, and prints, as JSON,
how each ended and which types of events came for it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
import ssl
import sys
import time
import urllib.parse

import cloudpickle
from websockets.asyncio.client import connect

ENDS = ("task_result", "task_error", "task_cancelled")


def signature(url, secret):
    parts = urllib.parse.urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    stamp, nonce = str(int(time.time())), secrets.token_hex(16)
    lines = ["wove-v1", "websocket", target, stamp, nonce, hashlib.sha256(b"").hexdigest()]
    digest = hmac.new(secret.encode(), "\n".join(lines).encode(), hashlib.sha256).hexdigest()
    return {
        "X-Wove-Key": "default",
        "X-Wove-Timestamp": stamp,
        "X-Wove-Nonce": nonce,
        "X-Wove-Signature": f"v1={digest}",
    }


def command(run_id, function, **arguments):
    def text(value):
        return base64.b64encode(cloudpickle.dumps(value)).decode()

    frame = {"type": "run_task", "run_id": run_id, "task_id": function.__name__, "delivery": {}}
    return json.dumps({**frame, "callable_pickle": text(function), "args_pickle": text(arguments)})


def events_in(message):
    found = json.loads(message)
    if isinstance(found, dict):
        found = found.get("events", [found])
    return found


def double(n):
    return 2 * n


def fail(n):
    raise ValueError(f"{n} is too large")


async def wait_long(n):
    import asyncio

    await asyncio.sleep(3600 + n)


async def main():
    url, *secret = sys.argv[1:]
    headers = signature(url, secret[0]) if secret else {}
    context = ssl.create_default_context() if url.startswith("wss:") else None
    ends, kinds = {}, {}
    async with connect(url, additional_headers=headers, ssl=context) as socket:
        for run_id, function in (("one", double), ("two", fail), ("three", wait_long)):
            await socket.send(command(run_id, function, n=21))
        while len(ends) < 3:
            for event in events_in(await asyncio.wait_for(socket.recv(), 30)):
                run_id, kind = event["run_id"], event["type"]
                kinds.setdefault(run_id, []).append(kind)
                if (run_id, kind) == ("three", "task_started"):
                    await socket.send(
                        json.dumps(
                            {"type": "cancel_task", "run_id": run_id, "task_id": "wait_long"}
                        )
                    )
                if kind == "task_result":
                    ends[run_id] = cloudpickle.loads(base64.b64decode(event["result_pickle"]))
                elif kind in ENDS:
                    ends[run_id] = (event.get("error") or {}).get("message", kind)
    print(json.dumps({"ends": ends, "kinds": kinds}))


asyncio.run(main())
