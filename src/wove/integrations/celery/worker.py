"""The Celery task that runs payloads in workers."""

from __future__ import annotations

import logging
import sys
from collections.abc import Container
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from wove.integrations.base import PayloadDict
    from wove.security import SecurityConfig

__all__ = ["COMMAND", "TASK_NAME", "register"]

logger = logging.getLogger("wove.worker")

TASK_NAME: Final = "wove.run_backend_payload"
"""Default of ``task_name``, and of the name that `register` gives the task."""

COMMAND: Final = "wove_where"
"""The remote control command that returns what a worker knows about some tasks; see
`wove.integrations.celery.request`."""


def register(
    app: Any, *, name: str = TASK_NAME, security: SecurityConfig = None, **task_options: Any
) -> Any:
    """Register the task that runs payloads, in the module that ``celery -A`` names.

    Args:
        app: The Celery app.
        name: The task's name; the environment's ``task_name``.
        security: As `wove.integrations.worker.run` takes it.
        task_options: Options of ``app.task``, such as ``acks_late``. By default, only failures are stored in the result
            backend, if there is one.

    Returns:
        The task.

    Example:
        >>> app = Celery("reports", broker="redis://localhost:6379/0")
        >>> task = wove.integrations.celery.register(app)
    """
    import cloudpickle

    from wove.integrations.worker import run

    del cloudpickle  # imported here, before the pool forks, so that its processes share it

    def run_backend_payload(task: Any, payload: PayloadDict) -> None:
        # Celery checks this before it hands a task to its pool, but a pool of threads has a queue of its own.
        if task.request.id in _revoked():
            logger.info("task %s was revoked before it began", task.request.id)
        else:
            run(payload, security=security)

    options: dict[str, Any] = {
        "ignore_result": True,
        "store_errors_even_if_ignored": True,
        "shared": False,
        "bind": True,
        "Request": "wove.integrations.celery.request:Request",
    }
    return app.task(name=name, **{**options, **task_options})(run_backend_payload)


def _revoked() -> Container[str]:
    """Return the ids of tasks that this process knows as revoked."""
    state: Any = sys.modules.get("celery.worker.state")
    return () if state is None else state.revoked
