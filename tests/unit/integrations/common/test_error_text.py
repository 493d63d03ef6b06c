"""What backends have stored, read without trusting it."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wove.errors import DeliveryError
from wove.integrations.common import error_text as words


class Spiteful:
    """Unpickled as usual, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_what_an_exception_says_survives() -> None:
    stored = pickle.dumps({"s": False, "r": DeliveryError("it could not be reported"), "t": 1})
    read = words.inert(stored)
    assert read["s"] is False and read["t"] == 1
    assert words.of_exception(read["r"]) == "DeliveryError: it could not be reported"
    assert not isinstance(read["r"], BaseException)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_runs(tmp_path: Path, protocol: int) -> None:
    spite = tmp_path / "spite"
    read = words.inert(pickle.dumps([Spiteful(spite), print, tmp_path], protocol))
    assert not spite.exists()
    assert all(isinstance(each, (words._Inert, type)) for each in read)


@pytest.mark.parametrize(
    "data", [b"", b"nonsense", pickle.dumps([1])[:-1], b"\x80\x05}q\x00(K\x01"]
)
def test_what_is_no_pickle(data: bytes) -> None:
    with pytest.raises(words.UnreadableError):
        words.inert(data)


def test_exceptions_in_a_line() -> None:
    assert words.of_exception(ValueError("no")) == "ValueError: no"
    assert words.of_exception(KeyError()) == "KeyError"
    assert (
        words.of_exception(words.inert(pickle.dumps(OSError(2, "no"))))
        == "FileNotFoundError: 2, no"
    )
    assert (
        words.of_exception({"exc_type": "ValueError", "exc_message": ["a", "b"]})
        == "ValueError: a, b"
    )
    assert words.of_exception({"exc_type": "ValueError", "exc_message": "a"}) == "ValueError: a"
    assert words.of_exception("unable to serialize result") == "unable to serialize result"
    assert len(words.of_exception(ValueError("x" * 10_000))) < 2100


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
        words.of_exception(words.inert((tmp_path / str(number)).read_bytes()))
        for number in range(3)
    ]
    assert found == ["FileNotFoundError: 2, no", "PermissionError: no signature", "KeyError"]
