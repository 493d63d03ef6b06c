"""What a page about a backend needs around it: the server that it names, and the worker that it starts.

A ``bash`` block may hold the command of a worker (`rq worker ...`). Then a server of the tests takes the place of the
one that the page names at its usual address, in the page's script, its files and its commands, and the worker runs
beside the script, in the folder with the page's files.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from tests.docs.pages import Page
from tests.support.servers import Servers
from tests.support.workers import Command, Worker

__all__ = ["needs", "staged"]

READY: Final[Mapping[tuple[str, ...], str]] = {
    ("rq", "worker"): r"\*\*\* Listening on ",
    ("celery",): r"celery@\S+ ready\.",
    ("arq",): r"redis_version=",
    ("taskiq", "worker"): r"Listening started",
    ("dask", "worker"): r"Registered to:",
    ("python", "-m", "wove.integrations.temporal"): r"takes runs from task queue",
    ("python", "reports_worker.py"): r"takes runs",
}
"""What a worker says when it takes work, by how its command begins."""

ADDRESSES: Final[Mapping[str, tuple[str, Callable[[Servers], str]]]] = {
    "redis://localhost:6379": ("redis", lambda servers: servers.redis.url.rpartition("/")[0]),
    "localhost:7233": ("temporal", lambda servers: servers.temporal.address),
    "tcp://localhost:8786": ("dask", lambda servers: servers.dask.address),
    "amqp://guest:guest@localhost:5672": (
        "rabbitmq",
        lambda servers: servers.rabbitmq.url.rstrip("/"),
    ),
}
"""Servers, by the usual address of each: the backend of tests/support/backends.py, and where ours is."""


def needs(page: Page) -> list[str]:
    """The backends without which the workers of *page* cannot run."""
    programs = {shlex.split(command)[0] for command in page.workers} - {"python"}
    text = " ".join([page.script, *page.files.values(), *page.workers])
    servers = {name for usual, (name, _) in ADDRESSES.items() if usual in text}
    return sorted(programs | servers) if page.workers else []


@contextmanager
def staged(page: Page, servers: Servers, folder: Path) -> Iterator[Page]:
    """*page*, as it is to be run in *folder*, while its workers run."""
    if not page.workers:
        yield page
        return
    text = " ".join([page.script, *page.files.values(), *page.workers])
    ours = {usual: ours(servers) for usual, (_, ours) in ADDRESSES.items() if usual in text}

    def moved(text: str) -> str:
        for usual, address in ours.items():
            text = text.replace(usual, address)
        return text

    files = {name: moved(content) for name, content in page.files.items()}
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    with ExitStack() as stack:
        for number, command in enumerate(page.workers):
            program, *arguments = shlex.split(moved(command))
            ready = next(
                words
                for begin, words in READY.items()
                if [program, *arguments][: len(begin)] == list(begin)
            )
            line = (str(Path(sys.executable).with_name(program)), *arguments)
            place = folder / f"worker-{number}"
            stack.enter_context(
                Worker.start(Command(command, line, ready), place, path=folder, cwd=folder)
            )
        yield Page(moved(page.script), files, page.expected, page.commands, page.workers)
