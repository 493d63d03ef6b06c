"""The rights that pages ask for are those that the adapters need, no more and no less."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.docs.pages import ROOT, blocks_of


def test_the_role_for_kubernetes_has_the_least_rights() -> None:
    yaml = pytest.importorskip("yaml")
    from wove.integrations.kubernetes_jobs.adapter import RIGHTS

    [block] = [
        each
        for each in blocks_of((ROOT / "docs/kubernetes.md").read_text())
        if each.language == "yaml"
    ]
    role, binding = yaml.safe_load_all(block.text)
    allowed = {
        (verb, group, resource)
        for rule in role["rules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    # Beside what is asked for at the start: whose Job is in the way, the log of a container without last words, and why
    # a Job gets no pod.
    assert allowed == {
        *RIGHTS,
        ("get", "batch", "jobs"),
        ("get", "", "pods/log"),
        ("list", "", "events"),
    }
    assert binding["roleRef"]["name"] == role["metadata"]["name"]


class Recorder:
    """A client that takes every call and answers nothing."""

    def __init__(self) -> None:
        self.called: set[str] = set()

    def __getattr__(self, name: str) -> Callable[..., dict[str, Any]]:
        def call(**options: Any) -> dict[str, Any]:
            self.called.add(name)
            return {"jobId": "1"} if name == "submit_job" else {}

        return call


@pytest.mark.backend("aws_batch")
def test_the_policy_for_aws_batch_has_the_least_rights() -> None:
    from wove.integrations.aws_batch.client import Api

    client = Recorder()
    api = Api(client, label="environment 'jobs'")
    calls_of_api = {
        "submit": ({"jobName": "a"},),
        "terminate": ("1", "why"),
        "describe": (["1"],),
        "named": ("reports", "a"),
        "queue": ("reports",),
        "definition": ("worker",),
    }
    assert calls_of_api.keys() == {name for name in vars(Api) if not name.startswith("_")}
    for name, arguments in calls_of_api.items():
        getattr(api, name)(*arguments)
    blocks = [
        json.loads(each.text)
        for each in blocks_of((ROOT / "docs/aws-batch.md").read_text())
        if each.language == "json"
    ]
    [policy] = [each for each in blocks if "Statement" in each]
    actions: set[str] = set()
    for statement in policy["Statement"]:
        given = statement["Action"]
        actions |= {given} if isinstance(given, str) else set(given)
    calls = {action.removeprefix("batch:") for action in actions}
    names = {
        "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in call)[1:]
        for call in calls
    }
    assert client.called == names
