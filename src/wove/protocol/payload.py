"""The payload: one ``run_task`` frame on its way through a backend, made of nothing but JSON values.

A backend stores the payload, may show it, and hands it to any of its workers. So the payload says where the events go
(``callback_url``). A pickle that is too large for the backend is a *claim* in it: the id, digest and size of bytes that
the worker fetches from the receiver of the events.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, cast
from urllib.parse import urlsplit

from wove.protocol import signing
from wove.protocol.frames import FrameError
from wove.protocol.json_text import check_depth, parse_json
from wove.protocol.pickling import Pickled

__all__ = ["VERSION", "Claim", "Payload", "build", "claim_url", "digest", "parse", "size_of"]

VERSION: Final = 1

SIGNATURE: Final = "signature"
_PICKLES: Final = ("callable_pickle", "args_pickle")
_FROM_FRAME: Final = (
    "run_id",
    "task_id",
    "callable_id",
    "delivery",
    "deadline",
    "python",
    "wove",
    "traceparent",
    "remote_logs",
    "setup",
)
ENVELOPE_BYTES: Final = 2048
"""Maximum size of a payload beside its pickles: names, settings and signature."""


class Claim(NamedTuple):
    """Bytes that are fetched instead of sent along.

    Attributes:
        id: The id under which they are fetched.
        sha256: Their digest, in hexadecimal. Bytes with another digest are not unpickled.
        size: Their number.
    """

    id: str
    sha256: str
    size: int


class Payload(NamedTuple):
    """A payload that was parsed and checked.

    Attributes:
        frame: The ``run_task`` frame, without the pickles that are claimed.
        adapter: The name of the adapter that made it.
        callback_url: Where its events are posted.
        claims: The claims, by the names of their fields in the frame.
        sent_at: When it was made, in Unix seconds of its sender's clock; ``None``: unknown.
        retry_seconds: For how long the delivery of its end is tried again; ``None``: the worker decides.
        beat_seconds: Maximum time between two heartbeats, whatever ``delivery`` says; ``None``: the worker decides.
        environment: The name of the environment that made it; ``None``: unknown.
        valid_until: When it must no longer be begun, in Unix seconds; ``None``: it is valid for ever.
        signature: Its signature, not verified.
        fields: All its fields, as they arrived.
    """

    frame: dict[str, Any]
    adapter: str
    callback_url: str
    claims: dict[str, Claim]
    sent_at: float | None
    retry_seconds: float | None
    beat_seconds: float | None
    environment: str | None
    valid_until: float | None
    signature: Mapping[str, Any] | None
    fields: Mapping[str, Any]

    @property
    def digest(self) -> signing.Digest:
        """The digest that the signature covers. Computing it takes a while."""
        return digest(self.fields)


def size_of(frame: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of characters that each pickle of *frame* takes in a payload."""
    return {
        name: (frame[name].size + 2) // 3 * 4
        for name in _PICKLES
        if isinstance(frame.get(name), Pickled)
    }


def build(
    frame: Mapping[str, Any],
    *,
    adapter: str,
    callback_url: str,
    claims: Mapping[str, Claim] | None = None,
    sent_at: float | None = None,
    retry_seconds: float | None = None,
    beat_seconds: float | None = None,
    environment: str | None = None,
    valid_until: float | None = None,
) -> dict[str, Any]:
    """Return the payload of a ``run_task`` *frame*.

    Args:
        frame: With `Pickled` in ``callable_pickle`` and ``args_pickle``.
        adapter: The adapter's name, such as ``"celery"``.
        callback_url: Where the worker is to post events.
        claims: The claims that stand for pickles, by field.
        sent_at: The present, in Unix seconds.
        retry_seconds: See `Payload`.
        beat_seconds: See `Payload`.
        environment: See `Payload`.
        valid_until: See `Payload`.
    """
    payload: dict[str, Any] = {"version": VERSION, "adapter": adapter, "callback_url": callback_url}
    payload.update((name, frame[name]) for name in _FROM_FRAME if frame.get(name) is not None)
    payload["task_name"] = frame["task_id"]
    payload["delivery"] = dict(frame.get("delivery") or {})
    given = claims or {}

    for name in _PICKLES:
        pickled = frame.get(name)
        if name not in given and isinstance(pickled, Pickled):
            payload[name] = binascii.b2a_base64(b"".join(pickled.chunks), newline=False).decode(
                "ascii"
            )

    if given:
        payload["claims"] = {name: claim._asdict() for name, claim in given.items()}
    if sent_at is not None:
        payload["sent_at"] = round(sent_at, 3)
    if retry_seconds is not None:
        payload["retry_seconds"] = retry_seconds
    if beat_seconds is not None:
        payload["beat_seconds"] = beat_seconds
    if environment is not None:
        payload["environment"] = environment
    if valid_until is not None:
        payload["valid_until"] = round(valid_until, 3)
    return payload


