"""The configuration of the Kubernetes adapter, the manifests it makes, and how it reads what a cluster says."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, strategies as st

from wove.integrations.kubernetes_jobs import KubernetesJobsAdapter
from wove.integrations.kubernetes_jobs.manifest import (
    MAX_NAME,
    MAX_PREFIX,
    PULL_SECONDS,
    encoded,
    name_of,
)
from wove.integrations.kubernetes_jobs.states import job_state, pod_state
from wove.integrations.kubernetes_jobs.watch import PodCache
from wove.protocol.names import PAYLOAD_VARIABLE

PAYLOAD = {
    "run_id": "abc-1",
    "task_id": "Täsk 1",
    "task_name": "Täsk 1",
    "delivery": {},
    "retry_seconds": 60,
}
FRAME = {"run_id": "abc-1", "task_id": "Täsk 1", "delivery": {}}


def configured(**config: Any) -> KubernetesJobsAdapter:
    adapter = KubernetesJobsAdapter(
        "jobs", {"image": "reports:3", "namespace": "reports", **config}
    )
    adapter.configure()
    return adapter


def manifest(payload: dict[str, Any] = PAYLOAD, **config: Any) -> dict[str, Any]:
    return configured(**config)._template.job(payload, "wove-name", {})


# ------------------------------------------------------------------------------------------ configuration


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"image": None}, "needs 'image'"),
        ({"image": ""}, "'image' is an empty text"),
        ({"container": {"image": "other:1"}}, "'image', and another one in 'container'"),
        (
            {"command": "a", "container": {"command": ["b"]}},
            "'command', and another one in 'container'",
        ),
        ({"container": {"name": "mine"}}, "'container' is named 'wove'"),
        (
            {"container": {"env": [{"name": PAYLOAD_VARIABLE, "value": "x"}]}},
            "cannot set WOVE_BACKEND_PAYLOAD",
        ),
        ({"job_spec": {"template": {}}}, "belongs into 'pod_spec'"),
        (
            {"job_name_prefix": "Reports_"},
            "'job_name_prefix' must be at most 29 lower-case letters",
        ),
        ({"job_name_prefix": "x" * 40}, "'job_name_prefix'"),
        ({"job_name_prefix": "9lives"}, "'job_name_prefix'"),
        ({"backoff_limit": -1}, "'backoff_limit'"),
        ({"batch_api": object(), "in_cluster": True}, "cannot have in_cluster, too"),
    ],
)
def test_wrong_values(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"environment 'jobs': .*{words}"):
        configured(**config)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"command": [1]}, "'command'"),
        ({"container": []}, "'container' must be a dict"),
        ({"container": {"env": {"A": "1"}}}, "'env' must be a list of"),
        ({"labels": {"a": 1}}, "'labels': 'a' must be text"),
        ({"job_factory": 1}, "'job_factory' must be callable"),
        ({"batch_api": object()}, r"must be a kubernetes\.client\.BatchV1Api"),
        ({"in_cluster": "yes"}, "'in_cluster'"),
    ],
)
def test_wrong_types(config: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=f"environment 'jobs': .*{words}"):
        configured(**config)


# ------------------------------------------------------------------------------------------------ manifests


@given(st.text(), st.text(max_size=20), st.booleans())
def test_any_task_has_a_legal_name(task: str, key: str, keyed: bool) -> None:
    delivery = {"delivery_idempotency_key": key} if keyed else {}
    frame = {"run_id": "abc-1", "task_id": task, "delivery": delivery}
    for prefix in ("wove-", "x" * (MAX_PREFIX - 1) + "-"):
        name = name_of(frame, prefix=prefix)
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name) and len(name) <= MAX_NAME


def test_runs_of_one_key_have_one_name_and_others_have_their_own() -> None:
    def named(run_id: str, task: str, **delivery: Any) -> str:
        return name_of({"run_id": run_id, "task_id": task, "delivery": delivery}, prefix="wove-")

    assert named("a", "t") != named("b", "t")
    keyed = named("a", "t", delivery_idempotency_key="k")
    assert (
        keyed
        == named("b", "t", delivery_idempotency_key="k")
        != named("a", "u", delivery_idempotency_key="k")
    )


@given(
    st.recursive(
        st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
    )
)
def test_payloads_go_without_a_dollar_sign(value: Any) -> None:
    text = encoded({"value": value, "more": "$(HOME) $$ ${X}"})
    assert "$" not in text and text.isascii()
    assert json.loads(text) == {"value": value, "more": "$(HOME) $$ ${X}"}


def test_a_job() -> None:
    job = manifest(command="python -m wove.backend_worker")
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert (job["spec"]["backoffLimit"], pod["restartPolicy"], pod["enableServiceLinks"]) == (
        0,
        "Never",
        False,
    )
    assert container["command"] == ["python", "-m", "wove.backend_worker"]
    assert json.loads(container["env"][0]["value"]) == PAYLOAD
    assert "activeDeadlineSeconds" not in job["spec"] and job["spec"]["ttlSecondsAfterFinished"] > 0
    for metadata in (job["metadata"], job["spec"]["template"]["metadata"]):
        assert metadata["annotations"]["wove/task"] == "Täsk 1"
        assert all(
            re.fullmatch(r"[A-Za-z0-9.-]{1,63}", value) for value in metadata["labels"].values()
        )


def test_a_deadline_comes_after_that_of_the_run() -> None:
    """That of the pod does not count the time that it waits for a node; that of the Job does."""
    spec = manifest({**PAYLOAD, "deadline": 12.5})["spec"]
    assert spec["template"]["spec"]["activeDeadlineSeconds"] == 103 + PULL_SECONDS
    assert "activeDeadlineSeconds" not in spec
    spec = manifest({**PAYLOAD, "delivery": {"delivery_timeout": 5}})["spec"]
    assert spec["activeDeadlineSeconds"] == 95
    assert "activeDeadlineSeconds" not in spec["template"]["spec"]


def test_more_of_a_manifest() -> None:
    job = manifest(
        container={
            "resources": {"limits": {"memory": "2Gi"}},
            "env": [{"name": "LEVEL", "value": "3"}],
        },
        pod_spec={
            "serviceAccountName": "reports",
            "tolerations": [{"operator": "Exists"}],
            "restartPolicy": "OnFailure",
        },
        job_spec={"ttlSecondsAfterFinished": 5},
        labels={"team": "data"},
    )
    pod = job["spec"]["template"]["spec"]
    assert [each["name"] for each in pod["containers"][0]["env"]] == [PAYLOAD_VARIABLE, "LEVEL"]
    assert pod["containers"][0]["resources"] == {"limits": {"memory": "2Gi"}}
    assert (pod["serviceAccountName"], pod["tolerations"]) == ("reports", [{"operator": "Exists"}])
    assert "automountServiceAccountToken" not in pod and pod["restartPolicy"] == "OnFailure"
    assert job["spec"]["ttlSecondsAfterFinished"] == 5
    assert (
        job["metadata"]["labels"]["team"]
        == job["spec"]["template"]["metadata"]["labels"]["team"]
        == "data"
    )


def test_a_payload_that_cannot_fit_names_the_limit() -> None:
    with pytest.raises(
        ValueError,
        match=r"WOVE_BACKEND_PAYLOAD: that takes 131,071 bytes, and it would have 2\d\d,",
    ):
        manifest({**PAYLOAD, "delivery": {"delivery_idempotency_key": "x" * 200_000}})


# --------------------------------------------------------------------------------------------------- states


def pod(phase: str, *states: dict[str, Any], uid: str = "p", **status: Any) -> dict[str, Any]:
    containers = [{"name": "wove", "image": "reports:3", "state": state} for state in states]
    owner = [{"kind": "Job", "uid": "j"}]
    metadata = {"uid": uid, "name": "wove-x-12345", "ownerReferences": owner}
    return {
        "metadata": metadata,
        "status": {"phase": phase, "containerStatuses": containers, **status},
    }


def job(**status: Any) -> dict[str, Any]:
    spec = {"backoffLimit": 0, "template": {"spec": {"restartPolicy": "Never"}}}
    return {"metadata": {"uid": "j", "name": "wove-x"}, "spec": spec, "status": status}


def condition(kind: str, **more: Any) -> dict[str, Any]:
    return {"conditions": [{"type": kind, "status": "True", **more}]}


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            pod(
                "Failed",
                {
                    "terminated": {
                        "exitCode": 137,
                        "reason": "OOMKilled",
                        "message": "almost\ndone\n",
                    }
                },
            ),
            r"exit code 137 \(OOMKilled\); the end of its log: almost\ndone$",
        ),
        (pod("Failed", {"terminated": {"exitCode": 7, "reason": "Error"}}), "exit code 7$"),
        (
            pod("Failed", reason="Evicted", message="low on memory"),
            r"failed \(Evicted: low on memory\)",
        ),
        (
            pod("Failed", **condition("DisruptionTarget", reason="EvictionByEvictionAPI")),
            "EvictionByEvictionAPI",
        ),
    ],
)
def test_a_pod_that_failed_is_the_end_of_its_job(found: dict[str, Any], words: str) -> None:
    cache = PodCache()
    cache.put_job(job(active=1))
    cache.put_pod(found)
    fate = cache.statuses(["j"])["j"].status
    assert fate.state == "lost" and re.search(words, fate.reason)


def test_without_anything_wrong_there_is_no_status() -> None:
    cache = PodCache()
    cache.expect("j")
    assert cache.statuses(["j"]) == {}
    cache.put_job(job(active=1))
    cache.put_pod(
        pod(
            "Pending",
            conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}],
        )
    )
    assert (
        cache.statuses(["j"]) == {}
        and cache.new_waiting_reasons() == [("Unschedulable", 1)]
        and cache.new_waiting_reasons() == []
    )
    cache.put_pod(pod("Running", {"running": {}}))
    assert cache.statuses(["j"]) == {} and cache.has_started("j")


def test_a_job_that_is_replaced_by_kubernetes_is_not_over_with_its_pod() -> None:
    patient = job(active=1)
    patient["spec"]["backoffLimit"] = 2
    cache = PodCache()
    cache.put_job(patient)
    cache.put_pod(pod("Failed", {"terminated": {"exitCode": 7}}))
    assert cache.statuses(["j"]) == {}
    cache.put_job(
        {**patient, "status": condition("Failed", reason="BackoffLimitExceeded", message="limit")}
    )
    assert re.search(
        r"BackoffLimitExceeded: limit.*exit code 7", cache.statuses(["j"])["j"].status.reason
    )


def test_trouble_is_given_time_to_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = PodCache()
    cache.put_job(job(active=1))
    cache.put_pod(pod("Pending", {"waiting": {"reason": "ErrImagePull", "message": "not found"}}))
    assert cache.statuses(["j"]) == {}
    monkeypatch.setattr("wove.integrations.kubernetes_jobs.watch.TROUBLE_SECONDS", 0.0)
    status = cache.statuses(["j"])["j"]
    assert status.remove and re.search(
        "image 'reports:3' does not start: ErrImagePull: not found", status.status.reason
    )


def test_what_a_list_lacks_is_gone() -> None:
    cache = PodCache()
    cache.put_job(job(active=1))
    cache.put_pod(pod("Running", {"running": {}}))
    cache.drop_unlisted({"j", "p"})
    assert (
        cache.is_gone("j") and "is not there any more" in cache.statuses(["j"])["j"].status.reason
    )
    cache.keep([])
    assert cache.size() == 0


def test_a_job_that_is_complete() -> None:
    assert job_state(job(**condition("Complete"))).over == "finished"
    assert job_state(job(**condition("Suspended"))).over == ""
    assert pod_state(pod("Succeeded", {"terminated": {"exitCode": 0}})).finished
