"""Weaves on Dask with real clusters: what is special to it. What all backends have in common is in tests/contract."""

from __future__ import annotations

import asyncio
import operator
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import wove
from tests.contract.backend_tasks import add_one, block, count_up, die, sleep_and_tell
from tests.contract.test_contract import eventually, lines
from tests.support.elsewhere import ways
from tests.support.kept import free_port
from tests.support.leaks import leak_check
from tests.support.scripts import Finished
from tests.support.servers import Servers, dask as support
from wove import DeliveryTimeoutError, WorkerLostError, weave
from wove.errors import DeliveryError
from wove.integrations.naming import job_id

pytestmark = pytest.mark.backend("dask")

Configure = Callable[..., None]


@pytest.fixture
def address(servers: Servers) -> str:
    """Of a cluster of two workers, each with one thread."""
    return servers.dask.address


@pytest.fixture
def own(tmp_path: Path) -> Iterator[support.Dask]:
    """A cluster of one worker with one thread, for one test."""
    with support.running(tmp_path / "own", workers=1) as cluster:
        yield cluster


@pytest.fixture
def configure(
    request: pytest.FixtureRequest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> Iterator[Configure]:
    """Configures the environment "cluster"."""
    import distributed  # noqa: F401  # the threads that it starts are not ours

    for cluster in {"address", "own"} & set(request.fixturenames):
        request.getfixturevalue(cluster)  # before the check, as it stays

    def configure(**config: Any) -> None:
        wove.config(environments={"cluster": {"executor": "dask", "executor_config": config}})

    with leak_check(tmp_path / "temporary", caplog=caplog):
        yield configure


there_is, there_will_be, begin = ways("cluster")


def where() -> str:
    from distributed import Worker

    return str(next(iter(Worker._instances)).name)


async def until_task(cluster: support.Dask, name: str) -> None:
    """Wait until the scheduler has a task of Wove's of that *name*."""
    import distributed

    def keys(dask_scheduler: Any) -> list[str]:
        return list(dask_scheduler.tasks)

    async with distributed.Client(
        cluster.address, asynchronous=True, set_as_default=False
    ) as client:
        deadline = time.monotonic() + 20
        while not any(
            key.startswith(f"{name}-wove-") for key in await client.run_on_scheduler(keys)
        ):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)


# -------------------------------------------------------------------------------------------------- clients


def test_a_client_is_used_and_left_as_it_was(configure: Configure, address: str) -> None:
    import distributed

    with distributed.Client(address) as client:
        configure(client=client)
        with weave() as w:
            w.do(range(50), environment="cluster")(add_one)
        assert w.result.add_one == list(range(1, 51))
        wove.shutdown()
        assert client.submit(operator.neg, 1).result() == -1
        deadline = time.monotonic() + 10
        while left := [key for key in client.futures if "wove" in key]:
            assert time.monotonic() < deadline, left
            time.sleep(0.01)


def test_nothing_of_a_run_stays_in_the_cluster(configure: Configure, address: str) -> None:
    import distributed

    def keys(dask_scheduler: Any) -> list[str]:
        return [key for key in dask_scheduler.tasks if "wove" in key]

    with distributed.Client(address) as client:
        configure(address=address)
        with weave() as w:
            w.do(range(20), environment="cluster")(add_one)
        deadline = time.monotonic() + 10
        while left := client.run_on_scheduler(keys):
            assert time.monotonic() < deadline, left
            time.sleep(0.01)


def test_an_asynchronous_client_on_the_loop_of_the_weave(
    configure: Configure, address: str
) -> None:
    import distributed

    async def main() -> None:
        async with distributed.Client(address, asynchronous=True) as client:
            configure(client=client)
            assert await asyncio.gather(
                *(there_will_be(add_one, item=n) for n in range(10))
            ) == list(range(1, 11))
            running = begin(add_one, item=1)
            assert await client.submit(operator.neg, 5) == -5
            assert await running == 2

    asyncio.run(main())


def test_an_asynchronous_client_that_nobody_has_awaited_yet(
    configure: Configure, address: str
) -> None:
    import distributed

    async def main() -> None:
        client = distributed.Client(address, asynchronous=True)
        configure(client=client)
        assert await there_will_be(add_one, item=1) == 2
        await client.close()
        with pytest.raises(DeliveryError, match="'client' is closed"):
            await there_will_be(add_one, item=1)

    asyncio.run(main())


