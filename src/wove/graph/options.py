"""Every option once: its name, where it may be set, its unit, its default, and how it is checked.

Whatever takes options (``@w.do``, ``@Weave.do``, ``merge``, ``weave``, an environment, ``wove.config``)
checks them here, so a misspelt or impossible value is the same error everywhere. The ``TypedDict``
classes say the same to type checkers; a test holds them and :data:`OPTIONS` together.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias, TypedDict, cast

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
    "check_weave_options",
    "suggest",
]


class Unset(enum.Enum):
    """The type of :data:`UNSET`."""

    UNSET = "UNSET"

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = Unset.UNSET
"""Stands for an option that was left out, where ``None`` means something: the checks drop it."""

Scope: TypeAlias = Literal["task", "weave", "environment", "config"]
CancelMode: TypeAlias = Literal["best_effort", "require_ack"]
OrphanPolicy: TypeAlias = Literal["cancel", "fail", "requeue", "detach"]
ErrorMode: TypeAlias = Literal["raise", "return", "continue"]
RetryDelay: TypeAlias = float | Literal["exponential"] | Callable[[int], float]
RetryOn: TypeAlias = type[Exception] | Collection[type[Exception]]
IdempotencyKey: TypeAlias = str | Callable[..., str]


# ------------------------------------------------------------------ for type checkers


class DeliveryOptions(TypedDict, total=False):
    """How a remote run is handed over and watched; see :data:`OPTIONS` for units."""

    delivery_timeout: float | None
    delivery_idempotency_key: IdempotencyKey | None
    delivery_cancel_mode: CancelMode | None
    delivery_heartbeat_seconds: float | None
    delivery_max_in_flight: int | None
    delivery_orphan_policy: OrphanPolicy | None


class _ExecutionOptions(TypedDict, total=False):
    retries: int | None
    retry_delay: RetryDelay | None
    retry_on: RetryOn | None
    timeout: float | None
    workers: int | None
    limit_per_minute: float | None


class _BlockOptions(TypedDict, total=False):
    max_workers: int | None
    background: bool | None
    fork: bool | None
    error_mode: ErrorMode | None
    max_pending: int | None


class TaskOptions(_ExecutionOptions, DeliveryOptions, total=False):
    """The options of ``@w.do``, ``@Weave.do`` and ``merge``."""

    environment: str | None


class WeaveOptions(_BlockOptions, DeliveryOptions, total=False):
    """The settings of ``weave(...)`` that also have defaults elsewhere."""

    environment: str | None


class DefaultOptions(_BlockOptions, _ExecutionOptions, DeliveryOptions, total=False):
    """The defaults that an environment and ``wove.config`` may hold."""


# ------------------------------------------------------------------ what a value must be

Rule: TypeAlias = Callable[[Any], Any]
"""Returns the value as Wove keeps it; raises TypeError or ValueError with the rest of a sentence."""


def suggest(name: str, candidates: Iterable[str]) -> str:
    """The nearest of *candidates* as a sentence to append to a message, or an empty text.

    Example:
        >>> suggest("retires", ["retries", "timeout"])
        " Did you mean 'retries'?"
    """
    from difflib import get_close_matches

    # Folded, so that RETRIES finds retries; the first of several that fold alike is kept.
    known = {candidate.casefold(): candidate for candidate in reversed(list(candidates))}
    near = get_close_matches(name.casefold(), known, n=1)
    return f" Did you mean {known[near[0]]!r}?" if near else ""


def _shown(value: object) -> str:
    """*value* for a message: short, and without trusting its ``__repr__``."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - whatever a user's __repr__ raises, the message matters more
        text = ""
    if not text or len(text) > 80:
        return f"a value of type {type(value).__name__}"
    if value is None or isinstance(value, (bool, int, float, type)):
        return text
    return f"{text} ({type(value).__name__})"


