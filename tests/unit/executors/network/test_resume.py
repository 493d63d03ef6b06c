"""A network that is cut for a while: runs whose client and service both live are resumed by their ids."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from tests.support.proxy import Proxy
from tests.support.services import Plan, Service, Services

import wove
from wove import weave

pytestmark = [pytest.mark.backend("http", "grpc", "websocket")]

SECRET = "only for these tests of cuts"
TRANSPORTS = ["http", "grpc", "websocket"]


@pytest.fixture(params=[False, True], ids=["plain", "signed replies"])
def signs(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(params=TRANSPORTS)
def service(request: pytest.FixtureRequest, services: Services, signs: bool) -> Service:
    transport: Literal["http", "grpc", "websocket"] = request.param
    return services.get(Plan(transport, secret=SECRET, sign_replies=signs, concurrency=4))


@contextlib.contextmanager
def through(service: Service, **options: Any) -> Iterator[Proxy]:
    """The environment ``far``, whose service is behind a proxy."""
    transport = service.plan.transport
    with Proxy(service.port) as proxy:
        config = service.config(port=proxy.port)
        far = {"executor": transport, "executor_config": config, **options}
        wove.config(environments={"far": far})
        try:
            yield proxy
        finally:
            wove.shutdown()


def hello() -> None:
    """Return at once."""


def work(item: int, folder: Path) -> int:
    """Count the call; end when the test says so."""
    with (folder / f"began-{item}").open("a") as file:
        file.write("x")
    while not (folder / "gate").exists():
        time.sleep(0.01)
    return -item


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("ends", ["later", "during the cut"])
def test_a_cut_loses_nothing_and_repeats_nothing(
    service: Service, ends: str, tmp_path: Path
) -> None:
    """Neither a run that goes on, nor one that ends meanwhile, whose result cannot be sent."""
    count = 4  # all of them have begun before the cut

    async def main(proxy: Proxy) -> list[int]:
        async with weave(folder=tmp_path) as w:
            w.do(range(count), environment="far")(work)

            @w.do
            async def cut(folder: Path) -> None:
                await eventually(lambda: len(list(folder.glob("began-*"))) == count)
                before = len(proxy.sent)
                proxy.cut()
                if ends == "during the cut":
                    (folder / "gate").touch()
                await eventually(lambda: proxy.refused)  # the client has tried
                proxy.heal()
                await eventually(lambda: len(proxy.sent) > before)
                (folder / "gate").touch()

        return list(w.result.work)

    with through(service) as proxy:
        with weave() as first:  # by whose answer the client learns that runs can be resumed
            first.do(environment="far")(hello)

        assert asyncio.run(main(proxy)) == [-item for item in range(count)]
    assert [(tmp_path / f"began-{item}").read_text() for item in range(count)] == ["x"] * count
