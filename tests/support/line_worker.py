"""A worker as small as one can be: payloads on stdin, one a line, each run in a thread by Wove's entry point.

    python tests/support/line_worker.py FOLDER

For each payload there is a file in FOLDER, named by its run id, once its job has ended: ``ok``, or what went wrong.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

from wove.integrations.worker import run


def work(line: str, folder: Path) -> None:
    run_id = json.loads(line)["run_id"]
    try:
        run(line)
        said = "ok"
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
    (folder / f".{run_id}").write_text(said)
    (folder / f".{run_id}").rename(folder / run_id)


if __name__ == "__main__":
    for line in sys.stdin:
        threading.Thread(target=work, args=(line, Path(sys.argv[1])), daemon=True).start()
