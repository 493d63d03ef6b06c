"""AWS Batch: a run is a job of a queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wove.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from wove.integrations.aws_batch.adapter import AWSBatchAdapter

__all__ = ["AWSBatchAdapter"]

# Type checkers would otherwise believe in every misspelt name.
if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(__name__, {"AWSBatchAdapter": "adapter"})
