"""The broker of a Celery app, as an environment uses it: two connections of its own, and nothing of the app's.

The app's own pools are the user's: they may have no time limits, they are shared with whatever else the app sends, and
in a process that was forked they are copies. So everything here goes over connections made from the app's settings,
with limits where the settings have none.
"""

from __future__ import annotations

import contextlib
import json
import logging
import select
import threading
import time
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from wove.concurrency import forks
from wove.errors import DeliveryError
from wove.integrations.celery.worker import COMMAND, TASK_NAME

__all__ = ["Broker", "Depth", "LostError", "make_app"]

logger = logging.getLogger("wove")

CONNECT_SECONDS: Final = 4.0
"""For one attempt at a connection; what Celery itself has as ``broker_connection_timeout``."""

PATIENCE_SECONDS: Final = 5.0
"""How long a broker that refuses connections is tried again: so long a quick restart may take."""

IO_SECONDS: Final = 5.0
"""How long the broker may take to read or answer. Neither kombu nor its clients have a limit by default."""

ANSWER_SECONDS: Final = 1.0
"""How long workers have to answer a question; the default of ``celery inspect``. They are all waited for: nobody
knows how many there are."""

LISTEN_SECONDS: Final = 0.1
"""And an environment that stops waits for them no longer than this."""

CLOSE_SECONDS: Final = 1.0

STUCK_CHUNK: Final = 50
"""Number of unacknowledged messages of Redis workers that are read at a time."""


class LostError(DeliveryError):
    """A connection that worked has ended."""


class Depth(NamedTuple):
    """The state of a queue as the broker tells it.

    Attributes:
        ready: The messages that no worker has; ``None``: nobody knows.
        consumers: The workers that take from it; ``None``: the broker does not know.
    """

    ready: int | None
    consumers: int | None


def make_app(name: str, broker_url: str | None, backend_url: str | None) -> Any:
    """A Celery app of Wove's own; it does not become the current one."""
    from celery import Celery

    app: Any = Celery(name, broker=broker_url, backend=backend_url, set_as_current=False)
    app.conf.update(
        # A result backend that says nothing is asked again later.
        redis_socket_timeout=IO_SECONDS,
        redis_socket_connect_timeout=CONNECT_SECONDS,
        broker_connection_timeout=CONNECT_SECONDS,
    )
    return app


