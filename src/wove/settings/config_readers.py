"""Readers of ``executor_config``: each checks one key, and its message names the key and what it must be."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, cast, overload

from wove.graph import rules
from wove.graph.rules import Rule, shown, suggest
from wove.net.tls import TLSFiles

if TYPE_CHECKING:
    from wove.security import NetworkExecutorSecurity

__all__ = [
    "check_keys",
    "command",
    "command_words",
    "flag",
    "header_items",
    "mapping",
    "metadata_items",
    "number",
    "options",
    "text",
    "tls_files",
    "variables",
    "whole",
]

# RFC 9110, section 5.6.2.
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# RFC 9110, section 5.5: visible characters, obs-text, spaces and tabs.
_FIELD_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
# github.com/grpc/grpc, doc/PROTOCOL-HTTP2.md: Header-Name and ASCII-Value.
_METADATA_NAME: Final = re.compile(r"[0-9a-z_.-]+")
_METADATA_VALUE: Final = re.compile(r"[\x20-\x7e]*")

_CONTROL_CHARACTER: Final = re.compile(r"[\x00-\x1f\x7f]")

_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Fields that govern one connection (RFC 9110, section 7.6.1) or frame one message. With a second one, or another
value, two readers could see two different requests."""


def check_keys(
    label: str, transport: str, config: Mapping[str, Any], keys: Collection[str]
) -> None:
    """Refuse every key of *config* that is not among *keys*.

    Raises:
        ValueError: Names the unknown key, the nearest known one, and all of them.
    """
    for key in config:
        if key not in keys:
            raise ValueError(
                f"{label}: {transport} has no executor_config key {key!r}.{suggest(str(key), keys)} "
                f"Its keys are: {', '.join(keys)}"
            )


@overload
def number(
    config: Mapping[str, Any],
    name: str,
    default: float,
    *,
    label: str,
    none: Literal[False] = False,
    unit: str = ...,
) -> float: ...
@overload
def number(
    config: Mapping[str, Any],
    name: str,
    default: float | None,
    *,
    label: str,
    none: bool = ...,
    unit: str = ...,
) -> float | None: ...
def number(
    config: Mapping[str, Any],
    name: str,
    default: float | None,
    *,
    label: str,
    none: bool = False,
    unit: str = "seconds",
) -> float | None:
    """Return the finite number greater than 0 under *name*.

    Args:
        config: The ``executor_config``.
        name: The key.
        default: The answer where the key is absent. A default of ``None`` allows ``None``.
        label: What messages begin with.
        none: Whether the user may write ``None``, for no limit.
        unit: The unit, for messages.

    Raises:
        TypeError: It is not a number.
        ValueError: It is not greater than 0, or not finite.
    """
    if name not in config:
        return default
    if config[name] is None and (none or default is None):
        return None
    return cast("float", _ruled(config, name, label, rules.positive(unit)))


def whole(
    config: Mapping[str, Any], name: str, default: int, *, label: str, minimum: int = 1
) -> int:
    """Return the whole number of at least *minimum* under *name*.

    Raises:
        TypeError: It is not a whole number.
        ValueError: It is less than *minimum*.
    """
    return (
        cast("int", _ruled(config, name, label, rules.whole(minimum)))
        if name in config
        else default
    )


def flag(config: Mapping[str, Any], name: str, default: bool, *, label: str) -> bool:
    """Return True or False, as it is under *name*.

    Raises:
        TypeError: It is anything else.
    """
    return cast("bool", _ruled(config, name, label, rules.flag)) if name in config else default


@overload
def text(config: Mapping[str, Any], name: str, default: str, *, label: str) -> str: ...
@overload
def text(
    config: Mapping[str, Any], name: str, default: None = None, *, label: str
) -> str | None: ...
def text(
    config: Mapping[str, Any], name: str, default: str | None = None, *, label: str
) -> str | None:
    """Return the text under *name*, which is not empty; *default* where it is absent or ``None``.

    Raises:
        TypeError: It is not text.
        ValueError: It is empty.
    """
    value = config.get(name)
    if value is None:
        return default
    if not isinstance(value, str):
        raise TypeError(f"{label}: executor_config {name!r} must be text, not {shown(value)}")
    if not value:
        raise ValueError(
            f"{label}: executor_config {name!r} is an empty text; leave it out instead"
        )

    return value


def mapping(config: Mapping[str, Any], name: str, *, label: str) -> Mapping[str, Any]:
    """Return the dict under *name*; an empty one if the key is absent.

    Raises:
        TypeError: The value is not a dict.
    """
    value: object = config.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(f"{label}: executor_config {name!r} must be a dict, not {shown(value)}")
    return cast("Mapping[str, Any]", value)


