"""A report on the standard library's own source files: ``python -m examples.stdlib_report [FOLDER]``.

One weave, three kinds of places: threads of this process, its event loop, and a pool of worker processes.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
import sysconfig
import time
from collections import Counter
from pathlib import Path

from examples.stdlib_report import analysis, report

import wove
from wove import weave

# The code below says what is computed; this says where. "stdio" is a pool of Python processes on this machine.
wove.config(environments={"pool": {"executor": "stdio"}})


def main(root: str) -> None:
    began = time.perf_counter()
    with weave(root=root) as w:
        # A plain function runs in a thread. `root` is an initial value: parameters name what a task waits for.
        @w.do
        def files(root: str) -> list[str]:
            paths = Path(root).rglob("*.py")
            return sorted(str(path) for path in paths if not {"site-packages", "__pycache__"} & set(path.parts))

        # One run per file, in the pool: parsing computes without a pause, so only processes can do it in parallel.
        @w.do("files", environment="pool")
        def analysed(path: str) -> analysis.FileReport:
            return analysis.analyse(path)

        # Meanwhile in a thread here, since it waits for `files` only: which files are byte for byte the same?
        @w.do
        def copies(files: list[str]) -> int:
            digests = Counter(hashlib.sha256(Path(path).read_bytes()).digest() for path in files)
            return sum(count - 1 for count in digests.values())

        # And on the event loop: an async task, which needs no thread.
        @w.do
        async def interpreter() -> str:
            asked = await asyncio.create_subprocess_exec(sys.executable, "-VV", stdout=asyncio.subprocess.PIPE)
            answer, _ = await asked.communicate()
            return " ".join(answer.decode().split())

        # When the three are there, the results become one text.
        @w.do
        def summary(analysed: list[analysis.FileReport], copies: int, interpreter: str) -> str:
            return report.summarise(analysed, copies, interpreter)

    print(w.result.summary)
    print()
    print(report.what_ran_where(w.result, time.perf_counter() - began))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else sysconfig.get_path("stdlib"))