class Broker:
    """Sends messages and asks questions.

    `sending` is for one thread at a time, `ask` and the others for another one.

    Args:
        app: The Celery app. Its settings are read, and it is left as it is.
        task: The name of the task.
        options: How messages are sent, which decides about their queue.
        label: What messages begin with.

    Attributes:
        errors: What a connection that does not work raises.
        kind: ``"redis"``, ``"amqp"``, or another transport's name.
        answers: Whether workers can be asked anything: the transport can broadcast.
    """

    def __init__(self, app: Any, task: str, options: Mapping[str, Any], *, label: str) -> None:
        self._app = app
        self._what = label
        self._out = _Line(app, label)
        self._questions = _Line(app, label)
        transport = self._out.connection.transport
        self.kind: str = transport.driver_type
        self.answers = "fanout" in transport.implements.exchange_type
        self.errors: tuple[type[BaseException], ...] = (
            DeliveryError,
            *self._out.connection.connection_errors,
            *self._out.connection.channel_errors,
            *_wrapped_errors(),
        )
        self._queue = _queue_of(app, task, options)
        self._ids: dict[Any, str] = {}
        self._own_command = task == TASK_NAME

    @property
    def queue(self) -> str | None:
        """The queue's name; ``None``: no one can tell."""
        return None if self._queue is None else self._queue.name

    def connect(self) -> None:
        """Connect.

        Raises:
            DeliveryError: The broker cannot be reached.
        """
        with self._out.lock, self._out.failing():
            self._out.ready()

    def close(self) -> None:
        """Close both connections, except where a thread is still waiting for one: it does so itself."""
        self._out.close()
        self._questions.close()

    # ------------------------------------------------------------------ messages

    @contextlib.contextmanager
    def sending(self, count: int) -> Generator[Callable[..., None]]:
        """Something that sends messages as `Celery.send_task` does; they are all on their way after the block.

        Raises:
            DeliveryError: The broker cannot be reached; `LostError`: it could, and another attempt may help. What was
                sent before that may have arrived or not.
        """
        out = self._out

        with out.lock, out.failing():
            connection = out.ready()
            if out.producer is None:
                out.producer = self._app.amqp.Producer(connection, auto_declare=False)
            producer = out.producer

            def send(name: str, **arguments: Any) -> None:
                headers = dict(arguments.pop("headers", None) or {})
                # `ignore_result=True` alone keeps `send_task` from subscribing to a result; the header decides what
                # the worker stores (celery/worker/request.py), and without one the task's own options do.
                headers.setdefault("ignore_result", None)
                self._app.send_task(
                    name,
                    producer=producer,
                    ignore_result=True,
                    add_to_parent=False,
                    headers=headers,
                    **arguments,
                )

            with (
                producer.batch() if count > 1 and _can_batch(producer) else contextlib.nullcontext()
            ):
                yield send

    # ------------------------------------------------------------------ questions to workers

    def ask(
        self, command: str, arguments: Mapping[str, Any], *, wait: bool = True
    ) -> dict[str, Any]:
        """Return the answers of workers to a remote control command, by worker name, without those that cannot answer.

        Args:
            command: Its name, as of ``celery inspect``.
            arguments: For it.
            wait: Whether answers are wanted; then it takes `ANSWER_SECONDS`.

        Raises:
            DeliveryError: The broker cannot be reached.
        """
        answers = self._ask(command, arguments, wait=wait)
        return {host: answer for host, answer in answers.items() if not _is_error(answer)}

    def where(self, task_ids: Sequence[str]) -> dict[str, dict[str, tuple[str, str]]]:
        """Which of the tasks are with which worker: by host and task, the state and what has gone wrong (``""``).

        Raises:
            DeliveryError: The broker cannot be reached.
        """
        if self._own_command:
            answers = self._ask(COMMAND, {"ids": list(task_ids)})
            if not any(map(_is_error, answers.values())):
                return {
                    host: {task: tuple(found) for task, found in tasks.items()}
                    for host, tasks in answers.items()
                }
            self._own_command = False  # they have a task of that name that is not from `register`

        answers = self.ask("query_task", {"ids": list(task_ids)})
        return {
            host: {task: (state, "") for task, (state, _) in tasks.items() if state != "ready"}
            for host, tasks in answers.items()
        }

    def _ask(
        self, command: str, arguments: Mapping[str, Any], *, wait: bool = True
    ) -> dict[str, Any]:
        if not self.answers:
            return {}
        line = self._questions
        with line.lock, line.failing():
            return self._broadcast(
                line.ready(), command, dict(arguments), ANSWER_SECONDS if wait else 0.0
            )

    def _broadcast(
        self, connection: Any, command: str, arguments: dict[str, Any], seconds: float
    ) -> dict[str, Any]:
        """Do what kombu/pidbox.py does, with two differences: it tries once, and it does not outlast its
        environment."""
        mailbox = self._app.control.mailbox(connection)
        channel = connection.default_channel
        message: dict[str, Any] = {"method": command, "arguments": arguments, "destination": None}
        ticket, inbox = uuid.uuid4().hex, mailbox.reply_queue(channel)
        if seconds:
            inbox.declare()
            address = {"exchange": mailbox.reply_exchange.name, "routing_key": mailbox.oid}
            message.update(ticket=ticket, reply_to=address)

        connection.Producer(auto_declare=False).publish(
            message,
            exchange=mailbox.exchange.name,
            declare=[mailbox.exchange],
            serializer=mailbox.serializer,
            headers={
                "clock": mailbox.clock.forward(),
                "expires": time.time() + seconds if seconds else 0,
            },
        )
        answers: dict[str, Any] = {}
        if not seconds:
            return answers

        def take(body: dict[str, Any], reply: Any) -> None:
            if reply.headers.get("ticket") == ticket:
                answers.update(body)

        deadline = time.monotonic() + seconds
        consumer = connection.Consumer(
            [inbox], callbacks=[take], accept=mailbox.accept, no_ack=True
        )

        try:
            with consumer:
                while not self._questions.closed and (left := deadline - time.monotonic()) > 0:
                    with contextlib.suppress(TimeoutError):
                        connection.drain_events(timeout=min(left, LISTEN_SECONDS))
        finally:
            channel.after_reply_message_received(inbox.name)

        return answers

    # ------------------------------------------------------------------ questions to the broker

    def depth(self) -> Depth:
        """How many messages wait in the queue, and for how many workers."""
        if self._queue is None:
            return Depth(None, None)
        line = self._questions

        with line.lock, line.failing():
            connection = line.ready()
            with contextlib.closing(connection.channel()) as channel:
                try:
                    declared = self._queue(channel).queue_declare(passive=True)
                except (
                    connection.channel_errors
                ):  # there is no such queue: it has gone with its last message
                    return Depth(0, 0)
            return Depth(
                declared.message_count, declared.consumer_count if self.kind == "amqp" else None
            )

    def unacknowledged(self) -> dict[str, Any]:
        """Redis: the tasks whose messages some worker has taken and not acknowledged, each with its message's tag.

        Those of a worker that is gone stay there until ``visibility_timeout`` is over (kombu/transport/redis.py).
        """
        if self.kind != "redis":
            return {}
        line = self._questions

        with line.lock, line.failing():
            channel = line.ready().default_channel
            key = _prefixed(channel, channel.unacked_key)
            with channel.conn_or_acquire() as client:
                tags = set(client.hkeys(key))
                self._ids = {tag: task for tag, task in self._ids.items() if tag in tags}
                new = [tag for tag in tags if tag not in self._ids]
                for begin in range(0, len(new), STUCK_CHUNK):
                    chunk = new[begin : begin + STUCK_CHUNK]
                    for tag, message in zip(chunk, client.hmget(key, chunk), strict=True):
                        self._ids[tag] = _task_id(message)

        return {task: tag for tag, task in self._ids.items()}

    def drop(self, tag: Any) -> None:
        """Redis: acknowledge a message in the place of a worker that is gone, so that it does not come back."""
        line = self._questions
        with line.lock, line.failing():
            channel = line.ready().default_channel
            with channel.conn_or_acquire() as client:
                client.zrem(channel.unacked_index_key, tag)
                client.hdel(channel.unacked_key, tag)

    def visibility_seconds(self) -> float:
        """Redis: after how long an unacknowledged message comes back."""
        return float(self._app.conf.broker_transport_options.get("visibility_timeout", 3600))


