"""The configuration of the Dask adapter, and what it makes of what Dask tells; without a cluster."""

from __future__ import annotations

import subprocess
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import pytest

from wove.integrations.dask.adapter import DaskAdapter, _warn_only
from wove.integrations.dask.states import never_started


def configured(**config: Any) -> DaskAdapter:
    adapter = DaskAdapter("cluster", config)
    adapter.configure()
    return adapter


CLIENT = SimpleNamespace(submit=print, map=print, loop=None)


def test_an_address_and_options() -> None:
    adapter = configured(
        address="tls://h:1", client_options={"timeout": 3}, submit_options={"workers": "gpu-1"}
    )
    assert adapter._submit_options == {"workers": ["gpu-1"]}  # `map` takes no text


def test_a_client_of_ones_own() -> None:
    options = {"resources": {"GPU": 1}, "priority": 5, "retries": 1}
    adapter = configured(client=CLIENT, submit_options=options)
    assert adapter._given is CLIENT
    assert adapter._submit_options == options


@pytest.mark.parametrize("more", [{"address": "tcp://h:1"}, {"client_options": {"timeout": 1}}])
def test_a_client_and_how_to_make_one(more: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match=f"'client' is connected already: it cannot have {next(iter(more))}"
    ):
        configured(client=CLIENT, **more)


@pytest.mark.parametrize("client", ["tcp://h:1", SimpleNamespace, object()])
def test_a_client_that_is_none(client: object) -> None:
    with pytest.raises(
        TypeError,
        match=r"environment 'cluster': executor_config 'client' must be a distributed\.Clie",
    ):
        configured(client=client)


@pytest.mark.parametrize("address", [8786, "", object()])
def test_an_address_that_is_none(address: object) -> None:
    with pytest.raises((TypeError, ValueError), match="'address'"):
        configured(address=address)


@pytest.mark.parametrize("name", ["key", "pure", "actor", "batch_size"])
def test_options_of_submit_that_are_not_the_users(name: str) -> None:
    with pytest.raises(ValueError, match=rf"submit_options' cannot set '{name}': \w+"):
        configured(submit_options={name: 1})


@pytest.mark.parametrize("name", ["address", "asynchronous", "loop", "set_as_default"])
def test_options_of_the_client_that_are_not_the_users(name: str) -> None:
    with pytest.raises(ValueError, match=rf"client_options' cannot set '{name}': \w+"):
        configured(client_options={name: 1})


def test_a_misspelt_option() -> None:
    with pytest.raises(ValueError, match=r"has no option 'resource'.*'resources'"):
        configured(submit_options={"resource": {"GPU": 1}})


@pytest.mark.parametrize("key", ["submit_options", "client_options"])
def test_options_that_are_no_dict(key: str) -> None:
    with pytest.raises(TypeError, match=f"'{key}' must be a dict, not"):
        configured(**{key: ["GPU"]})


def test_other_workers_than_none() -> None:
    with pytest.raises(ValueError, match="'allow_other_workers' goes with 'workers'"):
        configured(submit_options={"allow_other_workers": True})


def test_the_users_options_are_not_changed() -> None:
    options = {"workers": "a"}
    configured(submit_options=options)
    assert options == {"workers": "a"}


def test_neither_module_imports_dask() -> None:
    source = "import sys, wove.integrations.dask as d; d.DaskAdapter('e', {}).configure(); print('dask' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=50, check=True
    )
    assert done.stdout.strip() == "False"


# -------------------------------------------------------------------------------------------------- warnings


class Mismatch(UserWarning):
    """As Dask's, of versions."""


@pytest.mark.parametrize(
    ("action", "raises"), [("error", False), ("ignore", False), ("default", False)]
)
def test_a_warning_of_versions_is_no_error(action: Any, raises: bool) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter(action)
        _warn_only(Mismatch)
        warnings.warn("versions", Mismatch, stacklevel=1)
        assert len(seen) == (action != "ignore")
        if action == "error":
            with pytest.raises(UserWarning):
                warnings.warn("another", UserWarning, stacklevel=1)


# --------------------------------------------------------------------------------------------------- stories
# As `Client.story` of distributed 2026.8 tells them.

WORKER = "tcp://127.0.0.1:1"


def at_scheduler(*states: str) -> list[tuple[Any, ...]]:
    return [
        ("scheduler", "k", one, other, {}, "why", 1.0)
        for one, other in zip(states, states[1:], strict=False)
    ]


def at_worker(*states: str, who: str = WORKER) -> list[tuple[Any, ...]]:
    return [
        (who, "k", "compute-task", "released", "why", 1.0),
        *(
            (who, "k", one, other, other, {}, "why", 1.0)
            for one, other in zip(states, states[1:], strict=False)
        ),
        (who, "free-keys", ("k",), "why", 1.0),
    ]


SENT = at_scheduler("released", "waiting", "processing", "released", "forgotten")
WAITED = at_worker("released", "waiting", "ready", "released", "forgotten")


@pytest.mark.parametrize(
    "story",
    [
        pytest.param(
            at_scheduler("released", "waiting", "queued", "released", "forgotten"),
            id="in the queue",
        ),
        pytest.param(
            at_scheduler("released", "waiting", "no-worker", "released", "forgotten"),
            id="without a worker",
        ),
        pytest.param([*SENT, *WAITED], id="at a worker that was busy"),
        pytest.param(
            [
                *SENT,
                *WAITED,
                *at_worker("released", "waiting", "ready", "released", who="tcp://other"),
            ],
            id="stolen",
        ),
    ],
)
def test_what_never_started(story: list[tuple[Any, ...]]) -> None:
    assert never_started("k", story)
    assert not never_started("another", story)


@pytest.mark.parametrize(
    "story",
    [
        pytest.param([], id="nothing is known"),
        pytest.param(SENT, id="its worker does not say"),
        pytest.param(
            [*SENT, *at_worker("released", "waiting", "ready", "executing", "cancelled")],
            id="it runs",
        ),
        pytest.param(
            [*SENT, *at_worker("released", "waiting", "ready")],
            id="its worker has not heard of the cancel",
        ),
        pytest.param([*SENT, *WAITED[1:]], id="the beginning is lost"),
        pytest.param([*SENT[1:], *WAITED], id="the scheduler's beginning is lost"),
        pytest.param(
            at_scheduler("released", "waiting", "queued"), id="the scheduler has not heard of it"
        ),
        pytest.param(
            [*SENT, *WAITED, (WORKER[:-1] + "2", "k", "x", "y")], id="rows of another version"
        ),
    ],
)
def test_what_may_have_begun(story: list[tuple[Any, ...]]) -> None:
    assert not never_started("k", story)
