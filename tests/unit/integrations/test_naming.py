from __future__ import annotations

import re

import pytest
from hypothesis import given, strategies as st

from wove.integrations.naming import idempotency_key, job_id, job_name


def frame(key: object = None, task: str = "pdf", run_id: str = "9f3a-1") -> dict[str, object]:
    return {
        "run_id": run_id,
        "task_id": task,
        "delivery": {} if key is None else {"delivery_idempotency_key": key},
    }


def test_without_a_key_the_run_names_the_job() -> None:
    assert job_id(frame()) == "wove-9f3a-1"
    assert job_id(frame(), prefix="x-") == "x-9f3a-1"
    assert idempotency_key(frame()) is None


def test_a_key_names_it_whatever_the_run() -> None:
    first, again = job_id(frame("invoice 7")), job_id(frame("invoice 7", run_id="other"))
    assert first == again and re.fullmatch(r"wove-key-[0-9a-f]{32}", first)
    assert job_id(frame("invoice 8")) != first
    assert job_id(frame("invoice 7", task="other")) != first, "two tasks may use one key"


@given(key=st.text(min_size=1), task=st.text(min_size=1), most=st.integers(45, 64))
def test_ids_fit_every_backend(key: str, task: str, most: int) -> None:
    found = job_id(frame(key, task), most=most)
    assert len(found) <= most and re.fullmatch(r"[A-Za-z0-9_-]+", found)


@given(task=st.text(), most=st.integers(30, 63))
def test_names_are_legal_for_kubernetes(task: str, most: int) -> None:
    found = job_name(task, most=most, suffix="-0a1b2c3d")
    assert len(found) <= most
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", found)


@pytest.mark.parametrize(
    ("task", "found"),
    [("Render PDF", "wove-render-pdf"), ("<lambda>", "wove-lambda"), ("日本", "wove-task")],
)
def test_names_can_be_read(task: str, found: str) -> None:
    assert job_name(task, most=40) == found
    assert job_name("Render_PDF", most=40, pattern="A-Za-z0-9_-") == "wove-Render_PDF"
