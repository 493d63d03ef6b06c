"""The page's HTTP server: the standard library's, in one thread for each request, all of them daemons."""

from __future__ import annotations

import json
import logging
import re
import socket
import sys
import threading
from collections.abc import Callable
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Final

from wove.observe.assets import digest, read
from wove.observe.dashboard.address import Address
from wove.observe.dashboard.weaves import Watched, Weaves
from wove.observe.timeline import page

__all__ = ["Server"]

_log = logging.getLogger("wove")

TIDY_SECONDS: Final = 0.25
REQUEST_SECONDS: Final = 10.0
"""How long a browser may take to send a request."""

END_SECONDS: Final = 2.0
MAX_REQUESTS: Final = 32
"""How many requests are answered at the same time. A page makes four; the connections of others are closed."""

_HTML: Final = "text/html; charset=utf-8"
_WEAVE: Final = re.compile(r"/weaves/(\d{1,9})(/graph\.svg|/timeline|/data|)")

_ICON: Final = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><path fill="none" stroke="#3b76d6" '
    'stroke-width="2" d="M2 3l3 10 3-9 3 9 3-10"/></svg>'
)


class Server:
    """Serves *weaves* at *address* from now until `close`."""

    def __init__(self, address: Address, weaves: Weaves) -> None:
        self._http = _HTTPServer(address, weaves)
        self.url = f"http://{self._http.address}/"
        # Not from a pool: it serves until `close`, which joins it.
        self._thread = threading.Thread(
            target=self._http.serve_forever,
            args=(TIDY_SECONDS,),
            name="wove-dashboard",
            daemon=True,
        )
        self._thread.start()

    def close(self) -> None:
        """End it. What a browser is reading at the moment, it may still get."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(END_SECONDS)

    def abandon(self) -> None:
        """In a forked child: close the copy of the socket, which would keep the address in use."""
        self._http.socket.close()


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, address: Address, weaves: Weaves) -> None:
        self.weaves = weaves
        self._room = threading.Semaphore(MAX_REQUESTS)
        if ":" in address.host:
            self.address_family = socket.AF_INET6
        super().__init__((address.host, address.port), _Handler)
        self.address = Address(address.host, self.socket.getsockname()[1])

    def server_bind(self) -> None:
        # Not HTTPServer's, which looks up the name of the machine: that may take seconds.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)

    def service_actions(self) -> None:
        try:
            self.weaves.tidy()
        except Exception:  # the page must outlive a weave that it cannot show
            _log.exception("the dashboard could not keep a weave that has ended")

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a browser that goes away is not an error
            _log.exception("the dashboard could not answer a request")


class _Handler(BaseHTTPRequestHandler):
    server: _HTTPServer  # pyright: ignore[reportIncompatibleVariableOverride]
    timeout = REQUEST_SECONDS
    server_version = "wove"
    sys_version = ""

    def do_GET(self) -> None:
        refusal = self.server.address.refusal(self.headers)
        if refusal is not None:
            self._answer(403, "text/plain; charset=utf-8", refusal)
            return

        found = self._find(self.path.partition("?")[0])
        if found is None:
            self._answer(404, "text/plain; charset=utf-8", "there is nothing here")
        else:
            self._answer(200, *found)

    def _find(self, path: str) -> tuple[str, str] | None:
        if path == "/":
            return _HTML, _dashboard_page()
        if path == "/favicon.ico":
            return "image/svg+xml", _ICON
        if path == "/weaves":
            return "application/json", json.dumps(
                [one.summary() for one in self.server.weaves.all()]
            )

        match = _WEAVE.fullmatch(path)
        watched = None if match is None else self.server.weaves.get(int(match[1]))
        if match is None or watched is None:
            return None
        kind, content = self._parts[match[2]]
        return kind, content(watched)

    _parts: ClassVar[dict[str, tuple[str, Callable[[Watched], str]]]] = {
        "": ("application/json", lambda watched: json.dumps(watched.details())),
        "/graph.svg": ("image/svg+xml", lambda watched: watched.graph()),
        "/timeline": (_HTML, lambda watched: page(watched.timeline(), watched.title)),
        "/data": ("text/plain; charset=us-ascii", lambda watched: watched.timeline()),
    }

    def _answer(self, status: int, kind: str, text: str) -> None:
        body = text.encode("utf-8", "backslashreplace")
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "SAMEORIGIN")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """A page that asks every second is not to be logged."""


def _dashboard_page() -> str:
    package = "wove.observe.dashboard"
    script, style = read(package, "dashboard.js"), read(package, "dashboard.css")
    policy = (
        "default-src 'none'; connect-src 'self'; img-src 'self'; frame-src 'self'; "
        f"script-src {digest(script)}; style-src {digest(style)}"
    )
    text = read(package, "dashboard.html")
    for name, part in (("policy", escape(policy)), ("style", style), ("script", script)):
        text = text.replace(f"<!--{name}-->", part)
    return text
