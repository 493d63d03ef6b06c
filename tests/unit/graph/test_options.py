"""The options: each is there once, and a bad value says what is wrong and what to do."""

from __future__ import annotations

import ast
import asyncio
import inspect
import itertools
import math
import pickle
from collections.abc import Mapping
from fractions import Fraction
from numbers import Integral
from typing import Any

import pytest
from hypothesis import given, strategies as st

from wove.graph import options
from wove.graph.options import (
    MAPPED_ONLY,
    OPTIONS,
    UNSET,
    DefaultOptions,
    DeliveryOptions,
    DeliveryPolicy,
    Scope,
    TaskOptions,
    WeaveOptions,
    check_defaults,
    check_task_options,
    check_weave_options,
    names,
    suggest,
)

POSITIVE = [
    "timeout",
    "limit_per_minute",
    "delivery_timeout",
    "delivery_heartbeat_seconds",
    "delivery_notice_seconds",
]
WHOLE = ["workers", "max_workers", "max_pending", "delivery_max_in_flight"]
INHERITING = {"environment", "max_workers", "background", "fork", "error_mode"}


class Count:
    """A whole number of another package's, as numpy's are."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __int__(self) -> int:
        return self.value

    def __float__(self) -> float:
        return float(self.value)


Integral.register(Count)


class Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def check(name: str, value: object) -> Any:
    """*value* as it comes out of a check in any place that takes the option."""
    checked = (
        check_task_options({name: value}, mapped=True, label="task 'pdf'")
        if "task" in OPTIONS[name].scopes
        else check_weave_options({name: value})
    )
    return checked[name]


# ------------------------------------------------------------------ the table


@pytest.mark.parametrize(
    ("typed", "scope"),
    [(TaskOptions, "task"), (WeaveOptions, "weave"), (DefaultOptions, "config")],
)
def test_typed_dicts_and_table_agree(typed: type, scope: Scope) -> None:
    assert set(typed.__annotations__) == set(names(scope))
    assert typed.__total__ is False  # type: ignore[attr-defined]


def test_an_editor_shows_the_text_of_the_table() -> None:
    tree = ast.parse(inspect.getsource(options))
    shown = {
        ast.unparse(field.target): " ".join(str(ast.literal_eval(text.value)).split())
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name.endswith("Options")
        for field, text in itertools.pairwise(node.body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }
    assert shown == {name: " ".join(option.doc.split()) for name, option in OPTIONS.items()}


def test_delivery_options_are_those_of_the_policy() -> None:
    expected = {f"delivery_{field}" for field in DeliveryPolicy._fields}
    assert set(DeliveryOptions.__annotations__) == expected
    assert {name for name in OPTIONS if name.startswith("delivery_")} == expected


def test_environment_and_config_take_the_same_defaults() -> None:
    assert set(names("environment")) == set(names("config"))


def test_policy_defaults_are_the_built_in_values() -> None:
    policy = DeliveryPolicy()
    for field, value in policy._asdict().items():
        assert OPTIONS[f"delivery_{field}"].default == value


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_documented_and_its_default_passes(name: str) -> None:
    option = OPTIONS[name]
    assert option.name == name
    assert option.doc.endswith(".")
    assert option.none
    assert option.inherits is (name in INHERITING)
    if option.default is not None:
        assert option.rule(option.default) == option.default


def test_the_table_is_read_only() -> None:
    with pytest.raises(TypeError):
        OPTIONS["new"] = OPTIONS["retries"]  # type: ignore[index]


def test_unset_shows_and_pickles_as_itself() -> None:
    assert repr(UNSET) == "UNSET"
    assert pickle.loads(pickle.dumps(UNSET)) is UNSET


# ------------------------------------------------------------------ values that pass


@pytest.mark.parametrize("name", POSITIVE)
@pytest.mark.parametrize("value", [1, 0.25, 30.0, Fraction(1, 2), Count(3)])
def test_numbers_become_floats(name: str, value: float) -> None:
    result = check(name, value)
    assert type(result) is float
    assert result == float(value)


@pytest.mark.parametrize("name", [*WHOLE, "retries"])
@pytest.mark.parametrize("value", [1, 64, Count(3)])
def test_whole_numbers_become_ints(name: str, value: int) -> None:
    result = check(name, value)
    assert type(result) is int
    assert result == int(value)


def test_zero_retries_and_delay_are_fine() -> None:
    assert check("retries", 0) == 0
    assert check("retry_delay", 0) == 0.0


def test_retry_delay_kinds() -> None:
    def delay(attempt: int) -> float:
        return attempt

    assert check("retry_delay", "exponential") == "exponential"
    assert check("retry_delay", delay) is delay
    assert type(check("retry_delay", 2)) is float


@pytest.mark.parametrize("given", [OSError, (OSError,), [OSError], {OSError}, frozenset({OSError})])
def test_retry_on_becomes_a_tuple(given: object) -> None:
    assert check("retry_on", given) == (OSError,)


@pytest.mark.parametrize(
    "key",
    ["report-{account}", "{item.id}", "{item[id]}", "{n:05d}", "fixed", "{{literal}}", str],
)
def test_idempotency_keys(key: object) -> None:
    assert check("delivery_idempotency_key", key) is key


@pytest.mark.parametrize("name", OPTIONS)
def test_none_is_off_or_not_set(name: str) -> None:
    option = OPTIONS[name]
    if "task" in option.scopes:
        checked = check_task_options({name: None}, mapped=False, label="task 'x'")
    elif "weave" in option.scopes:
        checked = check_weave_options({name: None})
    else:
        checked = check_defaults({name: None}, "environment 'pool'")
    off = None if option.switches_off else option.default
    assert checked == ({} if option.inherits else {name: off})


@pytest.mark.parametrize("name", names("task"))
def test_unset_is_left_out(name: str) -> None:
    assert check_task_options({name: UNSET}, mapped=False, label="task 'x'") == {}


def test_the_result_is_a_copy_in_the_order_given() -> None:
    given: TaskOptions = {"timeout": 2, "retries": 1}
    checked = check_task_options(given, mapped=False, label="task 'x'")
    assert list(checked.items()) == [("timeout", 2.0), ("retries", 1)]
    assert check_task_options({}, mapped=False, label="task 'x'") == {}


# ------------------------------------------------------------------ values that do not


@pytest.mark.parametrize("name", [*POSITIVE, *WHOLE, "retries", "retry_delay"])
@pytest.mark.parametrize("value", [True, False, "3", b"3", [1], {}, object(), 1j])
def test_no_number_is_a_type_error(name: str, value: object) -> None:
    # A text as retry_delay is of a right type: there is one that is allowed.
    kind = ValueError if (name, value) == ("retry_delay", "3") else TypeError
    with pytest.raises(kind, match=rf"{name} must be (a (whole )?number|seconds, .*), not "):
        check(name, value)


@pytest.mark.parametrize("name", POSITIVE)
@pytest.mark.parametrize("value", [0, -1, -0.5, math.nan, math.inf, -math.inf, 10**400])
def test_numbers_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be a finite number.*None means"):
        check(name, value)


@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
def test_retry_delay_out_of_range(value: float) -> None:
    with pytest.raises(
        ValueError, match="retry_delay must be a finite number of seconds, at least 0"
    ):
        check("retry_delay", value)


@pytest.mark.parametrize(("name", "value"), [(name, 0) for name in WHOLE] + [("retries", -1)])
def test_whole_numbers_out_of_range(name: str, value: int) -> None:
    with pytest.raises(
        ValueError, match=rf"{name} must be a whole number of at least {value + 1}, not {value}"
    ):
        check(name, value)


@pytest.mark.parametrize("name", [*WHOLE, "retries"])
def test_a_float_is_no_whole_number(name: str) -> None:
    with pytest.raises(TypeError, match=r"whole number, not 2\.0"):
        check(name, 2.0)


@pytest.mark.parametrize("name", ["background", "fork"])
@pytest.mark.parametrize("value", [1, 0, "yes"])
def test_flags_are_bools(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"{name} must be True or False"):
        check(name, value)


@pytest.mark.parametrize("name", ["delivery_cancel_mode", "delivery_orphan_policy", "error_mode"])
def test_choices(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be '"):
        check(name, "whatever")
    with pytest.raises(TypeError, match=f"{name} must be '"):
        check(name, 1)


def test_a_choice_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"not 'best-effort'\. Did you mean 'best_effort'\?"):
        check("delivery_cancel_mode", "best-effort")


@pytest.mark.parametrize(
    "kind", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, BaseException]
)
def test_what_is_never_retried(kind: type[BaseException]) -> None:
    with pytest.raises(ValueError, match=f"retry_on must not hold {kind.__name__}.*never retried"):
        check("retry_on", (OSError, kind))


@pytest.mark.parametrize("value", ["OSError", OSError(), [1], int, {OSError: 1}, 3, ["OSError"]])
def test_retry_on_holds_exception_types(value: object) -> None:
    with pytest.raises(TypeError, match="retry_on must be one exception type or several"):
        check("retry_on", value)


def test_retry_on_nothing() -> None:
    with pytest.raises(ValueError, match=r"at least one exception type.*retries=0"):
        check("retry_on", [])


@pytest.mark.parametrize("key", ["", "{}", "{0}", "{a b}", "{a", "a}"])
def test_bad_idempotency_templates(key: str) -> None:
    with pytest.raises(ValueError, match="delivery_idempotency_key"):
        check("delivery_idempotency_key", key)


def test_idempotency_key_of_a_wrong_type() -> None:
    with pytest.raises(TypeError, match=r"text with \{parameter\} fields or a callable, not 3"):
        check("delivery_idempotency_key", 3)


@pytest.mark.parametrize(("value", "kind"), [("", ValueError), (3, TypeError), (b"x", TypeError)])
def test_environment_is_a_name(value: object, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="environment must be the name of an environment"):
        check("environment", value)


@pytest.mark.parametrize("name", sorted(MAPPED_ONLY))
def test_options_of_mapped_tasks(name: str) -> None:
    with pytest.raises(ValueError, match=f"task 'pdf': {name} concerns mapped tasks"):
        check_task_options({name: 2}, mapped=False, label="task 'pdf'")
    assert check_task_options({name: None}, mapped=False, label="task 'pdf'") == {name: None}
    assert check_defaults({name: 2}, "wove.config") == {name: 2}


def test_messages_survive_values_that_cannot_be_shown() -> None:
    with pytest.raises(TypeError, match="not a value of type Unshowable"):
        check("timeout", Unshowable())
    with pytest.raises(TypeError, match="not a value of type list"):
        check("timeout", list(range(1000)))


def test_a_message_names_task_and_option() -> None:
    with pytest.raises(
        ValueError, match=r"^task 'pdf': retries must be a whole number of at least 0, not -1$"
    ):
        check_task_options({"retries": -1}, mapped=False, label="task 'pdf'")


# ------------------------------------------------------------------ names


def test_a_misspelt_option_gets_a_suggestion() -> None:
    with pytest.raises(
        TypeError, match=r"task 'pdf': unknown option 'retires'\. Did you mean 'retries'\?"
    ):
        check_task_options({"retires": 1}, mapped=False, label="task 'pdf'")


def test_an_unknown_option_lists_the_known() -> None:
    with pytest.raises(
        TypeError, match=r"unknown option 'zzz'\. There are: background, .*, max_workers"
    ):
        check_weave_options({"zzz": 1})


def test_an_option_in_the_wrong_place_says_where_it_belongs() -> None:
    with pytest.raises(
        TypeError, match=r"belongs to weave\(\.\.\.\), an environment or wove\.config\(\.\.\.\)"
    ):
        check_task_options({"max_workers": 1}, mapped=False, label="task 'pdf'")
    with pytest.raises(TypeError, match=r"weave: retries is not an option here"):
        check_weave_options({"retries": 1})


def test_names_of_options_are_text() -> None:
    bad: Mapping[Any, object] = {1: 2}
    with pytest.raises(TypeError, match="names of options are text, not 1"):
        check_defaults(bad, "environment 'x'")


def test_suggest() -> None:
    assert suggest("retires", ["retries", "timeout"]) == " Did you mean 'retries'?"
    assert suggest("RETRIES", ["retries"]) == " Did you mean 'retries'?"
    assert suggest("account", iter(["Account", "invoices"])) == " Did you mean 'Account'?"
    assert suggest("xyz", ["retries"]) == ""
    assert suggest("retires", ["retries"], cutoff=0.99) == ""
    assert suggest("x", []) == ""


# ------------------------------------------------------------------ anything at all

ANYTHING = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
    | st.lists(st.integers(), max_size=3) | st.dictionaries(st.text(), st.none(), max_size=2)
    | st.sampled_from([UNSET, OSError, KeyboardInterrupt, int, len, object(), Unshowable()])
)  # fmt: skip


@given(name=st.sampled_from(sorted(OPTIONS)), value=ANYTHING)
def test_a_check_passes_or_says_so(name: str, value: object) -> None:
    option = OPTIONS[name]
    if value is UNSET:
        return
    label = f"task 'x': {name}"
    try:
        kept = option.check(label, value)
    except (TypeError, ValueError) as error:
        message = str(error)
    else:
        # What was kept passes again, and unchanged: checked options may be checked twice.
        assert option.check(label, kept) == kept
        message = f"{label} is fine"
    assert message.startswith(f"{label} ")
