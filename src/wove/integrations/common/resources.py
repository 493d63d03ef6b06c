"""The resources that a task asks its backend for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from wove.executors.base import Frame

__all__ = ["resources_of"]


def resources_of(frame: Frame) -> Mapping[str, float]:
    """Return the ``resources`` of a ``run_task`` frame: cores, bytes, devices and seconds, by name."""
    return cast("Mapping[str, float]", frame.get("resources") or {})
