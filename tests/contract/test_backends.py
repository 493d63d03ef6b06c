"""Weaves whose tasks run on a backend: the same over every one of `tests.backends`.

Each with its real server, and with workers started as their users start them.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import importlib
import json
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import wove
from tests.backends import Backend, Site, contract_rows, parameters
from tests.contract.backend_tasks import (
    REQUEST,
    Unfair,
    add_one,
    block,
    count_up,
    die,
    fail,
    loops_within,
    sleep_and_tell,
    speak,
    weaves_within,
)
from tests.contract.test_contract import eventually, lines
from tests.support.elsewhere import ways
from tests.support.kept import free_port, gone
from tests.support.leaks import leak_check
from tests.support.proxy import Proxy
from tests.support.servers import Servers
from tests.support.tracing import traced
from tests.support.volume import volume
from wove import DeliveryTimeoutError, WorkerLostError, weave
from wove.errors import SerializationError
from wove.observe.events import listen
from wove.testing.contract import EnvironmentContract

Configure = Callable[..., None]

MAPPED = volume(20, 8)
EACH = volume(10, 4)
"""Items of maps: on some backends, each is a process of its own."""

TOLD = 0.3
"""Seconds after which the start of a run has been told. A worker waits a little, as a short run is one message."""


SIGNED = frozenset(
    {
        "test_the_items_of_a_map_keep_their_order",
        "test_an_exception_keeps_its_type_and_shows_where_it_was_raised",
        "test_a_large_value_goes_out_and_comes_back",
        "test_heartbeats_keep_a_run_alive_that_holds_its_thread",
        "test_a_cancelled_run_is_ended",
    }
)
"""Tests of the published suite that a signature can influence."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test over each row, and one that no signature can influence not over a row's signed twin."""
    if "backend" in metafunc.fixturenames:
        test = metafunc.definition
        signature = test.get_closest_marker("signature") is not None or test.originalname in SIGNED
        rows = [row for row in contract_rows() if signature or not row.signed_twin]
        metafunc.parametrize("backend", parameters(rows), indirect=True, scope="module")


@pytest.fixture(scope="module")
def backend(request: pytest.FixtureRequest) -> Backend:
    return request.param


