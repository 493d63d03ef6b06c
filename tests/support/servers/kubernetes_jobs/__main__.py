"""An API server of Kubernetes with its Job controller and one node: ``kubernetes_jobs PORT SLOTS SETTINGS``.

What Jobs and pods go through is what a real control plane does with them; the real client library talks to it. SETTINGS
is JSON: ``images``, the variables that each known image has; ``tokens``, the rules of each bearer token (a list of
``"verb resource"``, or null for all). Beside the API, ``/emulator/...`` tells how often what was asked, and evicts.
"""

from __future__ import annotations

import json
import re
import signal
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from controller import Controller, delete_pod
from kubelet import Kubelet
from store import RefusedError, Store, Thing
from validation import check

MAX_BODY = 3 * 1024 * 1024
"""Bytes of a request (apiserver/pkg/server/config.go, MaxRequestBodyBytes)."""

PATH = re.compile(
    r"/(?:api/v1|apis/batch/v1)/namespaces/([^/]+)/(jobs|pods|secrets|configmaps|events)(?:/([^/]+)(?:/(log))?)?"
)
LISTS = {
    "jobs": "JobList",
    "pods": "PodList",
    "secrets": "SecretList",
    "configmaps": "ConfigMapList",
    "events": "EventList",
}

store = Store()
counts: Counter[str] = Counter()
settings: dict[str, Any] = {}
busy = [0]
"""So many requests are answered with a 429 first."""
most_jobs: dict[str, int] = {}
"""How many Jobs may be in a namespace, where there is a quota of them."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    kubelet: Kubelet
    controller: Controller

    def log_message(self, *_: Any) -> None: ...

    def handle_one(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            if len(body) > MAX_BODY:
                raise RefusedError(
                    413, "RequestEntityTooLarge", f"Request entity too large: limit is {MAX_BODY}"
                )
            self.answer(*self.act(json.loads(body) if body else {}))
        except RefusedError as error:
            self.answer(
                error.code, error.status(), {"Retry-After": "1"} if error.code == 429 else {}
            )
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_POST = do_DELETE = do_PUT = do_PATCH = handle_one  # noqa: N815

    def answer(
        self, code: int, content: Thing | str, headers: dict[str, str] | None = None
    ) -> None:
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        kind = "text/plain" if isinstance(content, str) else "application/json"
        self.send_response(code)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self._headers_buffer.append(b"\r\n" + data)  # type: ignore[attr-defined]
        self.flush_headers()

    def act(self, body: Thing) -> tuple[int, Thing | str]:
        url = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        if url.path.startswith("/emulator/"):
            return 200, self.emulate(url.path.removeprefix("/emulator/"), query)
        if url.path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews":
            asked = body["spec"]["resourceAttributes"]
            allowed = self.allowed(asked["verb"], asked["resource"])
            return 201, {**body, "status": {"allowed": allowed}}
        match = PATH.fullmatch(url.path)
        if match is None:
            raise RefusedError(404, "NotFound", "the server could not find the requested resource")
        namespace, kind, name, sub = match.groups()
        method = self.command
        verb = {"POST": "create", "DELETE": "delete"}.get(method, "get" if name else "list")
        if verb == "list" and query.get("watch") in ("true", "True", "1"):
            verb = "watch"
        resource = f"{kind}/{sub}" if sub else kind
        counts[f"{verb} {resource}"] += 1
        self.authorize(verb, resource, namespace)
        if busy[0] > 0:
            busy[0] -= 1
            raise RefusedError(429, "TooManyRequests", "the server has received too many requests")
        return (
            getattr(self, verb)(kind, namespace, name, query, body)
            if not sub
            else (200, self.log(namespace, name, query))
        )

    def allowed(self, verb: str, resource: str) -> bool:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        rules = settings["tokens"].get(token, [])
        return rules is None or f"{verb} {resource}" in rules

    def authorize(self, verb: str, resource: str, namespace: str) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in settings["tokens"]:
            raise RefusedError(401, "Unauthorized", "Unauthorized")
        if not self.allowed(verb, resource):
            group = "batch" if resource == "jobs" else ""
            name = f"{resource}.{group}" if group else resource
            raise RefusedError(
                403,
                "Forbidden",
                f'{name} is forbidden: User "{token}" cannot {verb} resource "{resource}" in API group "{group}" in '
                f'the namespace "{namespace}"',
            )

    # ---------------------------------------------------------------- verbs

    def create(
        self, kind: str, namespace: str, name: str, query: Thing, body: Thing
    ) -> tuple[int, Thing]:
        if namespace not in settings["namespaces"]:
            raise RefusedError(404, "NotFound", f'namespaces "{namespace}" not found')
        check(kind, namespace, body, strict=query.get("fieldValidation") == "Strict")
        if kind == "jobs" and (used := len(store.find(kind, namespace)[0])) >= most_jobs.get(
            namespace, 1 << 30
        ):
            most = most_jobs[namespace]
            numbers = f"requested: count/jobs.batch=1, used: count/jobs.batch={used}, limited: count/jobs.batch={most}"
            why = f'jobs.batch "{body["metadata"]["name"]}" is forbidden: exceeded quota: jobs, {numbers}'
            raise RefusedError(403, "Forbidden", why)
        return 201, store.create(kind, namespace, body)

    def get(
        self, kind: str, namespace: str, name: str, query: Thing, body: Thing
    ) -> tuple[int, Thing]:
        return 200, store.get(kind, namespace, name)

    def list(
        self, kind: str, namespace: str, name: str, query: Thing, body: Thing
    ) -> tuple[int, Thing]:
        found, version = store.find(kind, namespace, query.get("labelSelector", ""))
        for term in filter(None, query.get("fieldSelector", "").split(",")):
            path, value = term.split("=")
            found = [each for each in found if _at(each, path) == value]
        api = "batch/v1" if kind == "jobs" else "v1"
        return 200, {
            "kind": LISTS[kind],
            "apiVersion": api,
            "metadata": {"resourceVersion": str(version)},
            "items": found,
        }

    def delete(
        self, kind: str, namespace: str, name: str, query: Thing, body: Thing
    ) -> tuple[int, Thing]:
        thing = store.get(kind, namespace, name)
        wanted = (body.get("preconditions") or {}).get("uid")
        if wanted and wanted != thing["metadata"]["uid"]:
            why = f"Precondition failed: UID in precondition: {wanted}, UID in object meta: {thing['metadata']['uid']}"
            raise RefusedError(
                409, "Conflict", f'Operation cannot be fulfilled on {kind} "{name}": {why}'
            )
        if kind == "pods":
            delete_pod(store, thing)
            return 200, thing
        if (
            kind == "jobs"
            and (body.get("propagationPolicy") or query.get("propagationPolicy")) != "Background"
        ):
            for pod in store.find("pods", namespace, f"job-name={name}")[0]:  # orphans
                store.update(
                    "pods",
                    namespace,
                    pod["metadata"]["name"],
                    lambda pod: pod["metadata"].pop("ownerReferences"),
                )
        store.remove(kind, namespace, name)
        details = {"name": name, "kind": kind, "uid": thing["metadata"]["uid"]}
        return 200, {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Success",
            "details": details,
        }

    def watch(
        self, kind: str, namespace: str, name: str, query: Thing, body: Thing
    ) -> tuple[int, Thing]:
        until = time.monotonic() + float(query.get("timeoutSeconds", 1800))
        events = store.watch(
            kind, namespace, query.get("labelSelector", ""), int(query["resourceVersion"]), until
        )
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for event in events:
                if event is not None:
                    self.chunk(event)
        except RefusedError as error:
            self.chunk({"type": "ERROR", "object": error.status()})
        self.wfile.write(b"0\r\n\r\n")
        raise BrokenPipeError  # all has been said

    def chunk(self, event: Thing) -> None:
        data = json.dumps(event).encode() + b"\n"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def log(self, namespace: str, name: str, query: Thing) -> str:
        pod = store.get("pods", namespace, name)
        container = query.get("container") or pod["spec"]["containers"][0]["name"]
        path = self.kubelet.logs.get((pod["metadata"]["uid"], container))
        if path is None:
            raise RefusedError(
                400, "BadRequest", f'container "{container}" in pod "{name}" is waiting to start'
            )
        with open(path, errors="replace") as file:
            lines = file.read().splitlines(keepends=True)
        return "".join(lines[-int(query.get("tailLines", len(lines) or 1)) :])

    # ---------------------------------------------------------------- what is not Kubernetes

    def emulate(self, what: str, query: Thing) -> Thing:
        if what == "counts":
            return dict(counts)
        if what == "evict":
            pod = store.get("pods", query["namespace"], query["name"])
            self.kubelet.pods[pod["metadata"]["uid"]].evict("The node was low on resource: memory.")
        elif what == "forget":
            store.forget(10**9)
        elif what == "busy":
            busy[0] = int(query["requests"])
        elif what == "quota":
            quota = most_jobs if query["of"] == "jobs" else self.controller.quotas
            quota[query["namespace"]] = int(query["most"])
        return {}


def _at(thing: Any, path: str) -> Any:
    for name in path.split("."):
        thing = thing.get(name, {})
    return thing


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def main() -> None:
    port, slots, given = sys.argv[1:]
    settings.update(json.loads(given))
    Handler.kubelet = Kubelet(store, int(slots), settings["images"])
    Handler.kubelet.start()
    Handler.controller = Controller(store)
    Handler.controller.start()
    server = Server(("127.0.0.1", int(port)), Handler)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    try:
        server.serve_forever(0.1)
    finally:
        Handler.kubelet.end()


if __name__ == "__main__":
    main()
