"""How much the tests do, which of them share a process, and in which order they are handed out."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support import groups
from tests.support.groups import group_of
from tests.support.volume import volume

ROOT = Path(groups.__file__).parents[2]


@pytest.mark.parametrize(
    ("nodeid", "group"),
    [
        ("tests/contract/test_backends.py::test_a[rq]", "contract of rq"),
        (
            "tests/contract/test_backends.py::test_a[fail-rq-simple-signed]",
            "contract of rq-simple-signed",
        ),
        ("tests/contract/test_backends.py::test_a[dask-the worker]", "contract of dask"),
        (
            "tests/contract/test_contract.py::test_a[https-signed-cancel]",
            "contract of https-signed",
        ),
        ("tests/contract/test_weaves.py::test_a[own-with in a loop]", None),
        ("tests/backends/test_rq.py::test_a[redis]", "tests/backends/test_rq.py"),
        ("tests/network/test_tls.py::TestA::test_b", "tests/network/test_tls.py"),
        ("tests/faults/test_backend_restarts.py::test_a[rq]", None),
        ("tests/unit/test_block.py::test_a[rq]", None),
    ],
)
def test_groups(nodeid: str, group: str | None) -> None:
    assert group_of(nodeid) == (group or nodeid)


def test_a_group_is_in_one_process(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeconftest('pytest_plugins = ["tests.support.groups"]')
    ran = pytester.path / "ran"
    body = "import os, time; time.sleep(0.02); open({!r}, 'a').write(os.environ[{!r}] + {!r})"
    each = (f"def test_{number}():\n    {body}\n" for number in range(8))
    source = "\n".join(each)
    for name in ("tests/network/test_one.py", "tests/unit/test_two.py"):
        (pytester.path / name).parent.mkdir(parents=True)
        written = source.format(*[str(ran), "PYTEST_XDIST_WORKER", f" {name}\n"] * 8)
        (pytester.path / name).write_text(written)
    options = ("-p", "no:cacheprovider", "-n", "3", "--dist", "loadgroup")
    pytester.runpytest_subprocess(*options, "--import-mode=importlib").assert_outcomes(passed=16)
    lines = [line.split() for line in ran.read_text().splitlines()]
    [one] = {worker for worker, file in lines if file.endswith("test_one.py")}
    assert len({worker for worker, file in lines if worker != one}) > 1


def test_the_volume() -> None:
    assert volume(10, 1, {}) == volume(10, 1, {"WOVE_TEST_VOLUME": "quick"}) == 1
    assert volume(10, 1, {"WOVE_TEST_VOLUME": "full"}) == 10
    with pytest.raises(pytest.UsageError, match="must be 'full' or 'quick', not 'half'"):
        volume(10, 1, {"WOVE_TEST_VOLUME": "half"})
