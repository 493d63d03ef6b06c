"""Who waits for events: which request is for whom, what it may do, and what becomes of its events."""

from __future__ import annotations

import enum
import hashlib
import hmac
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol

from wove.callback.address import PATH
from wove.callback.liveness import WorkerConnection, WorkerLiveness
from wove.callback.replies import TAKEN, Refusal, Reply
from wove.net.http1 import Request
from wove.protocol import codec, signing
from wove.protocol.frames import TERMINAL, FrameError, check_event
from wove.protocol.names import CANCELLED_HEADER, CLAIM_METHOD, EVENT_METHOD, UNAWAITED_HEADER
from wove.security import NetworkExecutorSecurity

__all__ = ["AuthorizedRequest", "EventSubscriber", "Route", "Routes", "RunStatus"]

MAX_GONE_CHARACTERS: Final = 4000
"""Of such a list. Those that do not fit in are told the next time."""

MAX_DIGEST_CHARACTERS: Final = 64

MAX_TEXT_BYTES: Final = 8 * 1024 * 1024
"""Of a request, beside its pickles: what is made of it takes many times as much memory, and its parser holds the
interpreter lock all the while."""

# In front of it may be what a proxy adds. A claim is below: wove.protocol.payload.claim_url.
_TARGET: Final = re.compile(rf"(?:/.*)?{PATH}([^/]+)(?:/claims/([^/]+))?/?")
_LISTED: Final = re.compile(r"[A-Za-z0-9._~:@/+=-]{1,200}")

_WRONG_PATH: Final = "There is nothing here: the path is not that of the callback_url."


class RunStatus(enum.Enum):
    """How a run stands with an `EventSubscriber`."""

    AWAITED = enum.auto()
    """It goes on."""
    ELSEWHERE = enum.auto()
    """It goes on, and another worker has it: of this one, only a result is of use."""
    CANCELLED = enum.auto()
    """It was told to end, and its end is waited for."""
    STOPPED = enum.auto()
    """It was told to end, and nobody waits for that."""
    ENDED = enum.auto()
    """Its end was taken before. That may come again; who still works on it, though, is to stop."""
    UNKNOWN = enum.auto()
    """Nobody waits for it."""


_TOLD_TO_END: Final = frozenset({RunStatus.CANCELLED, RunStatus.STOPPED, RunStatus.ELSEWHERE})


class EventSubscriber(Protocol):
    """Who waits for events. Everything is called on the receiver's loop, and must neither block nor raise."""

    def standing(self, run_id: str, worker: str) -> RunStatus:
        """Return what the run is to it. Asked for every event, before it is taken.

        Args:
            run_id: Of the run.
            worker: The process that the event comes from; ``""``: not known.
        """
        ...

    def take(self, event: dict[str, Any], worker: str) -> None:
        """Take an event of *worker* that was checked; pickles in it are `Pickled`, and nothing was unpickled."""
        ...

    def gone(self, run_ids: Sequence[str], worker: str) -> None:
        """The connection of *worker*, over which these runs were last heard of, has ended."""
        ...

    def claim(self, claim_id: str) -> Sequence[bytes | memoryview] | None:
        """The bytes that a worker fetches, in chunks; ``None``: there are none (any more)."""
        ...


class Route:
    """A `EventSubscriber`'s way in. Made by `open_route`.

    Attributes:
        url: What goes into payloads as ``callback_url``.
        port: What is listened on.
        label: Who it is for, in messages.
    """

    __slots__ = ("_close", "label", "max_message_bytes", "mark", "party", "port", "security", "url")

    def __init__(
        self,
        party: EventSubscriber,
        *,
        token: str,
        url: str,
        port: int,
        security: NetworkExecutorSecurity,
        max_message_bytes: int,
        label: str,
        close: Callable[[Route], Awaitable[None]],
    ) -> None:
        self.party = party
        self.mark = _mark(token)
        self.url = url
        self.port = port
        self.security = security
        self.max_message_bytes = max_message_bytes
        self.label = label
        self._close = close

    async def close(self) -> None:
        """Take nothing more. The last route of a receiver closes it. To be called once more does no harm."""
        await self._close(self)


