"""Print how readable each page is, and fail if a guide is not: ``python docs/_ext/readability.py``.

The figure is Flesch's reading ease: 206.8 - 1.015 * words per sentence - 84.6 * syllables per word. Plain English
has 60 or more. Code, tables and headings are left out; a name in backticks counts as one word of two syllables.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

DOCS = Path(__file__).parents[1]
MIN_EASE = 60.0
"""What every page of the tutorial and of the guides must reach."""

UNCLEAR = re.compile(r"\b(is no|are no|is none|somebody|someone else's|so many|that is to say)\b")
"""Phrases that the style of these pages avoids; counted, not refused."""


def prose(page: str) -> str:
    """The sentences of *page*."""
    page = re.sub(r"^(`{3,}|:{3,}).*?^\1$", "", page, flags=re.MULTILINE | re.DOTALL)
    lines = [line for line in page.splitlines() if not re.match(r"#|\||---|:::", line)]
    text = "\n".join(line.lstrip("-*0123456789. ") if _is_item(line) else line for line in lines)
    text = re.sub(r"\n\s*\n|\n(?=[A-Z`*])", ". ", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"`[^`]*`", "value", text)


def _is_item(line: str) -> bool:
    return re.match(r"\s*([-*]|\d+\.) ", line) is not None


def syllables(word: str) -> int:
    """About how many syllables *word* has."""
    word = word.lower()
    count = len(re.findall(r"[aeiouy]+", word))
    if word.endswith(("e", "ed", "es")) and not word.endswith(("le", "ted", "ses", "ces")):
        count -= 1
    return max(count, 1)


def ease(text: str) -> float:
    """Flesch's reading ease of *text*."""
    sentences = [part for part in re.split(r"[.!?:]+\s|[.!?:]+$", text) if re.search(r"\w", part)]
    words = re.findall(r"[A-Za-z']+", text)
    if not words:
        return 100.0
    length = len(words) / len(sentences)
    return 206.835 - 1.015 * length - 84.6 * sum(map(syllables, words)) / len(words)


def main() -> int:
    """Print a line for each page; 1 if a guide is too hard to read."""
    failed = False
    for path in sorted(DOCS.rglob("*.md")):
        name = path.relative_to(DOCS).as_posix()
        text = prose(path.read_text())
        figure, unclear = ease(text), len(UNCLEAR.findall(text))
        guide = name.startswith(("guides/", "tutorial/"))
        bad = guide and figure < MIN_EASE
        failed |= bad
        print(
            f"{figure:5.1f}  {name}"
            + (f"  {unclear} unclear" if unclear else "")
            + "  TOO LOW" * bad
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
