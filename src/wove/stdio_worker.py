"""``python -m wove.stdio_worker``: a worker process for the ``stdio`` executor."""

from __future__ import annotations

from wove.worker.stdio import main

if __name__ == "__main__":
    main()
