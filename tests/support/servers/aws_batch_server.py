"""A server of AWS Batch whose jobs really run: ``aws_batch_server.py PORT SLOTS IMAGES``.

moto answers the API and keeps the books; containers are processes of this machine, with the environment that the job
was given and not a variable more. SLOTS jobs run at a time, the others stay RUNNABLE. IMAGES is JSON: by name, the
environment variables that the image has; another image cannot be pulled.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from typing import Any

from moto.batch import models
from moto.server import main

Job: Any = models.Job

slots: threading.Semaphore
images: dict[str, dict[str, str]]


class Container:
    """What docker-py calls one: the six things of it that moto uses."""

    attrs: dict[str, Any] = {"NetworkSettings": {"Networks": {}, "IPAddress": "127.0.0.1"}}  # noqa: RUF012

    def __init__(self, command: list[str], environ: dict[str, str]) -> None:
        self.output = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            command,
            env=environ,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=subprocess.STDOUT,
            process_group=0,  # to be ended with all its processes; and in this session, so that the keeper sees it
        )

    @property
    def status(self) -> str:
        return "exited" if self.process.poll() is not None else "running"

    def reload(self) -> None:
        pass

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait(self) -> dict[str, int]:
        # As a shell would say it: 137 for SIGKILL.
        status = self.process.wait()
        return {"StatusCode": status if status >= 0 else 128 - status}

    def logs(self, *, stdout: bool, stderr: bool, **_: Any) -> bytes:
        if not stdout:
            return b""
        self.output.seek(0)
        now = datetime.now(UTC).isoformat().encode()
        return b"\n".join(now + b" " + line for line in self.output.read().splitlines() if line)

    def remove(self) -> None:
        self.output.close()


class Docker:
    """A client of docker-py, whose ``containers`` it is itself."""

    def __init__(self, job: Any) -> None:
        self.job = job
        self.containers = self

    def run(
        self, image: str, command: list[str], environment: dict[str, str], **_: Any
    ) -> Container:
        if image not in images:
            self.job.job_stopped_reason = (
                f"CannotPullContainerError: pull access denied for {image}"
            )
            raise RuntimeError(self.job.job_stopped_reason)
        try:
            return Container(command, {**images[image], **environment})
        except OSError as error:
            self.job.job_stopped_reason = f"CannotStartContainerError: {error}"
            raise


def advance(self: Any) -> None:
    """The next state; a job that is RUNNABLE waits for its turn."""
    if self._status == "RUNNABLE":
        while not self.stop and not slots.acquire(timeout=0.05):
            pass
        if self.stop:
            raise RuntimeError("terminated before it started")
        self.has_slot = True
    models.ManagedState.advance(self)


def run(self: Any) -> None:
    self.has_slot = False
    try:
        original_run(self)
    finally:
        if self.has_slot:
            slots.release()


def describe(self: Any) -> dict[str, Any]:
    """With what AWS says of a container that has ended, and moto does not."""
    found = original_describe(self)
    if self.job_stopped and self.exit_code is not None and "container" in found:
        found["container"]["exitCode"] = self.exit_code
        found.setdefault("statusReason", "Essential container in task exited")
    return found


def end_with_server() -> None:
    """End what still runs when this process does: it has been asked to, or its keeper is gone."""
    for job in threading.enumerate():
        if isinstance(job, Job):
            job.stop = True
    deadline = time.monotonic() + 3.0
    while (
        any(isinstance(job, Job) for job in threading.enumerate()) and time.monotonic() < deadline
    ):
        time.sleep(0.02)


if __name__ == "__main__":
    port, number, known = sys.argv[1:]
    slots, images = threading.Semaphore(int(number)), json.loads(known)
    original_run, original_describe = Job.run, Job.describe
    Job.run, Job.describe, Job.advance = run, describe, advance
    Job.docker_client = property(Docker)
    try:
        main(["-H", "127.0.0.1", "-p", port])
    finally:
        end_with_server()