def options(
    config: Mapping[str, Any],
    name: str,
    *,
    label: str,
    reserved: Mapping[str, str],
    known: Collection[str] | None = None,
) -> dict[str, Any]:
    """Return a copy of the keyword arguments for a library's call that are under *name*; empty if the key is absent.

    Args:
        config: The ``executor_config``.
        name: The key.
        label: What messages begin with.
        reserved: Options that the user cannot set, and why.
        known: All options that the call takes; ``None``: the library itself checks them.

    Raises:
        TypeError: The value is not a dict, or a name in it is not text.
        ValueError: An option is unknown or reserved.
    """
    key_label = f"{label}: executor_config {name!r}"
    given = dict(cast("Mapping[object, Any]", mapping(config, name, label=label)))

    for option in given:
        if not isinstance(option, str):
            raise TypeError(
                f"{key_label} must be a dict with names as keys, and {option!r} is not a name"
            )
        if option in reserved:
            raise ValueError(f"{key_label} cannot set {option!r}: {reserved[option]}")
        if known is not None and option not in known:
            raise ValueError(
                f"{key_label} has no option {option!r}.{suggest(option, known)} "
                f"Its options are: {', '.join(known)}"
            )

    return cast("dict[str, Any]", given)


@overload
def command(
    config: Mapping[str, Any],
    name: str,
    default: Sequence[str],
    *,
    label: str,
    printable: bool = ...,
) -> tuple[str, ...]: ...
@overload
def command(
    config: Mapping[str, Any],
    name: str,
    default: Sequence[str] | None = ...,
    *,
    label: str,
    printable: bool = ...,
) -> tuple[str, ...] | None: ...
def command(
    config: Mapping[str, Any],
    name: str,
    default: Sequence[str] | None = None,
    *,
    label: str,
    printable: bool = False,
) -> tuple[str, ...] | None:
    """Return the command under *name*: a list of texts and paths, or a text that is split as a shell splits it.

    Args:
        config: The ``executor_config``.
        name: The key.
        default: The answer where the key is absent.
        label: What messages begin with.
        printable: Refuse line breaks and other control characters, which a line of a script cannot carry.

    Raises:
        TypeError: The value is neither a text nor a list of texts.
        ValueError: It is empty, a quote in it is not closed, or it has a control character.
    """
    value: object = config.get(name)
    if value is None:
        return None if default is None else tuple(default)

    key_label = f"{label}: executor_config {name!r}"
    parts = command_words(value, key_label, printable=printable)
    if not parts or not parts[0]:
        raise ValueError(f"{key_label} is empty; leave it out instead")
    return parts


def command_words(value: object, label: str, *, printable: bool) -> tuple[str, ...]:
    """Return the words of a command line; arguments and errors are those of `command`.

    Args:
        value: A list of texts and paths, or a text.
        label: What messages begin with; it names the key.
        printable: As `command`.
    """
    if isinstance(value, str):
        try:
            parts = tuple(shlex.split(value))
        except ValueError as error:
            raise ValueError(f"{label} cannot be split into words: {error}: {value!r}") from None
    elif isinstance(value, (list, tuple)):
        try:
            parts = tuple(map(os.fsdecode, cast("Sequence[Any]", value)))
        except TypeError:
            raise TypeError(
                f"{label} must be a list of texts, not {shown(cast('object', value))}"
            ) from None
    else:
        raise TypeError(f"{label} must be a list or a text, not {shown(value)}")

    if printable and any(_CONTROL_CHARACTER.search(part) for part in parts):
        raise ValueError(
            f"{label} holds a line break or another control character, which no script line can carry"
        )

    return parts


def variables(
    container: Mapping[str, Any], name: str, *, label: str, reserved: Mapping[str, str]
) -> list[Mapping[str, Any]]:
    """Return the environment variables under *name* in the description of a container.

    Args:
        container: As in a manifest of Kubernetes or a request of AWS Batch.
        name: The key in it: ``"env"`` or ``"environment"``.
        label: What messages begin with; it names the key that holds *container*.
        reserved: Variables that the user cannot set, and why.

    Raises:
        TypeError: The value is not a list of dicts with a ``name``.
        ValueError: A variable is reserved.
    """
    value: object = container.get(name) or []
    entries = cast("Sequence[object]", value) if isinstance(value, (list, tuple)) else None
    if entries is None or not all(
        isinstance(each, Mapping) and isinstance(cast("Any", each).get("name"), str)
        for each in entries
    ):
        raise TypeError(f"{label}: {name!r} must be a list of {{'name': ..., 'value': ...}}")

    found = cast("list[Mapping[str, Any]]", list(entries))
    for each in found:
        if each["name"] in reserved:
            raise ValueError(f"{label} cannot set {each['name']}: {reserved[each['name']]}")

    return found


def tls_files(config: Mapping[str, Any], *, label: str) -> TLSFiles:
    """Return ``root_certificates``, ``client_certificate`` and ``client_key``; no file is read yet.

    Raises:
        TypeError: One is neither text, bytes nor a path.
        ValueError: One is empty, or a key has no certificate.
    """
    return TLSFiles(
        config.get("root_certificates"),
        config.get("client_certificate"),
        config.get("client_key"),
        label=label,
    )


