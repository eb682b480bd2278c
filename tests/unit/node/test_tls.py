"""TLS contexts: what is refused at the start, and what happens when files change."""

from __future__ import annotations

import os
import shutil
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from node import tls
from node.config import ClientTls, NodeConfig, ServerTls
from node.errors import ConfigError
from node.metrics import Metrics
from node.receive.metrics import ReceiveMetrics
from node.tls import check_tls, client_context, server_context
from tests.certificates import Authority, Signed, key_pem

DAY = 86_400.0


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def look_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "LOOK_SECONDS", 0.0)


def server(signed: Signed, authority: Authority, **changes: Any) -> ServerTls:
    return ServerTls(
        **{"certificate": signed.certificate, "key": signed.key, "client_ca": authority.ca, **changes}
    )


def encrypt(path: Path) -> None:
    key: Any = load_pem_private_key(path.read_bytes(), None)
    path.write_bytes(key_pem(key, b"secret"))


@pytest.mark.parametrize(
    ("spoil", "field", "says"),
    [
        (lambda folder: (folder / "node.crt").unlink(), "receive.tls.certificate", "No such file"),
        (lambda folder: (folder / "node.key").unlink(), "receive.tls.key", "No such file"),
        (lambda folder: (folder / "ca.crt").unlink(), "receive.tls.client_ca", "No such file"),
        (lambda folder: (folder / "node.crt").write_text("x"), "receive.tls.certificate", "no certificate"),
        (lambda folder: (folder / "ca.crt").write_text(""), "receive.tls.client_ca", "no certificate"),
        (lambda folder: (folder / "node.key").write_text("x"), "receive.tls.key", "no private key"),
        (
            lambda folder: shutil.copy(folder / "other.key", folder / "node.key"),
            "receive.tls.key",
            "isn't the key of certificate",
        ),
        (lambda folder: encrypt(folder / "node.key"), "receive.tls.key", "encrypted"),
        (
            lambda folder: [
                shutil.copy(folder / f"weak.{kind}", folder / f"node.{kind}") for kind in ("crt", "key")
            ],
            "receive.tls:",
            "key too small",
        ),
    ],
)
def test_unusable_files_are_named(
    tmp_path: Path, authority: Authority, spoil: Callable[[Path], object], field: str, says: str
) -> None:
    node = authority.sign("node")
    authority.sign("other")
    authority.sign("weak", rsa_bits=1024)
    spoil(tmp_path)
    with pytest.raises(ConfigError) as raised:
        server_context(server(node, authority))
    assert field in str(raised.value) and says in str(raised.value) and str(tmp_path) in str(raised.value)
    assert raised.value.hint


def test_only_what_bcp_195_names_is_offered(authority: Authority) -> None:
    signed = authority.sign("node")
    for context in (
        server_context(server(signed, authority)).current(),
        client_context("pacs", ClientTls(ca=authority.ca)).current(),
    ):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
        assert {suite["name"] for suite in context.get_ciphers()} == {
            "TLS_AES_256_GCM_SHA384",
            "TLS_CHACHA20_POLY1305_SHA256",
            "TLS_AES_128_GCM_SHA256",
            *tls.TLS_1_2_SUITES.replace(":@SECLEVEL=2", "").split(":"),
        }
        assert context.options & ssl.OP_NO_RENEGOTIATION


@pytest.mark.parametrize(
    ("changes", "mode"),
    [
        ({}, ssl.CERT_REQUIRED),
        ({"require_client_certificate": False}, ssl.CERT_OPTIONAL),
        ({"require_client_certificate": False, "client_ca": None}, ssl.CERT_NONE),
    ],
)
def test_client_certificates(authority: Authority, changes: dict[str, Any], mode: ssl.VerifyMode) -> None:
    assert server_context(server(authority.sign("node"), authority, **changes)).current().verify_mode == mode


@pytest.mark.usefixtures("look_always")
def test_new_files_are_used_and_broken_ones_are_not(authority: Authority) -> None:
    metrics = ReceiveMetrics()

    def shown(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(f"pacsnode_receive_{name}", labels)

    def not_after() -> float | None:
        return shown("certificate_not_after_timestamp_seconds", file="certificate")

    first = authority.sign("node", days=10)
    context = server_context(server(first, authority), metrics.tls())
    used = context.current()
    assert context.current() is used
    assert not_after() == first.x509.not_valid_after_utc.timestamp()

    certificate, key = first.certificate.read_bytes(), first.key.read_bytes()
    first.certificate.write_bytes(certificate[:100])
    assert context.current() is context.current() is used
    assert shown("tls_reload_failures_total") == 1.0, "once for each change"
    first.certificate.write_bytes(authority.sign("other", days=20).certificate.read_bytes())
    assert context.current() is used, "the key doesn't fit yet"
    assert shown("tls_reload_failures_total") == 2.0
    assert not_after() == pytest.approx(not_after_of(certificate)), "of what is in use"

    shutil.copy(authority.sign("other", days=20).certificate, first.certificate)
    shutil.copy(first.certificate.with_name("other.key"), first.key)
    renewed = context.current()
    assert renewed is not used
    assert not_after() == first.x509.not_valid_after_utc.timestamp()

    first.certificate.unlink()
    assert context.current() is renewed
    first.key.write_bytes(key)
    replacement = first.certificate.with_name("new.crt")
    replacement.write_bytes(certificate)
    replacement.rename(first.certificate)
    assert context.current() not in (used, renewed)


def not_after_of(pem: bytes) -> float:
    from cryptography import x509

    return x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()


def test_the_files_are_looked_at_once_a_second(authority: Authority) -> None:
    signed = authority.sign("node")
    context = server_context(server(signed, authority))
    before = context.current()
    os.utime(signed.key)
    assert context.current() is before


def test_a_destination_s_certificates_have_its_name(authority: Authority) -> None:
    metrics = Metrics("1")
    signed = authority.sign("us")
    config = ClientTls(ca=authority.ca, certificate=signed.certificate, key=signed.key)
    client_context("pacs", config, metrics.tls("pacs"))
    for file in ("ca", "certificate"):
        labels = {"destination": "pacs", "file": file}
        name = "pacsnode_destination_certificate_not_after_timestamp_seconds"
        assert metrics.registry.get_sample_value(name, labels) is not None


def test_everything_configured_is_checked(tmp_path: Path, authority: Authority) -> None:
    signed = authority.sign("node", days=-1)
    signed.key.chmod(0o644)
    pacs = {"type": "cstore", "ae_title": "P", "host": "h", "port": 104, "tls": {"ca": authority.ca}}
    config = NodeConfig.model_validate(
        {"receive": {"tls": server(signed, authority)}, "destinations": {"a": pacs}}
    )
    by_others, ended = check_tls(config)
    assert "receive.tls.key" in by_others and "every user" in by_others
    assert "receive.tls.certificate" in ended and "ended on" in ended
    authority.ca.unlink()
    with pytest.raises(ConfigError, match=r"receive\.tls\.client_ca"):
        check_tls(config)
    only_destination = config.model_copy(update={"receive": NodeConfig().receive})
    with pytest.raises(ConfigError, match=r"destinations\.a\.tls\.ca"):
        check_tls(only_destination)
