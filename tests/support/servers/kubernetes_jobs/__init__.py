"""Kubernetes' API, as far as Jobs go, with pods that are processes of this machine; see __main__.py."""

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

__all__ = ["IMAGE", "KubernetesJobs", "missing", "running"]

IMAGE = "registry.example/reports:3"
"""An image whose ``python`` is the one that runs the tests."""

TOKEN = "admin"


@dataclass(frozen=True)
class KubernetesJobs:
    """A cluster that runs.

    Attributes:
        kept: The process of all of it.
        port: Where it listens.
        kubeconfig: Path of a kubeconfig for it, whose context's namespace is ``default``.
    """

    kept: Kept
    port: int
    kubeconfig: Path

    @property
    def config(self) -> dict[str, Any]:
        """The ``executor_config`` that leads there."""
        return {"image": IMAGE, "load_config_options": {"config_file": str(self.kubeconfig)}}

    def batch_api(self, *, port: int | None = None, token: str = TOKEN) -> Any:
        """A client."""
        from kubernetes import client

        settings = client.Configuration()
        settings.host = f"http://127.0.0.1:{port or self.port}"
        settings.api_key = {"authorization": f"Bearer {token}"}
        settings.retries = False
        return client.BatchV1Api(client.ApiClient(settings))

    def emulate(self, what: str, **query: object) -> dict[str, Any]:
        """Ask for what is not Kubernetes: ``counts``, ``evict``, ``forget``, ``busy``, ``quota``."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(
                "GET",
                f"/emulator/{what}?" + "&".join(f"{key}={value}" for key, value in query.items()),
            )
            return dict(json.loads(connection.getresponse().read()))
        finally:
            connection.close()


def missing() -> str | None:
    """Why it cannot run here, or ``None``."""
    return (
        None
        if importlib.util.find_spec("kubernetes")
        else "the package kubernetes is not installed"
    )


@contextmanager
def running(
    folder: Path,
    *,
    slots: int = 2,
    namespaces: Sequence[str] = ("default", "reports"),
    images: Mapping[str, Mapping[str, str]] | None = None,
    tokens: Mapping[str, Sequence[str] | None] | None = None,
) -> Iterator[KubernetesJobs]:
    """A cluster that answers; it ends with the block, and so do its pods.

    Args:
        folder: Of its own.
        slots: How many pods run at a time.
        namespaces: That there are.
        images: More images, beside `IMAGE`: the environment variables that each has.
        tokens: More users: what each may do, as ``"create jobs"``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    path = f"{Path(sys.executable).parent}:{os.defpath}"
    sources = os.environ.get("PYTHONPATH", "")
    ours = {"PATH": path, "PYTHONPATH": f"{ROOT}:{sources}", "HOME": str(folder)}
    settings = {
        "images": {IMAGE: ours, **(images or {})},
        "tokens": {TOKEN: None, **(tokens or {})},
        "namespaces": list(namespaces),
    }
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(json.dumps(_kubeconfig(port)))
    command = [
        sys.executable,
        str(Path(__file__).parent),
        str(port),
        str(slots),
        json.dumps(settings),
    ]
    with keep("kubernetes", command, folder, environ={"TMPDIR": str(folder)}) as kept:
        found = KubernetesJobs(kept, port, kubeconfig)
        kept.until(lambda: _answers(port), "answers")
        yield found


def _kubeconfig(port: int) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "tests", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "tests", "user": {"token": TOKEN}}],
        "contexts": [
            {
                "name": "tests",
                "context": {"cluster": "tests", "user": "tests", "namespace": "default"},
            }
        ],
        "current-context": "tests",
    }


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/emulator/counts")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
