"""Defines every option once: its name, where it may be set, its unit, its default, and its check.

``@w.do``, ``@Weave.do``, ``merge``, ``weave``, environments and ``wove.config`` check their options here,
so a misspelt or impossible value is the same error everywhere. The ``TypedDict`` classes are the same
options for type checkers; a test compares them with :data:`OPTIONS`.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypedDict

from wove.graph.resources import Resources, ResourcesDict, resources
from wove.graph.rules import (
    IdempotencyKey,
    RetryDelay,
    RetryOn,
    Rule,
    delay,
    either,
    environment_name,
    exceptions,
    flag,
    function_path,
    idempotency_key,
    not_negative,
    one_of,
    positive,
    result_store,
    shown,
    suggest,
    version,
    whole,
)

__all__ = [
    "OPTIONS",
    "UNSET",
    "DefaultOptions",
    "DeliveryOptions",
    "DeliveryPolicy",
    "Option",
    "TaskOptions",
    "Unset",
    "WeaveOptions",
    "check_defaults",
    "check_task_options",
    "check_value_name",
    "check_weave_options",
    "names",
    "shown",
    "suggest",
    "unknown_option",
]


class Unset(enum.Enum):
    """The type of :data:`UNSET`."""

    UNSET = "UNSET"

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = Unset.UNSET
"""Stands for an option that was left out, where ``None`` has a meaning; the checks drop it."""

Scope: TypeAlias = Literal["task", "weave", "environment", "config"]
CancelMode: TypeAlias = Literal["best_effort", "require_ack"]
OrphanPolicy: TypeAlias = Literal["cancel", "fail", "requeue", "detach"]
ErrorMode: TypeAlias = Literal["raise", "return", "continue"]


# ------------------------------------------------------------------ for type checkers


class DeliveryOptions(TypedDict, total=False):
    """How a remote run is handed over and watched; see :data:`OPTIONS` for units."""

    delivery_timeout: float | None
    """Seconds from the hand-over of a run to its end."""
    delivery_idempotency_key: IdempotencyKey | None
    """Text with {parameter} fields, or a callable of the arguments; one key, one run."""
    delivery_cancel_mode: CancelMode | None
    """Whether a cancel waits for the end of the run."""
    delivery_heartbeat_seconds: float | None
    """Seconds without a sign of life, after which a started run counts as lost."""
    delivery_notice_seconds: float | None
    """Seconds after which a warning tells of a run that no worker has begun."""
    delivery_max_in_flight: int | None
    """Maximum number of runs in flight of one environment, over the whole process."""
    delivery_orphan_policy: OrphanPolicy | None
    """How a run ends whose weave stops or whose worker is lost."""
    delivery_reconnect_seconds: float | None
    """Seconds for which a run survives the loss of the connection to its worker service."""


class _ExecutionOptions(TypedDict, total=False):
    retries: int | None
    """How many more attempts follow a failed one."""
    retry_delay: RetryDelay | None
    """Seconds between attempts, "exponential", or a callable of the failed attempt, from 1."""
    retry_on: RetryOn | None
    """The exception types after which a task is tried again."""
    timeout: float | None
    """Seconds that one attempt may take."""
    workers: int | None
    """How many items of a mapped task run at once."""
    limit_per_minute: float | None
    """Launches a minute of a mapped task, retries included."""
    remote_logs: bool | None
    """Whether the logs and prints of remote tasks come home."""
    resources: ResourcesDict | Resources | None
    """Resources that a remote task asks its environment for, as {"cpus": 4, "memory": "8GiB", "gpus": 1, "time": "2h",
    "disk": "10GiB"}."""


class _BlockOptions(TypedDict, total=False):
    max_workers: int | None
    """Maximum number of threads that run the sync tasks of one weave."""
    background: bool | None
    """Whether the tasks run in the background and the block goes on."""
    fork: bool | None
    """Whether background work gets a detached process instead of a thread."""
    error_mode: ErrorMode | None
    """Whether a failed task raises at the end of the block, is returned, or stops only what depends on it."""
    max_pending: int | None
    """Maximum number of items that the source of a mapped task may have."""


class TaskOptions(_ExecutionOptions, DeliveryOptions, total=False):
    """The options of ``@w.do``, ``@Weave.do`` and ``merge``."""

    environment: str | None
    """The name of the environment that runs it."""
    keep: bool | None
    """Whether its result is kept for w.result, and not only until the tasks that need it have it."""
    cache: bool | None
    """Whether its results are kept in the weave's store, and taken from there."""
    cache_key: IdempotencyKey | None
    """Text with {parameter} fields, or a callable of the arguments: what tells its results apart."""
    cache_version: str | int | None
    """Text or a number; another one makes every result anew."""


