"""The ``submit_options`` and ``client_options`` of an environment on Dask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from wove.settings.config_readers import options

__all__ = ["read_client_options", "read_submit_options"]

SUBMIT: Final = (
    "workers",
    "allow_other_workers",
    "resources",
    "priority",
    "retries",
    "fifo_timeout",
)
"""Options of both `distributed.Client.submit` and `.map` (distributed/client.py)."""

RESERVED_SUBMIT: Final = {
    "key": "it is made of the run's id, or of delivery_idempotency_key",
    "pure": "each run is one task, whatever its arguments are",
    "actor": "a run is a task",
    "actors": "a run is a task",
    "batch_size": "runs that wait go together by themselves",
}
"""Options of these that the user cannot set, and why."""

RESERVED_CLIENT: Final = {
    "address": "it has a key of its own, 'address'",
    "asynchronous": "the client runs on Wove's background loop",
    "loop": "the client runs on Wove's background loop",
    "set_as_default": "the client is for this environment alone",
}


def read_submit_options(config: Mapping[str, Any], *, label: str) -> dict[str, Any]:
    """Return the options of `distributed.Client.submit` for each run.

    Args:
        config: The ``executor_config``.
        label: What messages begin with.

    Raises:
        TypeError: ``submit_options`` is not a dict.
        ValueError: An option is unknown or reserved; the message says why.
    """
    given = options(config, "submit_options", label=label, reserved=RESERVED_SUBMIT, known=SUBMIT)
    workers = given.get("workers")
    if given.get("allow_other_workers") and not workers:
        raise ValueError(
            f"{label}: executor_config 'submit_options': 'allow_other_workers' goes with 'workers' only"
        )

    if isinstance(workers, str):  # `submit` takes a name, and `map` a list
        given["workers"] = [workers]
    return given


def read_client_options(config: Mapping[str, Any], *, label: str) -> dict[str, Any]:
    """Return the options of `distributed.Client`, which checks their names itself.

    Args:
        config: The ``executor_config``.
        label: What messages begin with.

    Raises:
        TypeError: ``client_options`` is not a dict.
        ValueError: An option is reserved; the message says why.
    """
    return options(config, "client_options", label=label, reserved=RESERVED_CLIENT)