class _Line:
    """A connection, made when it is needed and whenever it turns out to be broken.

    Attributes:
        lock: To be held by whoever uses it.
        connection: What is connected, or not yet.
        producer: What sends over it, once something was sent.
        closed: It is not wanted any more.
    """

    def __init__(self, app: Any, label: str) -> None:
        self._app = app
        self._what = label
        self.lock = threading.Lock()
        self.connection: Any = self._new()
        self.producer: Any = None
        self._descriptor = -1
        self._works = False
        self.closed = False

    def _new(self) -> Any:
        conf = self._app.conf
        given = dict(conf.broker_transport_options or {})
        options: dict[str, Any] = {}
        kind = self._app.connection_for_write().transport.driver_type
        if kind == "redis":
            limits = {"socket_timeout": IO_SECONDS, "socket_connect_timeout": CONNECT_SECONDS}
            options = {name: seconds for name, seconds in limits.items() if given.get(name) is None}

        return self._app.connection_for_write(
            # Nobody is here to send heartbeats while there is nothing to send, and without them RabbitMQ would close
            # the connection. That it has gone for another reason is looked for before it is used again.
            heartbeat=0,
            connect_timeout=min(CONNECT_SECONDS, conf.broker_connection_timeout or CONNECT_SECONDS),
            transport_options=options,
        )

    def ready(self) -> Any:
        """The connection, connected."""
        if self.closed:
            raise DeliveryError(f"{self._what} has stopped")
        if self.connection.connected and _has_news(self._descriptor):
            self._drop()  # nothing is to be read here: it has been closed, or is about to be
        if not self.connection.connected:
            self._connect()
        self._works = True
        return self.connection

    def _connect(self) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        pause = 0.05

        while True:
            try:
                self.connection.ensure_connection(
                    max_retries=1, interval_start=0, interval_step=0, interval_max=0
                )
                self._reach()
                break
            except self.connection.recoverable_connection_errors + _wrapped_errors():
                self._drop()
                if time.monotonic() + pause > deadline:
                    raise
            time.sleep(pause)
            pause = min(1.0, 2 * pause)

    def _reach(self) -> None:
        """See that the broker really answers, and bound how long it may take to from now on."""
        sock = getattr(self.connection.connection, "sock", None)  # of AMQP
        if sock is not None:
            sock.settimeout(IO_SECONDS)
            self._descriptor = sock.fileno()
            forks.blank(self._descriptor)
        self.connection.default_channel  # noqa: B018  # of Redis: connects, and says PING

    @contextlib.contextmanager
    def failing(self) -> Generator[None]:
        """Turn what a connection that does not work raises into a `DeliveryError`, and let go of the connection."""
        self._works = False

        try:
            yield
        except DeliveryError:
            raise
        except Exception as error:
            refused = isinstance(error, self.connection.channel_errors)
            if not (
                refused
                or isinstance(
                    error, (OSError, *self.connection.connection_errors, *_wrapped_errors())
                )
            ):
                raise
            where = self.connection.as_uri()  # without the password
            self._drop()
            said = f"{type(error).__name__}: {error}".rstrip(": .")
            if refused:
                raise DeliveryError(
                    f"{self._what}: the broker at {where} refuses: {said}"
                ) from error
            kind = LostError if self._works and not _is_timeout(error) else DeliveryError
            raise kind(
                f"{self._what}: the broker at {where} cannot be used: {said}. Is it running, and can it be reached "
                f"from here?"
            ) from error
        finally:
            if self.closed:
                self._drop()

    def close(self) -> None:
        """Close it; a thread that is still using it will, when it comes back."""
        self.closed = True
        if self.lock.acquire(timeout=CLOSE_SECONDS / 2):
            try:
                self._drop()
            finally:
                self.lock.release()

    def _drop(self) -> None:
        self.producer = None
        sock = getattr(self.connection._connection, "sock", None)
        channels: list[Any] = list(getattr(self.connection._connection, "channels", None) or ())
        with contextlib.suppress(Exception):  # it may be broken in any way
            if sock is not None:
                sock.settimeout(CLOSE_SECONDS)
            self.connection.close()

        for (
            channel
        ) in channels:  # of Redis: kombu leaves what is in their pools to the garbage collector
            with contextlib.suppress(Exception):
                channel._disconnect_pools()

        if self._descriptor >= 0:
            forks.untrack(self._descriptor)
            self._descriptor = -1

        self.connection = self._new()


