"""The broker of a Celery app, used over two connections of the environment's own.

The app's own connection pools may have no time limits, are shared with everything else that the app sends, and in a
forked process they are copies. Therefore the connections here are new ones, made from the app's settings, with time
limits where the settings have none.
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
"""Time limit of one attempt to connect; Celery's default of ``broker_connection_timeout``."""

PATIENCE_SECONDS: Final = 5.0
"""How long to try again while the broker refuses connections; a quick restart takes less."""

IO_SECONDS: Final = 5.0
"""How long the broker may take to read or answer. Kombu and its clients have no limit by default."""

ANSWER_SECONDS: Final = 1.0
"""How long to collect the answers of workers; the default of ``celery inspect``. Their number is not known, so the
whole time is waited."""

LISTEN_SECONDS: Final = 0.1
"""How often, in seconds, the wait for answers checks whether the environment stops."""

CLOSE_SECONDS: Final = 1.0

STUCK_CHUNK: Final = 50
"""Number of unacknowledged messages that are read from Redis in one command."""


class LostError(DeliveryError):
    """A connection that worked has ended."""


class Depth(NamedTuple):
    """The state of a queue as the broker tells it.

    Attributes:
        ready: The number of messages that no worker has; ``None``: unknown.
        consumers: The number of workers that take from it; ``None``: unknown.
    """

    ready: int | None
    consumers: int | None


def make_app(name: str, broker_url: str | None, backend_url: str | None) -> Any:
    """Return a Celery app of Wove's own; it does not become the current app."""
    from celery import Celery

    app: Any = Celery(name, broker=broker_url, backend=backend_url, set_as_current=False)
    app.conf.update(
        # A result backend that does not answer in time is asked again later.
        redis_socket_timeout=IO_SECONDS,
        redis_socket_connect_timeout=CONNECT_SECONDS,
        broker_connection_timeout=CONNECT_SECONDS,
    )
    return app


class Broker:
    """Sends messages, and asks workers and broker about them.

    One thread at a time may use `sending`, and one other thread the other methods.

    Args:
        app: The Celery app. Its settings are read; the app is not changed.
        task: The name of the task.
        options: Arguments of ``Celery.send_task``, which determine the queue.
        label: What messages begin with.

    Attributes:
        errors: The exceptions of a broken connection.
        kind: ``"redis"``, ``"amqp"``, or another transport's name.
        answers: Whether workers can be asked, because the transport can broadcast.
    """

    def __init__(self, app: Any, task: str, options: Mapping[str, Any], *, label: str) -> None:
        self._app = app
        self._what = label
        self._sending = _BrokerConnection(app, label)
        self._questions = _BrokerConnection(app, label)
        transport = self._sending.connection.transport
        self.kind: str = transport.driver_type
        self.answers = "fanout" in transport.implements.exchange_type
        self.errors: tuple[type[BaseException], ...] = (
            DeliveryError,
            *self._sending.connection.connection_errors,
            *self._sending.connection.channel_errors,
            *_wrapped_errors(),
        )
        self._queue = _queue_of(app, task, options)
        self._ids: dict[Any, str] = {}
        self._own_command = task == TASK_NAME

    @property
    def queue(self) -> str | None:
        """The queue's name; ``None``: unknown."""
        return None if self._queue is None else self._queue.name

    def connect(self) -> None:
        """Connect.

        Raises:
            DeliveryError: The broker cannot be reached.
        """
        with self._sending.lock, self._sending.failing():
            self._sending.ready()

    def close(self) -> None:
        """Close both connections. A thread that still uses one closes it at the end of its call."""
        self._sending.close()
        self._questions.close()

    # ------------------------------------------------------------------ messages

    @contextlib.contextmanager
    def sending(self, count: int) -> Generator[Callable[..., None]]:
        """Yield a function that sends messages as `Celery.send_task` does. All are sent when the block ends.

        Raises:
            LostError: The connection was lost, and another attempt may help. Earlier messages of the block may have
                arrived or not.
            DeliveryError: The broker cannot be reached.
        """
        out = self._sending

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
        """Return the answers of workers to a remote control command, by worker name. Errors are left out.

        Args:
            command: The command's name, as of ``celery inspect``.
            arguments: The command's arguments.
            wait: Whether to collect answers, which takes `ANSWER_SECONDS`.

        Raises:
            DeliveryError: The broker cannot be reached.
        """
        answers = self._ask(command, arguments, wait=wait)
        return {host: answer for host, answer in answers.items() if not _is_error(answer)}

    def where(self, task_ids: Sequence[str]) -> dict[str, dict[str, tuple[str, str]]]:
        """Return which worker has which of the tasks: by host and task, the state and the error (``""``: none).

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
        """Broadcast *command* as kombu/pidbox.py does, but only once, and no longer than the environment exists."""
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

        def on_reply(body: dict[str, Any], reply: Any) -> None:
            if reply.headers.get("ticket") == ticket:
                answers.update(body)

        deadline = time.monotonic() + seconds
        consumer = connection.Consumer(
            [inbox], callbacks=[on_reply], accept=mailbox.accept, no_ack=True
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
        """Return the numbers of waiting messages and of workers of the queue."""
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
                ):  # the queue does not exist: it was deleted with its last message
                    return Depth(0, 0)
            return Depth(
                declared.message_count, declared.consumer_count if self.kind == "amqp" else None
            )

    def unacknowledged(self) -> dict[str, Any]:
        """Return the delivery tags of messages that a worker has taken and not acknowledged, by task id (Redis only).

        Messages of a worker that is gone stay there until ``visibility_timeout`` is over (kombu/transport/redis.py).
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
        """Acknowledge a message in place of a worker that is gone, so that it is not delivered again (Redis only)."""
        line = self._questions
        with line.lock, line.failing():
            channel = line.ready().default_channel
            with channel.conn_or_acquire() as client:
                client.zrem(channel.unacked_index_key, tag)
                client.hdel(channel.unacked_key, tag)

    def visibility_seconds(self) -> float:
        """Return the seconds after which an unacknowledged message is delivered again (Redis only)."""
        return float(self._app.conf.broker_transport_options.get("visibility_timeout", 3600))


