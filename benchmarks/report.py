"""How outcomes are printed and written down."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
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
    about = {"python": platform.python_version(), "system": platform.system(), "cpus": os.cpu_count()}
    path.write_text(json.dumps({"about": about, "figures": figures}, indent=1) + "\n", encoding="utf-8")