class WeaveOptions(_BlockOptions, DeliveryOptions, total=False):
    """The settings of ``weave(...)`` that also have defaults elsewhere, and its ``store``."""

    environment: str | None
    """The name of the environment that runs it."""
    store: Any
    """Where results of tasks with cache=True are kept: a path, or a store."""
    remote_logs: bool | None
    """Whether the logs and prints of remote tasks come home."""
    resources: ResourcesDict | Resources | None
    """Resources that a remote task asks its environment for, as {"cpus": 4, "memory": "8GiB", "gpus": 1, "time": "2h",
    "disk": "10GiB"}."""


class DefaultOptions(_BlockOptions, _ExecutionOptions, DeliveryOptions, total=False):
    """The defaults that an environment and ``wove.config`` may hold."""

    setup: str | None
    """What each worker process calls before its first task, as 'module:function'."""


# ------------------------------------------------------------------ the options


class Option(NamedTuple):
    """One option.

    Attributes:
        name: As users write it.
        scopes: Where it may be set: ``"task"``, ``"weave"``, ``"environment"``, ``"config"``.
        default: The built-in value, in the form in which Wove keeps it.
        rule: Checks a value that is not ``None`` and returns it in that form.
        none: The meaning of ``None``, for messages.
        doc: One line: meaning and unit.
        inherits: Whether ``None`` stands for an option that is not set at this place. Otherwise it stands
            for the built-in value, which is "off".
        switches_off: Whether ``None`` stands for "off" although the built-in value is another one.
    """

    name: str
    scopes: frozenset[Scope]
    default: Any
    rule: Rule
    none: str
    doc: str
    inherits: bool = False
    switches_off: bool = False

    def check(self, label: str, value: Any) -> Any:
        """Return *value* in the form in which Wove keeps it.

        Args:
            label: How messages name the option: ``"task 'pdf': retries"``.
            value: As the user gave it. ``None`` means "off".

        Raises:
            TypeError: The value has the wrong type.
            ValueError: The value has the right type and is out of range.
        """
        if value is None:
            return None if self.switches_off else self.default
        try:
            return self.rule(value)
        except (TypeError, ValueError) as error:
            # Where None means "off", the message says so: many users write 0 or -1 for that.
            has_off = self.default is None or self.switches_off
            remedy = f"; None means {self.none}" if has_off else ""
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{label} {error}{remedy}") from None


_TASK: Final[frozenset[Scope]] = frozenset({"task", "environment", "config"})
_WEAVE: Final[frozenset[Scope]] = frozenset({"weave", "environment", "config"})
_BOTH: Final[frozenset[Scope]] = _TASK | _WEAVE
_DECLARED: Final[frozenset[Scope]] = frozenset({"task"})
_UNSET_HERE: Final = "not set here"

