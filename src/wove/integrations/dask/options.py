"""The ``submit_options`` and ``client_options`` of an environment on Dask."""

from __future__ import annotations

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


def read_submit_options(value: object, *, label: str) -> dict[str, Any]:
    """The options of `distributed.Client.submit` for each run.

    Args:
        value: A dict, or ``None``.
        label: What messages begin with.

    Raises:
        TypeError: It is not a dict.
        ValueError: An option is not one, or not the user's to set; the message says why.
    """
    given = options(value, "submit_options", label=label, taken=TAKEN_SUBMIT, known=SUBMIT)
    workers = given.get("workers")
    if given.get("allow_other_workers") and not workers:
        raise ValueError(
            f"{label}: executor_config 'submit_options': 'allow_other_workers' goes with 'workers' only"
        )

    if isinstance(workers, str):  # `submit` takes a name, and `map` a list
        given["workers"] = [workers]
    return given


def read_client_options(value: object, *, label: str) -> dict[str, Any]:
    """The options of `distributed.Client`, as `read_submit_options` reads the others. Any but those that are ours."""
    return options(value, "client_options", label=label, taken=TAKEN_CLIENT)
