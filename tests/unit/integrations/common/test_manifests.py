"""Merging of manifests."""

from __future__ import annotations

from typing import Any

import pytest

from wove.integrations.common.manifests import merged

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
