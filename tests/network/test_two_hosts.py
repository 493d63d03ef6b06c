"""Weaves on one host, services on another: two network namespaces with a cable between them."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree as ET

import pytest
from tests.support.certificates import Certificates
from tests.support.kept import ROOT
from tests.support.namespaces import TwoHosts, two_hosts
from tests.support.scripts import Finished, run_script
from tests.support.services import Plan, Service, running

pytestmark = pytest.mark.backend("netns", "tls", "http", "grpc", "websocket")

Transport = Literal["http", "grpc", "websocket"]
TRANSPORTS: tuple[Transport, ...] = ("http", "grpc", "websocket")

SECRET = "known on both hosts"

CUT_SECONDS = 60.0
"""Within this a run ends whose service can no longer be reached. It takes 30 s of silence over http, and 40 over the
others; and the machine may be busy."""


@pytest.fixture(scope="module")
def hosts() -> Iterator[TwoHosts]:
    with two_hosts() as found:
        yield found


@pytest.fixture(scope="module")
def far(
    hosts: TwoHosts, certificates: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[tuple[Transport, str], Service]]:
    """Services on the far host: of each transport one that is safe, and one that is open to everybody."""
    folder = tmp_path_factory.mktemp("far")
    plans = {}
    for transport in TRANSPORTS:
        safe = Plan(transport, SECRET, tls=True, host=hosts.address, inside=hosts.inside(hosts.far))
        plans[transport, "safe"] = safe
        plans[transport, "open"] = replace(
            safe, secret=None, tls=False, options=("--insecure", "--unauthenticated")
        )
    with ExitStack() as stack:
        yield {
            key: stack.enter_context(running(plan, folder / "-".join(key), certificates))
            for key, plan in plans.items()
        }


def near(
    hosts: TwoHosts, folder: Path, transport: Transport, config: dict[str, Any], script: str
) -> Any:
    """What *script* prints (JSON) on the near host, where the environment "far" is configured."""
    folder.mkdir(exist_ok=True)
    found: Finished = run_script(
        PREPARE + script,
        transport,
        json.dumps(config),
        cwd=folder,
        timeout=CUT_SECONDS + 40,
        env={"PYTHONPATH": str(ROOT)},
        inside=hosts.inside(hosts.near),
    )
    assert not found.complaints
    return json.loads(found.stdout)


PREPARE = """
import json, os, sys, time
from pathlib import Path
import wove
from wove import WorkerLostError, weave

transport, config = sys.argv[1], json.loads(sys.argv[2])

def use(**config):
    # No word about a run that waits: what was cut off is still at work in the service.
    quiet = {"delivery_notice_seconds": None}
    wove.config(environments={"far": {"executor": transport, "executor_config": config, **quiet}})

def where():
    return os.getpid(), os.readlink("/proc/self/ns/net")

def run(task, **options):
    with weave() as w:
        w.do(environment="far", **options)(task)
    return w.result.final

use(**config)
"""

WORKS = """
print(json.dumps([run(where), where()]))
"""

REFUSED = """
refusals = {}
for lacks in ["security"], ["tls"], ["security", "tls"]:
    changed = {key: value for key, value in config.items() if key not in lacks}
    if "tls" in lacks:
        changed.pop("root_certificates")
        if "url" in changed:
            changed["url"] = changed["url"].replace("https:", "http:").replace("wss:", "ws:")
        else:
            changed["secure"] = False
    use(**changed)
    try:
        run(where)
    except ValueError as error:
        refusals["+".join(lacks)] = str(error)
print(json.dumps(refusals))
"""


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> Transport:
    return request.param


def test_a_task_runs_on_another_host(
    hosts: TwoHosts, far: dict[tuple[Transport, str], Service], transport: Transport, tmp_path: Path
) -> None:
    service = far[transport, "safe"]
    (there, its_network), (here, our_network) = near(
        hosts, tmp_path, transport, service.config(), WORKS
    )
    assert there == service.pid
    assert there != here
    assert its_network != our_network
    assert f"from {hosts.address.rpartition('.')[0]}.2" in service.log()  # it came over the cable


def test_an_exposed_way_is_refused_before_anything_is_sent(
    hosts: TwoHosts, far: dict[tuple[Transport, str], Service], transport: Transport, tmp_path: Path
) -> None:
    service = far[transport, "open"]
    refusals = near(
        hosts,
        tmp_path,
        transport,
        {**far[transport, "safe"].config(), **_address(service)},
        REFUSED,
    )
    assert refusals.keys() == {"security", "tls", "security+tls"}
    for lacks, message in refusals.items():
        assert hosts.address in message
        assert "insecure" in message
        assert ("security" in lacks) == (
            "no security" in message.lower() or "'security'" in message
        ), message
        assert "tls" not in lacks or "TLS" in message or "https" in message or "secure" in message
    assert " task '" not in service.log()  # each run has a line that names its task


def _address(service: Service) -> dict[str, Any]:
    """Of the open service, as if it were a safe one."""
    safe = replace(service, plan=replace(service.plan, tls=True))
    return {key: value for key, value in safe.config().items() if key in ("url", "target")}


def test_insecure_says_that_one_knows(
    hosts: TwoHosts, far: dict[tuple[Transport, str], Service], transport: Transport, tmp_path: Path
) -> None:
    service = far[transport, "open"]
    (there, its_network), (_, our_network) = near(
        hosts, tmp_path, transport, service.config(insecure=True), WORKS
    )
    assert there == service.pid
    assert its_network != our_network


CONTRACT = """
import os, sys, pytest

