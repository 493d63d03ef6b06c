"""What ``wove worker`` writes to its log."""

from __future__ import annotations

import logging

import pytest

from wove.cli.logs import logging_to_stderr


def test_text_from_elsewhere_stays_in_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to_stderr("info"):
        logging.getLogger("wove.service").warning(
            "a request was refused: %s", "a\r\n2026-01-01 ERROR wove: forged\x1b[2J\u2028x"
        )
    [line] = capsys.readouterr().err.splitlines()
    assert r"a\x0d\x0a2026-01-01 ERROR wove: forged\x1b[2J\u2028x" in line


def test_a_traceback_keeps_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to_stderr("info"):
        try:
            raise ValueError("oh")
        except ValueError:
            logging.getLogger("wove.service").exception("failed")
    assert len(capsys.readouterr().err.splitlines()) > 3
