"""A documented import path; what is here lives elsewhere."""

from __future__ import annotations

from wove.errors import DeliveryOrphanedError, DeliveryTimeoutError, EnvironmentExecutionError
from wove.executors.backend.executor import BackendAdapterEnvironmentExecutor
from wove.executors.base import EnvironmentExecutor
from wove.executors.grpc.executor import GrpcEnvironmentExecutor
from wove.executors.http.executor import HttpEnvironmentExecutor
from wove.executors.websocket.executor import WebSocketEnvironmentExecutor

__all__ = [
    "BackendAdapterEnvironmentExecutor",
    "DeliveryOrphanedError",
    "DeliveryTimeoutError",
    "EnvironmentExecutionError",
    "EnvironmentExecutor",
    "GrpcEnvironmentExecutor",
    "HttpEnvironmentExecutor",
    "WebSocketEnvironmentExecutor",
]
