"""Who counts as local, what a URL may be, what is refused, and how keys and headers are read."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from wove.executors.network.executor import SHARED_KEYS
from wove.security import NetworkExecutorSecurity
from wove.security.endpoints import (
    grpc_hosts,
    is_local,
    parse_url,
    refuse_exposed,
    refuse_exposed_receiver,
    refuse_foreign_peer,
)
from wove.settings.config_readers import (
    check_keys,
    flag,
    header_items,
    metadata_items,
    number,
    text,
    whole,
)

WHAT = "environment 'x'"
SIGNED = NetworkExecutorSecurity.from_config({"type": "signed", "secret": "s"})
BEARER = NetworkExecutorSecurity.from_config({"type": "bearer", "token": "t"})
NONE = NetworkExecutorSecurity.from_config(None)


class TestIsLocal:
    @pytest.mark.parametrize(
        "host",
        [
            "localhost",
            "LOCALHOST",
            "localhost.",
            "workers.localhost",
            "a.b.localhost.",
            "127.0.0.1",
            "127.255.255.254",
            "::1",
            "[::1]",
            "::1%lo",
            "[::1%lo]",
            "0:0:0:0:0:0:0:1",
            "::ffff:127.0.0.1",
            "[::ffff:7f00:1]",
        ],
    )
    def test_this_machine(self, host: str) -> None:
        assert is_local(host)

    @pytest.mark.parametrize(
        "host",
        [
            "",
            ".",
            "0.0.0.0",
            "::",
            "[::]",
            "::ffff:0.0.0.0",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "128.0.0.1",
            "10.0.0.1",
            "169.254.0.1",
            "fe80::1%lo",
            "workers.internal",
            "localhost.example",
            "notlocalhost",
            "localhost..",
            ".localhost",
            "a..localhost",
            # What some resolvers take for loopback, and others do not.
            "127.1",
            "2130706433",
            "0x7f.0.0.1",
            "127.0.0.01",
            "0177.0.0.1",
            # What some parser might cut off.
            "127.0.0.1:80",
            "127.0.0.1 ",
            "127.0.0.1\n",
            "localhost\n",
            "localhost\x00.example",
            "[localhost]",
            "[127.0.0.1]",
            "[::1",
            "user@localhost",
            "example/.localhost",
            "example#.localhost",
            "example?.localhost",
            # Letters that become others: LATIN SMALL LETTER LONG S, CIRCLED LATIN SMALL LETTER L, full width digits.
            "localho\u017ft",
            "\u24dbocalhost",
            "\uff11\uff12\uff17.0.0.1",
        ],
    )
    def test_another_or_who_knows(self, host: str) -> None:
        assert not is_local(host)

    @settings(max_examples=200, deadline=None)
    @given(st.text(max_size=30))
    def test_any_text_has_an_answer(self, host: str) -> None:
        assert is_local(host) in (True, False)


class TestGrpcHosts:
    @pytest.mark.parametrize(
        "target",
        [
            "localhost:9000",
            "localhost",
            "127.0.0.1:9000",
            "[::1]:9000",
            "::1",
            "dns:localhost:9000",
            "dns:///localhost:9000",
            "dns:///[::1]:9000",
            "dns://127.0.0.1/localhost:9000",
            "dns://127.0.0.1:53/localhost:9000",
            "ipv4:127.0.0.1:9000",
            "ipv4:127.0.0.1:9000,127.0.0.2:9000",
            "ipv4:///127.0.0.1:9000",
            "ipv6:[::1]:9000",
            "ipv6:%5B::1%5D:9000",
            "unix:worker.sock",
            "unix:///run/worker.sock",
            "unix-abstract:worker",
        ],
    )
    def test_local(self, target: str) -> None:
        assert all(map(is_local, grpc_hosts(target)))

    @pytest.mark.parametrize(
        ("target", "hosts"),
        [
            ("workers.internal:9000", ["workers.internal"]),
            ("dns:///workers.internal:9000", ["workers.internal"]),
            ("dns://8.8.8.8/localhost:9000", ["localhost", "8.8.8.8"]),
            ("ipv4:127.0.0.1:9000,10.0.0.1:9000", ["127.0.0.1", "10.0.0.1"]),
            ("ipv4:127.0.0.1:9000%2C10.0.0.1:9000", ["127.0.0.1", "10.0.0.1"]),
            ("ipv6:[::1]:9000,[2001:db8::1]:9000", ["::1", "2001:db8::1"]),
        ],
    )
    def test_any_other_machine_makes_it_remote(self, target: str, hosts: list[str]) -> None:
        assert grpc_hosts(target) == hosts
        assert not all(map(is_local, hosts))

    @pytest.mark.parametrize(
        "target",
        [
            "localhost:9000,example.com:9000",
            "localhost:9000@example.com",
            "localhost:9000/example.com",
            "example.com/localhost",
            "xds:///localhost",
            "xds:localhost",
            "vsock:1:9000",
            "google-c2p:///localhost",
            "Unix:/run/x",
            "dns:",
            "dns:///",
            "dns://",
            "ipv4:",
            "ipv6:::1:9000x:",
            "ipv4:localhost.example:1",
        ],
    )
    def test_who_knows_is_remote(self, target: str) -> None:
        assert not all(map(is_local, grpc_hosts(target)))

    @pytest.mark.parametrize(
        "target", ["", " ", "localhost :9000", "localhost:9000\n", "localhost\x00:1"]
    )
    def test_no_target_at_all(self, target: str) -> None:
        with pytest.raises(ValueError, match="is not a gRPC target; one looks like"):
            grpc_hosts(target)

    @settings(max_examples=200, deadline=None)
    @given(st.text("abc127.0:/[],%@", min_size=1, max_size=30))
    def test_there_is_always_a_host(self, target: str) -> None:
        assert grpc_hosts(target)


class TestURL:
    @pytest.mark.parametrize(
        ("url", "parts"),
        [
            ("http://localhost", ("localhost", 80, "/", "localhost", False, True)),
            (
                "HTTPS://Workers.Internal/a",
                ("workers.internal", 443, "/a", "workers.internal", True, False),
            ),
            ("https://w:443/a?x=1&y", ("w", 443, "/a?x=1&y", "w", True, False)),
            ("https://w:8443?x", ("w", 8443, "/?x", "w:8443", True, False)),
            ("http://w:/", ("w", 80, "/", "w", False, False)),
            ("http://[::1]:8080/a%20b", ("::1", 8080, "/a%20b", "[::1]:8080", False, True)),
            ("http://127.0.0.1:9/;p", ("127.0.0.1", 9, "/;p", "127.0.0.1:9", False, True)),
        ],
    )
    def test_its_parts(self, url: str, parts: tuple[object, ...]) -> None:
        parsed = parse_url(url, ("http", "https"), label=WHAT)
        assert (
            parsed.host,
            parsed.port,
            parsed.target,
            parsed.authority,
            parsed.tls,
            parsed.local,
        ) == parts

    def test_websocket_schemes(self) -> None:
        assert parse_url("wss://w/wove", ("ws", "wss"), label=WHAT).port == 443
        assert not parse_url("ws://w/wove", ("ws", "wss"), label=WHAT).tls

    @pytest.mark.parametrize(
        ("url", "told"),
        [
            (
                None,
                "'url' is missing; give the URL of the worker service, such as 'https://workers.internal/",
            ),
            ("", "is missing"),
            ("workers.internal", "must begin with http:// or https://, not 'workers.internal'"),
            ("ws://workers.internal", "must begin with http:// or https://, not 'ws://'"),
            ("http:workers.internal", "names no host"),
            ("http://", "names no host"),
            ("http:///wove", "names no host"),
            ("http://:80/", "names no host"),
            ("http://a..b/", "names no host"),
            ("http://a,b/", "names no host"),
            ("http://a%2eb/", "names no host"),
            ("http://[::1]x/", "no host|no URL"),
            ("http://[fe80::1%25eth0]/", "without a zone"),
            ("http://[::1/", "is not a URL"),
            ("http://w:99999/", "is not a URL"),
            ("http://w:x/", "is not a URL"),
            ("http://w:0/", "has port 0"),
            ("http://w/#part", "has a fragment"),
            ("http://w/#", "has a fragment"),
            ("http://user:hunter2@w/", "holds a user name or password"),
            ("http://localhost@example.com/", "holds a user name or password"),
            ("http://w/a b", "percent-encode"),
            ("http://w/\n", "percent-encode"),
            ("http://w/\xe9", "percent-encode"),
            ("http://\u24dbocalhost/", "percent-encode"),
            ("http://w\\@localhost/", "user name|no host"),
            ("http://localhost\\.example/", "names no host"),
        ],
    )
    def test_mistakes(self, url: object, told: str) -> None:
        with pytest.raises(ValueError, match=told) as caught:
            parse_url(url, ("http", "https"), label=WHAT)
        assert str(caught.value).startswith(f"{WHAT}: executor_config 'url'")
        assert "hunter2" not in str(caught.value)

    @pytest.mark.parametrize("url", [5, b"http://w/", ["http://w/"]])
    def test_no_text(self, url: object) -> None:
        with pytest.raises(TypeError, match="executor_config 'url' must be a URL"):
            parse_url(url, ("http", "https"), label=WHAT)

    @settings(max_examples=300, deadline=None)
    @given(st.text("htp:/@[]%.localhost127\\?#;x", max_size=40))
    def test_no_other_error(self, rest: str) -> None:
        try:
            url = parse_url("http://" + rest, ("http",), label=WHAT)
        except ValueError:
            return
        assert "@" not in url.authority and "\\" not in url.authority
        assert is_local(url.host) == url.local


class TestRefuseExposed:
    def check(self, **changed: Any) -> None:
        arguments: dict[str, Any] = {
            "target": "http://workers.internal",
            "local": False,
            "tls": False,
            "security": NONE,
            "insecure": False,
            "tls_remedy": "an https:// url",
        }
        refuse_exposed(WHAT, **(arguments | changed))

    @pytest.mark.parametrize(
        "fine",
        [
            {"local": True},
            {"insecure": True},
            {"tls": True, "security": SIGNED},
            {"tls": True, "security": BEARER},
        ],
    )
    def test_what_passes(self, fine: dict[str, Any]) -> None:
        self.check(**fine)

    @pytest.mark.parametrize(
        ("exposed", "told"),
        [
            ({}, "has no TLS and no security"),
            ({"security": SIGNED}, "has no TLS:"),
            ({"tls": True}, "has no security:"),
        ],
    )
    def test_what_does_not(self, exposed: dict[str, Any], told: str) -> None:
        with pytest.raises(ValueError, match=told) as caught:
            self.check(**exposed)
        message = str(caught.value)
        assert message.startswith(f"{WHAT}: http://workers.internal is not on this machine")
        assert ("use an https:// url" in message) == (not exposed.get("tls"))
        assert ('"security": "env:WOVE_WORKER_SECRET"' in message) == ("security" not in exposed)
        assert '"insecure": True' in message

    @pytest.mark.parametrize(
        ("host", "url", "security", "insecure"),
        [
            ("127.0.0.1", None, NONE, False),
            ("localhost", "http://localhost:1/wove/events/{token}", NONE, False),
            ("0.0.0.0", "https://web.internal/wove/events/{token}", SIGNED, False),
            ("0.0.0.0", None, NONE, True),
        ],
    )
    def test_receivers_that_pass(
        self, host: str, url: str | None, security: Any, insecure: bool
    ) -> None:
        refuse_exposed_receiver(WHAT, host=host, url=url, security=security, insecure=insecure)

    @pytest.mark.parametrize(
        ("host", "url", "security", "told"),
        [
            ("0.0.0.0", None, NONE, "no TLS and no security"),
            ("::", None, SIGNED, "no TLS:"),
            ("10.0.0.7", "https://web.internal/wove/events/{token}", NONE, "no security:"),
            # A proxy on this machine that others call.
            ("127.0.0.1", "http://web.internal/wove/events/{token}", SIGNED, "no TLS:"),
        ],
    )
    def test_receivers_that_do_not(
        self, host: str, url: str | None, security: Any, told: str
    ) -> None:
        with pytest.raises(ValueError, match=told) as caught:
            refuse_exposed_receiver(WHAT, host=host, url=url, security=security, insecure=False)
        assert str(caught.value).startswith(f"{WHAT}: other machines can reach")
        assert '"insecure": True' in str(caught.value)

    def test_the_peer_decides_and_not_the_name(self) -> None:
        refuse_foreign_peer(("127.0.0.1", 9), "localhost")
        refuse_foreign_peer(("::1", 9, 0, 0), "localhost")
        refuse_foreign_peer("/run/worker.sock", "localhost")
        with pytest.raises(
            ValueError, match=r"localhost is .* another machine here \(10\.0\.0\.7\)"
        ):
            refuse_foreign_peer(("10.0.0.7", 9), "localhost")

    @pytest.mark.parametrize("scheme", ["http", "https", "grpc", "grpcs", "GRPC"])
    def test_a_grpc_target_with_a_scheme(self, scheme: str) -> None:
        with pytest.raises(ValueError, match="gRPC takes no scheme.*'workers.internal:9000'") as e:
            grpc_hosts(f"{scheme}://workers.internal:9000")
        assert ('"secure": True' in str(e.value)) == scheme.endswith("s")


class TestKeys:
    def test_unknown_keys(self) -> None:
        check_keys(WHAT, "http", {"url": 1, "security": 2}, ("url", *SHARED_KEYS))
        with pytest.raises(
            ValueError,
            match=r"http has no executor_config key 'ulr'\. Did you mean 'url'\? Its keys",
        ):
            check_keys(WHAT, "http", {"ulr": 1}, ("url", *SHARED_KEYS))

    def test_numbers(self) -> None:
        assert number({}, "timeout", 5.0, label=WHAT) == 5.0
        assert number({"timeout": 2}, "timeout", 5.0, label=WHAT) == 2.0
        assert number({"timeout": None}, "timeout", None, label=WHAT) is None
        assert number({"timeout": None}, "timeout", 5.0, label=WHAT, none=True) is None
        with pytest.raises(TypeError, match="executor_config 'timeout' must be a number, not None"):
            number({"timeout": None}, "timeout", 5.0, label=WHAT)
        for wrong in (0, -1, float("nan"), float("inf")):
            with pytest.raises(
                ValueError, match="'timeout' must be a finite number of seconds greater than 0"
            ):
                number({"timeout": wrong}, "timeout", 5.0, label=WHAT)
        for wrong in (True, "5", [5]):
            with pytest.raises(TypeError, match="'timeout' must be a number"):
                number({"timeout": wrong}, "timeout", 5.0, label=WHAT)

    def test_whole_numbers_and_flags(self) -> None:
        assert whole({}, "max_connections", 100, label=WHAT) == 100
        assert whole({"max_connections": 1}, "max_connections", 100, label=WHAT) == 1
        with pytest.raises(
            ValueError, match="'max_connections' must be a whole number of at least 1"
        ):
            whole({"max_connections": 0}, "max_connections", 100, label=WHAT)
        with pytest.raises(TypeError, match="'max_connections' must be a whole number"):
            whole({"max_connections": 1.5}, "max_connections", 100, label=WHAT)
        assert flag({}, "insecure", False, label=WHAT) is False
        assert flag({"insecure": True}, "insecure", False, label=WHAT) is True
        for wrong in ("yes", 1, None):
            with pytest.raises(TypeError, match="'insecure' must be True or False"):
                flag({"insecure": wrong}, "insecure", False, label=WHAT)

    def test_texts(self) -> None:
        assert text({}, "method", "/a/b", label=WHAT) == "/a/b"
        assert text({"method": None}, "method", label=WHAT) is None
        assert text({"method": "/c/d"}, "method", "/a/b", label=WHAT) == "/c/d"
        with pytest.raises(TypeError, match="'method' must be text"):
            text({"method": b"/c"}, "method", label=WHAT)
        with pytest.raises(ValueError, match="'method' is an empty text"):
            text({"method": ""}, "method", label=WHAT)


class TestHeaders:
    def test_every_shape(self) -> None:
        expected = [("X-Project", "reports"), ("x-b", "\xe9")]
        assert header_items({"X-Project": " reports\t", "x-b": "\xe9"}, WHAT) == expected
        assert header_items([("X-Project", "reports"), ["x-b", "\xe9"]], WHAT) == expected
        assert header_items((("a", "1"), ("a", "2")), WHAT) == [("a", "1"), ("a", "2")]
        assert header_items(None, WHAT) == header_items({}, WHAT) == []

    @pytest.mark.parametrize(
        "name",
        ["", "a b", "a:", "a\n", "\xe9", "a\x00", "a(b)", 'a"'],
    )
    def test_names_that_are_none(self, name: str) -> None:
        with pytest.raises(ValueError, match="is not a header name"):
            header_items({name: "1"}, WHAT)

    @pytest.mark.parametrize(
        "value", ["a\r\nx: y", "a\n", "a\r", "\x00", "\x7f", "\u0100", "\ud800"]
    )
    def test_values_that_no_header_can_carry(self, value: str) -> None:
        with pytest.raises(
            ValueError, match="header 'x-token' has a value with line breaks"
        ) as caught:
            header_items({"x-token": "s3cr3t" + value}, WHAT)
        assert "s3cr3t" not in str(caught.value)

    @pytest.mark.parametrize(
        "name",
        [
            "Host",
            "CONTENT-LENGTH",
            "transfer-encoding",
            "Connection",
            "Upgrade",
            "TE",
            "Expect",
            "X-Wove-Key",
            "x-wove-anything",
        ],
    )
    def test_names_that_are_taken(self, name: str) -> None:
        with pytest.raises(ValueError, match="is set by Wove itself; remove it"):
            header_items({name: "1"}, WHAT)
        with pytest.raises(ValueError, match="is set by Wove itself; remove it"):
            metadata_items({name: "1"}, WHAT)

    def test_names_that_the_transport_takes(self) -> None:
        assert header_items({"Sec-WebSocket-Key": "1", "origin": "1"}, WHAT)
        for name in ("Sec-WebSocket-Key", "origin"):
            with pytest.raises(ValueError, match="is set by Wove itself"):
                header_items({name: "1"}, WHAT, reserved=("sec-websocket-*", "origin"))

    def test_authorization_belongs_to_whoever_sets_it(self) -> None:
        for read in (header_items, metadata_items):
            assert read({"authorization": "Basic x"}, WHAT, security=SIGNED)
            with pytest.raises(ValueError, match="'security', which is of type bearer") as caught:
                read({"Authorization": "s3cr3t"}, WHAT, security=BEARER)
            assert "s3cr3t" not in str(caught.value)

    @pytest.mark.parametrize(
        "value",
        [
            "a: b",
            5,
            b"a",
            {"a": 1},
            {"a": b"1"},
            {1: "a"},
            [("a",)],
            ["ab"],
            [None],
            [("a", "b", "c")],
        ],
    )
    def test_anything_else_is_a_type_error(self, value: object) -> None:
        for read, key in ((header_items, "headers"), (metadata_items, "metadata")):
            with pytest.raises(TypeError, match=f"{WHAT}: executor_config '{key}'"):
                read(value, WHAT)

    def test_metadata(self) -> None:
        value = {"X-Project": "reports", "trace-bin": b"\x00\xff"}
        assert metadata_items(value, WHAT) == [("x-project", "reports"), ("trace-bin", b"\x00\xff")]
        for wrong, told in (
            ({"a b": "1"}, "is not a name for metadata"),
            ({":path": "1"}, "is not a name for metadata"),
            ({"grpc-timeout": "1"}, "is set by Wove itself"),
            ({"a": "\xe9"}, "outside printable ASCII"),
            ({"a": "1\n"}, "outside printable ASCII"),
        ):
            with pytest.raises(ValueError, match=told):
                metadata_items(wrong, WHAT)
        with pytest.raises(TypeError, match="must be bytes, because its name ends in -bin"):
            metadata_items({"a-bin": "1"}, WHAT)
        with pytest.raises(TypeError, match="bytes need a name in -bin"):
            metadata_items({"a": b"1"}, WHAT)
