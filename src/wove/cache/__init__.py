"""Results that are kept from one run of a program to the next.

A task with ``cache=True`` has its results in the store of its weave, ``weave(store="runs/")``: one for each set of
arguments, or of a mapped task one for each item. `fingerprint` and `canonical` make the key of a result, `records`
signs what is stored, `stores` and `sqlite` keep it, and the engine uses all that through `results`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wove.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from wove.cache.sqlite import SQLiteStore
    from wove.cache.stores import DirectoryStore, ResultStore

__all__ = ["DirectoryStore", "ResultStore", "SQLiteStore"]

# Type checkers would otherwise believe in every misspelt name.
if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__, {"DirectoryStore": "stores", "ResultStore": "stores", "SQLiteStore": "sqlite"}
    )
