"""A documented import path; what is here lives elsewhere."""

from __future__ import annotations

from wove.callback.client import post_event
from wove.integrations.worker import arun as run_backend_payload_async, run as run_backend_payload
from wove.protocol.payload import build as build_backend_payload

__all__ = [
    "build_backend_payload",
    "post_event",
    "run_backend_payload",
    "run_backend_payload_async",
]
