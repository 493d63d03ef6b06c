"""A FastAPI view that loads several things at once, and one that streams.

Run it with ``python -m examples.fastapi_view``: it asks itself.
To serve it, give ``examples.fastapi_view:app`` to uvicorn.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from wove import weave

app = FastAPI()


@app.get("/customers/{number}")
async def customer_page(number: int) -> dict[str, Any]:
    """Load a customer, in a thread, and the orders, on the event loop, at the same time."""
    async with weave(number=number) as w:

        @w.do(timeout=2.0)
        def customer(number: int) -> dict[str, Any]:
            time.sleep(0.05)  # a synchronous database driver
            return {"name": "Ada", "number": number}

        @w.do(timeout=2.0, retries=1)
        async def orders(number: int) -> list[int]:
            await asyncio.sleep(0.05)  # an asynchronous HTTP client
            return [30, 50, 80]

        @w.do
        def page(customer: dict[str, Any], orders: list[int]) -> dict[str, Any]:
            return {"name": customer["name"], "orders": orders, "total": sum(orders)}

    return dict(w.result.page)


@app.get("/reports")
async def reports() -> StreamingResponse:
    """Send a line for each report as soon as it is ready."""
    async with weave(background=True) as w:

        @w.do(["may", "june", "july"], workers=2)
        async def report(month: str) -> str:
            await asyncio.sleep(0.02)
            return f"the report of {month} is ready\n"

    async def lines() -> AsyncIterator[str]:
        async for _, line in w.stream("report"):
            yield line

    return StreamingResponse(lines(), media_type="text/plain")


async def main() -> None:
    """Ask both views."""
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        print((await client.get("/customers/7")).json())
        print((await client.get("/reports")).text, end="")


if __name__ == "__main__":
    asyncio.run(main())
