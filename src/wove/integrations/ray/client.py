"""The connection of this process to Ray. There is one at most, made by the user or shared by Wove's environments."""

from __future__ import annotations

import contextlib
import importlib
import logging
import socket
import sys
import threading
from collections import deque
from collections.abc import Generator, Mapping
from typing import Any, Final

from wove.concurrency import forks
from wove.errors import DeliveryError
from wove.integrations.common.error_text import exception_text

__all__ = ["Submission", "connect", "connection_id", "leave", "load", "shutdown_lock"]

LOGGER: Final = "ray._private.worker"
IN_A_THREAD: Final = "SIGTERM handler is not set because current thread is not the main thread"
"""Ray's warning when it is initialised in a thread (ray/_private/worker.py, `init`), which is intended here: Wove
leaves the signals of the process to its owner."""

UNKNOWN_OPTION: Final = "Unknown keyword argument"
"""The beginning of the text of the RuntimeError for an unknown option (ray/_private/worker.py, `init`)."""

CLIENT: Final = "ray://"
"""The beginning of the address of a Ray Client server."""

CONNECT_SECONDS: Final = 10.0
"""How long the cluster may take to accept a connection."""

BY_NAME: Final = ("auto", "local")
"""Addresses that are not a host and port."""

_lock = threading.Lock()
"""Guards the variables below. Acquired before `shutdown_lock`, never under it."""
_users: set[int] = set()
"""The ids of the environments that use a connection that Wove has made."""
_made: tuple[str, str] | None = None
"""The connection that Wove has made, as `_identity` returns it."""
_left: deque[Any] = deque()
"""References that are no longer needed."""
_shutdown_lock: Any = threading.RLock()
"""The lock of Ray (ray/_private/worker.py) once it has been loaded, if it has one."""
_forked = False
"""Whether this process was forked from one that was connected."""


def load() -> Any:
    """Import and return the package ``ray``."""
    global _shutdown_lock
    with forks.importing:
        importlib.import_module("ray.util.client")
        ray = importlib.import_module("ray")
    _shutdown_lock = getattr(ray._private.worker, "_connect_or_shutdown_lock", _shutdown_lock)
    return ray


def shutdown_lock() -> Any:
    """Return the lock, a `threading.RLock`, that Ray holds while it is being shut down in this process.

    Any call of Ray's core during a shutdown ends the process at once, with exit code 1
    (src/ray/core_worker/core_worker_process.cc, ``GetCoreWorker``). Deleting an ``ObjectRef`` is such a call
    (python/ray/includes/object_ref.pxi, ``__dealloc__``). So all calls are made under this lock. It can be held for
    seconds, so an event loop must not wait for it.
    """
    return _shutdown_lock


class Submission:
    """A task that was submitted. Unlike its reference, it can be deleted in any thread, at any time.

    Attributes:
        ref: The ``ObjectRef`` of the task's return value. Copies of it must be deleted under the `shutdown_lock`.
        job: The id of the connection to the cluster over which it was submitted.
    """

    __slots__ = ("job", "ref")

    def __init__(self, ref: Any, job: str) -> None:
        self.ref = ref
        self.job = job

    def __del__(self) -> None:
        _left.append(self.ref)
        del self.ref
        if _shutdown_lock.acquire(blocking=False):  # else the next one to go does it
            _left.clear()
            _shutdown_lock.release()


