"""A backend of one worker process and no queue: what an adapter rests on, without a server of somebody else's.

The worker is line_worker.py. One that dies is replaced when the next payload comes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from wove import BackendAdapter, BackendAdapterEnvironmentExecutor
from wove.integrations.base import JobStatus

__all__ = ["LineAdapter", "line_executor"]

ROOT = Path(__file__).parents[2]


class LineAdapter(BackendAdapter):
    """Keys: ``secret``, what the worker has as ``WOVE_WORKER_SECRET``."""

    name = "line"
    keys = ("secret",)
    watch_seconds = (0.1, 1.0)

    opened: ClassVar[list[LineAdapter]] = []
    """Those that have not been closed."""

    def start(self) -> None:
        self.lock = threading.Lock()
        self.folder = Path(tempfile.mkdtemp(prefix="line-backend-"))
        self.worker: subprocess.Popen[str] | None = None
        self.payloads: list[dict[str, Any]] = []
        self.cancelled: list[str] = []
        self.ended: dict[int, int] = {}
        self.opened.append(self)

    def submit(self, payload: dict[str, Any], frame: Mapping[str, Any]) -> tuple[str, int]:
        with self.lock:
            self.payloads.append(payload)
            worker = self._living()
            assert worker.stdin is not None
            worker.stdin.write(json.dumps(payload) + "\n")
            worker.stdin.flush()
            return payload["run_id"], worker.pid

    def cancel(self, run_id: str, submission: Any, frame: Mapping[str, Any]) -> None:
        self.cancelled.append(run_id)  # and its worker hears of it from the receiver

    def watch(self, submissions: Mapping[str, tuple[str, int]]) -> dict[str, JobStatus]:
        fates: dict[str, JobStatus] = {}
        worker = self.worker
        for run_id, (_, pid) in submissions.items():
            ended = self.folder / run_id
            if ended.exists():
                said = ended.read_text()
                fates[run_id] = JobStatus("finished" if said == "ok" else "lost", said)
            elif pid in self.ended or (worker is not None and worker.poll() is not None):
                status = self.ended.get(pid) or (worker.poll() if worker else None) or 0
                how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
                fates[run_id] = JobStatus("lost", f"process {pid} ended with {how}")
        return fates

    def close(self) -> None:
        self.opened.remove(self)
        self._end()
        shutil.rmtree(self.folder)

    def _living(self) -> subprocess.Popen[str]:
        if self.worker is None or self.worker.poll() is not None:
            self._end()
            environ = {**os.environ, "PYTHONPATH": str(ROOT)}
            if secret := self.config.get("secret"):
                environ["WOVE_WORKER_SECRET"] = secret
            self.worker = subprocess.Popen(
                [sys.executable, str(ROOT / "tests/support/line_worker.py"), str(self.folder)],
                stdin=subprocess.PIPE,
                text=True,
                env=environ,
            )
        return self.worker

    def _end(self) -> None:
        if self.worker is not None:
            self.worker.kill()
            self.worker.communicate()
            self.ended[self.worker.pid] = self.worker.returncode
            self.worker = None


def line_executor() -> BackendAdapterEnvironmentExecutor:
    """An executor with a `LineAdapter`."""
    return BackendAdapterEnvironmentExecutor("line", adapter_class=LineAdapter)
