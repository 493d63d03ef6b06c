"""The live page: what it shows, whom it refuses, and when it ends."""

from __future__ import annotations

import http.client
import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import wove
from wove import weave
from wove.observe import dashboard as module
from wove.observe.dashboard import Dashboard
from wove.observe.dashboard.address import Address
from wove.observe.dashboard.server import MAX_REQUESTS
from wove.observe.dashboard.weaves import MAX_ENDED, MAX_FAILURES

PATIENCE = 20.0


@pytest.fixture
def page() -> Iterator[Dashboard]:
    page = wove.dashboard(":0")
    yield page
    page.close()


def get(page: Dashboard, path: str, **headers: str) -> tuple[int, str]:
    port = int(page.url.rsplit(":", 1)[1].strip("/"))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def state(page: Dashboard, path: str = "/weaves") -> Any:
    status, text = get(page, path)
    assert status == 200
    return json.loads(text)


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)
    return found


# ---------------------------------------------------------------------- what it shows


def test_a_weave_is_shown_while_it_runs_and_afterwards(page: Dashboard) -> None:
    begun, go_on = threading.Event(), threading.Event()
    with weave(background=True, error_mode="return") as w:

        @w.do([1, 2, 3], workers=1)
        def each(item: int) -> int:
            if item == 2:
                begun.set()
                assert go_on.wait(PATIENCE)
            return item

        @w.do
        def bad(each: list[int]) -> None:
            raise ValueError("no luck")

    try:
        assert begun.wait(PATIENCE)
        (summary,) = state(page)
        assert (summary["title"], summary["state"], summary["done"], summary["tasks"]) == (
            "Weave of each, bad", "running", 0, 2,
        )  # fmt: skip
        rows = state(page, "/weaves/1")["rows"]
        assert [(row["state"], row["items"], row["total"]) for row in rows] == [
            ("running", 1, 3),
            ("waiting", 0, None),
        ]
        assert "running · 1 of 3" in get(page, "/weaves/1/graph.svg")[1]
        assert len(get(page, "/weaves/1/data")[1]) > 50
    finally:
        go_on.set()
    assert w.wait(PATIENCE)

    until(lambda: state(page)[0]["state"] == "failed")
    details = state(page, "/weaves/1")
    (failure,) = details["failures"]
    assert (failure["where"], failure["kind"]) == ("bad", "ValueError")
    assert 'raise ValueError("no luck")' in failure["text"]
    assert "<script" in get(page, "/weaves/1/timeline")[1]


def test_its_workers_are_shown(page: Dashboard) -> None:
    wove.config(environments={"pool": {"executor": "stdio", "executor_config": {"processes": 1}}})
    begun, go_on = threading.Event(), threading.Event()
    with weave(background=True, error_mode="continue") as w:

        @w.do([1, 2, 3], workers=1)
        def each(item: int) -> int:
            if item == 2:
                raise ValueError(item)
            if item == 3:
                begun.set()
                assert go_on.wait(PATIENCE)
            return item

        @w.do(range(4))
        async def later(item: int) -> int:
            return item

        @w.do([1, 2], environment="pool")
        def there(item: int) -> int:
            return item

    def workers() -> dict[tuple[str, str], tuple[int, int, int]]:
        return {
            (worker["environment"], worker["name"].split()[0]): (
                worker["running"],
                worker["done"],
                worker["failed"],
            )
            for worker in state(page, "/weaves/1")["workers"]
        }

    host = os.uname().nodename
    expected = {("default", "event"): (0, 4, 0), ("pool", host): (0, 2, 0)}
    try:
        assert begun.wait(PATIENCE)
        until(lambda: workers() == {("default", "thread"): (1, 1, 1), **expected})
    finally:
        go_on.set()
    assert w.wait(PATIENCE)
    until(lambda: state(page)[0]["state"] != "running")
    assert workers() == {("default", "thread"): (0, 2, 1), **expected}
    details = state(page, "/weaves/1")
    assert details["worker_count"] == 3
    assert all(worker["busy"] > 0 for worker in details["workers"])


def test_a_remote_run_has_a_worker_while_it_runs(page: Dashboard, tmp_path: Path) -> None:
    wove.config(environments={"pool": {"executor": "stdio", "executor_config": {"processes": 1}}})
    go_on = tmp_path / "go on"
    with weave(background=True, path=str(go_on)) as w:

        @w.do(environment="pool")
        def waiting(path: str) -> None:
            import os
            import time

            deadline = time.monotonic() + 60
            while not os.path.exists(path) and time.monotonic() < deadline:
                time.sleep(0.005)

    def running() -> list[str]:
        found = state(page, "/weaves/1")["workers"]
        return [worker["name"] for worker in found if worker["running"]]

    try:
        until(lambda: get(page, "/weaves/1")[0] == 200)  # it begins in the background
        until(lambda: [name for name in running() if re.fullmatch(r"\S+ pid \d+", name)])
    finally:
        go_on.touch()
    assert w.wait(PATIENCE)


