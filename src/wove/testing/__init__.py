"""Tools for testing code that weaves: environments in this process, recorded, with faults on demand.

`in_process` puts an executor of this process in the place of brokers, clusters and services. The plugin
for pytest, `wove.testing.plugin`, restores ``wove.config`` after each test.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wove.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from wove.testing.environments import in_process
    from wove.testing.recorder import Recorder, SentRun

__all__ = ["Recorder", "SentRun", "in_process"]

# Type checkers would otherwise believe in every misspelt name.
if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__, {"Recorder": "recorder", "SentRun": "recorder", "in_process": "environments"}
    )