def _is_timeout(error: BaseException | None) -> bool:
    # Of redis-py's errors none is Python's own.
    while (
        error is not None
        and not isinstance(error, TimeoutError)
        and type(error).__name__ != "TimeoutError"
    ):
        error = error.__cause__ or error.__context__
    return error is not None


def _is_error(answer: object) -> bool:
    return isinstance(answer, dict) and "error" in answer


def _wrapped_errors() -> tuple[type[BaseException], ...]:
    from kombu import exceptions

    batch: type[BaseException] = getattr(
        exceptions, "BatchPublishError", exceptions.OperationalError
    )
    return (exceptions.OperationalError, batch)


def _can_batch(producer: Any) -> bool:
    # Since kombu 5.7.
    return bool(getattr(producer, "supports_batch_publish", False))


def _has_news(descriptor: int) -> bool:
    if descriptor < 0:
        return False
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def _queue_of(app: Any, task: str, options: Mapping[str, Any]) -> Any:
    """The queue that messages of *task* go to; ``None`` where that is not one queue, or depends on the message."""
    routing = {
        name: options[name]
        for name in ("queue", "exchange", "routing_key", "priority")
        if name in options
    }

    try:
        routed = app.amqp.router.route(routing, task, (), {})
    except Exception as error:  # a router of the user's that looks at arguments
        logger.debug("the queue of task %r is not known: %s: %s", task, type(error).__name__, error)
        return None

    queue = routed.get("queue")
    if isinstance(queue, str):
        queue = app.amqp.queues[queue]
    if queue is None and not routed.get("exchange"):
        queue = app.amqp.default_queue
    return queue


def _prefixed(channel: Any, key: str) -> str:
    # kombu puts the prefix before the keys of the commands that it uses itself, and HKEYS and HMGET are none of them.
    return f"{getattr(channel, 'global_keyprefix', '') or ''}{key}"


def _task_id(message: bytes | str | None) -> str:
    try:
        envelope, _, _ = json.loads(message or "")
        return str(envelope["properties"]["correlation_id"])
    except (ValueError, LookupError, TypeError):
        return ""