def test_of_a_weave_that_has_ended_the_page_keeps_the_picture_and_not_the_values(
    page: Dashboard,
) -> None:
    import gc
    import weakref

    class Large:
        pass

    values: list[weakref.ref[Large]] = []
    with weave() as w:

        @w.do
        def large() -> Large:
            value = Large()
            values.append(weakref.ref(value))
            return value

    del w

    def gone() -> bool:
        gc.collect()
        return values[0]() is None

    until(gone)
    assert state(page, "/weaves/1")["rows"][0]["state"] == "done"


def test_what_it_keeps_is_bounded(page: Dashboard) -> None:
    for _ in range(MAX_ENDED + 3):
        with weave() as w:

            @w.do
            def one() -> int:
                return 1

    assert [one["number"] for one in state(page)] == list(range(MAX_ENDED + 3, 3, -1))
    with weave(error_mode="continue") as w:

        @w.do(range(MAX_FAILURES + 10))
        def bad(item: int) -> None:
            raise ValueError(item)

    details = state(page, f"/weaves/{MAX_ENDED + 4}")
    assert (details["failed"], len(details["failures"])) == (MAX_FAILURES + 10, MAX_FAILURES)


def test_no_value_no_argument_and_no_setting_is_shown(page: Dashboard) -> None:
    with weave(password="hunter2-initial") as w:

        @w.do
        def login(password: str) -> str:
            return "hunter2-result"

    for path in ("/", "/weaves", "/weaves/1", "/weaves/1/graph.svg", "/weaves/1/timeline"):
        assert "hunter2" not in get(page, path)[1]
    assert w.result.login == "hunter2-result"


def test_what_is_not_there_is_404_and_nothing_can_be_changed(page: Dashboard) -> None:
    for path in ("/x", "/weaves/1", "/weaves/x", "/weaves/1/../.."):
        assert get(page, path)[0] == 404
    connection = http.client.HTTPConnection(page.url.split("/")[2], timeout=PATIENCE)
    connection.request("POST", "/weaves", b"{}")
    assert connection.getresponse().status == 501
    connection.close()


def test_a_weave_that_cannot_be_kept_does_not_end_the_page(
    page: Dashboard, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        title = "broken"

        def rows(self) -> list[Any]:
            raise ValueError("no rows")

        graph = records = failures = rows

    broken = module.watch(Broken())  # type: ignore[arg-type]
    assert broken is not None
    broken.close()
    until(lambda: "could not keep" in caplog.text)
    with weave() as w:

        @w.do
        def one() -> int:
            return 1

    assert w.result.one == 1
    assert [one["title"] for one in state(page)] == ["Weave of one"]


def test_connections_that_say_nothing_take_a_bounded_number_of_threads(page: Dashboard) -> None:
    host, port = page.url.split("/")[2].split(":")
    before = threading.active_count()
    silent = [
        socket.create_connection((host, int(port)), PATIENCE) for _ in range(MAX_REQUESTS + 5)
    ]
    try:
        # Those for which there was no room are closed, and all others wait for a request.
        silent[-1].settimeout(PATIENCE)
        assert silent[-1].recv(1) == b""
        assert threading.active_count() <= before + MAX_REQUESTS
    finally:
        for connection in silent:
            connection.close()
    until(lambda: get_or_none(page) == 200)


def get_or_none(page: Dashboard) -> int | None:
    try:
        return get(page, "/weaves")[0]
    except OSError:
        return None


# ---------------------------------------------------------------------- whom it refuses


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:{port}"},
        {"Host": "127.0.0.1"},
        {"Host": "127.0.0.1:1"},
        {"Host": "127.0.0.1.evil.example:{port}"},
        {"Host": "192.168.1.1:{port}"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"origin": "http://evil.example"},
        {"Origin": "https://127.0.0.1:{port}"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
@pytest.mark.parametrize("path", ["/", "/weaves"])
def test_other_hosts_and_origins_are_refused(
    page: Dashboard, headers: dict[str, str], path: str
) -> None:
    port = page.url.rsplit(":", 1)[1].strip("/")
    sent = {name: value.format(port=port) for name, value in headers.items()}
    status, text = get(page, path, **sent)
    assert status == 403
    assert "<" not in text


@pytest.mark.parametrize(
    "headers",
    [{}, {"Host": "localhost:{port}"}, {"Host": "[::1]:{port}"}, {"Sec-Fetch-Site": "same-origin"},
     {"Origin": "http://127.0.0.1:{port}", "Sec-Fetch-Site": "none"}],
)  # fmt: skip
def test_its_own_page_is_not(page: Dashboard, headers: dict[str, str]) -> None:
    port = page.url.rsplit(":", 1)[1].strip("/")
    sent = {name: value.format(port=port) for name, value in headers.items()}
    assert get(page, "/weaves", **sent)[0] == 200


def test_no_answer_allows_another_origin(page: Dashboard) -> None:
    connection = http.client.HTTPConnection(page.url.split("/")[2], timeout=PATIENCE)
    connection.request("GET", "/weaves")
    answer = connection.getresponse()
    names = {name.lower() for name, _ in answer.getheaders()}
    connection.close()
    assert not [name for name in names if name.startswith("access-control")]
    assert answer.getheader("X-Frame-Options") == "SAMEORIGIN"
    assert answer.getheader("Cache-Control") == "no-store"


@pytest.mark.parametrize(
    ("host", "name", "answers"),
    [
        ("0.0.0.0", "10.1.2.3:80", True),
        ("0.0.0.0", "evil.example:80", False),
        ("box.lan", "box.lan:80", True),
        ("box.lan", "10.1.2.3:80", False),
        ("::", "[fe80::1]:80", True),
    ],
)
def test_a_page_for_others_answers_to_numbers_and_its_own_name(
    host: str, name: str, answers: bool
) -> None:
    assert (Address(host, 80).refusal({"Host": name}) is None) == answers


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (":8787", Address("127.0.0.1", 8787)),
        (8787, Address("127.0.0.1", 8787)),
        ("8787", Address("127.0.0.1", 8787)),
        ("0.0.0.0:80", Address("0.0.0.0", 80)),
        ("[::1]:80", Address("::1", 80)),
        ("localhost:80", Address("localhost", 80)),
    ],
)
def test_addresses(text: str | int, address: Address) -> None:
    assert Address.parse(text) == address


