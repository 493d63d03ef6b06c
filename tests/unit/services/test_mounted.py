"""The ASGI application inside of other people's applications."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from tests.unit.services.hosts import get, hosted, post, run_task

import wove
from wove import weave
from wove.services.http import WorkerApp, worker_app

SECURITY = {"type": "signed", "secret": "s" * 40}
Host = Callable[[WorkerApp], Any]


def in_fastapi(worker: WorkerApp) -> Any:
    app = FastAPI(lifespan=worker.lifespan)

    @app.get("/own")
    async def own() -> str:
        return "own"

    app.mount("/wove", worker)
    return app


def in_starlette(worker: WorkerApp) -> Any:
    async def own(request: object) -> PlainTextResponse:
        return PlainTextResponse("own")

    inner = Starlette(routes=[Mount("/deep", worker)])
    return Starlette(routes=[Route("/own", own), Mount("/wove", inner)])


def in_django(worker: WorkerApp) -> Any:
    import django
    from django.conf import settings
    from django.http import HttpRequest, HttpResponse
    from django.urls import path

    async def own(request: HttpRequest) -> HttpResponse:
        return HttpResponse("own")

    if not settings.configured:
        settings.configure(
            ALLOWED_HOSTS=["*"], ROOT_URLCONF=type("urls", (), {"urlpatterns": [path("own", own)]})
        )
        django.setup()
    from django.core.asgi import get_asgi_application

    site = get_asgi_application()

    async def application(scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        if scope["type"] == "lifespan" or scope["path"].startswith("/wove/"):
            await worker(scope, receive, send)
        else:
            await site(scope, receive, send)

    return application


@pytest.mark.parametrize(
    ("host", "path"),
    [
        (in_fastapi, "/wove/"),
        (in_fastapi, "/wove/x?y=1"),
        (in_starlette, "/wove/deep/tasks"),
        (in_django, "/wove/tasks"),
    ],
)
def test_it_runs_inside_of_another_application(host: Host, path: str) -> None:
    worker = worker_app(security=SECURITY)
    with hosted(host(worker)) as port:
        url = f"http://127.0.0.1:{port}{path}"
        wove.config(
            environments={
                "workers": {
                    "executor": "http",
                    "executor_config": {"url": url, "security": SECURITY},
                }
            }
        )
        with weave() as w:

            @w.do(range(20), environment="workers")
            def square(n: int) -> int:
                return n * n

        assert w.result.square == [n * n for n in range(20)]
        assert b"own" in get(port, "/own").body
        assert get(port, path.partition("?")[0] + "/healthz").status == 200
        wove.shutdown()


def test_its_lifespan_ends_it() -> None:
    worker = worker_app(security="none")
    with hosted(in_fastapi(worker)) as port:
        assert worker.queue.ready
        assert post(port, run_task(lambda: 1), path="/wove/").value == 1
    assert not worker.queue.ready


def test_without_a_lifespan_it_starts_with_the_first_run() -> None:
    worker = worker_app(security="none")
    with hosted(in_starlette(worker), lifespan="off") as port:
        assert post(port, run_task(lambda: 1), path="/wove/deep/").value == 1


def test_a_test_client_has_a_loop_for_each_request() -> None:
    worker = worker_app(security="none")
    app = in_starlette(worker)

    async def one(number: int) -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post(
                "/wove/deep/tasks", content=run_task(lambda x: x, args={"x": number})
            )

    assert [asyncio.run(one(number)).status_code for number in range(3)] == [200] * 3
    asyncio.run(worker.queue.aclose())


def test_behind_a_proxy_that_takes_the_prefix_off() -> None:
    from tests.unit.services.test_http import sign

    with hosted(worker_app(security=SECURITY), root_path="/api") as port:
        body = run_task(lambda: 1)
        assert post(port, body, sign(body, "/api/tasks"), path="/tasks").status == 200