def test_an_asynchronous_client_whose_loop_is_gone(configure: Configure, address: str) -> None:
    import distributed

    async def make() -> Any:
        return await distributed.Client(address, asynchronous=True)

    loop = asyncio.new_event_loop()
    client = loop.run_until_complete(make())
    configure(client=client)
    with pytest.raises(
        DeliveryError, match="its client belongs to an event loop that is not running"
    ):
        there_is(add_one, item=1)
    loop.run_until_complete(client.close())
    loop.close()


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Any]:
    """The client of a cluster in this process."""
    import distributed

    size = {"n_workers": 1, "threads_per_worker": 2, "processes": False}
    places = {"dashboard_address": "127.0.0.1:0", "local_directory": str(tmp_path)}
    with (
        distributed.LocalCluster(**size, **places) as cluster,
        distributed.Client(cluster) as client,
    ):
        assert client.gather(client.map(operator.neg, range(4))) == [
            0,
            -1,
            -2,
            -3,
        ]  # it has all of its threads
        time.sleep(0.1)
        assert client.gather(client.map(time.sleep, [0.2, 0.21])) == [None, None]
        yield client


def test_a_local_cluster(local: Any, configure: Configure) -> None:
    configure(client=local)
    with weave() as w:
        w.do(range(5), environment="cluster")(add_one)
    assert w.result.add_one == [1, 2, 3, 4, 5]


def test_the_address_in_the_configuration_of_dask(configure: Configure, address: str) -> None:
    import dask

    configure()
    with pytest.raises(ValueError, match="needs 'client' or 'address'"):
        there_is(add_one, item=1)
    with dask.config.set({"scheduler-address": address}):
        assert there_is(add_one, item=1) == 2


def test_no_scheduler(configure: Configure) -> None:
    configure(address=f"tcp://127.0.0.1:{free_port()}", client_options={"timeout": 0.5})
    with pytest.raises(
        DeliveryError, match=r"the Dask scheduler at tcp://127\.0\.0\.1:\d+ could not be reached"
    ):
        there_is(add_one, item=1)


def test_a_scheduler_that_says_nothing(configure: Configure) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        configure(
            address=f"tcp://127.0.0.1:{silent.getsockname()[1]}", client_options={"timeout": 0.5}
        )
        with pytest.raises(DeliveryError, match="could not be reached"):
            there_is(add_one, item=1)


# -------------------------------------------------------------------------------------------------- options


def test_options_of_submit(configure: Configure, servers: Servers) -> None:
    with servers.dask.worker("with-a-gpu", "--resources", "GPU=1", "--nthreads", "1"):
        for options in ({"resources": {"GPU": 1}}, {"workers": "with-a-gpu", "priority": 3}):
            configure(address=servers.dask.address, submit_options=options)
            with weave() as w:
                w.do(range(4), environment="cluster")(lambda item, where=where: where())
            assert set(w.result.final) == {"with-a-gpu"}
            wove.shutdown()


def test_resources_of_tasks(address: str, configure: Configure, servers: Servers) -> None:
    with servers.dask.worker("with-two-gpus", "--resources", "GPU=2", "--nthreads", "1"):
        configure(address=address)
        with weave() as w:
            asked = w.do(range(4), environment="cluster", resources={"gpus": 1})
            asked(lambda item, where=where: where())
        assert set(w.result.final) == {"with-two-gpus"}


def test_a_worker_with_another_secret(configure: Configure, tmp_path: Path) -> None:
    with support.running(
        tmp_path / "cluster", workers=1, environ={"WOVE_WORKER_SECRET": "another"}
    ) as cluster:
        configure(
            address=cluster.address, security={"type": "signed", "secret": "one secret for us"}
        )
        with pytest.raises(WorkerLostError, match="PermissionError"):
            there_is(add_one, item=1)
        wove.shutdown()


# --------------------------------------------------------------------------------------------------- deaths


def test_a_worker_that_dies_with_its_run(
    configure: Configure, address: str, tmp_path: Path
) -> None:
    configure(address=address)
    with pytest.raises(
        WorkerLostError, match="KilledWorker: .*all those workers died while running it"
    ):
        there_is(die, path=str(tmp_path / "path"), times=100)
    assert there_is(add_one, item=1) == 2


