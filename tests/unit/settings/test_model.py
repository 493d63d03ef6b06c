"""Environments and configurations: values that do not change, and one laid over another."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest

from wove.settings.model import BUILT_IN, Configuration, Environment, overlaid


class Executor:
    """Has what an executor needs to have, and inherits nothing."""

    async def start(self) -> None: ...
    async def send(self) -> None: ...
    async def recv(self) -> None: ...
    async def stop(self) -> None: ...


def configured(**given: Any) -> Configuration:
    return overlaid(BUILT_IN, given, "wove.config")


def environments(**definitions: Any) -> Configuration:
    return configured(environments=definitions)


# ------------------------------------------------------------------ values


def test_the_built_in_configuration() -> None:
    assert BUILT_IN.default_environment == "default"
    assert dict(BUILT_IN.environments) == {"default": Environment("default")}
    assert dict(BUILT_IN.defaults) == {}
    assert BUILT_IN.environments["default"].is_local


@pytest.mark.parametrize("executor", ["stdio", Executor()])
def test_only_the_local_executor_is_local(executor: object) -> None:
    assert not Environment("x", executor).is_local


def test_nothing_can_be_changed() -> None:
    configuration = environments(
        reports={"executor": "http", "executor_config": {"url": "u"}, "retries": 1}
    )
    environment = configuration.environments["reports"]
    mapping: Any
    for mapping in (
        configuration.environments,
        configuration.defaults,
        environment.executor_config,
        environment.defaults,
    ):
        with pytest.raises(TypeError):
            mapping["x"] = 1
    for owner in (configuration, environment):
        with pytest.raises(AttributeError):
            owner.defaults = {}  # type: ignore[misc]


def test_what_the_caller_changes_later_stays_out() -> None:
    config: dict[str, Any] = {"options": {"queue": "a"}, "hosts": ["x"]}
    configuration = environments(reports={"executor": "celery", "executor_config": config})
    config["options"]["queue"] = "b"
    config["hosts"].append("y")
    config["more"] = 1
    kept = configuration.environments["reports"].executor_config
    assert kept == {"options": {"queue": "a"}, "hosts": ["x"]}


def test_objects_in_executor_config_are_kept_as_they_are() -> None:
    client = threading.Lock()  # can be neither copied nor pickled
    configuration = environments(reports={"executor": "ray", "executor_config": {"client": client}})
    assert configuration.environments["reports"].executor_config["client"] is client


def through_pickle(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


AGAIN: list[Callable[[Any], Any]] = [through_pickle, copy.copy, copy.deepcopy]


@pytest.mark.parametrize("again", AGAIN)
def test_pickling_and_copying(again: Callable[[Any], Any]) -> None:
    configuration = configured(
        default_environment="reports",
        environments={
            "reports": {"executor": "http", "executor_config": {"url": "u"}, "retry_on": OSError}
        },
        timeout=3,
    )
    twin = again(configuration)
    assert twin == configuration
    assert hash(twin) == hash(configuration)
    assert twin.environments["reports"].is_local is False
    with pytest.raises(TypeError):
        twin.defaults["x"] = 1


def test_equality_and_hash() -> None:
    one, two = Environment("a", "http", {"url": "u"}), Environment("a", "http", {"url": "u"})
    assert one == two
    assert {one, two} == {one}
    assert one != Environment("a", "http", {"url": "v"})


def test_a_repr_shows_no_executor_config() -> None:
    configuration = environments(
        x={"executor": "http", "executor_config": {"security": {"secret": "hunter2"}}}
    )
    assert "hunter2" not in repr(configuration)


# ------------------------------------------------------------------ laying over


def test_definitions_merge_key_by_key() -> None:
    first = environments(
        reports={"executor": "http", "executor_config": {"url": "u"}, "retries": 1, "timeout": 9}
    )
    second = overlaid(
        first, {"environments": {"reports": {"retries": 2}}, "workers": 4}, "wove.config"
    )
    third = overlaid(second, {"retries": 5}, "wove.config")
    reports = third.environments["reports"]
    assert (reports.executor, reports.executor_config) == ("http", {"url": "u"})
    assert reports.defaults == {"retries": 2, "timeout": 9.0}
    assert third.defaults == {"workers": 4, "retries": 5}
    assert first.environments["reports"].defaults["retries"] == 1


def test_another_executor_starts_with_an_empty_config() -> None:
    first = environments(
        reports={"executor": "http", "executor_config": {"url": "u"}, "retries": 1}
    )
    same = overlaid(first, {"environments": {"reports": {"executor": "http"}}}, "x")
    other = overlaid(first, {"environments": {"reports": {"executor": "local"}}}, "x")
    both = overlaid(
        first,
        {"environments": {"reports": {"executor": "celery", "executor_config": {"queue": "q"}}}},
        "x",
    )
    assert same == first
    assert other.environments["reports"] == Environment("reports", "local", {}, {"retries": 1})
    assert both.environments["reports"].executor_config == {"queue": "q"}


def test_executor_config_is_replaced_whole_and_taken_back_by_none() -> None:
    first = environments(
        reports={"executor": "http", "executor_config": {"url": "u", "insecure": True}}
    )
    replaced = overlaid(
        first, {"environments": {"reports": {"executor_config": {"url": "v"}}}}, "x"
    )
    emptied = overlaid(first, {"environments": {"reports": {"executor_config": None}}}, "x")
    assert replaced.environments["reports"].executor_config == {"url": "v"}
    assert emptied.environments["reports"].executor_config == {}


def test_a_definition_without_an_executor_is_local() -> None:
    assert environments(fast={"timeout": 1}).environments["fast"] == Environment(
        "fast", "local", {}, {"timeout": 1.0}
    )


def test_none_is_off_where_that_has_a_meaning_and_takes_back_where_not() -> None:
    first = configured(
        retries=3, max_workers=4, environments={"x": {"retries": 2, "error_mode": "return"}}
    )
    second = overlaid(
        first,
        {
            "retries": None,
            "max_workers": None,
            "environments": {"x": {"retries": None, "error_mode": None}},
        },
        "wove.config",
    )
    assert second.defaults == {"retries": 0}
    assert second.environments["x"].defaults == {"retries": 0}


def test_none_removes_an_environment() -> None:
    first = environments(a={}, b={})
    assert set(overlaid(first, {"environments": {"a": None}}, "x").environments) == {"default", "b"}


def test_removing_the_default_environment_restores_the_built_in_one() -> None:
    first = environments(default={"executor": "stdio", "retries": 2})
    assert overlaid(first, {"environments": {"default": None}}, "x") == BUILT_IN


def test_an_own_executor_object() -> None:
    executor = Executor()
    assert environments(mine={"executor": executor}).environments["mine"].executor is executor


def test_default_environment_may_be_configured_later() -> None:
    assert configured(default_environment="later").default_environment == "later"
    assert configured(default_environment=None).default_environment == "default"


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        (
            {"retires": 1},
            TypeError,
            r"wove\.config: unknown option 'retires'\. Did you mean 'retries'\?",
        ),
        ({"enviroments": {}}, TypeError, "Did you mean 'environments'?"),
        ({"environment": "x"}, TypeError, "Did you mean 'default_environment'?"),
        ({"retries": "3"}, TypeError, r"wove\.config: retries must be a whole number, not '3'"),
        (
            {"max_workers": 0},
            ValueError,
            r"wove\.config: max_workers must be a whole number of at least 1",
        ),
        (
            {"default_environment": 3},
            TypeError,
            "default_environment must be the name of an environment, not 3",
        ),
        (
            {"default_environment": ""},
            ValueError,
            "default_environment must be the name of an environment",
        ),
        (
            {"environments": ["a"]},
            TypeError,
            "environments must be a dict of definitions by name, not",
        ),
        (
            {"environments": {3: {}}},
            TypeError,
            "the name of an environment is text and not empty, not 3",
        ),
        ({"environments": {"": {}}}, TypeError, "the name of an environment is text"),
        ({"environments": {"a": "http"}}, TypeError, r"environment 'a' must be a dict such as"),
        (
            {"environments": {"a": {"executer": "http"}}},
            TypeError,
            "environment 'a': unknown option 'executer'",
        ),
        (
            {"environments": {"a": {"environment": "b"}}},
            TypeError,
            "environment is not an option here",
        ),
        ({"environments": {"a": {"url": "http://x"}}}, TypeError, "unknown option 'url'"),
        (
            {"environments": {"a": {"timeout": True}}},
            TypeError,
            "environment 'a': timeout must be a number",
        ),
        (
            {"environments": {"a": {"executor": None}}},
            TypeError,
            "executor must be the name of a built-in",
        ),
        (
            {"environments": {"a": {"executor": ""}}},
            TypeError,
            "executor must be the name of a built-in",
        ),
        (
            {"environments": {"a": {"executor": object()}}},
            TypeError,
            "with the methods start, send, recv, stop",
        ),
        (
            {"environments": {"a": {"executor": Executor}}},
            TypeError,
            "is the class Executor; give an instance",
        ),
        (
            {"environments": {"a": {"executor_config": "s3cret"}}},
            TypeError,
            "executor_config must be a dict, not of",
        ),
        (
            {"environments": {"a": {"executor_config": {1: 2}}}},
            TypeError,
            "keys of executor_config are text, not 1",
        ),
        ({"environments": {"b": None}}, ValueError, "there is no environment 'b' to remove"),
        ({3: 4}, TypeError, "names of options are text, not 3"),
    ],
)
def test_what_is_refused(given: dict[Any, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        overlaid(BUILT_IN, given, "wove.config")


def test_a_refusal_shows_no_secret() -> None:
    with pytest.raises(TypeError) as caught:
        environments(a={"executor_config": "hunter2"})
    assert "hunter2" not in str(caught.value)
