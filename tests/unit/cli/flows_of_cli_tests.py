"""Weave classes for the tests of the command line."""

from __future__ import annotations

from wove import Weave


class Report(Weave):
    """Two tasks, the second of which needs the first."""

    @Weave.do
    def rows(self, month: str, accounts: list[int]) -> list[str]:
        print("a line that a task prints")
        return [f"{month} {account}" for account in accounts]

    @Weave.do
    def total(self, rows: list[str]) -> int:
        return len(rows)


class Broken(Weave):
    """One task that fails, one that does not, and one whose result JSON does not know."""

    @Weave.do
    def bad(self) -> None:
        raise ValueError("no such month")

    @Weave.do
    def good(self) -> int:
        return 3

    @Weave.do
    def odd(self) -> dict[object, object]:
        return {(1, 2): {3}, "inf": float("inf")}
