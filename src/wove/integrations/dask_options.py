"""The ``submit_options`` and ``client_options`` of an environment on Dask."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final, cast

from wove.graph.rules import shown, suggest

__all__ = ["read_client_options", "read_submit_options"]

SUBMIT: Final = ("workers", "allow_other_workers", "resources", "priority", "retries", "fifo_timeout")
"""Options of both `distributed.Client.submit` and `.map` (distributed/client.py)."""

TAKEN_SUBMIT: Final = {
    "key": "it is made of the run's id, or of delivery_idempotency_key",
    "pure": "each run is one task, whatever its arguments are",
    "actor": "a run is a task",
    "actors": "a run is a task",
    "batch_size": "runs that wait go together by themselves",
}
"""Other options of these, and why they cannot be."""

TAKEN_CLIENT: Final = {
    "address": "it has a key of its own, 'address'",
    "asynchronous": "the client runs on Wove's background loop",
    "loop": "the client runs on Wove's background loop",
    "set_as_default": "the client is for this environment alone",
}


def read_submit_options(value: object, *, what: str) -> dict[str, Any]:
    """The options of `distributed.Client.submit` for each run.

    Args:
        value: A dict, or ``None``.
        what: What messages begin with.

    Raises:
        TypeError: It is no dict.
        ValueError: An option is not one, or not the user's to set; the message says why.
    """
    options = _read(value, "submit_options", what, TAKEN_SUBMIT, SUBMIT)
    workers = options.get("workers")
    if options.get("allow_other_workers") and not workers:
        raise ValueError(f"{what}: executor_config 'submit_options': 'allow_other_workers' goes with 'workers' only")
    if isinstance(workers, str):  # `submit` takes a name, and `map` a list
        options["workers"] = [workers]
    return options


def read_client_options(value: object, *, what: str) -> dict[str, Any]:
    """The options of `distributed.Client`, as `read_submit_options` reads the others. Any but those that are ours."""
    return _read(value, "client_options", what, TAKEN_CLIENT, None)


def _read(
    value: object, key: str, what: str, taken: Mapping[str, str], known: Collection[str] | None
) -> dict[str, Any]:
    label = f"{what}: executor_config {key!r}"
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise TypeError(f"{label} must be a dict, not {shown(value)}")
    given = cast("dict[str, Any]", value)
    for option in given:
        if option in taken:
            raise ValueError(f"{label} cannot set {option!r}: {taken[option]}")
        if known is not None and option not in known:
            raise ValueError(
                f"{label} has no option {option!r}.{suggest(str(option), known)} Its options are: {', '.join(known)}"
            )
    return dict(given)