folder = os.getcwd()
os.chdir(sys.argv[1])
sys.exit(pytest.main([
    "tests/contract", "-k", " or ".join(sys.argv[2:]), "-p", "no:cacheprovider", f"--basetemp={folder}/base",
    f"--junitxml={folder}/report.xml", "-q",
]))
"""


@pytest.mark.timeout(420)
def test_the_contract_holds_between_two_hosts(hosts: TwoHosts, tmp_path: Path) -> None:
    """The whole suite, with its weaves on one host and its services on the other."""
    from tests.contract import links

    safe = [link.name for link in links.LINKS if "tls" in link.backends]
    assert len(safe) == len(TRANSPORTS)
    run_script(
        CONTRACT,
        str(ROOT),
        *safe,
        cwd=tmp_path,
        timeout=400,
        flags=(),
        env={"WOVE_TEST_FAR": hosts.far, "PYTEST_ADDOPTS": None, "PYTEST_XDIST_WORKER": None},
        inside=hosts.inside(hosts.near),
    )
    ran = Counter[str]()
    for case in ET.parse(tmp_path / "report.xml").iter("testcase"):
        assert case.find("failure") is None and case.find("error") is None
        if case.find("skipped") is None:
            ran.update(name for name in safe if name in case.get("name", ""))
    print(dict(ran))
    assert all(ran[name] > 50 for name in safe), ran


CUT = """
def slow(path, seconds):
    Path(path).touch()
    time.sleep(seconds)
    return "done"

assert run(lambda: "before") == "before"
began = time.monotonic()
try:
    with weave(path=os.path.abspath("started")) as w:
        @w.do(environment="far", delivery_reconnect_seconds=1)
        def slow_task(path):
            return slow(path, 90)
    outcome = "returned"
except WorkerLostError as error:
    outcome = str(error)
seconds = time.monotonic() - began
Path("ended").touch()
while not Path("mended").exists():
    time.sleep(0.01)
print(json.dumps([outcome, seconds, run(lambda: "after", retries=5, retry_delay=1.0)]))
"""


@pytest.mark.timeout(200)
def test_a_cut_ends_the_run_and_the_next_one_works(
    certificates: Certificates, tmp_path: Path
) -> None:
    """The cable is pulled, or a firewall begins to drop or to reject, in the middle of a task: nobody is told."""
    cases: list[tuple[Transport, str]] = [
        (name, how) for name in TRANSPORTS for how in ("cable", "DROP", "REJECT")
    ]

    def one(case: tuple[Transport, str]) -> list[Any]:
        with two_hosts() as hosts:
            return cut(hosts, *case, certificates, tmp_path / "-".join(case))

    with ThreadPoolExecutor(len(cases)) as pool:
        results = dict(zip(cases, pool.map(one, cases), strict=True))
    for case, (outcome, seconds, _) in results.items():
        print(f"{' '.join(case)}: {seconds:.1f} s: {outcome}")
    for case, (outcome, seconds, after) in results.items():
        assert "task 'slow_task'" in outcome, (case, outcome)
        assert seconds < CUT_SECONDS, (case, seconds, outcome)
        assert after == "after", case


def cut(
    hosts: TwoHosts, transport: Transport, how: str, certificates: Certificates, folder: Path
) -> list[Any]:
    """Run `CUT` on the near host, and cut the two apart as soon as its task runs."""
    plan = Plan(
        transport,
        SECRET,
        tls=True,
        host=hosts.address,
        inside=hosts.inside(hosts.far),
        options=("--drain-timeout", "0"),  # what was cut off still sleeps
    )
    with running(plan, folder / "service", certificates) as service:
        found: list[Any] = []
        weaving = threading.Thread(
            target=lambda: found.append(near(hosts, folder, transport, service.config(), CUT)),
            daemon=True,
        )
        weaving.start()
        waiting(folder / "started", weaving)
        if how == "cable":
            hosts.pull_the_cable()
        else:
            hosts.filter(how, service.port)
        waiting(folder / "ended", weaving)
        hosts.plug_it_in() if how == "cable" else hosts.unfilter()
        (folder / "mended").touch()
        weaving.join()
        return list(found[0])


def waiting(path: Path, thread: threading.Thread) -> None:
    """Until the file is there; the script has its own time limit."""
    while not path.exists():
        thread.join(0.01)
        assert thread.is_alive(), "the script ended before"
