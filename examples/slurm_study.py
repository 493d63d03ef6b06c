"""A study over a grid of parameters on Slurm, which goes on where it was interrupted.

Run it with ``python -m examples.slurm_study FOLDER`` where ``sbatch`` works. All nodes must share the folder.
With ``--local`` a pool of processes takes the place of Slurm. Each result is a file, and is not computed again.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import wove
from wove import weave

SLURM = {
    "executor": "slurm",
    "executor_config": {
        "sbatch_options": {"time": "0:10:00"},
        "callback_host": "0.0.0.0",
        "insecure": True,  # events travel in the clear: a network that is yours alone
    },
    "delivery_orphan_policy": "requeue",
    "delivery_max_in_flight": 50,
}
POOL = {"executor": "stdio", "executor_config": {"processes": 2}}


def study(folder: Path) -> tuple[int, dict[str, Any]]:
    """Compute what is missing in *folder*. Return how many points that were, and the best one of all."""
    grid = [{"rate": rate, "depth": depth} for rate, depth in itertools.product((1, 2, 3), (2, 4))]
    folder.mkdir(parents=True, exist_ok=True)
    missing = [point for point in grid if not _file(folder, point).exists()]
    with weave(folder=str(folder.resolve())) as w:

        @w.do(missing, environment="study")
        def result(point: dict[str, int], folder: str) -> None:
            found = {**point, "loss": abs(point["rate"] * point["depth"] - 7)}
            target = _file(Path(folder), point)
            part = target.with_suffix(".part")
            part.write_text(json.dumps(found))
            part.rename(target)  # a file is there as a whole, or it is not there

        @w.do
        def best(result: list[None], folder: str) -> dict[str, Any]:
            found = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]
            return dict(min(found, key=lambda each: each["loss"]))

    return len(missing), w.result.best


def _file(folder: Path, point: dict[str, int]) -> Path:
    return folder / f"rate-{point['rate']}-depth-{point['depth']}.json"


def main() -> None:
    """Run the study in the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--local", action="store_true", help="a pool of processes instead of Slurm")
    options = parser.parse_args()
    wove.config(environments={"study": POOL if options.local else SLURM})
    computed, best = study(options.folder)
    print(f"computed {computed} points; the best is {best}")


if __name__ == "__main__":
    main()
