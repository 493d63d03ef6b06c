"""Reads and checks a configuration of `NetworkExecutorSecurity`, and its secrets.

Messages never quote a value that could be a misplaced secret.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias, cast

from wove.graph import rules
from wove.graph.rules import suggest
from wove.protocol import signing

__all__ = ["Kind", "Settings", "read"]

logger = logging.getLogger("wove")

Kind: TypeAlias = Literal["signed", "bearer", "none"]

DEFAULT_KEY: Final = "default"
CLOCK_SKEW_SECONDS: Final = 300.0

MIN_SECRET_BYTES: Final = 16
"""Length below which a secret causes a warning: whoever has one signed message can try all short secrets offline."""

MAX_WARNED: Final = 100
_warned: set[str] = set()
"""Labels whose short secrets have been warned of."""

_KEYS: Final[dict[str, tuple[str, ...]]] = {
    "signed": (
        "type",
        "secret",
        "secret_env",
        "key",
        "clock_skew_seconds",
        "remember_nonces",
        "accepted",
        "sign_replies",
    ),
    "bearer": ("type", "token", "token_env", "accepted"),
    "none": ("type",),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """A checked configuration, with its secrets.

    Attributes:
        kind: How requests are authenticated.
        key: The id of the secret that signs requests.
        secrets: The accepted secrets by id. The first one under `key` signs.
        tokens: The accepted tokens. The first one is sent.
        skew: Maximum difference between a timestamp and this machine's clock, in seconds.
        remembers: Whether each nonce is accepted only once.
        signs_replies: Whether replies are signed as well.
        recipe: The configuration itself, if it contains names of variables and no secret; otherwise ``None``.
    """

    kind: Kind
    key: str = DEFAULT_KEY
    secrets: Mapping[str, tuple[bytes, ...]] = field(
        default_factory=dict[str, "tuple[bytes, ...]"], repr=False
    )
    tokens: tuple[bytes, ...] = field(default=(), repr=False)
    skew: float = CLOCK_SKEW_SECONDS
    remembers: bool = True
    signs_replies: bool = False
    recipe: object = field(default=None, repr=False)


def read(config: object, label: str) -> Settings:
    if config is None or config == "none":
        return Settings("none", recipe="none")
    if isinstance(config, str):
        if not config.startswith("env:"):
            raise ValueError(
                f'{label} must be "env:VARIABLE", "none" or a dict, not {_unquoted(config)}. A secret goes into an '
                'environment variable that is named here, or into {"type": "signed", "secret": ...}'
            )
        return _read_variable(config, label)

    if not isinstance(config, Mapping):
        raise TypeError(
            f'{label} must be "env:VARIABLE", "none" or a dict, not of type {type(config).__name__}'
        )

    held = dict(cast("Mapping[object, object]", config))
    kind = held.get("type")
    if not isinstance(kind, str) or kind not in _KEYS:
        near = suggest(kind, _KEYS) if isinstance(kind, str) else ""
        said = "is missing" if "type" not in held else "is none of them"
        raise ValueError(f"{label}: 'type' must be 'signed', 'bearer' or 'none', and {said}.{near}")

    _check_keys(held, _KEYS[kind], f"{label} of type {kind}")
    if kind == "signed":
        return _read_signed(held, label)
    if kind == "bearer":
        tokens = [_token(held, label)] + [
            _token(each, key_label) for each, key_label in _accepted(held, "token", label)
        ]
        return Settings("bearer", tokens=tuple(tokens), recipe=_recipe(held, "token"))

    return Settings("none", recipe="none")


def _read_variable(config: str, label: str) -> Settings:
    content = _from_environment(config[4:], label)
    if content.startswith(b"{"):
        try:
            whole: object = json.loads(content)
        except ValueError:
            pass  # a secret may begin with a brace, too
        else:
            return replace(read(whole, f"{label} (the JSON in {config[4:]})"), recipe=config)

    _warn_if_short(content, f"{label}: the environment variable {config[4:]}")
    return Settings("signed", secrets={DEFAULT_KEY: (content,)}, recipe=config)


def _read_signed(held: Mapping[object, object], label: str) -> Settings:
    key = _key_id(held.get("key", DEFAULT_KEY), f"{label}: 'key'")
    known: dict[str, tuple[bytes, ...]] = {key: (_secret(held, "secret", label),)}
    for each, key_label in _accepted(held, "secret", label):
        name = _key_id(each.get("key", DEFAULT_KEY), f"{key_label}: 'key'")
        secret = _secret(each, "secret", key_label)
        known[name] = tuple(dict.fromkeys((*known.get(name, ()), secret)))

    return Settings(
        "signed",
        key=key,
        secrets=known,
        skew=_ruled(
            held, "clock_skew_seconds", CLOCK_SKEW_SECONDS, rules.positive("seconds"), label
        ),
        remembers=_ruled(held, "remember_nonces", True, rules.flag, label),
        signs_replies=_ruled(held, "sign_replies", False, rules.flag, label),
        recipe=_recipe(held, "secret"),
    )


def _accepted(
    held: Mapping[object, object], name: str, label: str
) -> Iterable[tuple[Mapping[object, object], str]]:
    """Yield the entries of ``accepted``, each with its label for messages."""
    entries = held.get("accepted")
    if entries is None:
        return
    form = f'a list of dicts such as {{"{name}_env": "OLD_{name.upper()}"}}'
    if not isinstance(entries, (list, tuple)):
        raise TypeError(f"{label}: 'accepted' must be {form}, not of type {type(entries).__name__}")
    keys = ("key", "secret", "secret_env") if name == "secret" else ("token", "token_env")

    for position, entry in enumerate(cast("Iterable[object]", entries)):
        key_label = f"{label}: 'accepted', entry {position}"
        if isinstance(entry, str) and entry.startswith("env:"):
            each: dict[object, object] = {f"{name}_env": entry[4:]}
        elif isinstance(entry, Mapping):
            each = dict(cast("Mapping[object, object]", entry))
        else:
            raise TypeError(
                f"{key_label}: 'accepted' must be {form}; this is of type {type(entry).__name__}"
            )
        _check_keys(each, keys, key_label)
        yield each, key_label


def _check_keys(held: Mapping[object, object], keys: tuple[str, ...], label: str) -> None:
    for key in held:
        if key not in keys:
            near = suggest(key, keys) if isinstance(key, str) else ""
            raise ValueError(
                f"{label} has no key {rules.shown(key)}.{near} Its keys are: {', '.join(keys)}"
            )


def _secret(held: Mapping[object, object], name: str, label: str) -> bytes:
    """Return the secret under *name*, or in the environment variable under *name* ``_env``."""
    variable = held.get(f"{name}_env")
    value = held.get(name)
    if (variable is None) == (value is None):
        both = "both are given" if value is not None else "neither is given"
        raise ValueError(
            f"{label} needs either '{name}_env' (the name of an environment variable) or '{name}'; {both}"
        )

    if variable is not None:
        if not isinstance(variable, str):
            raise TypeError(
                f"{label}: '{name}_env' must be text, not of type {type(variable).__name__}"
            )
        found = _from_environment(variable, label)
        _warn_if_short(found, f"{label}: the environment variable {variable}")
        return found

    if not isinstance(value, (str, bytes)):
        raise TypeError(
            f"{label}: {name!r} must be text or bytes, not of type {type(value).__name__}"
        )

    if not value.strip():
        raise ValueError(f"{label}: {name!r} is empty")
    if isinstance(value, bytes):
        _warn_if_short(value, f"{label}: {name!r}")
        return value

    if value.startswith("env:"):
        raise ValueError(
            f"{label}: {name!r} is the secret itself, and here it is the name of a variable: give that as '{name}_env'"
        )

    try:
        encoded = value.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{label}: {name!r} holds half characters (surrogates); give it as bytes"
        ) from None

    _warn_if_short(encoded, f"{label}: {name!r}")
    return encoded


def _token(held: Mapping[object, object], label: str) -> bytes:
    token = _secret(held, "token", label)
    if not all(0x21 <= byte <= 0x7E for byte in token):
        raise ValueError(
            f"{label}: the token holds spaces, line breaks or letters outside ASCII, which no header can carry. "
            "Look for a line break at its end"
        )
    return token


def _from_environment(name: str, label: str) -> bytes:
    if not name or "=" in name or not name.isprintable() or name != name.strip():
        raise ValueError(
            f"{label}: that is not a name of an environment variable; write it as in 'env:WOVE_WORKER_SECRET'"
        )

    value = os.environ.get(name, "")
    if not value.strip():
        state = "empty" if name in os.environ else "not set"
        raise ValueError(
            f"{label}: the environment variable {name} is {state}. Set it, here and on the other side, to the same "
            'long random text, such as one from: python -c "import secrets; print(secrets.token_urlsafe(32))"'
        )

    return os.fsencode(
        value
    )  # the bytes that are in the environment, whatever encoding they were meant in


def _warn_if_short(secret: bytes, label: str) -> None:
    """Log one warning for each *label* whose secret can be guessed."""
    if len(secret) >= MIN_SECRET_BYTES or label in _warned:
        return
    if len(_warned) < MAX_WARNED:
        _warned.add(label)
    logger.warning(
        "%s is shorter than %d bytes, and can be guessed: take one from "
        'python -c "import secrets; print(secrets.token_urlsafe(32))"',
        label,
        MIN_SECRET_BYTES,
    )


def _key_id(value: object, label: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{label} must be text, not {rules.shown(value)}")
    if not signing.is_key_id(value):
        raise ValueError(
            f"{label} must be 1 to 128 letters, digits or . _ - : @ / + =, not {value!r:.200}"
        )
    return value


def _ruled(
    held: Mapping[object, object], name: str, default: Any, rule: rules.Rule, label: str
) -> Any:
    if name not in held:
        return default
    try:
        return rule(held[name])
    except (TypeError, ValueError) as error:
        raise type(error)(f"{label}: {name!r} {error}") from None


def _recipe(held: Mapping[object, object], name: str) -> object:
    """Return the configuration itself; ``None`` if a secret is written in it."""
    entries = list(cast("Iterable[object]", held.get("accepted") or ()))
    for entry in (held, *entries):
        if isinstance(entry, Mapping) and name in entry:
            return None
    return {**held, "accepted": entries}


def _unquoted(value: str) -> str:
    """Describe *value* without showing it: it may be a misplaced secret."""
    return f"a text of {len(value)} characters"