def connect(
    user: int, address: str | None, options: Mapping[str, Any] | None, *, label: str
) -> None:
    """Be connected: as this process is already, or now.

    Args:
        user: The id of the environment.
        address: Where the cluster must be; ``None``: anywhere.
        options: Of `ray.init`; ``None``: connecting is up to somebody else.
        label: What messages begin with.

    Raises:
        ValueError: It is connected to another cluster, or `ray.init` does not take *options*.
        DeliveryError: It cannot be connected.
    """
    global _made
    ray = load()

    if _forked:
        raise DeliveryError(
            f"{label}: this process was forked from one that was connected to Ray, and Ray does not survive that. Fork "
            "before the first weave that uses Ray, or start processes with 'spawn'"
        )

    with _lock:
        if ray.is_initialized():
            _check_place(ray, address, label)
            if _identity(ray) == _made:
                _users.add(user)
            return
        _users.clear()  # if there are any, code outside Wove has shut Ray down
        if options is None:
            raise DeliveryError(
                f"{label}: Ray is not initialised in this process, and executor_config 'init' is False. Call "
                "ray.init() before the weave, or leave 'init' out"
            )
        _initialise(ray, address, options, label)
        _made = _identity(ray)
        _users.add(user)


def leave(user: int) -> None:
    """Disconnect if Wove has connected and no other environment uses the connection.

    Args:
        user: The id that was given to `connect`.
    """
    with _lock:
        if user not in _users:
            return
        _users.discard(user)
        ray: Any = sys.modules.get("ray")
        if not _users and ray is not None and ray.is_initialized() and _identity(ray) == _made:
            ray.shutdown()


def connection_id(ray: Any) -> str | None:
    """Return the id of this process's connection to a cluster; ``None``: it has none. Called under `shutdown_lock`."""
    return str(ray.get_runtime_context().get_job_id()) if ray.is_initialized() else None


def _identity(ray: Any) -> tuple[str, str]:
    """Return the ids of the cluster and of the connection to it."""
    context = ray.get_runtime_context()
    return str(context.gcs_address), str(context.get_job_id())


def _initialise(ray: Any, address: str | None, options: Mapping[str, Any], label: str) -> None:
    given = {"log_to_driver": False, "logging_level": logging.WARNING, **options}
    if (address or "").startswith(CLIENT):  # a client accepts neither
        given = dict(options)
    try:
        _check_listening(address)
        with _without_that_warning():
            ray.init(address=address, **given)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{label}: ray.init does not take these init_options: {exception_text(error)}"
        ) from error
    except Exception as error:
        if UNKNOWN_OPTION in str(error):
            raise ValueError(
                f"{label}: ray.init does not take these init_options: {exception_text(error)}"
            ) from error
        where = f"the Ray cluster at {address}" if address else "Ray"
        remedy = (
            "Is 'ray start' running there, and on this machine?"
            if address
            else "See the log of Ray."
        )
        raise DeliveryError(
            f"{label}: {where} could not be reached: {exception_text(error)}. {remedy}"
        ) from error


def _check_place(ray: Any, address: str | None, label: str) -> None:
    if address is None or address in BY_NAME or address.startswith(CLIENT):
        return
    actual = str(ray.get_runtime_context().gcs_address)
    if _place(address) != _place(actual):
        raise ValueError(
            f"{label}: executor_config 'address' is {address!r}, and this process is connected to the Ray cluster at "
            f"{actual} already. A process has one: leave 'address' out, or use another process"
        )


def _check_listening(address: str | None) -> None:
    """Check that something listens at *address*. Ray itself would take minutes, and not say so in the end."""
    host, _, port = (address or "").removeprefix(CLIENT).partition("/")[0].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()


def _place(address: str) -> tuple[str, str]:
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError):
        host = socket.gethostbyname(host)
    return host, port


@contextlib.contextmanager
def _without_that_warning() -> Generator[None]:
    def kept(record: logging.LogRecord) -> bool:
        return IN_A_THREAD not in str(record.msg)

    logger = logging.getLogger(LOGGER)
    logger.addFilter(kept)
    try:
        yield
    finally:
        logger.removeFilter(kept)


def reset_after_fork() -> None:
    global _lock, _forked
    _lock = threading.Lock()
    ray: Any = sys.modules.get("ray")
    # While the package is being imported, it has no `is_initialized` yet.
    _forked = _forked or (ray is not None and getattr(ray, "is_initialized", bool)())
    _users.clear()


forks.after_in_child(forks.Phase.CLIENTS, reset_after_fork)
