"""A TCP proxy that can go down and come up again, and shows what went through it."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time

from tests.support.kept import free_port

__all__ = ["Proxy"]

_RESET = struct.pack("ii", 1, 0)


class Proxy:
    """Forwards connections from a port of its own to one of this machine; a context.

    Attributes:
        port: Where it listens, while it is up.
        sent: What each connection's client has sent so far.
        refused: When it has reset a new connection.
    """

    def __init__(self, target: int, *, port: int | None = None) -> None:
        self.target, self.port = target, port or free_port()
        self.sent: list[bytearray] = []
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self._is_cut = False
        self.refused: list[float] = []
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    def up(self) -> None:
        """Take connections."""
        self._listener = listener = socket.create_server(("127.0.0.1", self.port))
        self._begin(self._accept, listener)

    def cut(self) -> None:
        """Reset all connections, and new ones as soon as they are accepted, until `heal`."""
        self._is_cut = True
        self._reset()

    def heal(self) -> None:
        """Forward connections again."""
        self._is_cut = False

    def down(self) -> None:
        """Refuse new connections, and reset those that there are."""
        self._refuse()
        self._reset()

    def _reset(self) -> None:
        with self._lock:
            for each in self._open:
                with contextlib.suppress(OSError):
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    each.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Proxy:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self._refuse()
        # What has been said is to arrive: a connection that one side has closed ends by itself.
        deadline = time.monotonic() + 2.0
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self.down()
        for thread in self._threads:
            thread.join(10)

    def _refuse(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _begin(self, work: object, *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                if self._is_cut:
                    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    near.close()
                    self.refused.append(time.monotonic())
                    continue
                try:
                    far = socket.create_connection(("127.0.0.1", self.target), 5)
                except OSError:
                    near.close()
                    continue
                far.settimeout(None)
                seen = bytearray()
                with self._lock:
                    self.sent.append(seen)
                    self._open |= {near, far}
                self._begin(self._serve, near, far, seen)

    def _serve(self, near: socket.socket, far: socket.socket, seen: bytearray) -> None:
        back = threading.Thread(target=self._pump, args=(far, near, None), daemon=True)
        back.start()
        self._pump(near, far, seen)
        back.join()
        with self._lock:
            self._open -= {near, far}
        near.close()
        far.close()

    def _pump(self, source: socket.socket, sink: socket.socket, seen: bytearray | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if seen is not None and len(seen) < 1 << 20:
                    seen += data
                sink.sendall(data)
        for each, how in ((sink, socket.SHUT_WR), (source, socket.SHUT_RD)):
            with contextlib.suppress(OSError):
                each.shutdown(how)
