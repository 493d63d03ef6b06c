"""Fresh processes: what a parent runs in them, and what they say of themselves.

``python -m benchmarks.fresh MODULE:FUNCTION [NUMBER | TEXT ...]`` calls the function with these and
prints what it returns, and the peak memory of the process, as one line of JSON. This module imports
next to nothing, so that what is measured is the function's own.
"""

from __future__ import annotations

import sys


def peak_mib() -> float:
    """The most memory this process ever held at once, in MiB."""
    try:
        # Linux: the high-water mark of this program alone. `ru_maxrss` would begin at what the
        # parent held when it started us.
        with open("/proc/self/status", encoding="ascii") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


def call(target: str, *arguments: int | str) -> dict[str, float]:
    """Run ``module:function`` in a fresh process; what it returned, and ``"peak"`` in MiB."""
    import json
    import subprocess

    command = [sys.executable, "-m", "benchmarks.fresh", target, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    """The fresh process's side of `call`."""
    import importlib

    module, _, name = sys.argv[1].partition(":")
    function = getattr(importlib.import_module(module), name)
    arguments = [int(text) if text.isdigit() else text for text in sys.argv[2:]]
    values = dict(function(*arguments) or {})
    values["peak"] = peak_mib()
    print("{" + ", ".join(f'"{key}": {value!r}' for key, value in values.items()) + "}", flush=True)


if __name__ == "__main__":
    main()
