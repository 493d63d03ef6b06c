"""The options of a worker service, the same for all transports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias, TypedDict

from wove.graph.options import suggest
from wove.protocol.limits import MAX_MESSAGE_BYTES
from wove.security import NetworkExecutorSecurity

__all__ = ["SecurityConfig", "ServiceKeywords", "ServiceOptions", "service_options"]

SecurityConfig: TypeAlias = str | Mapping[str, Any] | NetworkExecutorSecurity
"""The configurations that `NetworkExecutorSecurity.from_config` takes."""


class ServiceKeywords(TypedDict, total=False):
    """The keywords of `service_options`; `ServiceOptions` says what they mean."""

    security: SecurityConfig
    concurrency: int
    processes: int | None
    backlog: int
    max_message_bytes: int
    drain_timeout: float
    remembered_runs: int
    remembered_bytes: int
    remembered_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceOptions:
    """The checked options of a worker service. `service_options` makes them.

    Attributes:
        security: Who may send runs.
        concurrency: Maximum number of runs at a time.
        processes: Number of worker processes that run tasks; ``None`` for threads of this process.
        backlog: Maximum number of runs that wait. Another one is answered "busy".
        max_message_bytes: Maximum size of one request, in bytes of JSON: 4/3 of the pickled arguments.
        drain_timeout: Seconds that running tasks get to end when the service is to stop.
        remembered_runs: Maximum number of remembered results of runs with an idempotency key.
        remembered_bytes: Maximum size of them together, in bytes; also of the ends kept for clients that come back.
        remembered_seconds: How long each is remembered.
    """

    security: NetworkExecutorSecurity = field(repr=False)
    concurrency: int = 64
    processes: int | None = None
    backlog: int = 1024
    max_message_bytes: int = MAX_MESSAGE_BYTES
    drain_timeout: float = 30.0
    remembered_runs: int = 1000
    remembered_bytes: int = 256 * 1024 * 1024
    remembered_seconds: float = 3600.0

    def __post_init__(self) -> None:
        _whole("concurrency", self.concurrency, 1)
        if self.processes is not None:
            _whole("processes", self.processes, 1)
        _whole("backlog", self.backlog, 0)
        _whole("max_message_bytes", self.max_message_bytes, 1)
        _whole("remembered_runs", self.remembered_runs, 0)
        _whole("remembered_bytes", self.remembered_bytes, 0)
        _seconds("drain_timeout", self.drain_timeout)
        _seconds("remembered_seconds", self.remembered_seconds)


def service_options(**keywords: Any) -> ServiceOptions:
    """Check the options of a worker service.

    ``security`` has no default: whoever may send runs to a service may run any code in it.

    Args:
        keywords: As the attributes of `ServiceOptions`; ``security`` in any form that
            `NetworkExecutorSecurity.from_config` takes.

    Raises:
        TypeError: An option is unknown, missing or of the wrong type.
        ValueError: An option is out of range, or ``security`` cannot be used; the message says why.

    Example:
        >>> service_options(security="none", concurrency=8).concurrency
        8
    """
    known = tuple(option.name for option in fields(ServiceOptions))

    for name in keywords:
        if name not in known:
            raise TypeError(
                f"a worker service has no option {name!r}.{suggest(name, known)} Its options are: {', '.join(known)}"
            )

    if keywords.get("security") is None:
        raise TypeError(
            "a worker service needs security=..., because whoever may send runs to it may run any code in it: "
            "'env:VARIABLE' names the variable with the shared secret; 'none' lets everybody in who can connect"
        )

    keywords["security"] = NetworkExecutorSecurity.from_config(
        keywords["security"], label="security"
    )
    return ServiceOptions(**keywords)


def _whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value!r}")


def _seconds(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be a number of seconds, 0 or more, not {value!r}")
