"""What is put into manifests, and what is read from ``executor_config`` for them."""

from __future__ import annotations

from typing import Any

import pytest

from wove.integrations.common.manifests import command_of, merged
from wove.settings.config_readers import mapping

OURS = {"env": [{"name": "PAYLOAD", "value": "{}"}]}


@pytest.mark.parametrize(
    ("env", "names"),
    [
        ([], ["PAYLOAD"]),
        ((), ["PAYLOAD"]),
        ([{"name": "A"}], ["PAYLOAD", "A"]),
        ([{"name": "A"}, {"name": "A"}], ["PAYLOAD", "A", "A"]),
    ],
)
def test_nothing_that_is_ours_is_lost(env: Any, names: list[str]) -> None:
    assert [each["name"] for each in merged(OURS, {"env": env})["env"]] == names


def test_two_mounts_of_one_volume_stay_two() -> None:
    mounts = [{"name": "data", "mountPath": "/a"}, {"name": "data", "mountPath": "/b"}]
    one = merged(
        {"containers": [{"name": "wove"}]}, {"containers": [{"name": "wove", "mounts": mounts}]}
    )
    assert one == {"containers": [{"name": "wove", "mounts": mounts}]}
    more = merged(
        one, {"containers": [{"name": "wove", "mounts": [{"name": "tmp", "mountPath": "/tmp"}]}]}
    )
    assert more["containers"][0]["mounts"] == [*mounts, {"name": "tmp", "mountPath": "/tmp"}]


def test_merging_leaves_what_it_merges() -> None:
    base = {"a": {"b": [{"name": "x", "v": 1}]}}
    assert merged(base, {"a": {"b": [{"name": "x", "w": 2}, {"name": "y"}], "c": [1]}}) == {
        "a": {"b": [{"name": "x", "v": 1, "w": 2}, {"name": "y"}], "c": [1]}
    }
    assert base == {"a": {"b": [{"name": "x", "v": 1}]}}


def test_a_command_is_a_list_or_a_text() -> None:
    assert command_of({}, label="x") is None
    assert command_of({"command": "sh -c 'exit 7'"}, label="x") == command_of(
        {"command": ("sh", "-c", "exit 7")}, label="x"
    )
    with pytest.raises(
        ValueError, match="x: executor_config 'command' cannot be split: No closing quotation"
    ):
        command_of({"command": "sh -c 'exit"}, label="x")


@pytest.mark.parametrize("command", [[], "", [1], 1, {"a": "b"}])
def test_a_command_that_is_none(command: Any) -> None:
    with pytest.raises(
        TypeError, match="x: executor_config 'command' must be a text or a list of texts"
    ):
        command_of({"command": command}, label="x")


def test_a_dict_that_is_none() -> None:
    assert mapping({}, "pod_spec", label="x") == {}
    with pytest.raises(TypeError, match="x: executor_config 'pod_spec' must be a dict"):
        mapping({"pod_spec": []}, "pod_spec", label="x")
