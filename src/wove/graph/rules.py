"""Rules for the values of options, and their messages.

A rule returns its value in the form in which Wove keeps it, or raises ``TypeError`` or ``ValueError``
with the rest of a sentence that begins with the option: "must be a whole number, not '3'".
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from os import PathLike, fspath
from typing import Any, Final, Literal, TypeAlias, cast

__all__ = [
    "IdempotencyKey",
    "RetryDelay",
    "RetryOn",
    "Rule",
    "delay",
    "either",
    "environment_name",
    "exceptions",
    "flag",
    "function_path",
    "idempotency_key",
    "not_negative",
    "one_of",
    "positive",
    "result_store",
    "shown",
    "suggest",
    "version",
    "whole",
]

Rule: TypeAlias = Callable[[Any], Any]
RetryDelay: TypeAlias = float | Literal["exponential"] | Callable[[int], float]
RetryOn: TypeAlias = type[Exception] | Collection[type[Exception]]
IdempotencyKey: TypeAlias = str | Callable[..., str]


def suggest(name: str, candidates: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return the nearest of *candidates* as a sentence to append to a message, or an empty text.

    Args:
        name: The name as it was written.
        candidates: The names that may have been meant.
        cutoff: The minimum similarity, from 0 to 1.

    Example:
        >>> suggest("retires", ["retries", "timeout"])
        " Did you mean 'retries'?"
    """
    from difflib import get_close_matches

    # Case-folded, so that RETRIES finds retries; the first of several equal ones is kept.
    known = {candidate.casefold(): candidate for candidate in reversed(list(candidates))}
    near = get_close_matches(name.casefold(), known, n=1, cutoff=cutoff)
    return f" Did you mean {known[near[0]]!r}?" if near else ""


def shown(value: object) -> str:
    """Return *value* for a message: short, and also where its ``__repr__`` fails."""
    try:
        text = repr(value)
    except Exception:
        text = ""

    if not text or len(text) > 80:
        return f"a value of type {type(value).__name__}"
    if value is None or isinstance(value, (bool, int, float, type)):
        return text
    return f"{text} ({type(value).__name__})"


def either(choices: Sequence[str]) -> str:
    """Return *choices* as a list in a sentence: ``a, b or c``."""
    return " or ".join([", ".join(choices[:-1])] * (len(choices) > 1) + [choices[-1]])


def _number(value: Any) -> float:
    """Return *value* as a float; raises TypeError where it is not a number, as a bool is not."""
    if type(value) is not float and type(value) is not int:
        from numbers import Real  # for the numbers of other packages alone: numpy's, for one

        if type(value) is bool or not isinstance(value, Real):
            raise TypeError(f"must be a number, not {shown(value)}")

    try:
        return float(value)
    except OverflowError:
        raise ValueError("must be a finite number, and this one is too large") from None


def positive(unit: str) -> Rule:
    """Return the rule for a finite number greater than 0, as a float."""

    def rule(value: Any) -> float:
        number = _number(value)
        # This comparison refuses NaN too, which is neither less nor greater.
        if not 0 < number < float("inf"):
            raise ValueError(
                f"must be a finite number of {unit} greater than 0, not {shown(value)}"
            )
        return number

    return rule


def not_negative(unit: str) -> Rule:
    """Return the rule for a finite number of at least 0, as a float."""

    def rule(value: Any) -> float:
        number = _number(value)
        if not 0 <= number < float("inf"):
            raise ValueError(f"must be a finite number of {unit}, 0 or more, not {shown(value)}")
        return number

    return rule


def whole(minimum: int) -> Rule:
    """Return the rule for a whole number of at least *minimum*, as an int."""

    def rule(value: Any) -> int:
        if type(value) is not int:
            from numbers import Integral

            if type(value) is bool or not isinstance(value, Integral):
                raise TypeError(f"must be a whole number, not {shown(value)}")

        number = int(value)
        if number < minimum:
            raise ValueError(f"must be a whole number of at least {minimum}, not {number}")
        return number

    return rule


