"""A headless Chromium, driven over the DevTools protocol: https://chromedevtools.github.io/devtools-protocol/."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

START_SECONDS = 40.0
ANSWER_SECONDS = 50.0
END_SECONDS = 10.0

COMMANDS = ("chromium", "chromium-browser", "google-chrome")


def missing() -> str | None:
    """Why there is no browser here; ``None`` when there is one."""
    return None if _command() else f"none of {', '.join(COMMANDS)} is installed"


def _command() -> str | None:
    return next(filter(None, map(shutil.which, COMMANDS)), None)


class Page:
    """One page of the browser.

    Attributes:
        errors: What the page's scripts raised, and what the page's policy refused, as text, since it was opened.
        requests: The addresses that the page asked for, itself among them.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self._loaded = False
        self.errors: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return the browser's answer to *method*.

        Raises:
            RuntimeError: The browser refused it.
        """
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        deadline = time.monotonic() + ANSWER_SECONDS
        while (answer := self._receive(deadline)).get("id") != number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _receive(self, deadline: float) -> dict[str, Any]:
        message = json.loads(self._socket.recv(timeout=max(0.0, deadline - time.monotonic())))
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Runtime.exceptionThrown":
                details = message["params"]["exceptionDetails"]
                self.errors.append(details.get("exception", {}).get("description", details["text"]))
            case "Log.entryAdded" if message["params"]["entry"]["level"] == "error":
                self.errors.append(message["params"]["entry"]["text"])
            case "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
        return message

    def open(self, url: str, ready: str = "true") -> float:
        """Open *url*; return the seconds until the script *ready* gave true."""
        self._load("about:blank")  # what the page before had to say is said by then
        self.errors.clear()
        began = time.perf_counter()
        self._load(url)
        self.wait(ready)
        return time.perf_counter() - began

    def _load(self, url: str) -> None:
        self._loaded = False
        self.call("Page.navigate", url=url)
        deadline = time.monotonic() + ANSWER_SECONDS
        while not self._loaded:
            self._receive(deadline)

    def wait(self, script: str) -> None:
        """Wait until *script* gives true.

        Raises:
            TimeoutError: It does not.
        """
        deadline = time.monotonic() + ANSWER_SECONDS
        while not self.run(script):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{script}; errors of the page: {self.errors}")
            time.sleep(0.01)

    def run(self, script: str) -> Any:
        """Return what *script* gives; a promise is awaited.

        Raises:
            RuntimeError: It raised.
        """
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """Press *key* once: a character, or the name of a key."""
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def look(self, theme: str, width: int, height: int, scale: float = 1) -> None:
        """Show pages in *theme* (``"light"`` or ``"dark"``), in a window of that many pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 500,
        )
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": theme}],
        )

    def picture(self, path: Path) -> None:
        """Write what is to be seen to *path*, as PNG."""
        path.write_bytes(
            base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        )


@contextlib.contextmanager
def browser() -> Iterator[Page]:
    """Start a browser and yield its page; end the browser afterwards."""
    from websockets.sync.client import connect  # here, because the other tests do without

    command = _command()
    assert command is not None, missing()
    with tempfile.TemporaryDirectory(prefix="wove-browser-", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [
                command,
                "--headless",
                "--no-sandbox",  # which the tests' user may be unable to set up
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--disable-background-networking",
                "--remote-debugging-port=0",
                f"--user-data-dir={folder}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": folder},
            start_new_session=True,
        )
        try:
            with connect(_address(process, Path(folder)), max_size=None) as socket:
                page = Page(socket)
                yield page
                with contextlib.suppress(Exception):
                    page.call("Browser.close")
        finally:
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _address(process: subprocess.Popen[bytes], folder: Path) -> str:
    """Return the address of the browser's first page."""
    import urllib.request

    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the browser ended with {process.returncode}")
        with contextlib.suppress(OSError, ValueError, LookupError, StopIteration):
            port = int((folder / "DevToolsActivePort").read_text().split()[0])
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=5) as answer:
                pages = json.load(answer)
            return next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
        time.sleep(0.02)
    raise TimeoutError("the browser did not start")