OPTIONS: Final[Mapping[str, Option]] = MappingProxyType(
    {
        option.name: option
        for option in (
            # --- of a task
            Option("environment", frozenset({"task", "weave"}), "default", environment_name, _UNSET_HERE,
                   "The name of the environment that runs it.", inherits=True),
            Option("retries", _TASK, 0, whole(0), "no retries",
                   "How many more attempts follow a failed one."),
            Option("retry_delay", _TASK, 0.0, delay, "no delay",
                   'Seconds between attempts, "exponential", or a callable of the failed attempt, from 1.'),
            Option("retry_on", _TASK, (Exception,), exceptions, "any Exception",
                   "The exception types after which a task is tried again."),
            Option("timeout", _TASK, None, positive("seconds"), "no limit",
                   "Seconds that one attempt may take."),
            Option("workers", _TASK, None, whole(1), "no bound",
                   "How many items of a mapped task run at once."),
            Option("limit_per_minute", _TASK, None, positive("launches a minute"), "no pacing",
                   "Launches a minute of a mapped task, retries included."),
            Option("keep", _DECLARED, True, flag, "kept",
                   "Whether its result is kept for w.result, and not only until the tasks that need it have it."),
            Option("cache", _DECLARED, False, flag, "not kept",
                   "Whether its results are kept in the weave's store, and taken from there."),
            Option("cache_key", _DECLARED, None, idempotency_key, "the arguments themselves",
                   "Text with {parameter} fields, or a callable of the arguments: what tells its results apart."),
            Option("cache_version", _DECLARED, None, version, "no version",
                   "Text or a number; another one makes every result anew."),
            # --- of a weave
            Option("store", frozenset({"weave"}), None, result_store, "no store",
                   "Where results of tasks with cache=True are kept: a path, or a store."),
            Option("max_workers", _WEAVE, 256, whole(1), _UNSET_HERE,
                   "Maximum number of threads that run the sync tasks of one weave.", inherits=True),
            Option("background", _WEAVE, False, flag, _UNSET_HERE,
                   "Whether the tasks run in the background and the block goes on.", inherits=True),
            Option("fork", _WEAVE, False, flag, _UNSET_HERE,
                   "Whether background work gets a detached process instead of a thread.", inherits=True),
            Option("error_mode", _WEAVE, "raise", one_of("raise", "return", "continue"), _UNSET_HERE,
                   "Whether a failed task raises at the end of the block, is returned, or stops only "
                   "what depends on it.", inherits=True),
            Option("max_pending", _WEAVE, None, whole(1), "no bound",
                   "Maximum number of items that the source of a mapped task may have."),
            # --- of remote runs
            Option("setup", frozenset({"environment", "config"}), None, function_path, "none",
                   "What each worker process calls before its first task, as 'module:function'."),
            Option("resources", _BOTH, None, resources, "not said",
                   'Resources that a remote task asks its environment for, as {"cpus": 4, "memory": "8GiB", "gpus": 1, '
                   '"time": "2h", "disk": "10GiB"}.'),
            Option("remote_logs", _BOTH, False, flag, "off",
                   "Whether the logs and prints of remote tasks come home."),
            Option("delivery_timeout", _BOTH, None, positive("seconds"), "no limit",
                   "Seconds from the hand-over of a run to its end."),
            Option("delivery_idempotency_key", _BOTH, None, idempotency_key, "no key",
                   "Text with {parameter} fields, or a callable of the arguments; one key, one run."),
            Option("delivery_cancel_mode", _BOTH, "best_effort", one_of("best_effort", "require_ack"),
                   "'best_effort'", "Whether a cancel waits for the end of the run."),
            Option("delivery_heartbeat_seconds", _BOTH, None, positive("seconds"), "not watched",
                   "Seconds without a sign of life, after which a started run counts as lost."),
            Option("delivery_notice_seconds", _BOTH, 10.0, positive("seconds"), "no warning",
                   "Seconds after which a warning tells of a run that no worker has begun.",
                   switches_off=True),
            Option("delivery_max_in_flight", _BOTH, None, whole(1), "no bound",
                   "Maximum number of runs in flight of one environment, over the whole process."),
            Option("delivery_orphan_policy", _BOTH, "cancel", one_of("cancel", "fail", "requeue", "detach"),
                   "'cancel'", "How a run ends whose weave stops or whose worker is lost."),
            Option("delivery_reconnect_seconds", _BOTH, 60.0, not_negative("seconds"), "60 seconds",
                   "Seconds for which a run survives the loss of the connection to its worker service."),
        )
    }
)  # fmt: skip
"""Every option by name."""

MAPPED_ONLY: Final = frozenset({"workers", "limit_per_minute"})
"""Options that concern mapped tasks alone."""

_BY_SCOPE: Final[Mapping[Scope, Mapping[str, Option]]] = {
    scope: {name: option for name, option in OPTIONS.items() if scope in option.scopes}
    for scope in ("task", "weave", "environment", "config")
}
_PLACES: Final[Mapping[Scope, str]] = {
    "task": "a task",
    "weave": "weave(...)",
    "environment": "an environment",
    "config": "wove.config(...)",
}


def names(scope: Scope) -> Collection[str]:
    """Return the names of the options that may be set in *scope*."""
    return _BY_SCOPE[scope].keys()


def check_task_options(
    options: Mapping[str, object], *, mapped: bool, label: str
) -> dict[str, Any]:
    """Return a checked copy of the options of a task.

    Args:
        options: The options as given. ``None`` becomes the built-in value ("off"), or drops an option
            for which it means "not set here"; :data:`UNSET` drops any option.
        mapped: Whether the task has a source of items.
        label: How messages name the task: ``"task 'pdf'"``.

    Raises:
        TypeError: An unknown option, or a value of the wrong type.
        ValueError: A value out of range, or an option of mapped tasks on one that is not.
    """
    checked = _check(options, "task", label)
    if checked and not mapped:
        for name in MAPPED_ONLY:
            if checked.get(name) is not None:
                raise ValueError(
                    f"{label}: {name} concerns mapped tasks, and this one maps over nothing. "
                    f"Leave {name} out, or give the task something to map over"
                )

    return checked


