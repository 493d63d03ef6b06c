"""A report on the standard library's own source files: ``python -m examples.stdlib_report [FOLDER]``.

One weave, four kinds of places: threads of this process, its event loop, a pool of worker processes, and a worker
service.
"""

from __future__ import annotations

import asyncio
import sys
import sysconfig
import time
from collections import Counter
from pathlib import Path

from examples.stdlib_report import analysis, report
from examples.stdlib_report.service import worker_service

import wove
from wove import batch, weave


def main(root: str) -> None:
    with worker_service() as address:
        # The code below says what is computed; this says where. "stdio" is a pool of Python processes on this machine,
        # and "http" a worker service, which may be on any.
        wove.config(
            environments={
                "pool": {"executor": "stdio"},
                "service": {"executor": "http", "executor_config": address},
            }
        )
        weave_report(root)


def weave_report(root: str) -> None:
    began = time.perf_counter()
    with weave(root=root) as w:
        # A plain function runs in a thread. `root` is an initial value: parameters name what a task waits for.
        @w.do
        def files(root: str) -> list[str]:
            paths = Path(root).rglob("*.py")
            return sorted(
                str(path)
                for path in paths
                if not {"site-packages", "__pycache__"} & set(path.parts)
            )

        # One run per file, in the pool: parsing computes without a pause, so only processes can do it in parallel.
        @w.do("files", environment="pool")
        def analysed(path: str) -> analysis.FileReport:
            return analysis.analyse(path)

        # Meanwhile, since they wait for `files` only: which files are byte for byte the same? The reading is done by
        # the service, in forty requests over kept connections, each of them signed.
        @w.do
        def shares(files: list[str]) -> list[list[str]]:
            return batch(files, 40)

        @w.do("shares", environment="service", workers=4)
        def digests(share: list[str]) -> list[str]:
            return analysis.digests(share)

        @w.do
        def copies(digests: list[list[str]]) -> int:
            counts = Counter(digest for share in digests for digest in share)
            return sum(count - 1 for count in counts.values())

        # And on the event loop: an async task, which needs no thread.
        @w.do
        async def interpreter() -> str:
            asked = await asyncio.create_subprocess_exec(
                sys.executable, "-VV", stdout=asyncio.subprocess.PIPE
            )
            answer, _ = await asked.communicate()
            return " ".join(answer.decode().split())

        # When all three are there, the results become one text.
        @w.do
        def summary(analysed: list[analysis.FileReport], copies: int, interpreter: str) -> str:
            return report.summarise(analysed, copies, interpreter)

    print(w.result.summary)
    print()
    print(report.what_ran_where(w.result, time.perf_counter() - began))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else sysconfig.get_path("stdlib"))
