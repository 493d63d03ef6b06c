"""Clusters that pages name as their client libraries find them: a server of the tests is put there by variables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from tests.docs.pages import Page
from tests.support.servers import Servers, ray

__all__ = ["environ", "needs"]


def _kubernetes(servers: Servers) -> dict[str, str]:
    return {"KUBECONFIG": str(servers.kubernetes_jobs.kubeconfig)}


def _aws(servers: Servers) -> dict[str, str]:
    """With the queue and the job definition of docs/aws-batch.md."""
    server = servers.aws_batch
    client = server.client()
    if not client.describe_job_queues(jobQueues=["reports"])["jobQueues"]:
        server.queue("reports")
        server.definition("wove-worker", ["python", "-m", "wove.backend_worker"])
    client.close()
    options = server.client_options
    return {
        "AWS_ENDPOINT_URL_BATCH": server.url,
        "AWS_ACCESS_KEY_ID": options["aws_access_key_id"],
        "AWS_SECRET_ACCESS_KEY": options["aws_secret_access_key"],
    }


CLUSTERS: Final[Mapping[str, Callable[[Servers], dict[str, str]]]] = {
    "kubernetes_jobs": _kubernetes,
    "aws_batch": _aws,
    "slurm": lambda servers: servers.slurm.environ,
    "ray": lambda servers: {"RAY_ADDRESS": servers.ray.address, **ray.ENVIRON},
}
"""By the executor's name, which is that of the backend in tests/support/backends.py."""


def needs(page: Page) -> list[str]:
    """The clusters that the script of *page* uses."""
    return [name for name in CLUSTERS if f'"executor": "{name}"' in page.script]


def environ(page: Page, servers: Servers) -> dict[str, str | None]:
    """What leads to them."""
    found: dict[str, str | None] = {}
    for name in needs(page):
        found.update(CLUSTERS[name](servers))
    return found
