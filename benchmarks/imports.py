"""``import wove``, in fresh interpreters."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from time import perf_counter

from .harness import Figure, Probe, Target, Values, benchmark

REFERENCE = "import asyncio, concurrent.futures.thread"


def inside(statement: str) -> Probe:
    """Seconds that *statement* takes, measured by the fresh interpreter around it."""
    code = f"from time import perf_counter as clock\nbegin = clock()\n{statement}\nprint(clock() - begin)"

    def probe() -> Values:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True
        )
        return {statement: float(done.stdout)}

    return probe


def whole(code: str) -> Probe:
    """Seconds from starting ``python -c CODE`` to its end."""

    def probe() -> Values:
        begin = perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return {f"python -c {code!r}": perf_counter() - begin}

    return probe


@benchmark("import")
def importing() -> Iterator[Figure]:
    """Importing wove, beside importing what any script with asyncio and threads imports."""
    yield Figure(
        "import wove",
        "import wove",
        [inside("import wove"), inside(REFERENCE)],
        Target(0.3),
        rounds=21,
    )
    yield Figure(
        "from wove import weave",
        "from wove import weave",
        [inside("from wove import weave"), inside(REFERENCE)],
        rounds=21,
    )
    yield Figure(
        "the whole life of a process that imports",
        "python -c 'import wove'",
        [whole("import wove"), whole(REFERENCE), whole("pass")],
        aside=("python -c 'pass'",),
        rounds=21,
    )
