"""Decides which subscriber a request is for, whether it is authorized, and what becomes of its events."""

from __future__ import annotations

import enum
import hashlib
import hmac
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol

from wove.callback.address import PATH
from wove.callback.liveness import ConnectionEnd, WorkerConnection, WorkerLiveness
from wove.callback.replies import ACCEPTED, Refusal, Reply
from wove.net.http1 import Request
from wove.protocol import codec, signing
from wove.protocol.frames import TERMINAL, FrameError, check_event
from wove.protocol.names import CANCELLED_HEADER, CLAIM_METHOD, EVENT_METHOD, UNAWAITED_HEADER
from wove.security import NetworkExecutorSecurity

__all__ = ["AuthorizedRequest", "EventSubscriber", "Route", "Routes", "RunStatus"]

MAX_LIST_CHARACTERS: Final = 4000
"""Maximum length of a list of runs in a response's header. The worker hears of the others the next time."""

MAX_DIGEST_CHARACTERS: Final = 64
"""Length of a SHA-256 in hex."""

MAX_TEXT_BYTES: Final = 8 * 1024 * 1024
"""Maximum size of a request beside its pickles. The objects that are made of it take many times as much memory, and
the parser holds the interpreter lock meanwhile."""

# A proxy may add a prefix. A claim is below the path for events: wove.protocol.payload.claim_url.
_TARGET: Final = re.compile(rf"(?:/.*)?{PATH}([^/]+)(?:/claims/([^/]+))?/?")
_LISTED: Final = re.compile(r"[A-Za-z0-9._~:@/+=-]{1,200}")

_WRONG_PATH: Final = "There is nothing here: the path is not that of the callback_url."


class RunStatus(enum.Enum):
    """Whether an `EventSubscriber` waits for a run."""

    AWAITED = enum.auto()
    """The run goes on."""
    ELSEWHERE = enum.auto()
    """The run goes on, and another worker has it: of this worker, only a result is of use."""
    CANCELLED = enum.auto()
    """The run was told to end, and its end is awaited."""
    STOPPED = enum.auto()
    """The run was told to end, and its end is not awaited."""
    ENDED = enum.auto()
    """The run's end has been received. It may be received again; a worker that still runs it is told to stop."""
    UNKNOWN = enum.auto()
    """Nobody waits for the run."""


_TOLD_TO_END: Final = frozenset({RunStatus.CANCELLED, RunStatus.STOPPED, RunStatus.ELSEWHERE})


class EventSubscriber(Protocol):
    """Receives the events of runs. All methods are called on the receiver's loop, and must neither block nor raise."""

    def status(self, run_id: str, worker: str) -> RunStatus:
        """Return the status of a run. Called for every event, before it is received.

        Args:
            run_id: Id of the run.
            worker: The process that sent the event; ``""``: not known.
        """
        ...

    def receive(self, event: dict[str, Any], worker: str) -> None:
        """Receive a checked event of *worker*. Its pickles are `Pickled`; nothing was unpickled."""
        ...

    def on_connection_lost(self, run_ids: Sequence[str], worker: str, end: ConnectionEnd) -> None:
        """Called when the connection of *worker* has ended, over which the last events of these runs came."""
        ...

    def claim(self, claim_id: str) -> Sequence[bytes | memoryview] | None:
        """Return the bytes of a claim, in chunks; ``None``: there is no such claim, or not any more."""
        ...


class Route:
    """The address under which an `EventSubscriber` receives events. Made by `open_route`.

    Attributes:
        subscriber: Receives the events.
        token_digest: Digest of the token that a request's path must end in.
        url: The ``callback_url`` for payloads.
        port: The port that is listened on.
        security: What requests must show.
        max_message_bytes: Maximum size of a body.
        label: Whom the route is for, in messages.
    """

    __slots__ = (
        "_close",
        "label",
        "max_message_bytes",
        "token_digest",
        "subscriber",
        "port",
        "security",
        "url",
    )

    def __init__(
        self,
        subscriber: EventSubscriber,
        *,
        token: str,
        url: str,
        port: int,
        security: NetworkExecutorSecurity,
        max_message_bytes: int,
        label: str,
        close: Callable[[Route], Awaitable[None]],
    ) -> None:
        self.subscriber = subscriber
        self.token_digest = _token_digest(token)
        self.url = url
        self.port = port
        self.security = security
        self.max_message_bytes = max_message_bytes
        self.label = label
        self._close = close

    async def close(self) -> None:
        """Close the route. The last route of a receiver closes the receiver. Calling it again has no effect."""
        await self._close(self)


def _token_digest(token: str) -> bytes:
    """Return the digest by which tokens are compared, so that a comparison tells nothing of single bytes."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


class Routes:
    """The open routes of a receiver."""

    __slots__ = ("_by_token", "liveness")

    def __init__(self) -> None:
        self.liveness = WorkerLiveness()
        self._by_token: dict[bytes, list[Route]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_token)

    @property
    def max_message_bytes(self) -> int:
        """Maximum size of a body that any of the routes accepts."""
        return max(
            (route.max_message_bytes for routes in self._by_token.values() for route in routes),
            default=0,
        )

    def add(self, route: Route) -> None:
        """Open *route*."""
        self._by_token.setdefault(route.token_digest, []).append(route)

    def remove(self, route: Route) -> bool:
        """Close *route*. Return whether it was open."""
        routes = self._by_token.get(route.token_digest, [])
        if route not in routes:
            return False
        routes.remove(route)
        if not routes:
            del self._by_token[route.token_digest]
        self.liveness.remove_route(route)
        return True

    def authorize(self, request: Request) -> AuthorizedRequest:
        """Authorize a request by its head.

        Raises:
            Refusal: The request is refused, and its body must not be read.
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
                refusal = _unauthorized(route, request, error)
            else:
                admitted.append(route)

        if not admitted and refusal is not None:
            raise refusal
        authorized = AuthorizedRequest(request, admitted, claim_id, self.liveness, refusal)
        if claim_id is None:
            authorized.authenticate_head()
        return authorized

    def _find(self, token: str) -> list[Route]:
        given = _token_digest(token)
        found: list[Route] = []
        for token_digest, routes in self._by_token.items():  # all of them: the time must not tell
            if hmac.compare_digest(token_digest, given):
                found = routes
        return found


