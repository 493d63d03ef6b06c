"""The only way in which a task leaves this process: from the engine to an executor, and back."""

from __future__ import annotations

from wove.delivery.client import DeliveryClient
from wove.delivery.manager import check_resources, is_prepared, prepare, run_in_background, shutdown
from wove.delivery.preflight import check_environment
from wove.delivery.request import Call, Request

__all__ = [
    "Call",
    "DeliveryClient",
    "Request",
    "check_environment",
    "check_resources",
    "is_prepared",
    "prepare",
    "run_in_background",
    "shutdown",
]
