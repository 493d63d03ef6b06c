"""The proxy that goes down."""

from __future__ import annotations

import socket
import threading

import pytest
from tests.support.proxy import Proxy


def test_up_down_and_up_again(no_leaks: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def echo() -> None:
            for _ in range(2):
                connection, _ = server.accept()
                with connection:
                    while data := connection.recv(100):
                        connection.sendall(data)

        thread = threading.Thread(target=echo)
        thread.start()
        with Proxy(server.getsockname()[1]) as proxy:
            with socket.create_connection(("127.0.0.1", proxy.port), 10) as before:
                before.sendall(b"one")
                assert before.recv(100) == b"one"
                proxy.down()
                try:
                    assert before.recv(100) == b""
                except ConnectionResetError:
                    pass
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection(("127.0.0.1", proxy.port), 10)
            proxy.up()
            with socket.create_connection(("127.0.0.1", proxy.port), 10) as after:
                after.sendall(b"two")
                assert after.recv(100) == b"two"
        thread.join(10)
    assert [bytes(sent) for sent in proxy.sent] == [b"one", b"two"]
