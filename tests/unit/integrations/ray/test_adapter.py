"""The configuration of the Ray adapter, and what it makes of Ray; without a cluster."""

from __future__ import annotations

import socket
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from wove.errors import DeliveryError
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


# ------------------------------------------------------------------------------------- Ray in this process


class Ray:
    """What is used of the package, connected to nothing."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.connected = False
        self.error: Exception | None = None
        self.job = 0

    def is_initialized(self) -> bool:
        return self.connected

    def init(self, **options: Any) -> None:
        self.calls.append(options)
        if self.error is not None:
            raise self.error
        self.connected = True
        self.job += 1

    def shutdown(self) -> None:
        self.calls.append("shutdown")
        self.connected = False

    def get_runtime_context(self) -> SimpleNamespace:
        return SimpleNamespace(gcs_address="127.0.0.1:6379", get_job_id=lambda: self.job)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Ray:
    ray = Ray()
    monkeypatch.setattr(ray_client, "_check_listening", lambda address: None)
    monkeypatch.setattr(ray_client, "load", lambda: ray)
    monkeypatch.setitem(sys.modules, "ray", ray)  # type: ignore[arg-type]
    monkeypatch.setattr(ray_client, "_users", set())
    return ray


def test_two_environments_share_a_connection_and_the_last_one_ends_it(ray: Ray) -> None:
    ray_client.connect(1, None, {"num_cpus": 1}, label="one")
    ray_client.connect(2, None, {}, label="two")
    [options] = ray.calls
    assert (
        options["address"] is None
        and options["num_cpus"] == 1
        and options["log_to_driver"] is False
    )
    ray_client.leave(1)
    assert ray.connected
    ray_client.leave(2)
    assert not ray.connected and ray.calls[1:] == ["shutdown"]


def test_what_the_user_has_initialised_is_used_and_left_alone(ray: Ray) -> None:
    ray.connected = True
    ray_client.connect(1, None, None, label="one")
    ray_client.connect(2, "localhost:6379", {}, label="two")
    ray_client.leave(1)
    ray_client.leave(2)
    assert ray.connected and ray.calls == []


def test_what_the_user_initialises_after_a_shutdown_is_theirs(ray: Ray) -> None:
    ray_client.connect(1, None, {}, label="one")
    ray.shutdown()
    ray.init()
    ray_client.connect(2, None, {}, label="two")
    ray_client.leave(2)
    ray_client.leave(1)
    assert ray.connected


def test_a_connection_that_somebody_else_has_ended_is_made_again(ray: Ray) -> None:
    ray_client.connect(1, None, {}, label="one")
    ray.shutdown()
    ray_client.connect(1, None, {}, label="one")
    assert ray.connected
    ray_client.leave(1)
    assert not ray.connected


def test_another_cluster_than_that_of_the_process(ray: Ray) -> None:
    ray.connected = True
    with pytest.raises(
        ValueError, match=r"one: executor_config 'address' is 'localhost:7000'.*127\.0\.0\.1:6379"
    ):
        ray_client.connect(1, "localhost:7000", {}, label="one")


def test_nobody_has_initialised_it_and_wove_may_not(ray: Ray) -> None:
    with pytest.raises(DeliveryError, match=r"one: Ray is not initialised.*Call ray\.init\(\)"):
        ray_client.connect(1, None, None, label="one")
    assert ray.calls == []


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (
            ConnectionError("none"),
            DeliveryError,
            r"at 10\.0\.0\.1:6379 could not be reached: ConnectionError: none",
        ),
        (
            TypeError("no option x"),
            ValueError,
            "ray.init does not take these init_options.*no option x",
        ),
    ],
)
def test_a_connection_that_fails(
    ray: Ray, error: Exception, kind: type[Exception], words: str
) -> None:
    ray.error = error
    with pytest.raises(kind, match=words):
        ray_client.connect(1, "10.0.0.1:6379", {}, label="one")
    ray.error = None
    ray_client.leave(1)
    assert "shutdown" not in ray.calls


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
def test_addresses_that_name_no_port(address: str | None) -> None:
    ray_client._check_listening(address)


def test_a_client_takes_no_options_of_logging(ray: Ray) -> None:
    ray_client.connect(1, "ray://head:10001", {"namespace": "n"}, label="one")
    assert ray.calls == [{"address": "ray://head:10001", "namespace": "n"}]


def test_a_forked_child_is_told(ray: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_client, "_forked", True)
    with pytest.raises(DeliveryError, match="was forked from one that was connected to Ray"):
        ray_client.connect(1, None, {}, label="one")
