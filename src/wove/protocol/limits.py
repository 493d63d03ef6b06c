"""Limits of the wire format. All in bytes unless the name says otherwise."""

from __future__ import annotations

from typing import Final

#: Maximum size of a value that is handled in one step. That holds the interpreter lock for about a millisecond.
INLINE_BYTES: Final = 64 * 1024

#: Larger values are copied and converted in pieces of this size, so that other threads get the interpreter
#: lock between two of them. Divisible by 3 and by 4: base64 turns 3 bytes into 4 characters.
PIECE_BYTES: Final = 768 * 1024

#: How deeply a message of another process may be nested. Wove's own have four levels; a limit of some hundreds would
#: still be in reach of Python's limit of recursion.
MAX_DEPTH: Final = 64

#: Default of the maximum size of a message, in JSON, on both sides.
MAX_MESSAGE_BYTES: Final = 512 * 1024 * 1024

#: Maximum number of callables that a worker keeps, and of bytes of their pickles. Sender and worker follow the
#: same rule, so that the sender knows which callables it may leave out of a frame.
CALLABLES_KEPT: Final = 64
CALLABLES_KEPT_BYTES: Final = 256 * 1024 * 1024

#: Maximum number of dicts of shared arguments that a worker keeps, by the same rule. They may be large.
SHARED_KEPT: Final = 8

#: Maximum length of a remote traceback. A longer one loses its middle.
TRACEBACK_CHARACTERS: Final = 100_000

#: Maximum length of the part of an unusable frame that is quoted in the error about it.
QUOTED_CHARACTERS: Final = 120
