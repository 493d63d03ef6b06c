"""Turn the results into something to read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

from examples.stdlib_report.analysis import FileReport, Measured

from wove import WoveResult


def summarise(analysed: Sequence[FileReport], copies: int, interpreter: str) -> str:
    """What is in the library."""
    wrong = sum(file["error"] is not None for file in analysed)
    functions = sum(file["functions"] for file in analysed)
    classes = sum(file["classes"] for file in analysed)
    imports = sum(file["imports"] for file in analysed)
    return "\n".join(
        [
            f"{interpreter}: {len(analysed):,} files",
            "",
            f"  functions  {functions:>8,}    longest       {superlative(analysed, 'longest', 'lines')}",
            f"  classes    {classes:>8,}    most complex  {superlative(analysed, 'most_complex', 'complexity')}",
            f"  imports    {imports:>8,}    no Python     {wrong} files, wrong on purpose: tests of the parser",
            f"  copies     {copies:>8,}    files that repeat another one byte for byte",
        ]
    )


def superlative(
    files: Sequence[FileReport],
    which: Literal["longest", "most_complex"],
    by: Literal["lines", "complexity"],
) -> str:
    """The extreme function of all files, with its measure and its place."""
    found: list[tuple[str, Measured]] = []
    for file in files:
        function = file[which]
        if function is not None:
            found.append((file["path"], function))
    if not found:
        return "none"
    path, function = max(found, key=lambda pair: pair[1][by])
    unit = "lines" if by == "lines" else "ways through it"
    return f"{function['name']} in {os.path.basename(path)}, {function[by]} {unit}"


def what_ran_where(result: WoveResult, elapsed: float) -> str:
    """A line per task: how often it ran, where, and how long that took. *elapsed* is in seconds."""
    lines = ["  task         runs   seconds   where"]
    for name, seconds in result.timings.items():
        records = [record for record in result.run_records if record.task == name]
        workers = {(record.host, record.pid) for record in records if record.pid is not None}
        processes = f"{len(workers)} process{'es'[: 2 * (len(workers) != 1)]}"
        where = f"{records[0].environment}: {processes}" if workers else "this process"
        lines.append(f"  {name:<11}{len(records):>6,}  {seconds:>8.2f}   {where}")
    computed = sum(file["seconds"] for file in result.analysed)
    lines += [
        "",
        f"  {computed:.1f} seconds of parsing and measuring, in {elapsed:.1f} seconds from start to end.",
    ]
    return "\n".join(lines)
