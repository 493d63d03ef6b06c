"""Authenticates requests between the network executors, worker services and the callback receiver.

`NetworkExecutorSecurity` does so on both sides: it makes the headers of a request, and refuses requests with wrong
headers. What a signature covers, and what it does not, is in ``docs/security.md``.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import threading
import time
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from wove.concurrency import forks
from wove.protocol import signing
from wove.protocol.signing import Body, Headers
from wove.security.reading import Kind, Settings, read

__all__ = ["NetworkExecutorSecurity", "SecurityConfig"]

SecurityConfig: TypeAlias = "str | Mapping[str, Any] | NetworkExecutorSecurity | None"

MAX_NONCES: Final = 1_000_000
"""Maximum number of nonces in memory, about 130 MB, shared evenly by the secrets that are accepted."""

MAX_REPLY_SIGNATURES: Final = 16
"""Maximum number of signatures in one reply header that are checked."""

_process: Final = os.urandom(32)
"""A key for names of bearer tokens, which are of use in this process only."""

# One lock for all stores: it is held for microseconds, and forks wait for it.
_lock = threading.Lock()
forks.hold(_lock)


class NetworkExecutorSecurity:
    """Authentication of one environment, or of one worker service.

    Made by `from_config`. It can be used from many threads, and is not changed by anything but its memory of
    the nonces it has accepted. Neither ``repr`` nor any error shows a secret. It pickles if every secret came
    from an environment variable: as the names of those, to be read anew where it arrives.

    Example:
        >>> config = {"type": "signed", "secret": "only for this example"}
        >>> security = NetworkExecutorSecurity.from_config(config)
        >>> headers = security.headers_for(transport="http", target="/wove/tasks", body=b"{}")
        >>> security.verify_headers(transport="http", target="/wove/tasks", body=b"{}", headers=headers)
        >>> security.verify_headers(transport="http", target="/wove/tasks", body=b"{}", headers=headers)
        Traceback (most recent call last):
        PermissionError: this request has been here before (its nonce is known)
    """

    __slots__ = ("_nonces", "_owners", "_settings")

    def __init__(self, settings: Settings) -> None:
        # Not for users: `from_config` checks its argument.
        self._settings = settings
        # Nonces belong to a secret, under whatever id it is given.
        known = {secret for several in settings.secrets.values() for secret in several}
        self._owners = {secret: hmac.digest(secret, b"wove nonces", "sha256") for secret in known}
        # A store for each, so that the holder of one secret cannot push out the nonces of another.
        self._nonces = (
            {owner: signing.Nonces(MAX_NONCES // len(known)) for owner in self._owners.values()}
            if settings.kind == "signed" and settings.remembers
            else None
        )

    @classmethod
    def from_config(
        cls, config: SecurityConfig, *, label: str = "security"
    ) -> NetworkExecutorSecurity:
        """Return the security that *config* describes.

        Args:
            config: ``"env:VARIABLE"``: signed, with the secret in that environment variable; or all of what
                follows as JSON in that variable, if it begins with a brace. ``None`` or
                ``"none"``: no authentication. An instance: itself. Or a dict by its ``type``:

                * ``"signed"``: ``secret_env`` (the name of a variable) or ``secret``; ``key`` (the secret's id,
                  ``"default"``); ``clock_skew_seconds`` (300); ``remember_nonces`` (true); ``accepted``, a list
                  of ``{"key": ..., "secret_env" or "secret": ...}`` that are verified and never signed with;
                  ``sign_replies`` (false).
                * ``"bearer"``: ``token_env`` or ``token``; ``accepted``, a list of the same.
                * ``"none"``.
            label: What messages begin with.

        Raises:
            ValueError: A key is unknown or missing, a value is out of range, an environment variable is not
                there or empty.
            TypeError: A value is of the wrong type.

        Example:
            >>> NetworkExecutorSecurity.from_config({"type": "bearer", "token": "only-for-this-example"})
            <NetworkExecutorSecurity bearer>
        """
        return config if isinstance(config, NetworkExecutorSecurity) else cls(read(config, label))

    @property
    def kind(self) -> Kind:
        """``"signed"``, ``"bearer"`` or ``"none"``."""
        return self._settings.kind

    @property
    def authenticates(self) -> bool:
        """Whether requests are authenticated at all."""
        return self._settings.kind != "none"

    @property
    def signs_replies(self) -> bool:
        """Whether a service signs its replies, and a client takes no other."""
        return self._settings.signs_replies

    # The client's side of a request ------------------------------------------------------------

    def headers_for(self, *, transport: str, target: str, body: Body = b"") -> dict[str, str]:
        """Return the headers that authenticate one request. Each call has a new nonce, for another request.

        Args:
            transport: ``"http"``, ``"grpc"`` or ``"websocket"``.
            target: Path with query; for gRPC the method's path.
            body: What is sent: whole, in chunks, or as a `wove.protocol.signing.Digest`. A WebSocket handshake
                has none.

        Raises:
            ValueError: *target* holds line breaks or half characters.
        """
        settings = self._settings
        if settings.kind == "bearer":
            return {signing.AUTHORIZATION: f"Bearer {settings.tokens[0].decode('ascii')}"}
        if settings.kind == "none":
            return {}
        timestamp, nonce = str(int(time.time())), os.urandom(16).hex()
        digest = signing.digest(body)
        text = signing.request_text(transport, target, timestamp, nonce, digest)
        return {
            signing.KEY: settings.key,
            signing.TIMESTAMP: timestamp,
            signing.NONCE: nonce,
            signing.BODY_DIGEST: digest,
            signing.SIGNATURE: signing.sign(settings.secrets[settings.key][0], text),
        }

    def metadata_for(
        self, *, transport: str, target: str, body: Body = b""
    ) -> list[tuple[str, str]]:
        """As `headers_for`, as gRPC metadata: pairs with names in lower case."""
        headers = self.headers_for(transport=transport, target=target, body=body)
        return [(name.lower(), value) for name, value in headers.items()]

    # The service's side of a request -----------------------------------------------------------

    def screen_headers(self, *, headers: Headers) -> None:
        """Refuse a request that can be refused without its target and body.

        To pass here is not enough: `verify_headers` has to follow.

        Args:
            headers: A mapping, or name and value in pairs; text or bytes, names in any case.

        Raises:
            PermissionError: A header is missing, came twice or is odd; the key is unknown, the timestamp is
                outside ``clock_skew_seconds``, or the bearer token is wrong.
        """
        if self._settings.kind == "signed":
            self._signed(headers)
        elif self._settings.kind == "bearer":
            self._bearer(headers)

    def screen_metadata(self, *, metadata: Headers) -> None:
        """As `screen_headers`, for gRPC metadata."""
        self.screen_headers(headers=metadata)

    def verify_headers(
        self, *, transport: str, target: str, body: Body = b"", headers: Headers
    ) -> None:
        """Refuse a request that is not from a holder of the secret, was changed, or was accepted before.

        Args:
            transport: ``"http"``, ``"grpc"`` or ``"websocket"``.
            target: Path with query as requested, not decoded; for gRPC the method's path.
            body: The unchanged body: whole, in chunks, or as a `Digest`.
            headers: As `screen_headers`.

        Raises:
            PermissionError: The request is refused. No other exception is raised, whatever the headers contain.
        """
        if self._settings.kind != "signed":
            self.screen_headers(headers=headers)
            return

        values, timestamp = self._signed(headers)
        self._verify(transport, target, body, values, timestamp)

    def verify_head(
        self, *, transport: str, target: str, headers: Headers
    ) -> signing.Digest | None:
        """Refuse a request by its headers alone, before any of its body is read.

        For this, a signed request names the digest of its body. `verify_body` has to follow.

        Args:
            transport: As `verify_headers`.
            target: As `verify_headers`.
            headers: As `screen_headers`.

        Returns:
            The digest that the body must have; ``None``: any body is right.

        Raises:
            PermissionError: The request is refused.
        """
        if self._settings.kind != "signed":
            self.screen_headers(headers=headers)
            return None

        values, timestamp = self._signed(headers)
        digest = signing.given_digest(values)
        if digest is None:
            raise PermissionError(
                f"the header {signing.BODY_DIGEST} is missing, by which a request is verified before its body is read"
            )

        self._verify(transport, target, digest, values, timestamp)
        return digest

    def verify_body(self, digest: signing.Digest | None, body: Body) -> None:
        """Refuse *body* if it is not the one that was signed.

        Args:
            digest: From `verify_head`.
            body: As `verify_headers`.

        Raises:
            PermissionError: The body is refused.
        """
        if digest is not None and signing.digest(body) != digest:
            raise PermissionError(
                "the body is not the one that was signed: it was changed on the way"
            )

    def _verify(
        self, transport: str, target: str, body: Body, values: Mapping[str, str], timestamp: int
    ) -> None:
        """Check signature and nonce of a signed request."""
        try:
            text = signing.request_text(
                transport,
                target,
                values[signing.TIMESTAMP],
                values[signing.NONCE],
                signing.digest(body),
            )
        except ValueError:
            raise PermissionError("the target of this request cannot be signed") from None

        matching: bytes | None = None
        for secret in self._settings.secrets[values[signing.KEY]]:
            if signing.matches(secret, text, values[signing.SIGNATURE]):
                matching = secret

        if matching is None:
            raise PermissionError(
                f"the signature is not that of this request with the secret of key {values[signing.KEY]!r}: "
                "the two sides have different secrets, or its path or body was changed on the way"
            )

        if self._nonces is None:
            return
        with _lock:
            owner = self._owners[matching]
            new = self._nonces[owner].accept(
                owner,
                values[signing.NONCE],
                timestamp,
                time.time(),
                self._settings.skew,
            )

        if not new:
            raise PermissionError("this request has been here before (its nonce is known)")

    def verify_metadata(
        self, *, transport: str, target: str, body: Body = b"", metadata: Headers
    ) -> None:
        """As `verify_headers`, for gRPC metadata."""
        self.verify_headers(transport=transport, target=target, body=body, headers=metadata)

    def principal(self, *, headers: Headers) -> str:
        """Return the sender of a request, so that one sender's results are not handed to another.

        The request must have been verified.

        Returns:
            The id of the key; for a bearer token a text that means something within this process only; ``""``
            without authentication.
        """
        if self._settings.kind == "signed":
            return signing.single_values(headers, (signing.KEY,))[signing.KEY]
        if self._settings.kind == "bearer":
            return hashlib.blake2b(self._bearer(headers), key=_process, digest_size=16).hexdigest()
        return ""

    # Replies -----------------------------------------------------------------------------------

    def reply_signature(
        self, *, transport: str, target: str, headers: Headers, body: Body, sequence: int = 0
    ) -> str | None:
        """Return the signature of a reply; ``None`` where replies are not signed.

        While a key id has several secrets, there is one signature for each, joined by commas: the client may
        know any of them.

        Args:
            transport: As in the request.
            target: As in the request.
            headers: The headers of the request, which was verified.
            body: The reply, whole or in chunks.
            sequence: The number of the reply among those to this request, from 0.

        Raises:
            PermissionError: The request's headers are not those of a signed request.
        """
        if not self._settings.signs_replies:
            return None
        known, text = self._reply(transport, target, headers, body, sequence)
        return ",".join(signing.sign(secret, text) for secret in known)

    def verify_reply(
        self,
        *,
        transport: str,
        target: str,
        headers: Headers,
        body: Body,
        signature: str | None,
        sequence: int = 0,
    ) -> None:
        """Refuse a reply that is not from a holder of the secret, or belongs to another request.

        Does nothing where replies are not signed.

        Args:
            transport: As in the request.
            target: As in the request.
            headers: The headers that were sent with the request.
            body: The unchanged reply.
            signature: The signature that came with it; ``None``: there was none.
            sequence: As `reply_signature`.

        Raises:
            PermissionError: The payload or reply is refused.
        """
        if not self._settings.signs_replies:
            return
        if not signature:
            raise PermissionError(
                "the reply is not signed, and 'sign_replies' is set here: set it in the service's security as well"
            )

        known, text = self._reply(transport, target, headers, body, sequence)
        good = False
        for each in signature.split(",", MAX_REPLY_SIGNATURES)[:MAX_REPLY_SIGNATURES]:
            for secret in known:
                good |= signing.matches(secret, text, each)

        if not good:
            raise PermissionError(
                "the signature of the reply is not right: it was changed on the way, answers another request, "
                "or comes from a service with another secret"
            )

    # Payloads of backends ----------------------------------------------------------------------

    def payload_signature(self, *, adapter: str, run_id: str, body: Body) -> dict[str, str] | None:
        """Return the ``signature`` of a payload that goes through a backend; ``None`` where there is no security.

        Args:
            adapter: The payload's.
            run_id: The payload's.
            body: `wove.protocol.payload.digest` of it.

        Raises:
            ValueError: The security is a bearer token, which a queued payload would give away.
        """
        settings = self._settings
        if settings.kind == "none":
            return None
        if settings.kind != "signed":
            raise ValueError(
                "payloads are signed, and a bearer token signs nothing: use security of type 'signed'"
            )

        text = signing.payload_text(adapter, run_id, signing.digest(body))
        return {"key": settings.key, "value": signing.sign(settings.secrets[settings.key][0], text)}

    def verify_payload(
        self, *, adapter: str, run_id: str, body: Body, signature: Mapping[str, Any] | None
    ) -> None:
        """Refuse a payload that is not from a holder of the secret, or was changed in its queue.

        Its age does not matter, and it may have been accepted before: a backend may hold a payload for days, and hand
        it out twice. The weave refuses the reports of a run that it does not wait for.

        Args:
            adapter: As `payload_signature`.
            run_id: As `payload_signature`.
            body: As `payload_signature`.
            signature: The payload's signature; ``None``: it has none.

        Raises:
            PermissionError: The payload or reply is refused.
        """
        settings = self._settings
        if settings.kind == "none":
            return
        if settings.kind != "signed":
            raise PermissionError(
                "this worker has a bearer token, which cannot verify a payload: use type 'signed'"
            )

        if signature is None:
            raise PermissionError(
                "the payload is not signed, and this worker takes signed ones only: set 'security' in the "
                "executor_config of its environment as well"
            )

        key, value = signature.get("key"), signature.get("value")
        known = settings.secrets.get(key) if isinstance(key, str) else None
        if known is None or not isinstance(value, str):
            raise PermissionError(
                f"the key {key!r:.100} of the payload's signature is not known here"
            )

        try:
            text = signing.payload_text(adapter, run_id, signing.digest(body))
        except ValueError:
            raise PermissionError("the names in this payload cannot be signed") from None

        good = False
        for secret in known:
            good |= signing.matches(secret, text, value)
        if not good:
            raise PermissionError(
                f"the signature of the payload is not right for key {key!r}: the two sides have different secrets, "
                "or it was changed on its way"
            )

    # Within ------------------------------------------------------------------------------------

    def _signed(self, headers: Headers) -> tuple[dict[str, str], int]:
        """Return the values and the timestamp of headers that have the form of a signed request's."""
        values = signing.single_values(
            headers, signing.REQUEST_NAMES, optional=(signing.BODY_DIGEST,)
        )
        timestamp = signing.check_signed(values)
        if values[signing.KEY] not in self._settings.secrets:
            raise PermissionError(
                f"the key {values[signing.KEY]!r} is not known here; it must be 'key', or among 'accepted'"
            )

        apart = time.time() - timestamp
        if abs(apart) > self._settings.skew:
            raise PermissionError(
                f"the timestamp is {abs(apart):.0f} s {'behind' if apart > 0 else 'ahead of'} this machine's clock, "
                f"and at most {self._settings.skew:g} s are allowed (clock_skew_seconds): set both clocks right"
            )

        return values, timestamp

    def _bearer(self, headers: Headers) -> bytes:
        """Return the known token that the headers show."""
        value = signing.single_values(headers, (signing.AUTHORIZATION,))[signing.AUTHORIZATION]
        scheme, _, token = value.partition(" ")
        if scheme.lower() != "bearer":  # RFC 9110, section 11.1: in any case
            raise PermissionError("the header Authorization is not: Bearer, a space, and the token")
        # Digests, because a comparison of texts would tell the length of the right one.
        given = hashlib.sha256(token.lstrip(" ").encode("ascii")).digest()
        good = b""
        for known in self._settings.tokens:
            if hmac.compare_digest(given, hashlib.sha256(known).digest()):
                good = known

        if not good:
            raise PermissionError("the bearer token is not known here")
        return good

    def _reply(
        self, transport: str, target: str, headers: Headers, body: Body, sequence: int
    ) -> tuple[tuple[bytes, ...], bytes]:
        """Return the secrets that may sign a reply, and the text that they sign."""
        values = signing.single_values(headers, (signing.KEY, signing.NONCE))
        known = self._settings.secrets.get(values[signing.KEY])
        if known is None:
            raise PermissionError(f"the key {values[signing.KEY]!r} is not known here")
        text = signing.reply_text(
            transport, target, values[signing.NONCE], sequence, signing.digest(body)
        )
        return known, text

    def __repr__(self) -> str:
        settings = self._settings
        if settings.kind != "signed":
            return f"<NetworkExecutorSecurity {settings.kind}>"
        others = sorted(set(settings.secrets) - {settings.key})
        accepts = f" accepts={others!r}" if others else ""
        replies = " sign_replies" if settings.signs_replies else ""
        return f"<NetworkExecutorSecurity signed key={settings.key!r}{accepts}{replies}>"

    def __copy__(self) -> NetworkExecutorSecurity:
        return self  # a copy would accept each request once more

    def __deepcopy__(self, memo: object) -> NetworkExecutorSecurity:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if self._settings.recipe is None:
            raise TypeError(
                "a NetworkExecutorSecurity that was given its secret itself is not pickled: whoever gets the bytes "
                'would have the secret. Name an environment variable instead ("env:VARIABLE", "secret_env", '
                '"token_env"); it is read where the pickle arrives'
            )
        return (NetworkExecutorSecurity.from_config, (self._settings.recipe,))
