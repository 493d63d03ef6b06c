"""Environments, as a typed script configures them."""

from __future__ import annotations

from typing import Any

import wove
from wove.settings.types import CeleryConfig, EnvironmentDefinition, HttpConfig, SlurmConfig

queue: CeleryConfig = {
    "broker_url": "redis://redis:6379/0",
    "queue": "reports",
    "callback_port": "9010-9019",
    "send_task_options": {"priority": 3},
}
service: HttpConfig = {
    "url": "https://workers.internal/wove/tasks",
    "security": "env:WOVE_WORKER_SECRET",
    "timeout": 30,
    "busy_timeout": None,
}
cluster: SlurmConfig = {"sbatch_options": {"partition": "gpu", "gres": "gpu:1"}, "export": ["HF_*"]}
definitions: dict[str, EnvironmentDefinition] = {
    "reports": {"executor": "celery", "executor_config": queue, "retries": 3, "retry_on": OSError},
    "workers": {"executor": "http", "executor_config": service, "delivery_timeout": 35.0},
    "gpu": {"executor": "slurm", "executor_config": cluster},
}

wove.config(environments=definitions)
wove.config(
    environments={
        "default": {"executor": "local", "timeout": 30.0},
        "pool": {"executor": "stdio", "executor_config": {"processes": 4, "launcher": "nice"}},
    }
)
wove.config(environments={"pool": None})


def configure(executor: str, config: dict[str, Any]) -> None:
    definition: dict[str, Any] = {"executor": executor, "executor_config": config}
    wove.config(environments={"made": definition})
    wove.config(environments={"made": {"executor": executor, "executor_config": config}})
