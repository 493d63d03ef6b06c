"""All backends find out in the same way which jobs are over."""

from __future__ import annotations

import importlib
import inspect

import pytest

from wove.integrations.base import StatusProbe

PROBES = {
    "arq.states": "JobProbe",
    "aws_batch.states": "JobProbe",
    "celery.lost": "LostJobDetector",
    "celery.states": "ResultStates",
    "dask.states": "FutureProbe",
    "kubernetes_jobs.lost": "LostJobDetector",
    "ray.states": "TaskProbe",
    "rq.states": "JobInspector",
    "slurm.lost": "LostJobDetector",
    "taskiq.lost": "LostJobDetector",
    "temporal.states": "WorkflowProbe",
}
NEEDS = {"temporal": "temporalio", "ray": "ray", "dask": "distributed"}


@pytest.mark.parametrize(("module", "name"), PROBES.items())
def test_each_probe_has_the_one_method(module: str, name: str) -> None:
    if (package := NEEDS.get(module.partition(".")[0])) is not None:
        pytest.importorskip(package)
    kind = getattr(importlib.import_module(f"wove.integrations.{module}"), name)
    expected = inspect.signature(StatusProbe.ended)
    assert len(inspect.signature(kind.ended).parameters) == len(expected.parameters)
    assert "see `StatusProbe`" in inspect.getdoc(kind.ended).splitlines()[0]