@pytest.mark.timeout(150)
def test_the_scheduler_is_lost(configure: Configure, tmp_path: Path) -> None:
    port = free_port()

    async def main() -> None:
        with support.running(tmp_path / "one", port=port, workers=1) as cluster:
            configure(address=cluster.address)
            values = {"path": str(tmp_path / "path"), "until": str(tmp_path / "until")}
            running = [begin(block, **values) for _ in range(3)]
            await eventually(lambda: lines(tmp_path / "path"))
            cluster.scheduler.kill()
            for each in running:  # one that runs, and two that wait
                with pytest.raises(WorkerLostError, match="lost the connection to the scheduler"):
                    await each
        with support.running(tmp_path / "two", port=port, workers=1):
            assert await there_will_be(add_one, item=1) == 2
            await asyncio.to_thread(wove.shutdown)

    asyncio.run(main())


# ---------------------------------------------------------------------------------------- cancels and keys


def test_a_cancel_of_what_waits_is_certain(
    configure: Configure, own: support.Dask, tmp_path: Path
) -> None:
    configure(address=own.address, cancel_ack_timeout=30)

    async def main() -> None:
        held = begin(block, path=str(tmp_path / "holding"), until=str(tmp_path / "until"))
        await eventually(lambda: lines(tmp_path / "holding"))
        options = {"delivery_timeout": 0.5, "delivery_cancel_mode": "require_ack"}
        began = time.monotonic()
        with pytest.raises(DeliveryTimeoutError):
            await there_will_be(count_up, path=str(tmp_path / "never"), options=options)
        assert time.monotonic() - began < 25  # it was not waited for
        (tmp_path / "until").touch()
        assert await held == "done"
        assert await there_will_be(add_one, item=1) == 2
        assert not lines(tmp_path / "never")

    asyncio.run(main())


def test_a_detached_run_that_waits_is_run_all_the_same(
    configure: Configure, own: support.Dask, tmp_path: Path
) -> None:
    configure(address=own.address, callback_retry_seconds=1.0)

    async def main() -> None:
        held = begin(block, path=str(tmp_path / "holding"), until=str(tmp_path / "until"))
        await eventually(lambda: lines(tmp_path / "holding"))
        values = {"path": str(tmp_path / "path"), "told": str(tmp_path / "told"), "seconds": 0.1}
        waiting = begin(sleep_and_tell, **values, options={"delivery_orphan_policy": "detach"})
        await until_task(own, "sleep_and_tell")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        (tmp_path / "until").touch()
        assert await held == "done"
        await eventually(lambda: lines(tmp_path / "told") == ["finished"])

    asyncio.run(main())


def test_a_key_that_is_at_work_for_another_process(
    configure: Configure, address: str, tmp_path: Path
) -> None:
    import distributed

    configure(address=address)
    until = tmp_path / "until"
    frame = {"run_id": "x", "task_id": "add_one", "delivery": {"delivery_idempotency_key": "seven"}}
    options = {"delivery_idempotency_key": "seven"}
    with distributed.Client(address) as client:
        key = job_id(frame, prefix="add_one-wove-", most=200)
        hold = f"touch {tmp_path}/begun; while ! test -e {until}; do sleep 0.05; done"
        theirs = client.submit(os.system, hold, key=key)
        deadline = time.monotonic() + 20
        while not (tmp_path / "begun").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(
            DeliveryError, match="is already a task of Dask .*submitted by another process"
        ):
            there_is(add_one, item=7, options=options)
        until.touch()
        assert theirs.result() == 0
        # It is over, and still held there. What is asked for now is another run.
        assert there_is(add_one, item=7, options=options) == 8


# ---------------------------------------------------------------------------------------------------- forks


def test_a_forked_child_makes_a_client_of_its_own(
    servers: Servers, script: Callable[..., Finished], address: str
) -> None:
    source = f"""
        import os, sys
        import wove
        from wove import weave

        wove.config(environments={{"cluster": {{"executor": "dask", "executor_config": {{"address": "{address}"}}}}}})

        def one():
            with weave() as w:
                @w.do(environment="cluster")
                def pid():
                    import os
                    return os.getpid()
            return w.result.final

        assert one() != os.getpid()
        child = os.fork()
        if child == 0:
            import gc
            gc.collect()
            assert one() != os.getpid()
            wove.shutdown()
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        one()
    """
    assert script(source, timeout=50).complaints == []
