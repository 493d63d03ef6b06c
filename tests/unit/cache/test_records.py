"""Signatures: what was not written with the secret is not loaded."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from wove.cache.records import HEAD_BYTES, Seal, secret_file
from wove.errors import CacheError


def test_a_record_opens_under_its_key_and_secret_alone() -> None:
    seal = Seal(b"one")
    record = seal.close(b"k", b"pickle")
    assert seal.open(b"k", record, "here") == b"pickle"
    assert Seal(b"one").open(b"k", record, "here") == b"pickle"
    with pytest.raises(CacheError, match=r"^here: a result in it is damaged"):
        seal.open(b"other key", record, "here")
    with pytest.raises(CacheError, match=r"^here: its results were signed with another secret"):
        Seal(b"two").open(b"k", record, "here")


@pytest.mark.parametrize("position", [*range(HEAD_BYTES), HEAD_BYTES, -1])
def test_every_changed_byte_is_noticed(position: int) -> None:
    seal = Seal(b"one")
    record = bytearray(seal.close(b"k", b"pickle"))
    record[position] ^= 1
    with pytest.raises(CacheError, match=r"^here: "):
        seal.open(b"k", bytes(record), "here")


@pytest.mark.parametrize("record", [b"", b"wove", b"\x80\x05N."])
def test_something_else_is_no_record(record: bytes) -> None:
    with pytest.raises(CacheError, match="something else than results of Wove"):
        Seal(b"one").open(b"k", record, "here")


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("WOVE_CACHE_SECRET")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def test_the_users_secret_is_made_once_and_for_the_user_alone(state: Path) -> None:
    record = Seal.of_user().close(b"k", b"pickle")
    file = secret_file()
    assert file.is_relative_to(state)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert os.listdir(file.parent) == [file.name]
    assert Seal.of_user().open(b"k", record, "here") == b"pickle"


def test_a_secret_that_others_can_read_or_guess_is_refused(state: Path) -> None:
    Seal.of_user()
    secret_file().chmod(0o640)
    with pytest.raises(CacheError, match="chmod 600"):
        Seal.of_user()
    secret_file().write_text("short")
    with pytest.raises(CacheError, match="too short"):
        Seal.of_user()


def test_where_no_secret_can_be_kept_the_variable_is_named(state: Path) -> None:
    state.write_text("a file, not a folder")
    with pytest.raises(CacheError, match="Set WOVE_CACHE_SECRET"):
        Seal.of_user()