@pytest.mark.parametrize(
    "text", ["", "localhost", ":99999", "http://x:80", "a b:80", "x:80/", -1, True]
)
def test_what_is_not_an_address(text: Any) -> None:
    with pytest.raises(ValueError, match="not an address for a dashboard"):
        Address.parse(text)


# ---------------------------------------------------------------------- how it begins and ends


def test_there_is_one_for_a_process(page: Dashboard) -> None:
    assert wove.dashboard(":0") is page
    with pytest.raises(RuntimeError, match="close it first"):
        wove.dashboard(":8787")


def test_an_address_in_use_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        with pytest.raises(OSError, match="in use"):
            wove.dashboard(other.getsockname()[1])
    assert module.current() is None


def test_shutdown_ends_it() -> None:
    page = wove.dashboard(":0")
    threads = [one for one in threading.enumerate() if one.name == "wove-dashboard"]
    assert len(threads) == 1
    wove.shutdown()
    assert not threads[0].is_alive()
    with pytest.raises(OSError, match="refused"):
        get(page, "/")
    again = wove.dashboard(":0")
    assert get(again, "/")[0] == 200
    again.close()
    again.close()


def test_a_weave_that_is_running_when_it_ends_goes_on() -> None:
    page = wove.dashboard(":0")
    with weave() as w:

        @w.do
        def close() -> int:
            page.close()
            return 1

    assert w.result.close == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_has_none_and_its_parent_still_has(script: Callable[..., Any]) -> None:
    done = script("""
        import os, urllib.request, wove
        from wove import weave
        page = wove.dashboard(":0")
        child = os.fork()
        if not child:
            from wove.observe import dashboard
            assert dashboard.current() is None
            with weave() as w:
                @w.do
                def one(): return 1
            assert w.result.one == 1
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        print(urllib.request.urlopen(page.url + "weaves", timeout=20).read().decode())
        wove.shutdown()
    """)
    assert done.stdout.strip() == "[]"


def test_the_environment_variable_starts_it_with_the_first_weave(
    script: Callable[..., Any],
) -> None:
    done = script(
        """
        from wove import weave
        with weave() as w:
            @w.do
            def one(): return 1
        from wove.observe import dashboard
        import urllib.request, json
        url = dashboard.current().url
        print(json.load(urllib.request.urlopen(url + "weaves", timeout=20))[0]["title"])
        """,
        env={"WOVE_DASHBOARD": ":0"},
    )
    assert done.stdout.strip() == "Weave of one"
    assert "is at http://127.0.0.1:" in done.stderr


@pytest.mark.parametrize("value", ["nonsense", "203.0.113.1:80"])
def test_an_address_that_cannot_be_had_is_a_warning(
    value: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(module.VARIABLE, value)
    monkeypatch.setattr(module, "_configured", False)
    with caplog.at_level(logging.WARNING, "wove"):
        module.start_as_configured()
        module.start_as_configured()
    assert len(caplog.records) == 1
    assert "there is no dashboard" in caplog.text


def test_without_it_nothing_is_loaded(script: Callable[..., Any]) -> None:
    done = script("""
        import sys
        from wove import weave
        with weave() as w:
            @w.do
            def one(): return 1
        print([name for name in sys.modules if name.startswith(("wove.observe.", "http"))])
    """)
    assert done.stdout.strip() == (
        "['wove.observe.events', 'wove.observe.reports', 'wove.observe.tracing']"
    )
