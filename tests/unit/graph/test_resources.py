"""The vocabulary of resources: what is taken, and what a wrong word is told."""

from __future__ import annotations

from typing import Any

import pytest

import wove
from wove import weave
from wove.graph.resources import Resources, resources


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"cpus": 4}, Resources(cpus=4.0)),
        ({"cpus": 0.5, "gpus": 0}, Resources(cpus=0.5, gpus=0)),
        ({"memory": 1024, "disk": "10GB"}, Resources(memory=1024, disk=10**10)),
        ({"memory": "8GiB"}, Resources(memory=8 * 2**30)),
        ({"memory": " 1.5 gi "}, Resources(memory=3 * 2**29)),
        ({"memory": "512 MiB"}, Resources(memory=512 * 2**20)),
        ({"time": "2h"}, Resources(time=7200.0)),
        ({"time": "90s", "gpus": 1}, Resources(time=90.0, gpus=1)),
        ({"time": "1.5d"}, Resources(time=129600.0)),
        ({"time": 60}, Resources(time=60.0)),
    ],
    ids=str,
)
def test_what_is_taken(given: dict[str, Any], found: Resources) -> None:
    assert resources(given) == found
    assert resources(found) is found


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("4", "must be a dict such as"),
        ({}, "must not be empty. There are: cpus, memory, gpus, time, disk"),
        ({"cpu": 4}, "has no 'cpu'. Did you mean 'cpus'?"),
        ({3: 4}, "has no 3. There are: cpus"),
        ({"cpus": 0}, r"\['cpus'\] must be a finite number of cores greater than 0"),
        ({"cpus": "4"}, r"\['cpus'\] must be a number, not '4'"),
        ({"gpus": 1.5}, r"\['gpus'\] must be a whole number"),
        ({"memory": "8 gigs"}, r"\['memory'\] must be bytes, or text such as \"8GiB\""),
        ({"memory": "0B"}, r"\['memory'\] must be bytes"),
        ({"memory": -1}, r"\['memory'\] must be a whole number of at least 1"),
        ({"time": "1:30:00"}, r"\['time'\] must be seconds, or text such as"),
        ({"time": True}, r"\['time'\] must be a number"),
    ],
    ids=str,
)
def test_what_is_refused(given: Any, says: str) -> None:
    with pytest.raises((TypeError, ValueError), match=says):
        resources(given)
    with (
        pytest.raises((TypeError, ValueError), match=f"task 'job': resources:? ?{says}"),
        weave() as w,
    ):
        w.do(environment="jobs", resources=given)(job)


def job() -> int:
    return 1


def test_a_task_of_this_process_asks_for_nothing() -> None:
    with pytest.raises(
        ValueError, match="task 'job': resources are what a remote environment is asked"
    ):
        with weave() as w:
            w.do(resources={"cpus": 2})(job)


def test_the_tasks_of_this_process_are_not_meant_where_the_weave_asks() -> None:
    with weave(resources={"cpus": 2}) as w:
        w.do(job)
    assert w.result.final == 1


@pytest.mark.backend("stdio")
def test_what_an_environment_cannot_ask_for_is_an_error() -> None:
    wove.config(environments={"pool": {"executor": "stdio", "resources": {"gpus": 1, "cpus": 2}}})
    with pytest.raises(
        ValueError, match=r"environment 'pool' \(executor 'stdio'\) cannot ask for cpus and gpus"
    ):
        with weave(environment="pool") as w:
            w.do(job)


class LeaveError(Exception):
    """Leaves a block before anything runs."""


def test_they_are_explained() -> None:
    wove.config(environments={"jobs": {"executor": "slurm", "resources": {"memory": "1GiB"}}})
    with pytest.raises(LeaveError), weave(environment="jobs") as w:
        w.do(job)
        w.do(resources={"time": "1h"})(other)
        raise LeaveError

    explained = w.explain()
    assert explained["job"]["resources"] == (Resources(memory=2**30), "environment 'jobs'")
    assert explained["other"]["resources"] == (Resources(time=3600.0), "task")


def other() -> int:
    return 2
