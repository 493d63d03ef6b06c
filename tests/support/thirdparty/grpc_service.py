"""A worker service as somebody else would write it, from the documentation of the protocol alone: no Wove in here.

``python grpc_service.py [SECRET [CERTIFICATE KEY]]`` prints the port that it listens on. It verifies the signature of
each request if it has a secret, runs the task while its client waits, and answers with one JSON object. It is built on
the threads of plain `grpc`, with no options at all but the sizes of messages.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cloudpickle
import grpc

METHOD = "/wove.network_executor.WorkerService/Send"
SECRET = sys.argv[1].encode() if len(sys.argv) > 1 and sys.argv[1] else None
NONCES = set()
CANCELLED = {}
LOCK = threading.Lock()


def why_not(metadata, body):
    """What is wrong with the signature of a request."""
    if SECRET is None:
        return None
    stamp, nonce = metadata.get("x-wove-timestamp", "0"), metadata.get("x-wove-nonce", "")
    lines = ["wove-v1", "grpc", METHOD, stamp, nonce, hashlib.sha256(body).hexdigest()]
    expected = "v1=" + hmac.new(SECRET, "\n".join(lines).encode(), hashlib.sha256).hexdigest()
    if not hmac.compare_digest(metadata.get("x-wove-signature", ""), expected):
        return "that signature is not right"
    if abs(time.time() - float(stamp)) > 300:
        return "that signature is too old"
    with LOCK:
        if nonce in NONCES:
            return "that request was here before"
        NONCES.add(nonce)
    return None


def run(frame):
    def load(name):
        return cloudpickle.loads(base64.b64decode(frame[name]))

    names = {"run_id": frame["run_id"], "task_id": frame["task_id"]}
    stop = CANCELLED.setdefault(frame["run_id"], threading.Event())
    events = [{"type": "task_started", **names}]
    try:
        arguments = load("args_pickle")
        if "stop" in arguments:  # a task of the tests that wants to be told
            arguments["stop"] = stop
        result = load("callable_pickle")(**arguments)
        if stop.is_set():
            events.append({"type": "task_cancelled", **names})
        else:
            text = base64.b64encode(cloudpickle.dumps(result)).decode()
            events.append({"type": "task_result", **names, "result_pickle": text})
    except Exception as error:
        report = {
            "kind": type(error).__name__,
            "message": str(error),
            "traceback": traceback.format_exc(),
        }
        pickled = base64.b64encode(cloudpickle.dumps(error)).decode()
        report.update(retryable=False, source="task")
        events.append({"type": "task_error", **names, "error": report, "exception_pickle": pickled})
    CANCELLED.pop(frame["run_id"], None)
    return events


def send(body, context):
    metadata = dict(context.invocation_metadata())
    if wrong := why_not(metadata, body):
        context.abort(grpc.StatusCode.UNAUTHENTICATED, wrong)
    frame = json.loads(body)
    if frame["type"] == "cancel_task":
        if frame["run_id"] in CANCELLED:
            CANCELLED[frame["run_id"]].set()
        return b""
    events = run(frame)
    # The three forms that a reply may have.
    if metadata.get("x-form") == "list":
        return json.dumps(events).encode()
    if metadata.get("x-form") == "last":
        return json.dumps(events[-1]).encode()
    return json.dumps({"events": events}).encode()


service, method = METHOD[1:].split("/")
handlers = {method: grpc.unary_unary_rpc_method_handler(send)}
server = grpc.server(
    ThreadPoolExecutor(16),
    options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
)
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
if len(sys.argv) > 3:
    pair = Path(sys.argv[3]).read_bytes(), Path(sys.argv[2]).read_bytes()
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
else:
    port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(port, flush=True)
server.wait_for_termination()
