"""The worker's side of Celery: the task that runs payloads."""

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
"""The task's name, unless the environment and its workers agree on another."""

COMMAND: Final = "wove_where"
"""The remote control command of workers with a task from `register`: what they know of some tasks."""


def register(
    app: Any, *, name: str = TASK_NAME, security: SecurityConfig = None, **task_options: Any
) -> Any:
    """Register the task that runs payloads, in the module that ``celery -A`` names.

    Args:
        app: The Celery app.
        name: The task's name; the environment's ``task_name``.
        security: As `wove.integrations.worker.run` takes it.
        task_options: Options of ``app.task``, such as ``acks_late``. By default, of what comes of the task only
            failures are stored in the result backend, if there is one.

    Returns:
        The task.

    Example:
        >>> app = Celery("reports", broker="redis://localhost:6379/0")
        >>> task = wove.integrations.celery.register(app)
    """
    import cloudpickle

    from wove.integrations.worker import run

    del cloudpickle  # all that a run needs is imported here, before the pool forks

    def run_backend_payload(task: Any, payload: PayloadDict) -> None:
        # Celery looks before it hands a task to its pool, and a pool of threads has a queue of its own.
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
    """The tasks that this process knows to be revoked."""
    state: Any = sys.modules.get("celery.worker.state")
    return () if state is None else state.revoked
