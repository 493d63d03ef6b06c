"""The servers of the backends: each does what it is there for, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.servers import aws_batch, dask, rabbitmq, ray, redis, slurm, temporal
from tests.support.servers._ready import answers


def wait_for(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "this did not come about"
        time.sleep(0.02)
    return value


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Of the server's own. What was started with it in its environment or on its command line must have ended."""
    folder = tmp_path / "server-of-this-test"
    yield folder
    wait_for(lambda: not list(_using(folder)), 10)


def _using(folder: Path) -> Iterator[str]:
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (
                entry.name != str(os.getpid())
                and (entry / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
            ):
                for name in ("cmdline", "environ"):
                    if os.fsencode(folder) in (entry / name).read_bytes():
                        yield f"{entry.name} {(entry / 'cmdline').read_text()}"
        except OSError:
            continue


@pytest.mark.backend("redis")
def test_redis(folder: Path, no_leaks: None) -> None:
    with redis.running(folder) as server:
        assert server.url == f"redis://127.0.0.1:{server.port}/0"
        assert answers(server.port, b"SET a 1\r\nGET a\r\n", b"+OK\r\n$1\r\n1\r\n")
    assert not answers(server.port, b"PING\r\n", b"+PONG")


@pytest.mark.backend("rabbitmq")
def test_rabbitmq(folder: Path, no_leaks: None) -> None:
    kombu = pytest.importorskip("kombu")
    with rabbitmq.running(folder) as server:
        with kombu.Connection(server.url) as connection:
            queue = connection.SimpleQueue("queue")
            queue.put("text")
            assert queue.get(timeout=10).payload == "text"
            queue.close()


@pytest.mark.backend("temporal")
def test_temporal(folder: Path) -> None:
    import asyncio

    from temporalio.client import Client

    async def look(address: str) -> bool:
        return await (await Client.connect(address)).service_client.check_health()

    with temporal.running(folder) as server:
        assert asyncio.run(look(server.address))


@pytest.mark.backend("slurm")
def test_slurm(folder: Path, no_leaks: None) -> None:
    with slurm.running(folder) as cluster:
        done = cluster.run(
            "sbatch", "--parsable", "--wait", "-o", str(folder / "out"), "--wrap", "echo said"
        )
        assert done.strip().isdigit()
        assert (folder / "out").read_text() == "said\n"
        batch = ("sbatch", "--parsable", "--no-requeue", "-o", str(folder / "more"), "--wrap")
        stays = cluster.run(*batch, "sleep 300").strip()
        assert cluster.jobs() == [stays]
        wait_for(lambda: cluster.run("squeue", "-h", "-o", "%T").strip() == "RUNNING")
        cluster.lose_the_node()
        wait_for(
            lambda: "JobState=NODE_FAIL" in cluster.run("scontrol", "-o", "show", "job", stays)
        )
        cluster.run(*batch, "sleep 300; true")


@pytest.mark.backend("dask")
def test_dask(folder: Path) -> None:
    code = "import sys\nfrom distributed import Client\n"
    code += "with Client(sys.argv[1]) as c: print(c.submit(pow, 2, 5).result())"
    with dask.running(folder) as cluster:
        out = subprocess.run(
            [sys.executable, "-c", code, cluster.address],
            capture_output=True,
            text=True,
            timeout=50,
        )
    assert out.stdout == "32\n", out.stderr


@pytest.mark.backend("ray")
def test_ray(folder: Path) -> None:
    code = (
        "import sys, ray\nray.init(address=sys.argv[1], log_to_driver=False)\n"
        "print(ray.get(ray.remote(lambda a, b: a**b).remote(2, 5)), ray.util.get_node_ip_address())"
    )
    before = {name: os.environ.get(name) for name in ray.ENVIRON}  # the session's may run
    with ray.running(folder) as cluster:
        out = subprocess.run(
            [sys.executable, "-c", code, cluster.address],
            capture_output=True,
            text=True,
            timeout=50,
        )
    assert out.stdout == "32 127.0.0.1\n", out.stderr
    assert {name: os.environ.get(name) for name in ray.ENVIRON} == before


@pytest.mark.backend("aws_batch")
def test_aws_batch(folder: Path) -> None:
    with aws_batch.running(folder) as server:
        client, queue = server.client(), server.queue("main")
        script = "import os, sys; print(sorted(os.environ)); sys.exit(int(os.environ['STATUS']))"
        runs = server.definition("runs", ["python", "-c", script])
        sleeps = server.definition("sleeps", ["sleep", "300"])
        nowhere = server.definition("nowhere", ["true"], image="nowhere:latest")

        def submit(definition: str, **environment: str) -> str:
            given = [{"name": name, "value": value} for name, value in environment.items()]
            overrides = {"environment": given}
            job = client.submit_job(
                jobName="job",
                jobQueue=queue,
                jobDefinition=definition,
                containerOverrides=overrides,
            )
            return job["jobId"]

        def state(job: str) -> dict[str, Any]:
            [found] = client.describe_jobs(jobs=[job])["jobs"]
            return found

        def ended(job: str) -> dict[str, Any]:
            return wait_for(
                lambda: (found := state(job))["status"] in ("SUCCEEDED", "FAILED") and found
            )

        good, bad, unknown = submit(runs, STATUS="0"), submit(runs, STATUS="7"), submit(nowhere)
        assert ended(good)["status"] == "SUCCEEDED"
        failed = ended(bad)
        assert (failed["status"], failed["container"]["exitCode"]) == ("FAILED", 7)
        assert "CannotPullContainerError" in ended(unknown)["statusReason"]
        jobs = [submit(sleeps) for _ in range(3)]
        wait_for(lambda: [state(job)["status"] for job in jobs].count("RUNNING") == 2)
        [waiting] = [job for job in jobs if state(job)["status"] == "RUNNABLE"]
        client.terminate_job(jobId=waiting, reason="not needed")
        assert ended(waiting)["statusReason"] == "not needed"
