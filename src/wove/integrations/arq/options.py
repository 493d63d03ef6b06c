"""The configuration of an environment for ARQ."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Final, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from wove.concurrency import forks
from wove.graph.rules import suggest
from wove.settings.config_readers import options

__all__ = ["check_dsn", "library", "read_options", "read_settings", "shown_address"]

OPTIONS: Final = ("_defer_by", "_defer_until", "_expires")
"""The options of ARQ that ``enqueue_options`` can set."""

RESERVED: Final = {
    "_job_id": "Wove gives each job its id; delivery_idempotency_key decides which runs share one",
    "_queue_name": "the key 'queue_name' beside it is for that",
    "_job_try": "a run is one try of one job; the option retries is for more",
}

SCHEMES: Final = ("redis", "rediss", "unix")


def library() -> Any:
    """Import the parts of ARQ that are used, and return them as attributes of one object. Blocks for a moment."""
    with forks.importing:
        modules = {
            "arq.connections": ("ArqRedis", "RedisSettings", "create_pool"),
            "arq.constants": ("default_queue_name",),
            "arq.jobs": ("serialize_job",),
            "arq.utils": ("timestamp_ms", "to_ms", "to_unix_ms"),
            "redis.exceptions": ("RedisError", "ResponseError", "WatchError"),
        }
        found = {module: importlib.import_module(module) for module in modules}

    return SimpleNamespace(
        **{name: getattr(found[module], name) for module in modules for name in modules[module]}
    )


def read_options(config: Mapping[str, Any], *, label: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return ARQ's own options in ``enqueue_options``, and the arguments for the worker's function.

    Raises:
        TypeError: ``enqueue_options`` is not a dict.
        ValueError: An option is unknown or reserved; the message says why.
    """
    key_label = f"{label}: executor_config 'enqueue_options'"
    given = options(config, "enqueue_options", label=label, reserved=RESERVED)

    for name in given:
        if f"_{name}" in OPTIONS:
            raise ValueError(
                f"{key_label} has {name!r}; ARQ's own options begin with an underscore: '_{name}'"
            )
        if name.startswith("_") and name not in OPTIONS:
            raise ValueError(
                f"{key_label} has {name!r}, which ARQ does not know.{suggest(name, OPTIONS)}"
            )

    own: dict[str, Any] = {name: given.pop(name) for name in OPTIONS if name in given}
    if own.get("_defer_by") and own.get("_defer_until"):
        raise ValueError(f"{key_label} has both '_defer_by' and '_defer_until'; give one of them")
    return own, given


def check_dsn(dsn: str, label: str) -> None:
    """Refuse a text that is not the address of a Redis.

    Raises:
        ValueError: It is not one. The message does not quote it, because it may contain a password.
    """
    try:
        _fields_of(dsn)
    except ValueError:
        raise ValueError(
            f"{label}: executor_config 'redis_settings' is not an address of a Redis; as text it is "
            "'redis://[[user]:password@]host[:port][/database]', 'rediss://...' for TLS, or 'unix:///path?db=0'"
        ) from None


def _fields_of(dsn: str) -> dict[str, Any]:
    # Not with RedisSettings.from_dsn: it does not decode percent signs in passwords, and that of ARQ 0.25 reads the
    # path of a socket as a number.
    parts = urlsplit(dsn)
    if parts.scheme not in SCHEMES or (parts.scheme == "unix" and not parts.path):
        raise ValueError(parts.scheme)
    fields: dict[str, Any] = {
        "username": parts.username and unquote(parts.username),
        "password": parts.password and unquote(parts.password),
        "database": int(dict(parse_qsl(parts.query)).get("db") or 0),
    }
    if parts.scheme == "unix":
        return {**fields, "unix_socket_path": unquote(parts.path)}
    fields.update(
        host=parts.hostname or "localhost", port=parts.port or 6379, ssl=parts.scheme == "rediss"
    )
    if path := parts.path.strip("/"):
        fields["database"] = int(path)
    return fields


def read_settings(value: object, kind: Any, label: str) -> Any:
    """Return the ``RedisSettings`` that ``redis_settings`` describes.

    Args:
        value: ``RedisSettings``, a dict of their fields, a URL, or ``None`` for ARQ's defaults.
        kind: ``arq.connections.RedisSettings``.
        label: What messages begin with.

    Raises:
        TypeError: It is something else.
        ValueError: It has a field that ARQ does not know.
    """
    if value is None:
        return kind()
    if isinstance(value, kind):
        return value
    if isinstance(value, str):
        return kind(**_fields_of(value))
    key_label = f"{label}: executor_config 'redis_settings'"

    if not isinstance(value, Mapping):
        # The message does not quote it, because it may contain a password.
        raise TypeError(
            f"{key_label} must be arq's RedisSettings, a dict of its fields, or a URL, not of type {type(value)}"
        )

    fields = cast("Mapping[str, Any]", value)
    known = list(kind.__dataclass_fields__)

    for name in fields:
        if name not in known:
            raise ValueError(
                f"{key_label}: arq's RedisSettings has no field {name!r}.{suggest(name, known)}"
            )

    return kind(**fields)


def shown_address(settings: Any) -> str:
    """Return the address in *settings*, without credentials."""
    if settings.unix_socket_path:
        return str(settings.unix_socket_path)
    if settings.sentinel:
        return f"the sentinels {settings.host}"
    return f"{settings.host}:{settings.port}/{settings.database}"
