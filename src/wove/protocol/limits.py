"""Sizes that the wire format lives by. All in bytes unless the name says otherwise."""

from __future__ import annotations

from typing import Final

#: Up to this size a value is handled in one go: the interpreter lock is held for a millisecond or so.
INLINE_BYTES: Final = 64 * 1024

#: Larger values are copied and converted in pieces of this size, so that other threads get the interpreter
#: lock between two of them. Divisible by 3 and by 4: base64 turns 3 bytes into 4 characters.
PIECE_BYTES: Final = 768 * 1024

#: How deeply a message of another process may be nested. Wove's own have four levels; a limit of some hundreds would
#: still be in reach of Python's limit of recursion.
MAX_DEPTH: Final = 64

#: Default of the largest message that either side takes, in JSON.
MAX_MESSAGE_BYTES: Final = 512 * 1024 * 1024

#: How many callables a worker keeps, and how many bytes their pickles may have together. Sender and worker
#: follow the same rule, so that the sender knows which ones it may leave out of a frame.
CALLABLES_KEPT: Final = 64
CALLABLES_KEPT_BYTES: Final = 256 * 1024 * 1024

#: How many dicts of shared arguments a worker keeps, by the same rule. Few: they may be large.
SHARED_KEPT: Final = 8

#: A remote traceback longer than this many characters loses its middle.
TRACEBACK_CHARACTERS: Final = 100_000

#: So many characters of an unusable frame are quoted in the error about it.
QUOTED_CHARACTERS: Final = 120
