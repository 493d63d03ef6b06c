"""Where the configuration of a cluster is taken from."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from wove.integrations.kubernetes_jobs import KubernetesJobsAdapter, client as kubernetes_api

pytest.importorskip("kubernetes")

KUBECONFIG = {
    "apiVersion": "v1",
    "kind": "Config",
    "clusters": [{"name": "far", "cluster": {"server": "https://far.example:6443"}}],
    "users": [{"name": "me", "user": {"token": "mine"}}],
    "contexts": [
        {"name": "one", "context": {"cluster": "far", "user": "me", "namespace": "reports"}},
        {"name": "two", "context": {"cluster": "far", "user": "me"}},
    ],
    "current-context": "one",
}


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a kubeconfig nor a pod's files, whatever this machine has."""
    monkeypatch.setattr(
        "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig")
    )
    monkeypatch.setattr(kubernetes_api, "NAMESPACE_FILE", str(tmp_path / "namespace"))


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(KUBECONFIG))
    return path


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files and variables of a pod."""
    for name, content in {
        "namespace": "web\n",
        "token": "of-the-pod",
        "ca.crt": "a certificate",
    }.items():
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(
        "kubernetes.config.incluster_config.SERVICE_TOKEN_FILENAME", str(tmp_path / "token")
    )
    monkeypatch.setattr(
        "kubernetes.config.incluster_config.SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt")
    )
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")


def found(
    *, load: bool = True, in_cluster: bool | None = None, options: dict[str, Any] | None = None
) -> tuple[str, str]:
    """The cluster's address, and the namespace."""
    client = kubernetes_api.batch_api(
        load=load, in_cluster=in_cluster, options=options or {}
    ).api_client
    client.close()
    namespace = kubernetes_api.default_namespace(
        load=load, in_cluster=in_cluster, options=options or {}
    )
    return client.configuration.host, namespace


@pytest.mark.usefixtures("pod")
@pytest.mark.parametrize("in_cluster", [True, None])
def test_the_service_account_of_a_pod(in_cluster: bool | None) -> None:
    assert found(in_cluster=in_cluster) == ("https://10.0.0.1:443", "web")


@pytest.mark.usefixtures("pod", "kubeconfig")
@pytest.mark.parametrize(
    ("in_cluster", "host"),
    [(None, "far.example:6443"), (False, "far.example:6443"), (True, "10.0.0.1:443")],
)
def test_a_pod_with_a_kubeconfig(in_cluster: bool | None, host: str) -> None:
    assert found(in_cluster=in_cluster) == (f"https://{host}", "web" if in_cluster else "reports")


@pytest.mark.parametrize(("context", "namespace"), [("one", "reports"), ("two", "default")])
def test_a_context_of_a_kubeconfig(kubeconfig: Path, context: str, namespace: str) -> None:
    options = {"config_file": str(kubeconfig), "context": context}
    assert found(options=options) == ("https://far.example:6443", namespace)


def test_what_the_process_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    from kubernetes import client

    monkeypatch.setattr(client.Configuration, "_default", None)
    settings = client.Configuration()
    settings.host = "https://set.example"
    client.Configuration.set_default(settings)
    assert found(load=False) == ("https://set.example", "default")


@pytest.mark.parametrize(
    "config", [{}, {"in_cluster": True}, {"load_config_options": {"context": "no-such"}}]
)
def test_nothing_that_leads_to_a_cluster(config: dict[str, Any]) -> None:
    adapter = KubernetesJobsAdapter("jobs", {"image": "reports:3", **config})
    adapter.configure()
    with pytest.raises(
        ValueError, match="environment 'jobs': no configuration of a cluster could be loaded"
    ):
        asyncio.run(adapter.start())
