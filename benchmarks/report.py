"""How outcomes are printed and written down."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

from .harness import Outcome, Unit

WIDTH = 112


def heading(name: str) -> str:
    """The line above a benchmark's figures."""
    return f"\n{name} {'-' * (WIDTH - len(name) - 1)}"


def details(outcome: Outcome) -> str:
    """Subject, references and verdict of one figure, a line each."""
    figure = outcome.figure
    rounds = len(outcome.samples[figure.subject])
    lines = [f"\n  {figure.title}   ({rounds} rounds)"]
    for label, values in outcome.samples.items():
        note = "subject" if label == figure.subject else "aside" if label in figure.aside else ""
        note = "best reference" if label == outcome.best else note
        middle = amount(outcome.medians[label], figure.unit)
        low, high = amount(min(values), figure.unit), amount(max(values), figure.unit)
        lines.append(f"    {label:<54} {middle:>11}   {low:>11} .. {high:<11} {note}")
    lines.append(f"    {'=>':<54} {verdict(outcome)}")
    return "\n".join(lines)


def verdict(outcome: Outcome) -> str:
    """The score, the target and whether it was reached, in one phrase."""
    target, unit = outcome.figure.target, outcome.figure.unit
    alone = outcome.best is None  # nothing to compare it with
    absolute = alone if target is None else target.rule in ("over by", "within")
    score = amount(outcome.score, unit) if absolute else f"{outcome.score:.3g} x"
    if target is None:
        return f"{score:>11}   (no target)"
    limit = amount(target.limit, unit) if absolute else f"{target.limit:g}"
    rule = "over by at most" if target.rule == "over by" else target.rule
    return f"{score:>11}   {rule} {limit}: {'reached' if outcome.reached else 'MISSED'}"


def summary(outcomes: Sequence[Outcome]) -> str:
    """One line a figure, and how many targets were reached."""
    lines = [heading("summary")]
    lines += [f"  {o.benchmark:<14} {o.figure.title:<56} {verdict(o)}" for o in outcomes]
    judged = [o.reached for o in outcomes if o.reached is not None]
    lines.append(f"\n  {sum(judged)} of {len(judged)} targets reached")
    return "\n".join(lines)


def comparison(outcomes: Sequence[Outcome], earlier: Mapping[tuple[str, str], float]) -> str:
    """Return one line for each figure: its score, the earlier one, and the ratio of the two.

    Args:
        outcomes: What was measured now.
        earlier: As `read_scores` returns it. A figure that is not in it has no earlier score.
    """
    lines = [heading("comparison")]
    for outcome in outcomes:
        before = earlier.get((outcome.benchmark, outcome.figure.title))
        told = "new" if before is None else f"{outcome.score:>9.3g} was {before:>9.3g}"
        if before:
            told += f"   {outcome.score / before:.2f} x"
        lines.append(f"  {outcome.benchmark:<14} {outcome.figure.title:<56} {told}")
    return "\n".join(lines)


def read_scores(path: Path) -> dict[tuple[str, str], float]:
    """Return the scores in a file from `write_json`, by benchmark and title."""
    figures = json.loads(path.read_text(encoding="utf-8"))["figures"]
    return {(figure["benchmark"], figure["title"]): figure["score"] for figure in figures}


def amount(value: float, unit: Unit) -> str:
    """*value* in a unit that reads well: seconds become s, ms or us."""
    if unit == "MiB":
        return f"{value:.1f} MiB"
    for factor, name in ((1, "s"), (1e3, "ms")):
        if abs(value) * factor >= 1:
            return f"{value * factor:.2f} {name}"
    return f"{value * 1e6:.1f} us"


def write_json(outcomes: Sequence[Outcome], path: Path) -> None:
    """Every sample, in seconds or MiB, for other programs to read."""
    figures = [
        {
            "benchmark": o.benchmark,
            "title": o.figure.title,
            "unit": o.figure.unit,
            "subject": o.figure.subject,
            "best_reference": o.best,
            "aside": o.figure.aside,
            "score": o.score,
            "rule": o.figure.target.rule if o.figure.target else None,
            "limit": o.figure.target.limit if o.figure.target else None,
            "reached": o.reached,
            "medians": o.medians,
            "samples": o.samples,
        }
        for o in outcomes
    ]
    about = {
        "python": platform.python_version(),
        "system": platform.system(),
        "cpus": os.cpu_count(),
    }
    path.write_text(
        json.dumps({"about": about, "figures": figures}, indent=1) + "\n", encoding="utf-8"
    )
