"""Between the engine and the outside: the one way in which a task leaves this process."""

from __future__ import annotations

from wove.delivery.hub import is_prepared, prepare, shutdown
from wove.delivery.request import Call, Request
from wove.delivery.scope import Scope

__all__ = ["Call", "Request", "Scope", "is_prepared", "prepare", "shutdown"]
