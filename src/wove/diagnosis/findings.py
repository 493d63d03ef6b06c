"""A finding: what one check of an environment found out, and what mends it."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

__all__ = ["Finding", "Status"]

Status: TypeAlias = Literal["ok", "warning", "failed"]


class Finding(NamedTuple):
    """The result of one check.

    Attributes:
        environment: The environment's name; ``""``: the installation as a whole.
        check: The name of the check: ``"packages"``, ``"configuration"``, ``"address"``, ``"certificate"``,
            ``"start"``, ``"worker"``, ``"versions"``, ``"clock"``, ``"secret"``, ``"modules"``, ``"latency"``,
            ``"payload"``, ``"stream"`` or ``"cancel"``.
        status: ``"ok"``, ``"warning"`` (it works, and something will surprise) or ``"failed"``.
        message: What was found.
        remedy: The sentence that mends it; empty where nothing is to be mended.
    """

    environment: str
    check: str
    status: Status
    message: str
    remedy: str = ""

    @property
    def ok(self) -> bool:
        """Return whether nothing is broken: the status is not ``"failed"``."""
        return self.status != "failed"