@pytest.fixture(scope="module")
def site(
    backend: Backend, servers: Servers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """The backend with its workers, once for all tests of the row."""
    with backend.open(servers, tmp_path_factory.mktemp("backend")) as site:
        yield site


@pytest.fixture
def there(
    backend: Backend, site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> Iterator[Configure]:
    """Configures the environment "there", with what is given to it in its ``executor_config``."""

    def configure(**more: Any) -> None:
        wove.config(environments={"there": backend.environment(site, **more)})

    with leak_check(tmp_path / "temporary", leaves=backend.leaves, caplog=caplog):
        configure()
        yield configure


there_is, there_will_be, begin = ways("there")


def ended(path: Path, told: Path) -> bool:
    """Whether the run that wrote its process's id to *path* has been told of its end, or is gone with its process."""
    return bool(lines(told)) or gone(int(lines(path)[-1]))


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


# ------------------------------------------------------------------------------- the published contract suite


@pytest.mark.timeout(120)
class TestContract(EnvironmentContract):
    items = MAPPED
    megabytes = volume(100, 20)
    # A killed process is one of the tests below, which also know what is said of it.
    outlives_workers = False

    @pytest.fixture
    def environment(self, there: Configure, backend: Backend, site: Site) -> Mapping[str, Any]:
        return backend.environment(site)


def test_the_note_of_a_failure_says_where_it_was(there: Configure) -> None:
    with pytest.raises(Unfair) as caught:
        there_is(fail, left=7)
    (note,) = caught.value.__notes__
    assert re.match(r"in task '\w+', environment 'there', host \S+, attempt 1, run \S+$", note)


# --------------------------------------------------------------------------------------------- round trips


def test_progress_logs_output_traces_and_context_variables_travel(
    there: Configure, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("INFO")
    reports: list[dict[str, Any]] = []
    stop = listen(lambda event, fields: reports.append(fields) if "done" in fields else None)
    token = REQUEST.set("request 7")
    try:
        with traced() as trace:
            value, (trace_id, parent) = there_is(speak, options={"remote_logs": True}, total=3)
    finally:
        REQUEST.reset(token)
        stop()

    assert value == "request 7"
    (run,) = [span for span in trace.spans if span.name == "run speak"]
    assert trace_id == f"{run.context.trace_id:032x}" and parent == f"{run.context.span_id:016x}"
    last = reports[-1]
    assert (last["done"], last["total"], last["note"]) == (3, 3, "part 3")
    (logged,) = [record for record in caplog.records if record.name == "app.speaking"]
    assert re.fullmatch(r"\[speak on \S+\] logged", logged.getMessage())
    assert re.search(r"\[speak on \S+\] printed", capsys.readouterr().out)


def test_two_weaves_at_once_in_two_threads_with_a_fixed_port(there: Configure) -> None:
    there(callback_port=free_port())
    seen: dict[int, list[int]] = {}

    def one(number: int) -> None:
        with weave() as w:
            w.do(range(number, number + EACH), environment="there")(add_one)
        seen[number] = w.result.add_one

    threads = [threading.Thread(target=one, args=(number,)) for number in (100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {number: list(range(number + 1, number + 1 + EACH)) for number in (100, 200)}


def test_a_loop_and_a_weave_inside_of_a_task(there: Configure) -> None:
    with weave(number=1) as w:
        w.do(environment="there")(loops_within)
        w.do(environment="there")(weaves_within)
    assert w.result.loops_within == 2
    assert w.result.weaves_within == [3, 4, 5]


# ----------------------------------------------------------------------------------------- what workers lack


def test_a_worker_without_the_users_module(
    there: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "users_own.py").write_text("def task():\n    return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    task = importlib.import_module("users_own").task
    try:
        with pytest.raises(SerializationError, match=r"task 'task': the module 'users_own'"):
            there_is(task)
    finally:
        del sys.modules["users_own"]
    assert there_is(add_one, item=1) == 2


def test_a_task_that_no_worker_knows(there: Configure, backend: Backend, site: Site) -> None:
    if site.unknown is None:
        pytest.skip("its workers know no tasks by name")
    there(**site.unknown)
    with pytest.raises(WorkerLostError, match=backend.unknown_words):
        there_is(add_one, item=1)
    there()
    assert there_is(add_one, item=1) == 2


# -------------------------------------------------------------------------------------------- signs of life


@pytest.mark.parametrize(
    "what", ["the process that runs it", "the worker with all of its processes"]
)
def test_a_killed_worker_ends_its_run(
    there: Configure, backend: Backend, site: Site, tmp_path: Path, what: str
) -> None:
    if what != "the process that runs it" and not site.workers:
        pytest.skip("each run has a process of its own")

    async def main() -> None:
        running = begin(block, path=str(tmp_path / "pids"), until=str(tmp_path / "until"))
        [number] = await eventually(lambda: lines(tmp_path / "pids"))
        await asyncio.sleep(TOLD)
        if what == "the process that runs it":
            os.kill(int(number), signal.SIGKILL)
            cause = backend.cause
        else:
            [worker] = [worker for worker in site.workers if int(number) in worker.processes()]
            worker.kill_all()
            cause = "."  # whoever would tell was killed, too
        with pytest.raises(WorkerLostError, match=f"task 'block'.*{cause}"):
            await running
        assert await there_will_be(add_one, item=1) == 2

    run(main)


@pytest.mark.parametrize("policy", ["fail", "detach"])
def test_the_orphan_policy_of_a_lost_run(there: Configure, tmp_path: Path, policy: str) -> None:
    with pytest.raises(WorkerLostError):
        there_is(
            die,
            path=str(tmp_path / "pids"),
            times=100,
            after=TOLD,
            options={"delivery_orphan_policy": policy},
        )
    assert there_is(add_one, item=1) == 2


@pytest.mark.signature
def test_a_lost_run_is_submitted_again(there: Configure, tmp_path: Path) -> None:
    """Also one whose worker dies before it has told that it began."""
    options = {"delivery_orphan_policy": "requeue"}
    assert there_is(die, path=str(tmp_path / "pids"), times=1, options=options) == "survived"
    assert len(lines(tmp_path / "pids")) == 2


# --------------------------------------------------------------------------------------------------- cancel


def test_a_run_that_is_cancelled_in_the_queue_never_starts(
    there: Configure, backend: Backend, tmp_path: Path
) -> None:
    if backend.slots is None:
        pytest.skip("nothing waits there")
    if not backend.cancels_queued:
        pytest.skip("it cannot: see tests/backends")
    slots, holding, until = backend.slots, tmp_path / "holding", tmp_path / "until"

    async def main() -> None:
        held = [begin(block, path=str(holding), until=str(until)) for _ in range(slots)]
        await eventually(lambda: len(lines(holding)) == slots)
        waiting = begin(count_up, path=str(tmp_path / "never"))
        await asyncio.sleep(0.5)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        # It is told in the background. There it may come to be last in a queue of commands.
        await asyncio.sleep(1.0)
        until.touch()
        assert await asyncio.gather(*held) == ["done"] * slots
        # What comes after it in the queue has had its turn.
        assert await asyncio.gather(
            *(there_will_be(add_one, item=n) for n in range(2 * slots))
        ) == [n + 1 for n in range(2 * slots)]
        assert not lines(tmp_path / "never")

    run(main)


def test_a_cancel_that_is_to_be_acknowledged(there: Configure, tmp_path: Path) -> None:
    options = {"delivery_timeout": 3.0, "delivery_cancel_mode": "require_ack"}
    values = {name: str(tmp_path / name) for name in ("path", "told")}
    with pytest.raises(DeliveryTimeoutError, match="delivery_timeout"):
        there_is(sleep_and_tell, **values, options=options)
    assert ended(tmp_path / "path", tmp_path / "told")
    assert there_is(add_one, item=1) == 2


@pytest.mark.parametrize("policy", ["cancel", "fail", "requeue", "detach"])
def test_the_orphan_policy_when_the_weave_stops(
    there: Configure, tmp_path: Path, policy: str
) -> None:
    there(
        callback_retry_seconds=1.0
    )  # a detached run reports when nobody listens any more, and holds its worker

    async def main() -> None:
        seconds = 1.5 if policy == "detach" else 50.0
        values = {
            "path": str(tmp_path / "path"),
            "told": str(tmp_path / "told"),
            "seconds": seconds,
        }
        running = begin(sleep_and_tell, **values, options={"delivery_orphan_policy": policy})
        await eventually(lambda: lines(tmp_path / "path"))
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await eventually(lambda: ended(tmp_path / "path", tmp_path / "told"))
        assert lines(tmp_path / "told") in (
            [["finished"]] if policy == "detach" else [["cancelled"], []]
        )
        assert len(lines(tmp_path / "path")) == 1

    run(main)


# ----------------------------------------------------------------------------------------------------- keys


def test_one_key_twice_is_one_run(there: Configure, tmp_path: Path) -> None:
    path = tmp_path / "path"
    options = {"delivery_idempotency_key": "count-{path}"}

    async def main() -> None:
        both = (
            there_will_be(count_up, path=str(path), seconds=0.5, options=options) for _ in range(2)
        )
        assert await asyncio.gather(*both) == [1, 1]
        assert await there_will_be(count_up, path=str(path), seconds=0.5, options=options) == 1
        assert await there_will_be(count_up, path=str(path), seconds=0.0) == 2

    run(main)


# ----------------------------------------------------------------------------------- the way back is broken


@contextlib.contextmanager
def proxied(there: Configure) -> Iterator[Proxy]:
    """Workers reach the receiver through a proxy."""
    port = free_port()
    with Proxy(port) as proxy:
        there(
            callback_port=port,
            callback_url=f"http://127.0.0.1:{proxy.port}/wove/events/{{token}}",
            callback_token="token-of-this-test",
        )
        yield proxy
        wove.shutdown()


@pytest.mark.signature
def test_a_receiver_that_is_down_while_results_arrive(
    there: Configure, backend: Backend, tmp_path: Path
) -> None:
    """Down before anything begins: neither starts nor results get through, for several tries.

    With "detach", as otherwise a run whose payload is older than a second is not begun where nobody can be asked.
    """
    number = backend.slots or 2
    with proxied(there) as proxy:

        async def main() -> None:
            assert await there_will_be(add_one, item=1) == 2
            await asyncio.sleep(
                TOLD
            )  # or its worker has not heard that, and holds its place in the queue
            proxy.down()
            running = [
                begin(
                    count_up,
                    path=str(tmp_path / "path"),
                    options={"delivery_orphan_policy": "detach"},
                )
                for _ in range(number)
            ]
            await eventually(lambda: len(lines(tmp_path / "path")) == number)
            await asyncio.sleep(volume(5.0, 2.0))
            proxy.up()
            assert max(await asyncio.gather(*running)) == number

        run(main)
    assert len(lines(tmp_path / "path")) == number


@pytest.mark.signature
def test_connections_that_break_while_runs_go_on(
    there: Configure, backend: Backend, tmp_path: Path
) -> None:
    """As when a proxy between worker and receiver is started again: its connections end, and new ones can be made."""
    number = backend.slots or 2
    with proxied(there) as proxy:

        async def main() -> None:
            running = [
                begin(block, path=str(tmp_path / "pids"), until=str(tmp_path / "until"))
                for _ in range(number)
            ]
            await eventually(lambda: len(lines(tmp_path / "pids")) == number)
            await asyncio.sleep(TOLD)
            proxy.down()
            await asyncio.sleep(0.2)
            proxy.up()
            await asyncio.sleep(2.0)
            (tmp_path / "until").touch()
            assert await asyncio.gather(*running) == ["done"] * number

        run(main)
    assert len(lines(tmp_path / "pids")) == number


# --------------------------------------------------------------------------------- events of somebody else's


class Evil:
    """Whoever unpickles it writes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.path, "w"))


def post(port: int, token: str, body: bytes) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(
            "POST", f"/wove/events/{token}", body, {"Content-Type": "application/json"}
        )
        return connection.getresponse().status
    finally:
        connection.close()


def replay(port: int, request: bytes) -> int:
    with socket.create_connection(("127.0.0.1", port), 20) as connection:
        connection.sendall(request)
        return int(connection.recv(65536).split()[1])


def first_request(sent: bytes) -> bytes | None:
    """The first request that is whole, as it was sent."""
    head, found, rest = bytes(sent).partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    if not found or length is None or len(rest) < int(length[1]):
        return None
    return head + found + rest[: int(length[1])]


@pytest.mark.signature
def test_forged_and_replayed_events(there: Configure, backend: Backend, tmp_path: Path) -> None:
    import cloudpickle

    token, written = "token-of-this-test", tmp_path / "written"
    pickled = base64.b64encode(cloudpickle.dumps(Evil(str(written)))).decode()
    refused = (401, 403)

    def forged(run_id: str) -> bytes:
        names = {"run_id": run_id, "task_id": "block"}
        return json.dumps({"type": "task_result", **names, "result_pickle": pickled}).encode()

    with proxied(there) as proxy:

        async def main() -> None:
            running = begin(block, path=str(tmp_path / "pids"), until=str(tmp_path / "until"))
            request = await eventually(
                lambda: next(filter(None, map(first_request, proxy.sent)), None)
            )
            found = re.search(rb'"run_id": *"([A-Za-z0-9_-]+)"', request)
            assert found is not None
            run_id = found[1].decode()
            port = proxy.target

            def attack() -> None:
                assert post(port, "token-of-another", forged(run_id)) == 404
                assert replay(port, request.replace(token.encode(), b"token-of-anothr")) == 404
                if backend.secret is None:
                    assert post(port, token, forged("of-nobody")) == 410
                    assert post(port, token, b"{") == 400
                    assert replay(port, request) == 204
                else:
                    assert post(port, token, forged("of-nobody")) in refused
                    assert post(port, token, forged(run_id)) in refused
                    assert post(port, token, b"{") in refused
                    assert replay(port, request) in refused
                    assert (
                        replay(port, request.replace(b"task_started", b"task_started"[::-1]))
                        in refused
                    )

            await asyncio.to_thread(attack)
            (tmp_path / "until").touch()
            assert await running == "done"
            assert await asyncio.to_thread(replay, port, request) in (204, 410, *refused)

        run(main)
    assert not written.exists()
    assert len(lines(tmp_path / "pids")) == 1


@pytest.mark.signature
def test_workers_take_work_again_after_failures_and_deaths(
    there: Configure, tmp_path: Path
) -> None:
    with pytest.raises(Unfair):
        there_is(fail, left=7)
    with pytest.raises(WorkerLostError):
        there_is(die, path=str(tmp_path / "pids"), times=100, after=TOLD)
    with weave() as w:
        w.do(range(4), environment="there")(add_one)
    assert w.result.add_one == [1, 2, 3, 4]
