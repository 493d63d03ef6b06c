"""Make a report whose chapters are written by Celery workers.

Run it with ``python -m examples.celery_report REDIS_URL``: it starts a worker, which it stops at the end.
"""

from __future__ import annotations

import os
import subprocess
import sys

from celery import Celery

import wove
from wove import weave
from wove.integrations.celery import register

QUEUE = "wove-example-report"

app = Celery("report", broker=os.environ.get("REPORT_BROKER"))
app.conf.task_default_queue = QUEUE
register(app)


def report(customers: list[str]) -> str:
    """Return the report of *customers*. Its chapters are written on the workers."""
    with weave(customers=customers) as w:

        @w.do("customers", environment="reports", retries=1, delivery_timeout=60.0)
        def chapter(customer: str) -> str:
            return f"{customer.title()} has {len(customer)} orders."

        @w.do
        def text(chapter: list[str]) -> str:
            return "\n".join(chapter)

    return str(w.result.text)


def main() -> None:
    """Start a worker and make a report."""
    broker = sys.argv[1] if len(sys.argv) > 1 else "redis://localhost:6379/0"
    wove.config(
        environments={
            "reports": {
                "executor": "celery",
                "executor_config": {"broker_url": broker, "queue": QUEUE},
            }
        }
    )
    command = [sys.executable, "-m", "celery", "-A", "examples.celery_report", "worker"]
    worker = subprocess.Popen(
        [*command, "--concurrency", "1", "--loglevel", "error"],
        env={**os.environ, "REPORT_BROKER": broker},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        print(report(["ada", "bob", "cyd"]))
    finally:
        worker.terminate()
        worker.wait(timeout=30)


if __name__ == "__main__":
    main()
