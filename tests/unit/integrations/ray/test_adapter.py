"""The configuration of the Ray adapter, and what it makes of Ray; without a cluster."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import Any

import pytest

from wove.integrations.ray import RayAdapter, client as ray_client


def configured(**config: Any) -> RayAdapter:
    adapter = RayAdapter("cluster", config)
    adapter.configure()
    return adapter


def test_nothing_is_needed() -> None:
    assert configured()._remote_options == {"max_retries": 0}


def test_retries_are_the_users_to_set() -> None:
    assert configured(remote_options={"max_retries": 3, "num_gpus": 1})._remote_options == {
        "max_retries": 3,
        "num_gpus": 1,
    }


@pytest.mark.parametrize("key", ["init_options", "remote_options"])
def test_options_that_are_no_dict(key: str) -> None:
    with pytest.raises(
        TypeError, match=f"environment 'cluster': executor_config '{key}' must be a dict, not 'GPU'"
    ):
        configured(**{key: "GPU"})


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("remote_options", "num_returns"),
        ("init_options", "address"),
        ("init_options", "ignore_reinit_error"),
    ],
)
def test_options_that_are_not_the_users(key: str, name: str) -> None:
    with pytest.raises(ValueError, match=rf"'{key}' cannot set '{name}': \w+"):
        configured(**{key: {name: 1}})


@pytest.mark.parametrize("key", ["init", "force_cancel"])
def test_flags(key: str) -> None:
    with pytest.raises(TypeError, match=f"'{key}' must be True or False"):
        configured(**{key: "yes"})


@pytest.mark.parametrize("more", [{"address": "auto"}, {"init_options": {"num_cpus": 1}}])
def test_what_is_for_init_without_it(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"has {next(iter(more))}, which .*'init' is False"):
        configured(init=False, **more)


def test_neither_module_imports_ray() -> None:
    source = "import sys, wove.integrations.ray as r; r.RayAdapter('e', {}).configure(); print('ray' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=50, check=True
    )
    assert done.stdout.strip() == "False"


# --------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nobody_listens(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"{scheme}127.0.0.1:{server.getsockname()[1]}"
        ray_client._check_listening(address)
    with pytest.raises(ConnectionRefusedError):
        ray_client._check_listening(address)


@pytest.mark.parametrize(
    "address", [None, "auto", "local", "anyscale://cluster", "ray://name/namespace"]
)
def test_addresses_that_name_no_port(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[object] = []
    monkeypatch.setattr(ray_client.socket, "create_connection", called.append)
    ray_client._check_listening(address)
    assert called == []