def digest(payload: Mapping[str, Any]) -> signing.Digest:
    """Return the SHA-256 of *payload* without its signature. The order of the fields does not matter."""
    covered = {name: value for name, value in payload.items() if name != SIGNATURE}
    return signing.digest(json.dumps(covered, sort_keys=True, separators=(",", ":")).encode())


def parse(payload: object) -> Payload:
    """Parse a payload. Base64 is decoded; nothing is unpickled.

    Args:
        payload: The result of `build`, or its JSON as text or bytes.

    Raises:
        FrameError: It is not a payload; the message says why.
    """
    fields = _fields(payload)
    run_id, task = fields.get("run_id"), fields.get("task_id") or fields.get("task_name")
    if not isinstance(run_id, str) or not run_id:
        raise FrameError("a payload without a run_id")
    if fields.get("version") != VERSION:
        raise FrameError(
            f"the payload of run {run_id} has version {fields.get('version')!r}, and this worker knows version "
            f"{VERSION}: bring Wove to the same version on both sides",
            run_id,
        )

    url = fields.get("callback_url")
    if (
        not isinstance(url, str)
        or urlsplit(url).scheme not in ("http", "https")
        or not urlsplit(url).hostname
    ):
        raise FrameError(
            f"the payload of run {run_id} has no callback_url that can be posted to: {url!r:.200}",
            run_id,
        )

    frame: dict[str, Any] = {"type": "run_task", "run_id": run_id, "task_id": str(task or "?")}
    frame.update((name, fields[name]) for name in _FROM_FRAME[2:] if name in fields)
    claims = _claims(fields.get("claims"), run_id)
    for name in _PICKLES:
        if name not in claims and name in fields:
            frame[name] = _unpacked(fields[name], name, run_id)

    environment, valid_until = fields.get("environment"), fields.get("valid_until")
    if valid_until is not None and _number(valid_until) is None:
        raise FrameError(
            f"the payload of run {run_id} has an end of validity that is not a time: {valid_until!r:.100}",
            run_id,
        )
    signature = fields.get(SIGNATURE)
    return Payload(
        frame,
        str(fields.get("adapter") or "?"),
        url,
        claims,
        _number(fields.get("sent_at")),
        _number(fields.get("retry_seconds")),
        _number(fields.get("beat_seconds")) or None,
        environment if isinstance(environment, str) else None,
        _number(valid_until),
        cast("Mapping[str, Any]", signature) if isinstance(signature, Mapping) else None,
        fields,
    )


def claim_url(callback_url: str, claim_id: str) -> str:
    """Return the URL of a claim. It lies below the URL for events, so that a proxy passes on both."""
    parts = urlsplit(callback_url)
    return parts._replace(path=f"{parts.path.rstrip('/')}/claims/{claim_id}").geturl()


def _fields(payload: object) -> dict[str, Any]:
    try:
        if isinstance(payload, (str, bytes, bytearray)):
            payload = parse_json(payload)
        else:
            check_depth(payload)
    except ValueError as error:
        raise FrameError(f"the payload is not JSON: {error}") from error

    if not isinstance(payload, Mapping):
        raise FrameError(f"a payload is a dict or its JSON, not {type(payload).__name__}")
    return dict(cast("Mapping[str, Any]", payload))


def _claims(value: object, run_id: str) -> dict[str, Claim]:
    if value is None:
        return {}
    claims: dict[str, Claim] = {}

    try:
        for name, fields in cast("Mapping[str, Mapping[str, Any]]", value).items():
            claim = Claim(str(fields["id"]), str(fields["sha256"]), int(fields["size"]))
            if name in _PICKLES and claim.size >= 0:
                claims[name] = claim
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        raise FrameError(
            f"the claims of run {run_id} cannot be read: {value!r:.200}", run_id
        ) from error

    return claims


def _unpacked(value: object, name: str, run_id: str) -> Pickled:
    try:
        return Pickled((binascii.a2b_base64(cast("str", value)),))
    except (TypeError, ValueError) as error:
        raise FrameError(f"the {name} of run {run_id} is not base64: {error}", run_id) from error


def _number(value: object) -> float | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0:
        return float(value)
    return None