class _BrokerConnection:
    """A connection to the broker, made when it is needed and again whenever it is broken.

    Attributes:
        lock: Must be held while the connection is used.
        connection: The kombu connection, connected or not.
        producer: The kombu producer, once a message was sent.
        closed: Whether `close` was called.
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
            # No thread sends heartbeats while the connection is idle, and RabbitMQ would close it without them. Before
            # each use, the connection is checked for having been closed for another reason.
            heartbeat=0,
            connect_timeout=min(CONNECT_SECONDS, conf.broker_connection_timeout or CONNECT_SECONDS),
            transport_options=options,
        )

    def ready(self) -> Any:
        """Return the connection, connected.

        Raises:
            DeliveryError: The environment has stopped.
        """
        if self.closed:
            raise DeliveryError(f"{self._what} has stopped")
        if self.connection.connected and _is_readable(self._descriptor):
            self._drop()  # the broker sends nothing here except the end of the connection
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
        """Check that the broker answers, and set the time limit of its later answers."""
        sock = getattr(self.connection.connection, "sock", None)  # AMQP
        if sock is not None:
            sock.settimeout(IO_SECONDS)
            self._descriptor = sock.fileno()
            forks.blank(self._descriptor)
        self.connection.default_channel  # noqa: B018  # Redis: connects, and sends PING

    @contextlib.contextmanager
    def failing(self) -> Generator[None]:
        """Replace the exceptions of a broken connection by a `DeliveryError`, and drop the connection."""
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
        """Close the connection. A thread that still uses it closes it at the end of its call."""
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
        with contextlib.suppress(Exception):  # a broken connection can raise anything
            if sock is not None:
                sock.settimeout(CLOSE_SECONDS)
            self.connection.close()

        for channel in channels:
            # Redis: kombu leaves the connections in their pools to the garbage collector.
            with contextlib.suppress(Exception):
                channel._disconnect_pools()

        if self._descriptor >= 0:
            forks.untrack(self._descriptor)
            self._descriptor = -1

        self.connection = self._new()


def _is_timeout(error: BaseException | None) -> bool:
    # The timeout of redis-py is not a subclass of Python's.
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


def _is_readable(descriptor: int) -> bool:
    if descriptor < 0:
        return False
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def _queue_of(app: Any, task: str, options: Mapping[str, Any]) -> Any:
    """Return the queue of *task*; ``None`` if that is not one queue, or depends on the message."""
    routing = {
        name: options[name]
        for name in ("queue", "exchange", "routing_key", "priority")
        if name in options
    }

    try:
        routed = app.amqp.router.route(routing, task, (), {})
    except Exception as error:  # the user's router needs the arguments
        logger.debug("the queue of task %r is not known: %s: %s", task, type(error).__name__, error)
        return None

    queue = routed.get("queue")
    if isinstance(queue, str):
        queue = app.amqp.queues[queue]
    if queue is None and not routed.get("exchange"):
        queue = app.amqp.default_queue
    return queue


def _prefixed(channel: Any, key: str) -> str:
    # Kombu adds the prefix only to the keys of the commands that it uses itself; HKEYS and HMGET are not among them.
    return f"{getattr(channel, 'global_keyprefix', '') or ''}{key}"


def _task_id(message: bytes | str | None) -> str:
    try:
        envelope, _, _ = json.loads(message or "")
        return str(envelope["properties"]["correlation_id"])
    except (ValueError, LookupError, TypeError):
        return ""
