"""Query AEs over TLS, with a real Orthanc."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom.uid import generate_uid

from node.config import ClientTls, QueryPeer
from node.errors import ConfigError, QueryError
from node.receive.query import QueryScu, SeriesKey
from tests.certificates import Authority, Signed
from tests.integration.receiving import ct_slice
from tests.integration.running import Pacs, orthanc_program

pytestmark = pytest.mark.integration
SERIES = "1.2.3"


@pytest.fixture
def archive(tmp_path: Path, authority: Authority) -> Iterator[Pacs]:
    """An Orthanc with two slices; it takes TLS only, and certificates of ``authority``."""
    own = authority.sign("archive")
    running = Pacs(
        orthanc_program(),
        tmp_path,
        DicomTlsEnabled=True,
        DicomTlsCertificate=str(own.certificate),
        DicomTlsPrivateKey=str(own.key),
        DicomTlsTrustedCertificates=str(authority.ca),
        DicomAlwaysAllowFind=True,
    )
    yield running
    running.stop()


def _peer(port: int, ca: Path, own: Signed | None = None) -> QueryPeer:
    tls = ClientTls(ca=ca, certificate=own.certificate if own else None, key=own.key if own else None)
    return QueryPeer(ae_title="ARCHIVE", host="127.0.0.1", port=port, tls=tls, timeout_seconds=5)


def _count(peer: QueryPeer) -> int:
    study = generate_uid(entropy_srcs=[SERIES, "study"])
    return QueryScu("archive", peer, calling_ae_title="PACSNODE").count(SeriesKey(str(study), SERIES))


def test_a_query_over_tls(archive: Pacs, authority: Authority, sender: Signed) -> None:
    for number in range(2):
        archive.upload(ct_slice(SERIES, number, PatientID="1", StudyID="1"))
    assert _count(_peer(archive.port, authority.ca, sender)) == 2


def test_what_is_wrong_is_named(
    archive: Pacs, authority: Authority, sender: Signed, stranger: Signed
) -> None:
    with pytest.raises(QueryError, match=r"query\.archive .*TLS failed: .*certificate"):
        _count(_peer(archive.port, stranger.certificate, sender))
    with pytest.raises(QueryError, match=r"query\.archive "):
        _count(_peer(archive.port, authority.ca))
    with pytest.raises(QueryError, match=r"query\.archive "):
        _count(QueryPeer(ae_title="ARCHIVE", host="127.0.0.1", port=archive.port, timeout_seconds=2))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"query\.archive\.tls\.ca"):
        _count(_peer(1, tmp_path / "nothing.crt"))
