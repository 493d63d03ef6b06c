"""The plugin for pytest, in a run of its own."""

from __future__ import annotations

import pytest

SOURCE = """
import wove
from wove import settings, weave

def test_one():
    wove.config(retries=3, environments={"far": {"executor": "celery"}})

def test_two():
    assert "retries" not in settings.current().defaults
    assert "far" not in settings.current().environments

def work():
    with weave() as w:
        @w.do(environment="default")
        def task():
            return 1
    return w.result.task

def test_three(wove_environments):
    assert work() == 1 and len(wove_environments) == 0
"""


def test_the_plugin(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(SOURCE)

    result = pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider")

    result.assert_outcomes(passed=3)
