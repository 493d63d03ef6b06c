"""The configuration of the RQ adapter, and what it makes of a run; without a Redis."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from wove.integrations.rq.adapter import GRACE_SECONDS, NO_LIMIT, RQAdapter, RunId, time_limit
from wove.integrations.rq.options import FAILURE_TTL, OPTIONS, RESULT_TTL
from wove.integrations.rq.states import failure_text


def configured(**config: Any) -> RQAdapter:
    adapter = RQAdapter("jobs", config)
    adapter.configure()
    return adapter


def queue(**more: Any) -> SimpleNamespace:
    """What has the parts of an `rq.Queue` that are looked for."""
    parts = {
        "enqueue_call": print,
        "connection": None,
        "serializer": None,
        "key": "rq:queue:mine",
        "is_async": True,
    }
    return SimpleNamespace(**{**parts, **more})


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Starts an adapter, and returns its queue. Of the server, only its version is there."""
    redis = pytest.importorskip("redis")
    answer = {"redis_version": "7.0.0"}
    monkeypatch.setattr(redis.Redis, "execute_command", lambda *args, **options: answer)

    def start(**config: Any) -> Any:
        adapter = configured(**config)
        adapter.start()
        return adapter._queue

    return start


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("redis://h:1/2", {"host": "h", "port": 1, "db": 2}),
        ("rediss://u:p@h", {"host": "h", "username": "u", "password": "p"}),
        ("unix:///run/redis.sock?db=1", {"path": "/run/redis.sock", "db": 1}),
    ],
)
def test_urls(connected: Callable[..., Any], url: str, where: dict[str, Any]) -> None:
    queue = connected(redis_url=url, queue_name="other")
    assert queue.name == "other"
    assert where.items() <= queue.connection.connection_pool.connection_kwargs.items()


def test_without_any_key_it_is_where_rq_worker_looks(connected: Callable[..., Any]) -> None:
    queue = connected()
    assert queue.key == "rq:queue:default"
    address = {"host": "localhost", "port": 6379}
    assert address.items() <= queue.connection.connection_pool.connection_kwargs.items()


@pytest.mark.parametrize("url", ["http://h", "localhost:6379", "h"])
def test_a_url_of_something_else(url: str) -> None:
    with pytest.raises(
        ValueError,
        match=r"environment 'jobs': executor_config 'redis_url' must begin with.*redis://",
    ):
        configured(redis_url=url)


def test_no_password_in_the_message() -> None:
    with pytest.raises(ValueError, match="redis_url") as caught:
        configured(redis_url="reddis://user:hunter2@h")
    assert "hunter2" not in str(caught.value)


def test_a_queue_of_ones_own() -> None:
    own = queue()
    adapter = configured(queue=own, enqueue_options={"at_front": True})
    assert adapter._given is own
    assert adapter._options["at_front"] is True


@pytest.mark.parametrize("more", [{"redis_url": "redis://h"}, {"queue_name": "n"}])
def test_a_queue_and_where_it_would_be(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"'queue' brings its own {next(iter(more))}"):
        configured(queue=queue(), **more)


def test_a_queue_that_is_none() -> None:
    with pytest.raises(TypeError, match=r"'queue' must be an rq\.Queue, not 'default'"):
        configured(queue="default")


def test_a_queue_that_works_by_itself() -> None:
    with pytest.raises(ValueError, match=r"is_async=False.*executor 'local'"):
        configured(queue=queue(is_async=False))


def test_defaults_of_the_options() -> None:
    assert configured()._options == {"result_ttl": RESULT_TTL, "failure_ttl": FAILURE_TTL}
    assert configured(enqueue_options={"result_ttl": 5})._options["result_ttl"] == 5


@pytest.mark.parametrize(
    "name", ["retry", "repeat", "job_id", "unique", "description", "args", "rate_limit"]
)
def test_options_that_are_not_the_users(name: str) -> None:
    with pytest.raises(ValueError, match=rf"enqueue_options' cannot set '{name}': \w+"):
        configured(enqueue_options={name: 1})


def test_an_option_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"no option 'job_timout'\. Did you mean 'job_timeout'\?"):
        configured(enqueue_options={"job_timout": 1})


@pytest.mark.parametrize("value", [[], "at_front", 1])
def test_options_that_are_no_dict(value: object) -> None:
    with pytest.raises(TypeError, match="'enqueue_options' must be a dict"):
        configured(enqueue_options=value)


def test_meta_that_is_no_dict() -> None:
    with pytest.raises(TypeError, match="'meta' must be a dict"):
        configured(enqueue_options={"meta": [1]})


def test_each_option_is_one_of_rq() -> None:
    rq = pytest.importorskip("rq")
    given = {name: f"the {name}" for name in OPTIONS}
    given["description"] = "ours"
    taken = rq.Queue.parse_args(print, **given)
    newer = {"the webhooks"}  # since RQ 3
    assert set(given.values()) - newer <= {each for each in taken if isinstance(each, str)}


@pytest.mark.parametrize(
    ("delivery", "deadline", "limit"),
    [
        ({}, None, NO_LIMIT),
        ({}, 10.2, 71 + GRACE_SECONDS),
        ({"delivery_timeout": 5}, 10.2, 65 + GRACE_SECONDS),
        ({"delivery_timeout": 500}, None, 560 + GRACE_SECONDS),
        ({"delivery_timeout": 5, "delivery_orphan_policy": "detach"}, None, NO_LIMIT),
        ({}, 1e12, NO_LIMIT),
    ],
)
def test_the_time_limit_of_a_job(
    delivery: dict[str, Any], deadline: float | None, limit: int
) -> None:
    payload = {"delivery": delivery, "retry_seconds": 60.0}
    assert time_limit(payload if deadline is None else {**payload, "deadline": deadline}) == limit


def test_the_run_id_in_the_meta_is_a_plain_text_for_others() -> None:
    there = pickle.loads(pickle.dumps({"wove_run": RunId("9f3a-1")}))
    assert there == {"wove_run": "9f3a-1"}
    assert type(there["wove_run"]) is str
    assert json.loads(json.dumps(RunId("9f3a-1"))) == "9f3a-1"


def test_reading_the_meta_imports_what_a_run_needs_and_starts_nothing() -> None:
    pickled = pickle.dumps(RunId("9f3a-1"))
    script = f"""
import pickle, sys, threading
assert "wove.integrations.worker" not in sys.modules
assert pickle.loads({pickled!r}) == "9f3a-1"
assert {{"wove.integrations.worker", "cloudpickle"}} <= set(sys.modules)
assert "redis" not in sys.modules and "rq" not in sys.modules
assert threading.active_count() == 1
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (
            "Work-horse terminated unexpectedly; waitpid returned 9 (signal 9); ",
            "Work-horse terminated.*signal 9",
        ),
        (
            'Traceback (most recent call last):\n  File "x", line 1\n    f()\nPermissionError: no\n',
            "^PermissionError: no$",
        ),
        ("Traceback:\n  f()\nValueError: one\ntwo", "^ValueError: one two$"),
        (
            "Traceback:\n  f()\nValueError: Invalid attribute name: wove.integrations.worker.run",
            "is Wove installed",
        ),
        ("  \n", "no reason"),
        ("x" * 10_000, "^x{500}$"),
    ],
)
def test_the_failure_text_a_failure(told: str, words: str) -> None:
    import re

    assert re.search(words, failure_text(told))
