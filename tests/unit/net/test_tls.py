"""Certificates and keys of a client: every way to give them, and what is said of wrong ones."""

from __future__ import annotations

import os
import re
import socket
import ssl
import subprocess
import threading
import traceback
from pathlib import Path

import pytest
from tests.support.certificates import Certificates, Pair

from wove.net.tls import PEM, TLSFiles

WHAT = "environment 'x'"


def handshake(
    client: ssl.SSLContext, server: ssl.SSLContext, name: str = "localhost"
) -> tuple[str | None, object]:
    """The protocol that was agreed on, and the certificate that the client showed."""
    near, far = socket.socketpair()
    seen: list[object] = []

    def serve() -> None:
        try:
            with server.wrap_socket(far, server_side=True) as secured:
                seen.append(secured.getpeercert())
                secured.sendall(b"!")
        except OSError:
            far.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(near, server_hostname=name) as secured:
            assert secured.recv(1) == b"!"
            assert secured.version() in ("TLSv1.2", "TLSv1.3")
            return secured.selected_alpn_protocol(), seen[0]
    finally:
        near.close()
        thread.join()


def service(pair: Pair, ca: Path | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    context.set_alpn_protocols(["h2", "http/1.1"])
    if ca is not None:
        context.load_verify_locations(ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class TestWaysToGiveThem:
    @pytest.mark.parametrize("form", ["path", "text of a path", "text", "bytes"])
    def test_all_alike(self, form: str, certificates: Certificates) -> None:
        def given(path: Path) -> PEM:
            return {
                "path": path,
                "text of a path": str(path),
                "text": path.read_text(),
                "bytes": path.read_bytes(),
            }[form]

        ours = certificates.client
        files = TLSFiles(
            given(certificates.authority), given(ours.certificate), given(ours.key), label=WHAT
        )
        assert files.given
        protocol, shown = handshake(
            files.context(["http/1.1"]), service(certificates.server, certificates.authority)
        )
        assert protocol == "http/1.1"
        assert shown
        roots, chain, key = files.pem()
        assert roots is not None and chain is not None and key is not None
        assert roots.strip() == certificates.authority.read_bytes().strip()
        assert b"PRIVATE KEY" in key and b"PRIVATE KEY" not in chain

    def test_key_and_certificate_in_one_file(
        self, certificates: Certificates, tmp_path: Path
    ) -> None:
        both = tmp_path / "both.pem"
        ours = certificates.client
        both.write_text(
            "# \u00dcnser\n" + ours.key.read_text() + "noise\n" + ours.certificate.read_text(),
            "utf-8",
        )
        files = TLSFiles(certificates.authority, both)
        assert files.pem() == TLSFiles(certificates.authority, ours.certificate, ours.key).pem()
        assert handshake(files.context(), service(certificates.server, certificates.authority))[1]

    def test_without_files_that_are_only_in_memory(
        self, certificates: Certificates, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.delattr(os, "memfd_create")
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        TLSFiles(
            certificates.authority, certificates.client.certificate, certificates.client.key
        ).context()
        assert list(tmp_path.iterdir()) == []

    def test_nothing(self) -> None:
        files = TLSFiles()
        assert not files.given
        assert files.pem() == (None, None, None)
        assert files.context().verify_mode is ssl.CERT_REQUIRED

    def test_files_are_read_anew(self, certificates: Certificates, tmp_path: Path) -> None:
        path = tmp_path / "ca.pem"
        path.write_bytes(certificates.stranger_authority.read_bytes())
        files = TLSFiles(path)
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(files.context(), service(certificates.server))
        path.write_bytes(certificates.authority.read_bytes())
        handshake(files.context(), service(certificates.server))


class TestWhoIsTrusted:
    def test_only_the_authority_that_is_named(self, certificates: Certificates) -> None:
        context = TLSFiles(certificates.authority).context()
        handshake(context, service(certificates.server))
        for wrong in (certificates.stranger_server, certificates.expired, certificates.misnamed):
            with pytest.raises(ssl.SSLCertVerificationError):
                handshake(context, service(wrong))
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(context, service(certificates.server), "elsewhere.example")
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(TLSFiles().context(), service(certificates.server))

    def test_no_old_protocol(self, certificates: Certificates) -> None:
        context = TLSFiles(certificates.authority).context()
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2
        assert context.check_hostname

    def test_no_log_of_session_keys(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
        assert TLSFiles().context().keylog_filename is None


class TestMistakes:
    def told(self, *files: PEM | None) -> str:
        with pytest.raises(ValueError, match=f"^{WHAT}: executor_config '") as caught:
            TLSFiles(*files, label=WHAT).pem()
        with pytest.raises(ValueError, match=re.escape(str(caught.value))):
            TLSFiles(*files, label=WHAT).context()
        return str(caught.value)

    def test_no_such_file(self, tmp_path: Path) -> None:
        told = self.told(tmp_path / "nope.pem")
        assert "'root_certificates' is neither PEM text" in told
        assert "No such file" in told and "nope.pem" in told
        assert "Is a directory" in self.told(tmp_path)
        assert "that is not a path" in self.told("a\x00b")

    def test_no_permission(self, tmp_path: Path) -> None:
        if os.geteuid() == 0:
            pytest.skip("root may read everything")
        path = tmp_path / "key.pem"
        path.touch(0o000)
        assert "Permission denied" in self.told(path)

    def test_too_large(self, tmp_path: Path) -> None:
        path = tmp_path / "large.pem"
        with path.open("wb") as file:
            file.truncate(17 * 2**20)
        assert "more than 16 MiB" in self.told(path)

    def test_not_pem(self, certificates: Certificates, tmp_path: Path) -> None:
        der = tmp_path / "ca.der"
        der.write_bytes(ssl.PEM_cert_to_DER_cert(certificates.authority.read_text()))
        assert "It looks like DER: openssl x509 -inform der" in self.told(der)
        assert "holds no certificate in PEM form" in self.told(b"nothing")
        assert "holds no certificate in PEM form" in self.told(certificates.client.key)
        broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
        assert "'root_certificates' holds a certificate that cannot be read" in self.told(broken)
        told = self.told(None, broken, certificates.client.key)
        assert "'client_certificate' and its key cannot be read" in told

    def test_the_wrong_key(self, certificates: Certificates) -> None:
        told = self.told(None, certificates.client.certificate, certificates.server.key)
        assert "'client_key' is not the key of 'client_certificate'" in told

    def test_no_key(self, certificates: Certificates) -> None:
        told = self.told(None, certificates.client.certificate)
        assert "'client_certificate' holds no private key; give it as 'client_key'" in told
        told = self.told(None, certificates.client.certificate, certificates.client.certificate)
        assert "'client_key' holds no private key in PEM form" in told

    def test_a_key_alone(self, certificates: Certificates) -> None:
        with pytest.raises(ValueError, match="'client_key' is given without 'client_certificate'"):
            TLSFiles(None, None, certificates.client.key, label=WHAT)

    @pytest.mark.parametrize("form", [["-traditional"], []])
    def test_an_encrypted_key(
        self, form: list[str], certificates: Certificates, tmp_path: Path
    ) -> None:
        path = tmp_path / "encrypted.pem"
        command = [
            "openssl",
            "pkey",
            "-in",
            certificates.client.key,
            "-aes256",
            "-passout",
            "pass:x",
            *form,
        ]
        subprocess.run([*command, "-out", path], check=True, capture_output=True, timeout=30)
        assert b"ENCRYPTED" in path.read_bytes()
        told = self.told(None, certificates.client.certificate, path)
        assert "'client_key' is encrypted" in told and "openssl pkey -in" in told

    @pytest.mark.parametrize("value", [5, True, ["x"], memoryview(b"x")])
    def test_another_type(self, value: object) -> None:
        with pytest.raises(
            TypeError, match="'root_certificates' must be PEM text or the path of a PEM file"
        ):
            TLSFiles(value, label=WHAT)  # type: ignore[arg-type]

    @pytest.mark.parametrize("value", ["", b""])
    def test_empty(self, value: PEM) -> None:
        with pytest.raises(ValueError, match="'client_certificate' is empty"):
            TLSFiles(None, value, label=WHAT)


class TestKeysStayInside:
    def test_in_no_repr(self, certificates: Certificates) -> None:
        certificate, key = certificates.client.pem()
        files = TLSFiles(certificates.authority.read_text(), certificate, key, label=WHAT)
        assert repr(files) == "TLSFiles(label=\"environment 'x'\")"

    @pytest.mark.parametrize("form", ["one line", "as it is"])
    def test_a_key_that_lost_its_first_line_is_not_quoted(
        self, form: str, certificates: Certificates
    ) -> None:
        lines = certificates.client.key.read_text().splitlines()[1:]
        text = "".join(lines[:-1]) if form == "one line" else "\n".join(lines)
        with pytest.raises(ValueError, match="'client_key' is neither PEM text") as caught:
            TLSFiles(None, certificates.client.certificate, text, label=WHAT).pem()
        assert lines[0][:20] not in str(caught.value)
        assert lines[0][:20] not in "".join(traceback.format_exception(caught.value))
