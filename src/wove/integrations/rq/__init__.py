"""RQ: a run is a job that calls `wove.integrations.worker.run`; workers need nothing of Wove's beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wove.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from wove.integrations.rq.adapter import RQAdapter

__all__ = ["RQAdapter"]

# Type checkers would otherwise believe in every misspelt name.
if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(__name__, {"RQAdapter": "adapter"})