def _number(value: Any) -> float:
    """*value* as a float; a bool, text and whatever else is no number is a TypeError."""
    if type(value) is not float and type(value) is not int:
        from numbers import Real  # for the numbers of other packages alone: numpy's, for one

        if type(value) is bool or not isinstance(value, Real):
            raise TypeError(f"must be a number, not {_shown(value)}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError("must be a finite number, and this one is too large") from None


def _positive(unit: str) -> Rule:
    def rule(value: Any) -> float:
        number = _number(value)
        # Written so that NaN, which is neither less nor greater, is refused as well.
        if not 0 < number < float("inf"):
            raise ValueError(f"must be a finite number of {unit} greater than 0, not {_shown(value)}")
        return number

    return rule


def _whole(minimum: int) -> Rule:
    def rule(value: Any) -> int:
        if type(value) is not int:
            from numbers import Integral

            if type(value) is bool or not isinstance(value, Integral):
                raise TypeError(f"must be a whole number, not {_shown(value)}")
        number = int(value)
        if number < minimum:
            raise ValueError(f"must be a whole number of at least {minimum}, not {number}")
        return number

    return rule


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"must be True or False, not {_shown(value)}")
    return value


def _one_of(*choices: str) -> Rule:
    def rule(value: Any) -> str:
        listed = ", ".join(map(repr, choices[:-1])) + f" or {choices[-1]!r}"
        if not isinstance(value, str):
            raise TypeError(f"must be {listed}, not {_shown(value)}")
        if value not in choices:
            raise ValueError(f"must be {listed}, not {value!r}.{suggest(value, choices)}".rstrip("."))
        return value

    return rule


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"must be the name of an environment, not {_shown(value)}")
    if not value:
        raise ValueError("must be the name of an environment, not an empty text")
    return value


def _delay(value: Any) -> RetryDelay:
    if isinstance(value, str):
        if value != "exponential":
            raise ValueError(f'must be seconds, "exponential" or a callable, not {value!r}')
        return "exponential"
    if callable(value):
        return cast("RetryDelay", value)
    number = _number(value)
    if not 0 <= number < float("inf"):
        raise ValueError(f"must be a finite number of seconds, at least 0, not {_shown(value)}")
    return number


def _exceptions(value: Any) -> tuple[type[Exception], ...]:
    kinds: tuple[object, ...]
    if isinstance(value, type):
        kinds = (value,)
    elif isinstance(value, (tuple, list, set, frozenset)):
        kinds = tuple(cast("Collection[object]", value))
    else:
        raise TypeError(f"must be an exception type or several of them, not {_shown(value)}")
    if not kinds:
        raise ValueError("must name at least one exception type; to switch retries off, set retries=0")
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise TypeError(f"must hold exception types only, not {_shown(value)}")
        if not issubclass(kind, Exception):
            raise ValueError(
                f"must not hold {kind.__name__}: what is no Exception (SystemExit, KeyboardInterrupt, "
                "GeneratorExit, CancelledError, ...) is never retried"
            )
    return cast("tuple[type[Exception], ...]", kinds)


def _key(value: Any) -> IdempotencyKey:
    if callable(value):
        return cast("IdempotencyKey", value)
    if not isinstance(value, str):
        raise TypeError(f"must be text with {{parameter}} fields or a callable, not {_shown(value)}")
    if not value:
        raise ValueError("must not be an empty text")
    from string import Formatter

    try:
        fields = [field for _, field, _, _ in Formatter().parse(value) if field is not None]
    except ValueError as error:
        raise ValueError(f"is no valid template: {error} in {value!r}") from None
    for field in fields:
        # "{item.id}" and "{item[id]}" are fields of the parameter `item`, as in str.format.
        if not field.split(".")[0].split("[")[0].isidentifier():
            raise ValueError(f"must name a parameter in every field, and {{{field}}} in {value!r} does not")
    return value


# ------------------------------------------------------------------ the options


