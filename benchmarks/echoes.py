"""Servers that send back what they get: ``python -m benchmarks.echoes http|grpc|websocket``.

The other end of the bare clients, each as plain as its library makes it. Prints its port when it listens.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any


async def http() -> None:
    import uvicorn

    async def app(
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    # With the protocol named, because asyncio sets TCP_NODELAY on no other.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(1024)
    server = uvicorn.Server(
        uvicorn.Config(
            app, log_level="error", access_log=False, lifespan="off", timeout_keep_alive=600
        )
    )
    print(listener.getsockname()[1], flush=True)
    await server.serve([listener])


async def grpc() -> None:
    import grpc

    async def echo(request: bytes, context: object) -> bytes:
        del context
        return request

    class Handler(grpc.GenericRpcHandler):
        def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
            del handler_call_details
            return grpc.unary_unary_rpc_method_handler(echo)

    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers((Handler(),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()


async def websocket() -> None:
    from websockets.asyncio.server import ServerConnection, serve

    async def echo(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    async with serve(echo, "127.0.0.1", 0, compression=None, max_size=None) as server:
        print(next(iter(server.sockets)).getsockname()[1], flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run({"http": http, "grpc": grpc, "websocket": websocket}[sys.argv[1]]())
