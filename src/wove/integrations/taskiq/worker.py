"""The task that runs payloads in Taskiq's workers."""

from __future__ import annotations

from typing import Any, Final

from wove.integrations.taskiq.client import BrokerLoops
from wove.integrations.worker import arun, check_security
from wove.security import SecurityConfig

__all__ = ["TASK_NAME", "register"]

TASK_NAME: Final = "wove.run_backend_payload"
"""Default of ``task_name``, and what `register` calls its task."""


def register(
    broker: Any, *, name: str = TASK_NAME, security: SecurityConfig = None, **labels: Any
) -> Any:
    """Register the task that runs payloads with *broker*. Call it in the module that defines the broker.

    Args:
        broker: The broker that ``taskiq worker`` is given.
        name: The environment's ``task_name``.
        security: As the environment's ``security``; ``None``: the secret in the variable ``WOVE_WORKER_SECRET``, if
            there is one.
        labels: Labels of the task, such as ``queue_name="reports"`` of taskiq-redis.

    Returns:
        The task, which an environment takes as ``task``.

    Raises:
        ValueError: *security* is not right.

    Example::

        broker = ListQueueBroker("redis://redis:6379/0")
        task = register(broker)
    """
    checked = check_security(security)

    async def run_backend_payload(payload: dict[str, Any]) -> None:
        await arun(payload, security=checked)

    BrokerLoops.note(broker)
    return broker.register_task(run_backend_payload, task_name=name, **labels)