def flag(value: Any) -> bool:
    """Check that *value* is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"must be True or False, not {shown(value)}")
    return value


def one_of(*choices: str) -> Rule:
    """Return the rule for one of these texts."""

    def rule(value: Any) -> str:
        listed = either([repr(choice) for choice in choices])
        if not isinstance(value, str):
            raise TypeError(f"must be {listed}, not {shown(value)}")
        if value not in choices:
            raise ValueError(f"must be {listed}, not {value!r}.{suggest(value, choices)}")
        return value

    return rule


def environment_name(value: Any) -> str:
    """Check that *value* is the name of an environment."""
    if not isinstance(value, str):
        raise TypeError(f"must be the name of an environment, not {shown(value)}")
    if not value:
        raise ValueError("must be the name of an environment, not an empty text")
    return value


def delay(value: Any) -> RetryDelay:
    """Check that *value* is a number of seconds, the text "exponential", or a callable."""
    if isinstance(value, str):
        if value != "exponential":
            raise ValueError(f'must be seconds, "exponential" or a callable, not {value!r}')
        return "exponential"

    if callable(value):
        return cast("RetryDelay", value)
    number = _number(value)
    if not 0 <= number < float("inf"):
        raise ValueError(f"must be a finite number of seconds, at least 0, not {shown(value)}")
    return number


def exceptions(value: Any) -> tuple[type[Exception], ...]:
    """Check that *value* is one exception type or several, and return them as a tuple."""
    several = isinstance(value, (tuple, list, set, frozenset))
    kinds: tuple[object, ...] = tuple(cast("Collection[object]", value)) if several else (value,)
    if not kinds:
        raise ValueError(
            "must name at least one exception type; to switch retries off, set retries=0"
        )

    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise TypeError(
                f"must be one exception type or several, not {shown(cast('object', value))}"
            )
        if not issubclass(kind, Exception):
            raise ValueError(
                f"must not hold {kind.__name__}: what is not an Exception (SystemExit, KeyboardInterrupt, "
                "GeneratorExit, CancelledError, ...) is never retried"
            )

    return cast("tuple[type[Exception], ...]", kinds)


def idempotency_key(value: Any) -> IdempotencyKey:
    """Check that *value* is text with ``{parameter}`` fields, or a callable."""
    if callable(value):
        return cast("IdempotencyKey", value)
    if not isinstance(value, str):
        raise TypeError(f"must be text with {{parameter}} fields or a callable, not {shown(value)}")
    if not value:
        raise ValueError("must not be an empty text")
    from string import Formatter

    try:
        fields = [field for _, field, _, _ in Formatter().parse(value) if field is not None]
    except ValueError as error:
        raise ValueError(f"is not a valid template: {error} in {value!r}") from None

    for field in fields:
        # "{item.id}" and "{item[id]}" are fields of the parameter `item`, as in str.format.
        if not field.split(".")[0].split("[")[0].isidentifier():
            raise ValueError(
                f"must name a parameter in every field, and {{{field}}} in {value!r} does not"
            )

    return value


def version(value: Any) -> str:
    """Return a text that is not empty, or a whole number, as text."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise TypeError(f"must be text or a whole number, not {shown(value)}")
    if value == "":
        raise ValueError("must not be an empty text")
    return str(value)


def function_path(value: Any) -> str:
    """Return the text ``module:function``."""
    if not isinstance(value, str):
        raise TypeError(f"must be text such as 'myapp.worker:init', not {shown(value)}")
    module, _, function = value.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *function.split("."))):
        raise ValueError(f"must be 'module:function', such as 'myapp.worker:init', not {value!r}")
    return value


STORE_METHODS: Final = ("get", "put", "delete")
"""The methods of a user's own store of results."""


def result_store(value: Any) -> Any:
    """Return a path as text, and a store as it is."""
    if isinstance(value, (str, PathLike)):
        path = fspath(cast("str | PathLike[str]", value))
        if not path:
            raise ValueError("must be the path of a folder or a file, not an empty text")
        return path

    missing = [name for name in STORE_METHODS if not callable(getattr(value, name, None))]
    if missing or isinstance(value, type):
        raise TypeError(
            f"must be a path or an object with the methods {', '.join(STORE_METHODS)}, not {shown(value)}"
        )
    return value
