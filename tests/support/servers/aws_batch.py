"""AWS Batch, as moto speaks it, with jobs that are processes; see aws_batch_server.py."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.kept import ROOT, Kept, free_port, keep

__all__ = ["IMAGE", "AWSBatch", "missing", "running"]

IMAGE = "wove-worker:latest"
"""An image whose ``python`` is the one that runs the tests."""

ENVIRON = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "eu-central-1",
}


@dataclass(frozen=True)
class AWSBatch:
    """A server that runs.

    Attributes:
        kept: Its process.
        port: Where it listens.
    """

    kept: Kept
    port: int

    @property
    def url(self) -> str:
        """The ``endpoint_url``."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def client_options(self) -> dict[str, str]:
        """What `boto3.client` takes."""
        return {
            "endpoint_url": self.url,
            "region_name": ENVIRON["AWS_DEFAULT_REGION"],
            "aws_access_key_id": ENVIRON["AWS_ACCESS_KEY_ID"],
            "aws_secret_access_key": ENVIRON["AWS_SECRET_ACCESS_KEY"],
        }

    def client(self, service: str = "batch") -> Any:
        import boto3

        return boto3.client(service, **self.client_options)

    def queue(self, name: str) -> str:
        """Make a job queue of that name, and what it needs."""
        batch, policy = self.client(), {"Version": "2012-10-17", "Statement": []}
        role = self.client("iam").create_role(
            RoleName=f"{name}-role", AssumeRolePolicyDocument=json.dumps(policy)
        )
        batch.create_compute_environment(
            computeEnvironmentName=f"{name}-environment",
            type="UNMANAGED",
            state="ENABLED",
            serviceRole=role["Role"]["Arn"],
        )
        order = [{"order": 1, "computeEnvironment": f"{name}-environment"}]
        batch.create_job_queue(
            jobQueueName=name, state="ENABLED", priority=1, computeEnvironmentOrder=order
        )
        return name

    def definition(
        self, name: str, command: Sequence[str], *, image: str = IMAGE, **more: Any
    ) -> str:
        """Register a job definition of that name."""
        self.client().register_job_definition(
            jobDefinitionName=name,
            type="container",
            containerProperties={
                "image": image,
                "command": list(command),
                "vcpus": 1,
                "memory": 256,
                **more,
            },
        )
        return name


def missing() -> str | None:
    """Why it cannot run here, or ``None``."""
    for package in ("boto3", "moto", "flask", "docker"):
        if importlib.util.find_spec(package) is None:
            return f"the package {package} is not installed (moto[batch,server])"
    return None


@contextmanager
def running(
    folder: Path,
    *,
    port: int | None = None,
    slots: int = 2,
    images: Mapping[str, Mapping[str, str]] | None = None,
) -> Iterator[AWSBatch]:
    """A server that answers, with no queues in it; it ends with the block, and so do its jobs.

    Args:
        folder: Of its own.
        port: Default: one that is free.
        slots: How many jobs run at a time.
        images: More images, beside `IMAGE`: the environment variables that each has.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    path = f"{Path(sys.executable).parent}:{os.defpath}"
    known = {IMAGE: {"PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(folder)}, **(images or {})}
    script = str(Path(__file__).with_name("aws_batch_server.py"))
    command = [sys.executable, script, str(port), str(slots), json.dumps(known)]
    with keep(
        "aws batch", command, folder, environ={**ENVIRON, "HOME": str(folder)}, cwd=folder
    ) as kept:
        kept.until(lambda: _answers(port), "answers")
        yield AWSBatch(kept, port)


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/moto-api/data.json")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
