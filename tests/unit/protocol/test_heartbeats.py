"""How often a run sends heartbeats."""

from __future__ import annotations

import pytest

from wove.protocol.heartbeats import MIN_SECONDS, spacing


@pytest.mark.parametrize(
    ("timeout", "maximum", "expected"),
    [
        (None, None, None),
        (None, 5.0, 5.0),
        (15.0, None, 5.0),
        (15.0, 1.0, 1.0),
        (1.5, 1.0, 0.5),
        (0.001, None, MIN_SECONDS),
        (None, 0.001, MIN_SECONDS),
        (0, None, None),
        (-3, 5.0, 5.0),
        (True, 5.0, 5.0),
        ("3", None, None),
    ],
)
def test_spacing(timeout: object, maximum: float | None, expected: float | None) -> None:
    assert spacing({"delivery_heartbeat_seconds": timeout}, maximum) == expected


def test_a_frame_without_delivery_asks_for_none() -> None:
    assert spacing(None) is None and spacing({}) is None
