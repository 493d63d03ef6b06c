"""What a task asks for, in the words of each backend."""

from __future__ import annotations

import math
from typing import Any

import pytest

from wove.integrations.aws_batch.adapter import requirements
from wove.integrations.kubernetes_jobs.manifest import container_resources
from wove.integrations.slurm.options import resource_options

ASKED = {"cpus": 1.5, "memory": 2**30 + 1, "gpus": 2, "time": 61.0, "disk": 1024}


def test_slurm() -> None:
    assert resource_options(ASKED, 10.0, ()) == (
        "--cpus-per-task=2",
        "--mem=1048577K",
        "--gres=gpu:2",
        "--time=2",
        "--tmp=1K",
    )
    assert resource_options({}, math.inf, ()) == ()
    assert resource_options({}, 60.0, ()) == ("--time=2",)
    assert resource_options({"gpus": 0}, math.inf, ()) == ()


@pytest.mark.parametrize(
    ("given", "left"),
    [
        (("--cpus-per-task=8",), {"mem", "gres", "time", "tmp"}),
        (("-c", "8", "-t", "5"), {"mem", "gres", "tmp"}),
        (("--mem-per-cpu=1G", "--gpus=1", "--tmp", "3"), {"cpus-per-task", "time"}),
        (("-G1",), {"cpus-per-task", "mem", "time", "tmp"}),
    ],
)
def test_options_of_the_environment_stand(given: tuple[str, ...], left: set[str]) -> None:
    found = resource_options(ASKED, math.inf, given)
    assert {option[2:].partition("=")[0] for option in found} == left


def test_kubernetes() -> None:
    rest = {"memory": "1073741825", "nvidia.com/gpu": "2", "ephemeral-storage": "1024"}
    assert container_resources(ASKED) == {"requests": {"cpu": "1.5", **rest}, "limits": rest}
    assert container_resources({"cpus": 0.1}) == {"requests": {"cpu": "0.1"}}
    assert container_resources({"time": 60.0, "gpus": 0}) == {}


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (ASKED, {"VCPU": "1.5", "MEMORY": "1025", "GPU": "2"}),
        ({"time": 3.0}, {}),
        ({"memory": 1}, {"MEMORY": "1"}),
    ],
)
def test_aws_batch(asked: dict[str, Any], found: dict[str, str]) -> None:
    assert {each["type"]: each["value"] for each in requirements(asked)} == found