class AuthorizedRequest:
    """A request whose body may be read.

    Attributes:
        max_body_bytes: Maximum size of its body.
        claim_id: The claim that it fetches; ``None``: it posts events.
        authenticated: Whether it comes from a holder of the secret, or its route has none. Only then may memory be
            reserved for the length that it announces.
    """

    __slots__ = (
        "_announced",
        "_liveness",
        "_refusal",
        "_request",
        "_routes",
        "authenticated",
        "claim_id",
        "max_body_bytes",
    )

    def __init__(
        self,
        request: Request,
        routes: list[Route],
        claim_id: str | None,
        liveness: WorkerLiveness,
        refusal: Refusal | None,
    ) -> None:
        self._request = request
        self._routes = routes
        self._liveness = liveness
        self._refusal = refusal  # by the routes that it is not authorized for
        self.claim_id = claim_id
        self.max_body_bytes = max(route.max_message_bytes for route in routes)
        self.authenticated = all(not route.security.authenticates for route in routes)
        self._announced: signing.Digest | None = None  # of the body, covered by a signature

    def authenticate_head(self) -> None:
        """Verify the signature by the digest of the body, if the head announces one.

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
        """Verify a body and return its events, or why it is refused. May be called from any thread; never raises."""
        try:
            if self._announced is None:
                self._verify(chunks)
            elif signing.digest(chunks) != self._announced:
                return Refusal(
                    403, "The body is not the one that the head of this request announces."
                )
            return [check_event(frame) for frame in codec.decode(chunks, most_text=MAX_TEXT_BYTES)]
        except Refusal as refusal:
            return refusal
        except FrameError as error:
            return Refusal(400, f"These are not events: {error}.", ends=_transport_error(error))
        except BaseException as error:  # memory, above all
            why = f"a callback could not be read: {type(error).__name__}: {error}"
            return Refusal(
                500, "This could not be read; the log of the other side says why.", why=why
            )

    def claimed_chunks(self) -> Sequence[bytes | memoryview]:
        """Return the bytes of the claim, in chunks.

        Raises:
            Refusal: The request is not authorized, or there is no such claim.
        """
        self._verify(b"")
        assert self.claim_id is not None
        for route in self._routes:
            chunks = route.subscriber.claim(self.claim_id)
            if chunks is not None:
                return chunks

        raise Refusal(
            410, "Nobody waits for this run any more, and what it was to work on is gone."
        )

    def deliver(self, events: Sequence[dict[str, Any]], connection: WorkerConnection) -> Reply:
        """Hand *events*, from `read`, to the subscribers. They came over *connection*."""
        unawaited: dict[str, None] = {}
        cancelled: dict[str, None] = {}
        accepted = 0

        for event in events:
            run_id: str = event["run_id"]
            terminal = event["type"] in TERMINAL
            route, status = self._find(run_id, connection.worker)
            if status is RunStatus.ENDED and terminal:
                accepted += 1
                unawaited.pop(run_id, None)
            elif (
                status is RunStatus.AWAITED
                or (status is RunStatus.CANCELLED and terminal)
                or (status is RunStatus.ELSEWHERE and event["type"] == "task_result")
            ):
                accepted += 1
                if terminal:
                    self._liveness.remove_run(route, run_id)
                    unawaited.pop(run_id, None)
                else:
                    self._liveness.add_run(route, run_id, connection)
                route.subscriber.receive(event, connection.worker)
            else:
                unawaited[run_id] = None
                if status in _TOLD_TO_END:
                    cancelled[run_id] = None

        if not unawaited:
            return ACCEPTED
        fields = ((CANCELLED_HEADER, _header_list(cancelled)),) if cancelled else ()
        if accepted:
            return Reply(204, fields=((UNAWAITED_HEADER, _header_list(unawaited)), *fields))
        if self._refusal is not None and not cancelled:
            return self._refusal.reply
        text = (
            "Nobody waits for this any more: it is to be stopped, and nothing is to be sent again."
        )
        return Reply(410, text, fields)

    def _find(self, run_id: str, worker: str) -> tuple[Route, RunStatus]:
        for route in self._routes:
            status = route.subscriber.status(run_id, worker)
            if status is not RunStatus.UNKNOWN:
                return route, status
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
                self._refusal = _unauthorized(route, self._request, error)
            else:
                verified.append(route)

        if not verified and self._refusal is not None:
            raise self._refusal
        self._routes = verified


def _unauthorized(route: Route, request: Request, error: PermissionError) -> Refusal:
    """Refuse without telling the reason, which is logged: it would tell an attacker how far the request got."""
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
        "and no request is accepted twice.",
        why=why,
    )


def _transport_error(error: FrameError) -> dict[str, Any] | None:
    """Return a terminal event for a run whose worker did not post events. Otherwise its weave would wait for ever."""
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


def _header_list(run_ids: dict[str, None]) -> str:
    shown: list[str] = []
    size = 0

    for run_id in run_ids:
        size += len(run_id) + 1
        if size > MAX_LIST_CHARACTERS:
            break
        if _LISTED.fullmatch(run_id):
            shown.append(run_id)

    return ",".join(shown)
