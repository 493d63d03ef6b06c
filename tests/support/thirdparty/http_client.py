"""A client as somebody else would write it, from the documentation of the protocol alone: no Wove in here.

``python http_client.py URL [SECRET]`` posts three runs, cancels the third from beside it, and prints, as JSON, how each
ended, which types of events came for it, and what a request whose signature is not right was answered.
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
import urllib.error
import urllib.parse
import urllib.request

import cloudpickle

URL = sys.argv[1]
SECRET = sys.argv[2] if len(sys.argv) > 2 else None
ENDS = ("task_result", "task_error", "task_cancelled")


def signature(body, secret):
    parts = urllib.parse.urlsplit(URL)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    stamp, nonce = str(int(time.time())), secrets.token_hex(16)
    lines = ["wove-v1", "http", target, stamp, nonce, hashlib.sha256(body).hexdigest()]
    digest = hmac.new(secret.encode(), "\n".join(lines).encode(), hashlib.sha256).hexdigest()
    return {
        "X-Wove-Key": "default",
        "X-Wove-Timestamp": stamp,
        "X-Wove-Nonce": nonce,
        "X-Wove-Body-Digest": hashlib.sha256(body).hexdigest(),
        "X-Wove-Signature": f"v1={digest}",
    }


def post(frame, secret=SECRET):
    body = json.dumps(frame).encode()
    headers = {"Content-Type": "application/json", **(signature(body, secret) if secret else {})}
    with urllib.request.urlopen(urllib.request.Request(URL, body, headers), timeout=60) as response:
        text = response.read()
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


run("one", double)
run("two", fail)
third = threading.Thread(target=run, args=("three", wait_long))
third.start()
while third.is_alive():
    post({"type": "cancel_task", "run_id": "three", "task_id": "wait_long"})
    third.join(0.2)
forged = None
if SECRET:
    try:
        post(command("four", double, n=1), "another secret")
    except urllib.error.HTTPError as error:
        forged = error.code
        error.close()
print(json.dumps({"ends": ends, "kinds": kinds, "forged": forged}))