@dataclass(frozen=True, slots=True)
class Option:
    """One option.

    Attributes:
        name: As users write it.
        scopes: Where it may be set: ``"task"``, ``"weave"``, ``"environment"``, ``"config"``.
        default: The built-in value, in the form in which Wove keeps it.
        rule: Checks a value that is not ``None`` and returns it in that form.
        none: What ``None`` means. It stands for the built-in value, or where ``inherits`` is true, for
            an option that is not set at this place.
        doc: One line: meaning and unit.
    """

    name: str
    scopes: frozenset[Scope]
    default: Any
    rule: Rule
    none: str
    doc: str
    inherits: bool = False

    def check(self, label: str, value: Any) -> Any:
        """*value* as Wove keeps it.

        Args:
            label: What messages call the option: ``"task 'pdf': retries"``.
            value: As the user gave it. ``None`` gives the built-in value, which is "off".

        Raises:
            TypeError: It is of the wrong type.
            ValueError: It is of the right type and out of range.
        """
        if value is None:
            return self.default
        try:
            return self.rule(value)
        except TypeError as error:
            raise TypeError(f"{label} {error} (None means {self.none})") from None
        except ValueError as error:
            raise ValueError(f"{label} {error} (None means {self.none})") from None


_TASK: Final[frozenset[Scope]] = frozenset({"task", "environment", "config"})
_WEAVE: Final[frozenset[Scope]] = frozenset({"weave", "environment", "config"})
_BOTH: Final[frozenset[Scope]] = _TASK | _WEAVE
_UNSET_HERE: Final = "not set here"

