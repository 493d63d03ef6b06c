"""How long to wait between attempts, so that a peer in trouble is asked less often, and not by all at once."""

from __future__ import annotations

import random
from typing import Final, NamedTuple

__all__ = ["Backoff"]

MAX_EXPONENT: Final = 60
"""Beyond this number of failures the delay does not grow any more; a float would overflow at 1024."""


class Backoff(NamedTuple):
    """Delays that double from *first* up to *maximum* seconds, each multiplied by a random factor.

    It has no state: the caller counts its failures.

    Args:
        first: Seconds after the first failure.
        maximum: Seconds, before the random factor is applied.
        least: The smallest factor.
        most: The largest factor. 0 and 1 are "full jitter":
            https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/

    Example:
        >>> backoff = Backoff(0.1, 2.0)
        >>> 0.2 <= backoff.delay(3) <= 0.4
        True
    """

    first: float
    maximum: float
    least: float = 0.5
    most: float = 1.0

    def delay(self, failures: int, rng: random.Random | None = None) -> float:
        """Return the seconds to wait after *failures* failures in a row, counted from 1.

        Args:
            failures: At least 1.
            rng: Where the factor comes from; ``None``: from the generator of the process.
        """
        uniform = random.uniform if rng is None else rng.uniform
        exponent = min(max(failures, 1) - 1, MAX_EXPONENT)
        return min(self.maximum, self.first * 2.0**exponent) * uniform(self.least, self.most)