def header_items(
    value: object,
    label: str,
    *,
    key: str = "headers",
    security: NetworkExecutorSecurity | None = None,
    reserved: Collection[str] = (),
) -> list[tuple[str, str]]:
    """Return extra headers, as name and value in the order given. Values are never quoted in messages.

    Args:
        value: A dict of texts, a sequence of pairs of texts, or ``None``.
        label: What messages begin with.
        key: The key of ``executor_config``.
        security: How requests are authenticated; with bearer tokens, ``authorization`` is taken.
        reserved: More names, in lower case, that the transport sets itself; ``"sec-websocket-*"`` stands for
            all that begin so.

    Raises:
        TypeError: It is something else.
        ValueError: A name is not a token, or is one that Wove sets; a value holds line breaks, other control
            characters, or what is not Latin-1 (RFC 9110, sections 5.1 and 5.5).

    Example:
        >>> header_items({"X-Project": "reports"}, "environment 'workers'")
        [('X-Project', 'reports')]
    """
    items: list[tuple[str, str]] = []

    for name, held in _pairs(value, f"{label}: executor_config {key!r}"):
        key_label = f"{label}: executor_config {key!r}: header {name!r}"
        if not isinstance(held, str):
            raise TypeError(f"{key_label} must be text, not of type {type(held).__name__}")
        if not _TOKEN.fullmatch(name):
            raise ValueError(
                f"{key_label} is not a header name: letters, digits and hyphens make one"
            )
        _refuse_ours(name.lower(), key_label, security, {*_HOP_BY_HOP, *reserved})
        if not _FIELD_VALUE.fullmatch(held):
            raise ValueError(
                f"{key_label} has a value with line breaks, control characters or letters outside Latin-1, "
                "which no header can carry; encode it, as base64 for example"
            )
        items.append((name, held.strip(" \t")))

    return items


def metadata_items(
    value: object,
    label: str,
    *,
    key: str = "metadata",
    security: NetworkExecutorSecurity | None = None,
    reserved: Collection[str] = ("content-type", "user-agent", "grpc-*"),
) -> list[tuple[str, str | bytes]]:
    """Return extra gRPC metadata, as name and value in the order given; names become lower case.

    Arguments and errors are those of `header_items`. Values are printable ASCII, or bytes where the name ends
    in ``-bin`` (github.com/grpc/grpc, doc/PROTOCOL-HTTP2.md).
    """
    items: list[tuple[str, str | bytes]] = []

    for given, held in _pairs(value, f"{label}: executor_config {key!r}"):
        name = given.lower()
        key_label = f"{label}: executor_config {key!r}: {given!r}"
        if not _METADATA_NAME.fullmatch(name):
            raise ValueError(
                f"{key_label} is not a name for metadata: letters, digits, '_', '-' and '.' make one"
            )
        _refuse_ours(name, key_label, security, {*_HOP_BY_HOP, *reserved})
        if name.endswith("-bin"):
            if not isinstance(held, bytes):
                raise TypeError(
                    f"{key_label} must be bytes, because its name ends in -bin, not {type(held).__name__}"
                )
            items.append((name, held))
            continue
        if not isinstance(held, str):
            raise TypeError(
                f"{key_label} must be text, not of type {type(held).__name__} (bytes need a name in -bin)"
            )
        if not _METADATA_VALUE.fullmatch(held):
            raise ValueError(
                f"{key_label} has a value outside printable ASCII; send bytes under a name in -bin"
            )
        items.append((name, held))

    return items


def _ruled(config: Mapping[str, Any], name: str, label: str, rule: Rule) -> object:
    try:
        return rule(config[name])
    except (TypeError, ValueError) as error:
        raise type(error)(f"{label}: executor_config {name!r} {error}") from None


def _pairs(value: object, label: str) -> Iterable[tuple[str, object]]:
    if value is None:
        return
    wrong = f"{label} must be a dict of texts, or a list of pairs of texts"
    if isinstance(value, Mapping):
        value = list(cast("Mapping[object, object]", value).items())
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{wrong}, not of type {type(value).__name__}")
    for position, pair in enumerate(cast("Iterable[object]", value)):
        if not isinstance(pair, (list, tuple)) or len(cast("tuple[object, ...]", pair)) != 2:
            raise TypeError(f"{wrong}; item {position} is not one")
        name, held = cast("tuple[object, object]", pair)
        if not isinstance(name, str):
            raise TypeError(
                f"{wrong}; the name of item {position} is of type {type(name).__name__}"
            )
        yield name, held


def _refuse_ours(
    name: str, label: str, security: NetworkExecutorSecurity | None, reserved: Collection[str]
) -> None:
    """Refuse a *name*, in lower case, that Wove or the transport sets."""
    if name == "authorization" and security is not None and security.kind == "bearer":
        raise ValueError(
            f"{label} is set by 'security', which is of type bearer; remove one of the two"
        )

    prefixes = tuple(each[:-1] for each in ("x-wove-*", *reserved) if each.endswith("*"))
    if name in reserved or name.startswith(prefixes):
        raise ValueError(f"{label} is set by Wove itself; remove it")
