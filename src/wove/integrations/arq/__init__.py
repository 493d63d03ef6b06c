"""ARQ: a run is a job of the function that `worker_function` makes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wove.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from wove.integrations.arq.adapter import ARQAdapter
    from wove.integrations.arq.worker import worker_function, wove_run_backend_payload

__all__ = ["ARQAdapter", "worker_function", "wove_run_backend_payload"]

# Type checkers would otherwise believe in every misspelt name.
if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "ARQAdapter": "adapter",
            "worker_function": "worker",
            "wove_run_backend_payload": "worker",
        },
    )