def check_weave_options(options: Mapping[str, object], label: str = "weave") -> dict[str, Any]:
    """Return a checked copy of the settings of a weave; as :func:`check_task_options`."""
    return _check(options, "weave", label)


def check_value_name(name: str, own: Collection[str]) -> None:
    """Refuse an initial value of a weave that was most likely meant as an option.

    Args:
        name: The name of the value.
        own: The parameters of ``weave(...)``.

    Raises:
        TypeError: It has the name of an option of tasks, or differs from one of *own* in one character.
    """
    if name in _unmistakable:
        return
    remedy = f"A value of that name is given as values={{{name!r}: ...}}"
    option = OPTIONS.get(name)
    if option is not None:
        raise TypeError(
            f"weave: {name} is not an option here; it belongs to "
            f"{either([text for scope, text in _PLACES.items() if scope in option.scopes])}. {remedy}"
        )

    # A short word is similar to too many others: `value` is not a misspelling of `values`.
    for other in own:
        if ("_" in other or len(other) >= 8) and _is_near(name, other):
            raise TypeError(f"weave: unknown option {name!r}. Did you mean {other!r}? {remedy}")

    if len(_unmistakable) < REMEMBERED:
        _unmistakable.add(name)


REMEMBERED: Final = 1024
"""How many names of initial values are remembered as correct; a block that is run again has the same."""

_unmistakable: set[str] = set()


def _is_near(name: str, other: str) -> bool:
    """Return whether *name* differs from *other* in one character, or in two that are swapped."""
    if abs(len(name) - len(other)) > 1:
        return False
    start = 0
    while start < min(len(name), len(other)) and name[start] == other[start]:
        start += 1
    left, right = name[start:], other[start:]
    return (
        left[1:] == right[1:]
        or left[1:] == right
        or left == right[1:]
        or (left[:2] == right[1::-1] and left[2:] == right[2:])
    )


def check_defaults(options: Mapping[str, object], label: str) -> dict[str, Any]:
    """Return a checked copy of the defaults of an environment or ``wove.config``; as :func:`check_task_options`."""
    return _check(options, "config", label)


def _check(options: Mapping[str, object], scope: Scope, label: str) -> dict[str, Any]:
    known = _BY_SCOPE[scope]
    checked: dict[str, Any] = {}

    for name, value in options.items():
        option = known.get(name)
        if option is None:
            raise unknown_option(name, known, label)
        if value is UNSET or (value is None and option.inherits):
            continue
        checked[name] = option.check(f"{label}: {name}", value)

    return checked


def unknown_option(name: object, known: Collection[str], label: str) -> TypeError:
    """Return the error for an option that is not among the *known* ones, with the nearest of them."""
    if not isinstance(name, str):
        return TypeError(f"{label}: the names of options are text, not {shown(name)}")
    option = OPTIONS.get(name)
    if option is not None:
        places = [text for scope, text in _PLACES.items() if scope in option.scopes]
        return TypeError(f"{label}: {name} is not an option here; it belongs to {either(places)}")

    hint = suggest(name, known) or f" There are: {', '.join(sorted(known))}."
    return TypeError(f"{label}: unknown option {name!r}.{hint}")


class DeliveryPolicy(NamedTuple):
    """How a remote run is delivered and watched: the ``delivery_*`` options, resolved.

    Attributes:
        timeout: Seconds from hand-over to the terminal event; ``None`` for no limit.
        heartbeat_seconds: Seconds without an event of a started run, after which its worker counts as
            dead; ``None`` to not watch.
        notice_seconds: Seconds after which a warning tells of a run that no worker has begun; ``None`` for no warning.
        cancel_mode: ``"best_effort"`` or ``"require_ack"``.
        idempotency_key: Text with ``{parameter}`` fields, or a callable of the arguments; ``None`` for none.
        max_in_flight: Maximum number of runs in flight of the environment in this process; ``None`` for no bound.
        orphan_policy: ``"cancel"``, ``"fail"``, ``"requeue"`` or ``"detach"``.
        reconnect_seconds: Seconds for which a run survives the loss of its connection; 0 to lose it at once.
    """

    timeout: float | None = None
    heartbeat_seconds: float | None = None
    notice_seconds: float | None = 10.0
    cancel_mode: CancelMode = "best_effort"
    idempotency_key: IdempotencyKey | None = None
    max_in_flight: int | None = None
    orphan_policy: OrphanPolicy = "cancel"
    reconnect_seconds: float = 60.0
