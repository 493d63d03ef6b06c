"""What backends have stored, read without trusting it."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wove.errors import DeliveryError
from wove.integrations.common import error_text


class Spiteful:
    """Unpickled as usual, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_what_an_exception_says_survives() -> None:
    stored = pickle.dumps({"s": False, "r": DeliveryError("it could not be reported"), "t": 1})
    read = error_text.safe_unpickle(stored)
    assert read["s"] is False and read["t"] == 1
    assert error_text.exception_text(read["r"]) == "DeliveryError: it could not be reported"
    assert not isinstance(read["r"], BaseException)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_runs(tmp_path: Path, protocol: int) -> None:
    spite = tmp_path / "spite"
    read = error_text.safe_unpickle(pickle.dumps([Spiteful(spite), print, tmp_path], protocol))
    assert not spite.exists()
    assert all(isinstance(each, (error_text._StandIn, type)) for each in read)


@pytest.mark.parametrize(
    "data", [b"", b"nonsense", pickle.dumps([1])[:-1], b"\x80\x05}q\x00(K\x01"]
)
def test_what_is_no_pickle(data: bytes) -> None:
    with pytest.raises(error_text.UnreadableError):
        error_text.safe_unpickle(data)


def test_exceptions_in_a_line() -> None:
    assert error_text.exception_text(ValueError("no")) == "ValueError: no"
    assert error_text.exception_text(KeyError()) == "KeyError"
    assert (
        error_text.exception_text(error_text.safe_unpickle(pickle.dumps(OSError(2, "no"))))
        == "FileNotFoundError: 2, no"
    )
    assert (
        error_text.exception_text({"exc_type": "ValueError", "exc_message": ["a", "b"]})
        == "ValueError: a, b"
    )
    assert (
        error_text.exception_text({"exc_type": "ValueError", "exc_message": "a"}) == "ValueError: a"
    )
    assert error_text.exception_text("unable to serialize result") == "unable to serialize result"
    assert len(error_text.exception_text(ValueError("x" * 10_000))) < 2100


def test_exceptions_where_dask_has_been_imported(tmp_path: Path) -> None:
    pytest.importorskip("tblib")
    source = """
import pickle, sys
from tblib import pickling_support
pickling_support.install()
for number, error in enumerate([OSError(2, "no"), PermissionError("no signature"), KeyError()]):
    with open(f"{sys.argv[1]}/{number}", "wb") as file:
        pickle.dump(error, file)
"""
    subprocess.run([sys.executable, "-c", source, str(tmp_path)], check=True, timeout=50)
    found = [
        error_text.exception_text(error_text.safe_unpickle((tmp_path / str(number)).read_bytes()))
        for number in range(3)
    ]
    assert found == ["FileNotFoundError: 2, no", "PermissionError: no signature", "KeyError"]
