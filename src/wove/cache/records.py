"""The record of a kept result: its pickle, signed.

A pickle is code that runs when it is loaded. So a record is loaded only after its signature has been checked, with a
secret that whoever wrote it must have had: the text of ``WOVE_CACHE_SECRET``, or a file of the user's that Wove makes
when it first needs one. The signature covers the key as well, so that no record can take the place of another.

A record: 8 bytes that every one begins with, 8 that identify the secret, 16 of signature, the pickle.
"""

from __future__ import annotations

import os
import secrets
from hashlib import blake2b
from hmac import compare_digest
from pathlib import Path
from typing import Final

from wove.cache.stores import publish
from wove.errors import CacheError

__all__ = ["HEAD_BYTES", "SECRET_VARIABLE", "Seal", "secret_file"]

MAGIC: Final = b"wove\x00r1\n"

SECRET_VARIABLE: Final = "WOVE_CACHE_SECRET"

_ID_END: Final = len(MAGIC) + 8
HEAD_BYTES: Final = _ID_END + 16
"""Bytes of a record before its pickle."""


class Seal:
    """Signs records and checks their signatures.

    Args:
        secret: Known to those alone whose results may be loaded.
    """

    def __init__(self, secret: bytes) -> None:
        key = blake2b(secret, digest_size=32, person=b"wove-cache").digest()
        self._signature = blake2b(key=key, digest_size=16)
        self._head = MAGIC + blake2b(key=key, digest_size=8, person=b"wove-cache-id").digest()

    @classmethod
    def of_user(cls) -> Seal:
        """Return the seal of ``WOVE_CACHE_SECRET``, otherwise of the user's own file.

        Raises:
            CacheError: The file cannot be read or made, or others may read it.
        """
        text = os.environ.get(SECRET_VARIABLE)
        return cls(text.encode() if text else _read_secret(secret_file()))

    def close(self, key: bytes, pickled: bytes) -> bytes:
        """Return the record of a result under *key*."""
        return self._head + self._sign(key, pickled) + pickled

    def open(self, key: bytes, record: bytes, label: str) -> bytes:
        """Return the pickle in *record*.

        Args:
            key: What the record was found under.
            record: As it was found.
            label: Where it was found, for messages.

        Raises:
            CacheError: It was not written with this secret, or not as it stands.
        """
        pickled = record[HEAD_BYTES:]
        if record[:_ID_END] != self._head:
            raise CacheError(self._foreign(record, label))
        if not compare_digest(record[_ID_END:HEAD_BYTES], self._sign(key, pickled)):
            raise CacheError(
                f"{label}: a result in it is damaged, or was changed by somebody without the secret. Nothing of "
                f"it was loaded. Remove it: wove cache rm"
            )
        return pickled

    def adopt(self, key: bytes, record: bytes) -> bytes:
        """Return *record*, whoever has signed it, as one of this seal."""
        return self.close(key, record[HEAD_BYTES:])

    def _sign(self, key: bytes, pickled: bytes) -> bytes:
        signature = self._signature.copy()
        signature.update(key)
        signature.update(pickled)
        return signature.digest()

    def _foreign(self, record: bytes, label: str) -> str:
        if not record.startswith(MAGIC):
            return f"{label}: holds something else than results of Wove. Nothing of it was loaded"
        return (
            f"{label}: its results were signed with another secret, by another user or on another machine. Nothing "
            f"of it was loaded. Set {SECRET_VARIABLE} to the same text wherever it is used; or, if you trust who "
            f"wrote it, sign it anew: wove cache adopt"
        )


def secret_file() -> Path:
    """Return where the user's own secret is kept, on this system."""
    if os.name == "nt":
        base = os.environ.get("LOCALAPPDATA")
        return (Path(base) if base else Path.home() / "AppData" / "Local") / "wove" / "cache-secret"
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "wove" / "cache-secret"


MIN_SECRET_BYTES: Final = 16


def _read_secret(path: Path) -> bytes:
    try:
        if not path.exists():
            _make_secret(path)
        secret = path.read_bytes()
        mode = path.stat().st_mode
    except OSError as error:
        raise CacheError(
            f"the secret that signs kept results cannot be read or written: {error}. "
            f"Set {SECRET_VARIABLE} to a text of your own"
        ) from error

    if len(secret) < MIN_SECRET_BYTES:
        raise CacheError(f"{path}: not a secret of Wove's, it is too short. Remove it")
    if os.name != "nt" and mode & 0o077:
        raise CacheError(f"{path}: other users may read this secret. Run: chmod 600 {path}")
    return secret


def _make_secret(path: Path) -> None:
    """Make the file with all of its content, unless another process does so first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")

    try:
        descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_hex(32).encode())
        publish(made, path)
    finally:
        made.unlink(missing_ok=True)
