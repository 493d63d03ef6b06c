"""Times that are compared with each other on a machine that does other things as well."""

from __future__ import annotations

from collections.abc import Callable

import pytest

__all__ = ["least_within"]


def least_within(
    subject: Callable[[], float],
    reference: Callable[[], float],
    most: Callable[[float], float],
    tries: int,
) -> None:
    """Fail unless the least that *subject* measures is below what *most* allows for the least of *reference*.

    What else the machine does only adds to either, so both are measured again, in turn, until it is.

    Args:
        subject: Measures once. Seconds.
        reference: The same of what it is compared with.
        most: Makes the bound of the least of *reference*.
        tries: How often at most.
    """
    subjects, references = [], []
    for _ in range(tries):
        references.append(reference())
        subjects.append(subject())
        if min(subjects) < most(min(references)):
            return
    pytest.fail(f"{min(subjects):.3f} s, compared with {min(references):.3f} s")