def _mark(token: str) -> bytes:
    """Return the digest by which tokens are compared, so that a comparison tells nothing of single bytes."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


class Routes:
    """The open routes of a receiver."""

    __slots__ = ("_by_mark", "presence")

    def __init__(self) -> None:
        self.presence = WorkerLiveness()
        self._by_mark: dict[bytes, list[Route]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_mark)

    @property
    def max_message_bytes(self) -> int:
        """The largest body that any of them takes."""
        return max(
            (route.max_message_bytes for routes in self._by_mark.values() for route in routes),
            default=0,
        )

    def add(self, route: Route) -> None:
        """Open it."""
        self._by_mark.setdefault(route.mark, []).append(route)

    def remove(self, route: Route) -> bool:
        """Close it; whether it was open."""
        routes = self._by_mark.get(route.mark, [])
        if route not in routes:
            return False
        routes.remove(route)
        if not routes:
            del self._by_mark[route.mark]
        self.presence.forget(route)
        return True

    def visit(self, request: Request) -> AuthorizedRequest:
        """Decide about a request by its head.

        Raises:
            Refusal: Nobody is to read its body.
        """
        match = _TARGET.fullmatch(request.path)
        routes = self._find(match[1]) if match is not None else []
        if match is None or not routes:
            raise Refusal(404, _WRONG_PATH)
        claim_id = match[2]
        method = EVENT_METHOD if claim_id is None else CLAIM_METHOD
        if request.method != method:
            label = "events come as POST" if claim_id is None else "a claim is fetched with GET"
            raise Refusal(405, f"Here, {label}.", ("Allow", method))

        admitted: list[Route] = []
        refusal = None

        for route in routes:
            try:
                route.security.screen_headers(headers=request.fields)
            except PermissionError as error:
                refusal = _not_allowed(route, request, error)
            else:
                admitted.append(route)

        if not admitted and refusal is not None:
            raise refusal
        authorized = AuthorizedRequest(request, admitted, claim_id, self.presence, refusal)
        if claim_id is None:
            authorized.authenticate_head()
        return authorized

    def _find(self, token: str) -> list[Route]:
        given = _mark(token)
        found: list[Route] = []
        for mark, routes in self._by_mark.items():  # all of them, whichever it is
            if hmac.compare_digest(mark, given):
                found = routes
        return found


class AuthorizedRequest:
    """A request whose body may be read.

    Attributes:
        most: Bytes that its body may have.
        claim_id: What is to be fetched; ``None`` for events.
        authenticated: Whether it comes from a holder of the secret, or its route has none: only then may room be kept
            for the length that it announces.
    """

    __slots__ = (
        "_announced",
        "_presence",
        "_refusal",
        "_request",
        "_routes",
        "authenticated",
        "claim_id",
        "most",
    )

    def __init__(
        self,
        request: Request,
        routes: list[Route],
        claim_id: str | None,
        presence: WorkerLiveness,
        refusal: Refusal | None,
    ) -> None:
        self._request = request
        self._routes = routes
        self._presence = presence
        self._refusal = refusal  # that of routes that it cannot be for
        self.claim_id = claim_id
        self.most = max(route.max_message_bytes for route in routes)
        self.authenticated = all(not route.security.authenticates for route in routes)
        self._announced: signing.Digest | None = None  # of the body, covered by a signature

    def authenticate_head(self) -> None:
        """Verify the signature by the digest of the body that the head announces, if it does.

        Raises:
            Refusal: The signature is not right.
        """
        announced = self._request.get(signing.BODY_DIGEST.lower())
        if self.authenticated or announced is None:
            return
        self._announced = signing.Digest(announced[:MAX_DIGEST_CHARACTERS])
        self._verify(self._announced)
        self.authenticated = True

    def read(self, chunks: Sequence[bytes]) -> list[dict[str, Any]] | Refusal:
        """The events in a body, which is verified first, or why there are none. For any thread; it does not raise."""
        try:
            if self._announced is None:
                self._verify(chunks)
            elif signing.digest(chunks) != self._announced:
                return Refusal(403, "The body is another one than the head of this request says.")
            return [check_event(frame) for frame in codec.decode(chunks, most_text=MAX_TEXT_BYTES)]
        except Refusal as refusal:
            return refusal
        except FrameError as error:
            return Refusal(400, f"These are not events: {error}.", ends=_unusable(error))
        except BaseException as error:  # memory, above all
            why = f"a callback could not be read: {type(error).__name__}: {error}"
            return Refusal(
                500, "This could not be read; the log of the other side says why.", why=why
            )

    def claimed(self) -> Sequence[bytes | memoryview]:
        """Return the chunks that the worker fetches.

        Raises:
            Refusal: There is nothing, or it is not for this one.
        """
        self._verify(b"")
        assert self.claim_id is not None
        for route in self._routes:
            chunks = route.party.claim(self.claim_id)
            if chunks is not None:
                return chunks

        raise Refusal(
            410, "Nobody waits for this run any more, and what it was to work on is gone."
        )

    def settle(self, events: Sequence[dict[str, Any]], line: WorkerConnection) -> Reply:
        """Hand *events*, from `read`, to those who wait for them. They came over *line*."""
        gone: dict[str, None] = {}
        cancelled: dict[str, None] = {}
        taken = 0

        for event in events:
            run_id: str = event["run_id"]
            terminal = event["type"] in TERMINAL
            route, standing = self._find(run_id, line.worker)
            if standing is RunStatus.ENDED and terminal:
                taken += 1
                gone.pop(run_id, None)
            elif (
                standing is RunStatus.AWAITED
                or (standing is RunStatus.CANCELLED and terminal)
                or (standing is RunStatus.ELSEWHERE and event["type"] == "task_result")
            ):
                taken += 1
                if terminal:
                    self._presence.ended(route, run_id)
                    gone.pop(run_id, None)
                else:
                    self._presence.heard(route, run_id, line)
                route.party.take(event, line.worker)
            else:
                gone[run_id] = None
                if standing in _TOLD_TO_END:
                    cancelled[run_id] = None

        if not gone:
            return TAKEN
        fields = ((CANCELLED_HEADER, _listed(cancelled)),) if cancelled else ()
        if taken:
            return Reply(204, fields=((UNAWAITED_HEADER, _listed(gone)), *fields))
        if self._refusal is not None and not cancelled:
            return self._refusal.reply
        text = (
            "Nobody waits for this any more: it is to be stopped, and nothing is to be sent again."
        )
        return Reply(410, text, fields)

    def _find(self, run_id: str, worker: str) -> tuple[Route, RunStatus]:
        for route in self._routes:
            standing = route.party.standing(run_id, worker)
            if standing is not RunStatus.UNKNOWN:
                return route, standing
        return self._routes[0], RunStatus.UNKNOWN

    def _verify(self, body: signing.Body) -> None:
        verified: list[Route] = []
        digest: signing.Digest | None = None

        for route in self._routes:
            if route.security.kind == "signed" and digest is None:
                digest = signing.digest(body)
            try:
                route.security.verify_headers(
                    transport="http",
                    target=self._request.target,
                    body=b"" if digest is None else digest,
                    headers=self._request.fields,
                )
            except PermissionError as error:
                self._refusal = _not_allowed(route, self._request, error)
            else:
                verified.append(route)

        if not verified and self._refusal is not None:
            raise self._refusal
        self._routes = verified


def _not_allowed(route: Route, request: Request, error: PermissionError) -> Refusal:
    """Refuse without a reason, and log the reason: it would tell an attacker how far the request got."""
    why = f"{route.label}: {error}"
    if route.security.kind == "bearer":
        header, scheme = signing.AUTHORIZATION, "Bearer"
    else:
        header, scheme = signing.SIGNATURE, "Wove"

    if request.get(header.lower()) is None:
        text = "This is only for workers that have the same 'security' as this environment, and none was shown."
        return Refusal(401, text, ("WWW-Authenticate", scheme), why=why)

    return Refusal(
        403,
        "The authentication of this request is not right: both sides need the same 'security', and clocks that agree; "
        "and nothing is taken twice.",
        why=why,
    )


def _unusable(error: FrameError) -> dict[str, Any] | None:
    """The end of the run whose worker reported something that is not an event, so that nobody waits for it for ever."""
    if error.run_id is None:
        return None
    message = f"what the worker of run {error.run_id} posted is not an event: {error}"
    report = {
        "kind": "TransportError",
        "message": message,
        "retryable": False,
        "source": "transport",
    }
    return {"type": "task_error", "run_id": error.run_id, "task_id": "?", "error": report}


def _listed(run_ids: dict[str, None]) -> str:
    shown: list[str] = []
    size = 0

    for run_id in run_ids:
        size += len(run_id) + 1
        if size > MAX_GONE_CHARACTERS:
            break
        if _LISTED.fullmatch(run_id):
            shown.append(run_id)

    return ",".join(shown)
