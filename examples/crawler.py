"""Crawl a site, each page as soon as a link to it is found, and count the words of its pages.

Run it with ``python -m examples.crawler``: it serves a small site of its own and crawls that.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import urlopen

from wove import weave

SITE = {
    "/": "welcome to the shop <a href=/fruit> <a href=/about>",
    "/fruit": "fruit of the season <a href=/apples> <a href=/pears>",
    "/apples": "red apples and green apples <a href=/fruit>",
    "/pears": "ripe pears <a href=/> <a href=/missing>",
    "/about": "the shop of ada",
}


class Handler(BaseHTTPRequestHandler):
    """Serves `SITE`."""

    def do_GET(self) -> None:
        text = SITE.get(self.path)
        self.send_response(404 if text is None else 200)
        self.end_headers()
        self.wfile.write((text or "not found").encode())

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log nothing."""


@contextmanager
def served() -> Generator[str, None, None]:
    """Serve `SITE` on a free port, and yield its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def crawl(site: str) -> dict[str, int]:
    """Return how often each word occurs in the pages of *site* that can be reached from ``/``."""
    with weave(site=site) as w:
        found: asyncio.Queue[str] = asyncio.Queue()

        @w.do
        async def paths() -> AsyncIterator[str]:
            seen = {"/"}
            waiting = 1  # pages that have been given out and not yet come back
            yield "/"
            while waiting:
                path = await found.get()
                if not path:
                    waiting -= 1
                elif path not in seen:
                    seen.add(path)
                    waiting += 1
                    yield path

        @w.do("paths", workers=4)
        async def page(path: str, site: str) -> str:
            try:
                text = await asyncio.to_thread(_load, site + path)
            except OSError:
                text = ""  # such as a link that leads nowhere
            for link in re.findall(r"href=([^>]+)>", text):
                found.put_nowait(link)
            found.put_nowait("")
            return re.sub(r"<[^>]*>", "", text)

        @w.do
        def words(page: list[str]) -> dict[str, int]:
            return dict(Counter(" ".join(page).split()))

    return dict(w.result.words)


def _load(url: str) -> str:
    with urlopen(url, timeout=10) as reply:
        return str(reply.read().decode())


def main() -> None:
    """Crawl the site of this example."""
    with served() as site:
        counted = crawl(site)
    for word, times in sorted(counted.items(), key=lambda each: (-each[1], each[0]))[:3]:
        print(f"{times} {word}")


if __name__ == "__main__":
    main()
