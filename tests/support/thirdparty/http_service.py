"""A worker service as somebody else would write it, from the documentation of the protocol alone: no Wove in here.

``python http_service.py [SECRET [CERTIFICATE KEY]]`` prints the port that it listens on. It verifies the signature of
each request if it has a secret, runs the task while its client waits, and answers with one JSON object. How many
connections it was given is what ``GET /connections`` answers.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import ssl
import sys
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cloudpickle

SECRET = sys.argv[1].encode() if len(sys.argv) > 1 and sys.argv[1] else None
NONCES = set()
CANCELLED = {}
LOCK = threading.Lock()
CONNECTIONS = 0


def why_not(handler, body):
    """What is wrong with the signature of a request."""
    if SECRET is None:
        return None
    headers = handler.headers
    stamp, nonce = headers.get("X-Wove-Timestamp", ""), headers.get("X-Wove-Nonce", "")
    lines = ["wove-v1", "http", handler.path, stamp, nonce, hashlib.sha256(body).hexdigest()]
    expected = "v1=" + hmac.new(SECRET, "\n".join(lines).encode(), hashlib.sha256).hexdigest()
    if not hmac.compare_digest(headers.get("X-Wove-Signature", ""), expected):
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
    return {"events": events}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def setup(self):
        global CONNECTIONS
        super().setup()
        with LOCK:
            CONNECTIONS += 1

    def do_GET(self):
        self.answer(200, str(CONNECTIONS).encode(), "text/plain")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if wrong := why_not(self, body):
            self.answer(403, wrong.encode(), "text/plain")
            return
        frame = json.loads(body)
        if frame["type"] == "cancel_task":
            if frame["run_id"] in CANCELLED:
                CANCELLED[frame["run_id"]].set()
            self.answer(204, b"", "application/json")
            return
        self.answer(200, json.dumps(run(frame)).encode(), "application/json; charset=utf-8")

    def answer(self, status, body, kind):
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True


server = Server(("127.0.0.1", 0), Handler)
if len(sys.argv) > 3:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[2], sys.argv[3])
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
print(server.server_port, flush=True)
server.serve_forever()