OPTIONS: Final[Mapping[str, Option]] = MappingProxyType(
    {
        option.name: option
        for option in (
            # --- of a task
            Option("environment", frozenset({"task", "weave"}), "default", _name, _UNSET_HERE,
                   "The name of the environment that runs it.", inherits=True),
            Option("retries", _TASK, 0, _whole(0), "no retries",
                   "How many more attempts follow a failed one."),
            Option("retry_delay", _TASK, 0.0, _delay, "no delay",
                   'Seconds between attempts, "exponential", or a callable of the failed attempt, from 1.'),
            Option("retry_on", _TASK, (Exception,), _exceptions, "any Exception",
                   "The exception types after which a task is tried again."),
            Option("timeout", _TASK, None, _positive("seconds"), "no limit",
                   "Seconds that one attempt may take."),
            Option("workers", _TASK, None, _whole(1), "no bound",
                   "How many items of a mapped task run at once."),
            Option("limit_per_minute", _TASK, None, _positive("launches a minute"), "no pacing",
                   "Launches a minute of a mapped task, retries included."),
            # --- of a weave
            Option("max_workers", _WEAVE, 256, _whole(1), _UNSET_HERE,
                   "The most threads that run the sync tasks of one weave.", inherits=True),
            Option("background", _WEAVE, False, _flag, _UNSET_HERE,
                   "Whether the tasks run in the background and the block goes on.", inherits=True),
            Option("fork", _WEAVE, False, _flag, _UNSET_HERE,
                   "Whether background work gets a detached process instead of a thread.", inherits=True),
            Option("error_mode", _WEAVE, "raise", _one_of("raise", "return", "continue"), _UNSET_HERE,
                   "Whether a failed task raises at the end of the block, is returned, or stops only "
                   "what depends on it.", inherits=True),
            Option("max_pending", _WEAVE, None, _whole(1), "no bound",
                   "The most items that the source of a mapped task may have."),
            # --- of the delivery of remote runs
            Option("delivery_timeout", _BOTH, None, _positive("seconds"), "no limit",
                   "Seconds from the hand-over of a run to its end."),
            Option("delivery_idempotency_key", _BOTH, None, _key, "no key",
                   "Text with {parameter} fields, or a callable of the arguments; one key, one run."),
            Option("delivery_cancel_mode", _BOTH, "best_effort", _one_of("best_effort", "require_ack"),
                   "'best_effort'", "Whether a cancel waits for the end of the run."),
            Option("delivery_heartbeat_seconds", _BOTH, None, _positive("seconds"), "not watched",
                   "Seconds without a sign of life, after which a started run counts as lost."),
            Option("delivery_max_in_flight", _BOTH, None, _whole(1), "no bound",
                   "The most runs in flight of one environment, over the whole process."),
            Option("delivery_orphan_policy", _BOTH, "cancel", _one_of("cancel", "fail", "requeue", "detach"),
                   "'cancel'", "What becomes of a run whose weave stops or whose worker is lost."),
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


def names(scope: Scope) -> Iterable[str]:
    """The names of the options that may be set in *scope*."""
    return _BY_SCOPE[scope].keys()


def check_task_options(options: Mapping[str, object], *, mapped: bool, what: str) -> dict[str, Any]:
    """A checked copy of the options of a task.

    Args:
        options: As given. ``None`` becomes the built-in value ("off"), or drops an option for which it
            means "not set here"; :data:`UNSET` drops any option.
        mapped: Whether the task maps over something.
        what: What messages call the task: ``"task 'pdf'"``.

    Raises:
        TypeError: An unknown option, or a value of the wrong type.
        ValueError: A value out of range, or an option of mapped tasks on one that is not.
    """
    if not options:
        return {}
    checked = _check(options, "task", what)
    if not mapped:
        for name in MAPPED_ONLY:
            if checked.get(name) is not None:
                raise ValueError(
                    f"{what}: {name} concerns mapped tasks, and this one maps over nothing. "
                    f"Leave {name} out, or give the task something to map over"
                )
    return checked


def check_weave_options(options: Mapping[str, object], what: str = "weave") -> dict[str, Any]:
    """A checked copy of the settings of a weave; as :func:`check_task_options`."""
    return _check(options, "weave", what) if options else {}


def check_defaults(options: Mapping[str, object], what: str) -> dict[str, Any]:
    """A checked copy of the defaults of an environment or ``wove.config``; as :func:`check_task_options`."""
    return _check(options, "config", what) if options else {}


def _check(options: Mapping[str, object], scope: Scope, what: str) -> dict[str, Any]:
    known = _BY_SCOPE[scope]
    checked: dict[str, Any] = {}
    for name, value in options.items():
        option = known.get(name)
        if option is None:
            raise _unknown(name, scope, what)
        if value is UNSET or (value is None and option.inherits):
            continue
        checked[name] = option.check(f"{what}: {name}", value)
    return checked


def _unknown(name: str, scope: Scope, what: str) -> TypeError:
    option = OPTIONS.get(name)
    if option is not None:
        places = " or ".join(text for place, text in _PLACES.items() if place in option.scopes)
        return TypeError(f"{what}: {name} is not an option here; it can be set on {places}")
    known = names(scope)
    hint = suggest(name, known) or f" There are: {', '.join(sorted(known))}."
    return TypeError(f"{what}: unknown option {name!r}.{hint}")


@dataclass(frozen=True, slots=True)
class DeliveryPolicy:
    """How a remote run is handed over and watched: the ``delivery_*`` options, resolved.

    Attributes:
        timeout: Seconds from hand-over to the terminal event; ``None`` for no limit.
        heartbeat_seconds: Seconds without an event of a started run, after which its worker counts as
            dead; ``None`` to not watch.
        cancel_mode: ``"best_effort"`` or ``"require_ack"``.
        idempotency_key: Text with ``{parameter}`` fields, or a callable of the arguments; ``None`` for none.
        max_in_flight: The most runs in flight of the environment in this process; ``None`` for no bound.
        orphan_policy: ``"cancel"``, ``"fail"``, ``"requeue"`` or ``"detach"``.
    """

    timeout: float | None = None
    heartbeat_seconds: float | None = None
    cancel_mode: CancelMode = "best_effort"
    idempotency_key: IdempotencyKey | None = None
    max_in_flight: int | None = None
    orphan_policy: OrphanPolicy = "cancel"
