"""Which value holds, and where it came from."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given, strategies as st

from wove.graph.options import (
    MAPPED_ONLY,
    OPTIONS,
    DeliveryPolicy,
    check_task_options,
    check_weave_options,
    names,
)
from wove.settings.model import BUILT_IN, Configuration, overlaid
from wove.settings.resolution import Resolver, Setting, TaskSettings

REPORTS = {
    "executor": "http",
    "retries": 3,
    "timeout": 120.0,
    "workers": 4,
    "delivery_timeout": 20.0,
    "error_mode": "return",
    "max_workers": 8,
}


def configured(**given: Any) -> Configuration:
    return overlaid(BUILT_IN, given, "wove.config")


def resolver(configuration: Configuration = BUILT_IN, **weave_options: Any) -> Resolver:
    return Resolver(configuration, check_weave_options(weave_options))


def options(mapped: bool = True, /, **given: Any) -> dict[str, Any]:
    return check_task_options(given, mapped=mapped, label="task 'x'")


# ------------------------------------------------------------------ nothing set


def test_built_in_settings_of_a_weave() -> None:
    settings = resolver().weave()
    assert settings.max_workers == 256
    assert settings.error_mode == "raise"
    assert (settings.background, settings.fork, settings.max_pending) == (False, False, None)
    assert settings.environment is BUILT_IN.environments["default"]


@pytest.mark.parametrize("mapped", [True, False])
def test_built_in_settings_of_a_task(mapped: bool) -> None:
    settings = resolver().task({}, mapped)
    assert settings == TaskSettings(BUILT_IN.environments["default"])
    assert settings.is_local
    assert settings.retry_on == (Exception,)
    assert settings.delivery == DeliveryPolicy()


def test_without_options_everything_is_shared() -> None:
    one, two = resolver(), resolver()
    assert one.task({}, False) is one.task({}, False) is two.task({}, False)
    assert one.task({}, True) is two.task({}, True)
    assert one.weave() is one.weave() is two.weave()


def test_a_weave_with_settings_keeps_its_own() -> None:
    plain, special = resolver(), resolver(delivery_timeout=5)
    assert special.task({}, False).delivery.timeout == 5.0
    assert special.task({}, False) is special.task({}, False)
    assert plain.task({}, False).delivery.timeout is None


# ------------------------------------------------------------------ the order

LAYERS: list[tuple[str, str]] = [
    ("built-in", "cancel"),
    ("wove.config", "fail"),
    ("environment 'reports'", "requeue"),
    ("weave", "detach"),
    ("task", "fail"),
]


@pytest.mark.parametrize("nearest", range(len(LAYERS)))
def test_the_nearest_wins(nearest: int) -> None:
    name = "delivery_orphan_policy"
    given: dict[str, dict[str, Any]] = {origin: {} for origin, _ in LAYERS}
    for origin, value in LAYERS[1 : nearest + 1]:
        given[origin] = {name: value}
    configuration = configured(
        default_environment="reports",
        environments={"reports": {"executor": "http", **given["environment 'reports'"]}},
        **given["wove.config"],
    )
    resolved = resolver(configuration, **given["weave"])
    origin, value = LAYERS[nearest]
    assert resolved.task(options(**given["task"]), False).delivery.orphan_policy == value
    assert resolved.explain(options(**given["task"]), False)[name] == Setting(value, origin)


def test_the_settings_of_the_environment_that_a_task_selects_hold_for_it() -> None:
    configuration = configured(environments={"reports": REPORTS}, retries=1, timeout=5)
    resolved = resolver(configuration)
    here, there = resolved.task({}, True), resolved.task(options(environment="reports"), True)
    assert (here.retries, here.timeout, here.workers, here.is_local) == (1, 5.0, None, True)
    assert (there.retries, there.timeout, there.workers, there.is_local) == (3, 120.0, 4, False)
    assert there.delivery.timeout == 20.0


def test_a_task_may_come_back_from_its_weave_s_environment() -> None:
    resolved = resolver(configured(environments={"reports": REPORTS}), environment="reports")
    assert resolved.task({}, False).retries == 3
    back = resolved.task(options(environment="default"), False)
    assert back.is_local
    assert back.retries == 0


def test_weave_settings_come_from_the_weave_its_environment_and_the_defaults() -> None:
    configuration = configured(
        environments={"reports": REPORTS}, max_workers=2, max_pending=7, background=True
    )
    plain = resolver(configuration).weave()
    assert (plain.max_workers, plain.error_mode, plain.max_pending, plain.background) == (
        2,
        "raise",
        7,
        True,
    )
    there = resolver(
        configuration, environment="reports", max_pending=None, background=False
    ).weave()
    assert (there.max_workers, there.error_mode, there.max_pending, there.background) == (
        8,
        "return",
        None,
        False,
    )


def test_none_switches_an_inherited_default_off() -> None:
    configuration = configured(
        environments={"default": REPORTS}, limit_per_minute=60, max_pending=3
    )
    off: dict[str, Any] = dict.fromkeys(
        ["retries", "timeout", "workers", "limit_per_minute", "delivery_timeout"]
    )
    settings = resolver(configuration, max_pending=None).task(options(**off), True)
    assert settings == TaskSettings(configuration.environments["default"])


@pytest.mark.parametrize("name", ["environment", "max_workers", "background", "fork", "error_mode"])
def test_none_is_not_set_here(name: str) -> None:
    configuration = configured(
        default_environment="reports",
        environments={"reports": {**REPORTS, "background": True, "fork": True}},
    )
    assert resolver(configuration, **{name: None}).weave() == resolver(configuration).weave()
    assert resolver(configuration).weave().fork is True


def test_defaults_for_mapped_tasks_disturb_no_other() -> None:
    configuration = configured(workers=4, limit_per_minute=60)
    plain = resolver(configuration).task({}, False)
    assert (plain.workers, plain.limit_per_minute) == (None, None)
    with_option = resolver(configuration).task(options(False, retries=1), False)
    assert (with_option.workers, with_option.limit_per_minute) == (None, None)
    mapped = resolver(configuration).task({}, True)
    assert (mapped.workers, mapped.limit_per_minute) == (4, 60.0)


def test_delivery_options_of_a_task_leave_the_others_alone() -> None:
    configuration = configured(delivery_timeout=20, delivery_max_in_flight=5)
    task = resolver(configuration).task(options(delivery_timeout=1), False)
    assert task.delivery == DeliveryPolicy(timeout=1.0, max_in_flight=5)
    assert resolver(configuration).task({}, False).delivery.timeout == 20.0


def test_settings_pickle() -> None:
    settings = resolver(configured(environments={"default": REPORTS})).task({}, True)
    assert pickle.loads(pickle.dumps(settings)) == settings


# ------------------------------------------------------------------ unknown environments


def test_an_unknown_environment_of_a_task() -> None:
    resolved = resolver(configured(environments={"reports": REPORTS}))
    with pytest.raises(
        NameError,
        match=r"task 'pdf': environment 'report' is not configured\. "
        r"Configured: 'default', 'reports'\. Did you mean 'reports'\?",
    ):
        resolved.task(options(environment="report"), False, "task 'pdf'")


def test_an_unknown_environment_of_a_weave() -> None:
    resolved = resolver(environment="nowhere")
    for ask in (resolved.weave, resolved.explain_weave, lambda: resolved.task({}, False)):
        with pytest.raises(
            NameError, match=r"environment 'nowhere' is not configured\. Configured: 'default'"
        ):
            ask()


def test_an_unknown_default_environment() -> None:
    resolved = resolver(configured(default_environment="nowhere"))
    with pytest.raises(
        NameError, match=r"wove\.config: default_environment: environment 'nowhere'"
    ):
        resolved.task({}, False, "task 'pdf'")
    assert resolved.task(options(environment="default"), False).is_local


# ------------------------------------------------------------------ explain


def test_explain_names_every_origin() -> None:
    configuration = configured(environments={"reports": REPORTS}, retry_delay=2)
    explained = resolver(configuration, delivery_max_in_flight=9).explain(
        options(environment="reports", timeout=None), True
    )
    assert explained["environment"] == ("reports", "task")
    assert explained["timeout"] == (None, "task")
    assert explained["delivery_max_in_flight"] == (9, "weave")
    assert explained["retries"] == (3, "environment 'reports'")
    assert explained["retry_delay"] == (2.0, "wove.config")
    assert explained["delivery_cancel_mode"] == ("best_effort", "built-in")


def test_explain_has_exactly_what_concerns_the_task() -> None:
    everything = {*names("task"), "max_pending", "setup"}
    assert set(resolver().explain({}, True)) == everything
    assert set(resolver().explain({}, False)) == everything - MAPPED_ONLY


def test_explain_weave() -> None:
    configuration = configured(
        default_environment="reports", environments={"reports": REPORTS}, fork=True
    )
    assert resolver(configuration, background=True).explain_weave() == {
        "environment": ("reports", "wove.config"),
        "max_workers": (8, "environment 'reports'"),
        "background": (True, "weave"),
        "fork": (True, "wove.config"),
        "error_mode": ("return", "environment 'reports'"),
        "max_pending": (None, "built-in"),
        "store": (None, "built-in"),
    }
    assert resolver(configuration, environment="default").explain_weave()["environment"] == (
        "default",
        "weave",
    )
    assert resolver().explain_weave()["environment"] == ("default", "built-in")


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "retries": st.integers(0, 5) | st.none(),
    "timeout": st.floats(1, 9) | st.none(),
    "workers": st.integers(1, 5) | st.none(),
    "limit_per_minute": st.integers(1, 5) | st.none(),
    "max_pending": st.integers(1, 5) | st.none(),
    "delivery_timeout": st.integers(1, 5) | st.none(),
    "delivery_cancel_mode": st.sampled_from(["best_effort", "require_ack", None]),
}


def layer(scope: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {}, optional={n: values for n, values in VALUES.items() if n in names(scope)}
    )


@given(
    task=layer("task"),
    weave=layer("weave"),
    environment=layer("environment"),
    config=layer("config"),
    mapped=st.booleans(),
)
def test_what_explain_says_is_what_holds(
    task: dict[str, Any],
    weave: dict[str, Any],
    environment: dict[str, Any],
    config: dict[str, Any],
    mapped: bool,
) -> None:
    if not mapped:
        task = {name: value for name, value in task.items() if name not in MAPPED_ONLY}
    configuration = configured(environments={"default": environment}, **config)
    resolved = resolver(configuration, **weave)
    checked = options(mapped, **task)
    settings = resolved.task(checked, mapped)
    for name, (value, origin) in resolved.explain(checked, mapped).items():
        if name.startswith("delivery_"):
            assert getattr(settings.delivery, name.removeprefix("delivery_")) == value
        elif name != "environment":
            assert getattr(settings, name) == value
        if origin == "built-in":
            assert value == OPTIONS[name].default
