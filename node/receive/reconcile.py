"""Start-up after a crash: disk and index brought together, before anything is received.

In: what the last process left.  Out: an index that says what the disk holds, and a count of what was done.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import structlog
from pydicom.errors import InvalidDicomError
from sqlalchemy import Engine, select, update

from node.database import instances, write_transaction
from node.reasons import Kind, worded
from node.receive.index import RECOVERED, Incoming
from node.receive.part10 import HEAD_BYTES, read_part10
from node.receive.places import STORED
from node.receive.spool import Spool

log = structlog.get_logger("node.receive.reconcile")


@dataclass(frozen=True)
class Reconciled:
    """What start-up found: counts of files removed, files indexed, rows whose file is gone, foreign files."""

    temporary_removed: int
    indexed: int
    missing: int
    foreign: int


def reconcile(spool: Spool, engine: Engine) -> Reconciled:
    """Bring disk and index together; call before anything is received.

    Temporary files were never acknowledged and go. A whole file without a row is indexed: it was
    probably never acknowledged either, but it must not be lost if the database is the older of the two.
    A row whose file is gone or cut short is quarantined with code ``file_missing`` and logged.
    """
    removed = 0
    for path in spool.incoming.iterdir():
        path.unlink()
        removed += 1
    sizes, flagged = _rows(engine)
    indexed = foreign = 0
    on_disk: dict[str, int] = {}
    for root in (spool.data_dir / STORED, spool.quarantined):
        for path in sorted(root.rglob("*.dcm")):
            relative = str(path.relative_to(spool.data_dir))
            on_disk[relative] = path.stat().st_size
            if relative not in sizes and relative not in flagged:
                if _index(spool, path):
                    indexed += 1
                else:
                    foreign += 1
    missing = [path for path, size in sizes.items() if on_disk.get(path) != size]
    for relative in missing:
        _mark_missing(engine, relative)
    result = Reconciled(removed, indexed, len(missing), foreign)
    log.info(
        "spool_reconciled",
        temporary_removed=removed,
        indexed=indexed,
        missing=len(missing),
        foreign=foreign,
        instances=len(sizes),
    )
    return result


def _rows(engine: Engine) -> tuple[dict[str, int], set[str]]:
    """Size by path of every row; and the paths that an earlier start-up found missing, or that are purged."""
    sizes: dict[str, int] = {}
    flagged: set[str] = set()  # what is left of their files is no instance
    with engine.connect() as connection:
        for row in connection.execute(
            select(instances.c.path, instances.c.bytes, instances.c.reason_code, instances.c.state)
        ):
            if row.reason_code == "file_missing" or row.state in ("purging", "purged"):
                flagged.add(row.path)
            else:
                sizes[row.path] = row.bytes
    return sizes, flagged


def _index(spool: Spool, path: Path) -> bool:
    """Make a row for a file that has none. False when the file isn't one of the spool's."""
    try:
        parts = read_part10(path)
    except (InvalidDicomError, OSError, AttributeError, EOFError, ValueError) as error:
        log.error("spool_file_unreadable", path=str(path.name), error=type(error).__name__)
        return False
    incoming = Incoming(
        parts.sop_class_uid,
        parts.sop_instance_uid,
        parts.transfer_syntax_uid,
        RECOVERED,
        parts.calling_ae_title,
    )
    with path.open("rb") as file:
        file.seek(parts.header_bytes)
        head = file.read(HEAD_BYTES)
    stored = spool.keep(incoming, path, parts.header_bytes, head)
    log.warning("spool_file_indexed", path=stored.path, state=stored.state)
    return True


def _mark_missing(engine: Engine, relative: str) -> None:
    detail = "it was gone or cut short at start-up"
    why = worded(Kind.QUARANTINED, "file_missing", detail)
    log.error(
        "instance_file_missing",
        path=relative,
        code=why.code,
        reason=why.sentence,
        hint="the disk lost an acknowledged instance: send it again, and check the disk",
    )
    with write_transaction(engine) as connection:
        connection.execute(
            update(instances)
            .where(instances.c.path == relative)
            .values(
                state="quarantined",
                reason_code=why.code,
                reason=detail,
            )
        )
