"""``wove cache``: what is kept of earlier runs, and how it is removed."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from wove.cli.terminal import SUCCESS, WRONG_USE, fail

if TYPE_CHECKING:
    from wove.cache.stores import FileStore

__all__ = ["add_parser"]

EXAMPLES: Final = """\
examples:
  wove cache ls runs/                       tasks, with the number and size of their results
  wove cache rm runs/ pdf report            the results of these tasks
  wove cache rm runs/ --older-than 30d      all that were written more than 30 days ago
  wove cache rm runs/ --all                 every result
  wove cache adopt runs/                    sign with your own secret what another one has signed

STORE is the path that weave(store=...) has: a SQLite file, a folder with one, or a folder of a DirectoryStore."""

UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}

BATCH: Final = 256


def add_parser(new: Callable[..., argparse.ArgumentParser]) -> None:
    """Add ``cache`` to the commands; *new* is the ``add_parser`` of argparse."""
    parser = new(
        "cache",
        help="show or remove kept results",
        description="Show or remove the results that tasks with cache=True have kept.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    ls = commands.add_parser("ls", help="list the tasks in a store")
    ls.set_defaults(run=_ls)
    rm = commands.add_parser("rm", help="remove results")
    rm.set_defaults(run=_rm)
    adopt = commands.add_parser(
        "adopt",
        help="sign all results anew",
        description="Sign every result with the secret of this user, whoever has signed it. Results are pickles, "
        "and a pickle can run any code when it is loaded: adopt only what you trust. Nothing is loaded here.",
    )
    adopt.set_defaults(run=_adopt)

    for command in (ls, rm, adopt):
        command.add_argument("store", metavar="STORE", help="the path of the store")
    rm.add_argument("tasks", metavar="TASK", nargs="*", help="only the results of these tasks")
    rm.add_argument("--all", action="store_true", help="every result")
    rm.add_argument(
        "--older-than", metavar="AGE", type=_seconds, help="only older ones: 45m, 12h, 30d, 8w"
    )


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not an age, such as 45m, 12h, 30d or 8w")
    return float(match[1]) * UNITS[match[2]]


def _opened(path: str) -> FileStore:
    """Return the store at *path*, of whichever kind it is."""
    from wove.cache import DirectoryStore, SQLiteStore
    from wove.cache.stores import SUFFIX

    store = SQLiteStore(path)
    if not store.path.exists() and any(Path(path).glob(f"*/*{SUFFIX}")):
        return DirectoryStore(path)
    return store


def _ls(chosen: argparse.Namespace) -> int:
    try:
        kept = _opened(chosen.store).tasks()
    except Exception as error:
        return fail("wove cache ls", error)

    width = max([len("task"), *(len(one.task) for one in kept)])
    print(f"{'task':<{width}}  {'results':>9}  {'size':>10}  newest")  # noqa: T201
    for one in kept:
        newest = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.newest))
        print(f"{one.task:<{width}}  {one.results:>9,}  {_size(one.bytes):>10}  {newest}")  # noqa: T201
    return SUCCESS


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _rm(chosen: argparse.Namespace) -> int:
    if not (chosen.all or chosen.tasks or chosen.older_than):
        error = ValueError("say which results: names of tasks, --older-than, or --all")
        return fail("wove cache rm", error, WRONG_USE)
    if chosen.all and chosen.tasks:
        return fail(
            "wove cache rm", ValueError("--all and names of tasks do not go together"), WRONG_USE
        )

    # A little into the future: clocks of file servers differ.
    before = time.time() - chosen.older_than if chosen.older_than else time.time() + 86400
    try:
        store = _opened(chosen.store)
        count = store.remove(chosen.tasks or None, before)
    except Exception as error:
        return fail("wove cache rm", error)

    print(f"{count:,} removed from {store.label}")  # noqa: T201
    return SUCCESS


def _adopt(chosen: argparse.Namespace) -> int:
    from wove.cache.records import Seal

    try:
        store, seal = _opened(chosen.store), Seal.of_user()
        rows = [row._replace(record=seal.adopt(row.key, row.record)) for row in store.rows()]
        for start in range(0, len(rows), BATCH):
            store.put_many(rows[start : start + BATCH])
    except Exception as error:
        return fail("wove cache adopt", error)

    print(f"{len(rows):,} signed in {store.label}")  # noqa: T201
    return SUCCESS
