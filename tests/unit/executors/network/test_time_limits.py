"""The time limit of a task counts its own work, on every worker service: busy or not, replies signed or not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from tests.support.services import Plan, Service, Services

import wove
from wove import TaskTimeoutError, weave

pytestmark = [pytest.mark.backend("http", "grpc", "websocket")]

SECRET = "only for these tests of limits"


@pytest.fixture(params=[False, True], ids=["plain", "signed replies"])
def signs(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(params=["http", "grpc", "websocket"])
def service(request: pytest.FixtureRequest, services: Services, signs: bool) -> Iterator[Service]:
    """A service that runs one task at a time."""
    transport: Literal["http", "grpc", "websocket"] = request.param
    found = services.get(Plan(transport, secret=SECRET, sign_replies=signs, concurrency=1))
    config = found.config()
    wove.config(environments={"far": {"executor": transport, "executor_config": config}})
    yield found
    wove.shutdown()


def hold(held: Path, gate: Path) -> None:
    held.touch()
    while not gate.exists():
        time.sleep(0.01)


def test_the_wait_in_a_busy_service_does_not_count(service: Service, tmp_path: Path) -> None:
    held, gate = tmp_path / "held", tmp_path / "gate"
    limit = 0.6

    async def main() -> Any:
        async with weave(held=held, gate=gate) as w:
            w.do(environment="far")(hold)

            @w.do
            async def busy(held: Path) -> None:
                while not held.exists():
                    await asyncio.sleep(0.01)

            @w.do(environment="far", timeout=limit)
            def queued(busy: None) -> str:
                return "done"

            @w.do
            async def release(busy: None, gate: Path) -> None:
                await asyncio.sleep(1.3 * limit)  # the wait that must not count
                gate.touch()

        return w.result.queued

    assert asyncio.run(main()) == "done"


def test_a_warning_tells_of_a_busy_service(
    service: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held, gate = tmp_path / "held", tmp_path / "gate"

    async def main() -> Any:
        async with weave(held=held, gate=gate) as w:
            w.do(environment="far")(hold)

            @w.do
            async def busy(held: Path) -> None:
                while not held.exists():
                    await asyncio.sleep(0.01)

            @w.do(environment="far", delivery_notice_seconds=0.1)
            def queued(busy: None) -> str:
                return "done"

            @w.do
            async def release(busy: None, gate: Path) -> None:
                async with asyncio.timeout(30):
                    while "in the queue of the service" not in caplog.text:
                        await asyncio.sleep(0.01)
                gate.touch()

        return w.result.queued

    assert asyncio.run(main()) == "done"
    assert "no worker has begun" in caplog.text
    assert "'queued'" in caplog.text and "'hold'" not in caplog.text


def test_the_work_counts(service: Service) -> None:
    with pytest.raises(TaskTimeoutError, match="'slow'"):
        with weave() as w:

            @w.do(environment="far", timeout=0.2)
            async def slow() -> None:
                await asyncio.sleep(60)
