"""What can be known of environments is checked when the block closes, before the first task."""

from __future__ import annotations

import asyncio
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import wove
from wove import (
    BackendAdapterEnvironmentExecutor,
    EnvironmentExecutor,
    MissingDependencyError,
    SerializationError,
    settings,
    weave,
)
from wove.settings import config


@pytest.fixture(autouse=True)
def _configuration() -> Iterator[None]:
    before = settings.installed()
    yield
    settings.install(before)


BROKEN = [
    ("stdoi", {}, ValueError, "there is no executor 'stdoi'. Did you mean 'stdio'"),
    ("stdio", {"proceses": 2}, ValueError, "has no executor_config key 'proceses'"),
    ("stdio", {"start_timeout": "soon"}, TypeError, "'start_timeout' must be a number of seconds"),
    ("http", {"url": "ftp://x/"}, ValueError, "url"),
    ("http", {"url": "http://elsewhere.example/"}, ValueError, "https://"),
    (
        "https",
        {"url": "https://x.example/", "security": "env:NOT_SET_HERE"},
        ValueError,
        "NOT_SET_HERE",
    ),
    ("grpc", {}, ValueError, "target"),
    ("websocket", {"url": "ws://127.0.0.1:1/", "open_timeout": -1}, ValueError, "open_timeout"),
    ("celery", {}, ValueError, "needs 'app' (a Celery app) or 'broker_url'"),
    ("rq", {"redis_url": "redis://x", "callback_port": "9-1"}, ValueError, "is not a range"),
    ("slurm", {"watch_seconds": 0}, ValueError, "watch_seconds"),
]


@pytest.mark.parametrize(("executor", "values", "kind", "message"), BROKEN)
def test_a_wrong_configuration_ends_the_weave_before_its_first_task(
    executor: str, values: dict[str, Any], kind: type[Exception], message: str
) -> None:
    config(environments={"far": {"executor": executor, "executor_config": values}})
    ran: list[str] = []

    with pytest.raises(kind) as caught, weave(error_mode="return") as w:

        @w.do
        def here() -> None:
            ran.append("here")

        @w.do(environment="far")
        def there(here: None) -> None: ...

    assert message in str(caught.value) and "'far'" in str(caught.value)
    assert ran == []
    with pytest.raises(wove.WeaveStateError):
        _ = w.result


def test_the_same_in_a_coroutine() -> None:
    async def main() -> None:
        async with weave(environment="far") as w:

            @w.do
            def there() -> None: ...

    config(environments={"far": {"executor": "http", "executor_config": {"ulr": "x"}}})
    with pytest.raises(ValueError, match="'ulr'"):
        asyncio.run(main())


def test_the_same_in_the_background() -> None:
    done: list[BaseException | None] = []
    config(environments={"far": {"executor": "http", "executor_config": {"ulr": "x"}}})
    with weave(environment="far", background=True, on_done=lambda r: done.append(r.exception)) as w:

        @w.do
        def there() -> None: ...

    w.wait(30)
    assert "'ulr'" in str(done[0])


class _Adapter(wove.BackendAdapter):
    name = "needy"
    required_modules = ("no_such_package_of_mine",)
    install_hint = "pip install no-such-package-of-mine"

    def submit(self, payload: Any, frame: Any) -> None: ...

    def cancel(self, run_id: str, submission: Any, frame: Any) -> None: ...


def test_a_missing_package_is_found_out_at_once() -> None:
    executor = BackendAdapterEnvironmentExecutor("needy", adapter_class=_Adapter)
    config(environments={"far": {"executor": executor}})
    ran: list[str] = []
    with pytest.raises(MissingDependencyError, match="pip install no-such-package-of-mine"):
        with weave() as w:

            @w.do
            def here() -> None:
                ran.append("here")

            @w.do(environment="far")
            def there(here: None) -> None: ...

    assert ran == []


def test_environments_that_no_task_uses_are_not_checked() -> None:
    config(environments={"far": {"executor": "nothing of that name"}})
    with weave() as w:

        @w.do
        def here() -> int:
            return 1

    assert w.result.here == 1


class _Counting(EnvironmentExecutor):
    checks = 0

    def check(self, environment_name: str, environment_config: Any) -> None:
        type(self).checks += 1

    async def start(self, **_: Any) -> None:
        self.events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def send(self, frame: dict[str, Any]) -> None:
        value = frame["callable"](**frame["args"])
        await self.events.put({"type": "task_result", "run_id": frame["run_id"], "result": value})

    async def recv(self) -> dict[str, Any]:
        return await self.events.get()

    async def stop(self) -> None: ...


def test_a_configuration_is_checked_once(tmp_path: Path) -> None:
    config(environments={"far": {"executor": _Counting()}})
    for _ in range(3):
        with weave(environment="far") as w:

            @w.do
            def there() -> int:
                return 1

        assert w.result.there == 1
    assert _Counting.checks == 1
    config(retries=1)
    with weave(environment="far") as w:

        @w.do
        def again() -> int:
            return 1

    assert _Counting.checks == 2


# ------------------------------------------------------------------ callables


@pytest.mark.backend("stdio")
def test_a_callable_that_cannot_travel_ends_the_weave_early() -> None:
    config(environments={"far": {"executor": "stdio"}})
    lock, released = threading.Lock(), threading.Event()
    with (
        pytest.raises(SerializationError, match=r"the function of task 'there'.*lock"),
        weave() as w,
    ):

        @w.do
        async def here() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                released.set()

        @w.do(environment="far")
        def there(here: None) -> None:
            with lock:
                pass

    assert released.is_set()  # it was cancelled, and not waited for


@pytest.mark.backend("stdio")
def test_what_is_captured_travels_as_it_is_when_the_task_begins() -> None:
    config(environments={"far": {"executor": "stdio", "executor_config": {"processes": 1}}})
    seen: list[int] = []
    with weave() as w:

        @w.do
        def here() -> None:
            seen.append(1)

        @w.do(environment="far")
        def there(here: None) -> int:
            return len(seen)

    assert w.result.there == 1


@pytest.mark.backend("stdio")
def test_other_branches_go_on() -> None:
    config(environments={"far": {"executor": "stdio"}})
    lock = threading.Lock()
    with weave(error_mode="continue") as w:

        @w.do
        def here() -> int:
            return 1

        @w.do(environment="far")
        def there(here: int) -> None:
            with lock:
                pass

        @w.do
        def after(here: int) -> int:
            return here + 1

    assert w.result.after == 2
    assert isinstance(w.result.there, SerializationError)


def test_explain_says_what_will_travel() -> None:
    config(environments={"far": {"executor": "stdio"}})
    rows, lock = list(range(1000)), threading.Lock()
    w = weave()
    with pytest.raises(KeyError, match="nothing is run"), w:

        @w.do
        def here() -> int:
            return len(rows)

        @w.do(environment="far")
        def there(here: int) -> int:
            return here + len(rows)

        @w.do(environment="far")
        def never(here: int) -> None:
            with lock:
                pass

        w.do(environment="far")(shutil.disk_usage)
        explained = w.explain()
        raise KeyError("nothing is run")

    assert not any(name.startswith("call: ") for name in explained["here"])
    assert explained["there"]["call: bytes"].value > 1000
    assert re.fullmatch(r"rows \([\d,]+ bytes\)", explained["there"]["call: captured"].value[0])
    assert explained["never"]["call: captured"].value == ("lock (cannot be pickled)",)
    assert "lock" in explained["never"]["call: not possible"].value
    assert explained["disk_usage"]["call: bytes"].value < 100
    assert "call: captured" not in explained["disk_usage"]
