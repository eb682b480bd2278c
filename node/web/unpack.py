"""What somebody uploaded, told apart by its content: DICOM files, zips of them, pictures, anything else.

In: files, whatever they call themselves.  Out: the DICOM files among them, and why each other one isn't used.
Names inside of zips are never paths of ours; what is unpacked is counted as it comes, so that a zip that says
less than it holds ends at the limit.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, BinaryIO, Literal

from node.web.multipart import BadBody, Part

Kind = Literal["dicom", "zip", "picture", "other"]

#: of one zip; a CT study has some thousands of slices
MOST_ENTRIES = 20_000
#: a zip may unpack to so many times its own size, beyond SMALL_BYTES: CT is packed to a third, zeros to a
#: thousandth
MOST_TIMES = 100
SMALL_BYTES = 50_000_000
_COPY_BYTES = 1024 * 1024
_PREFIX_AT = 128

#: a disc's zip has pictures of its viewer's buttons, and none of the patient's CT
PICTURE_SKIPPED = "a picture: the upload page takes those by themselves, not in a zip"
_NO_DICOM = "not a DICOM file (no DICM after 128 bytes)"


@dataclass
class Unpacked:
    """skipped: (what the sender calls it, why it isn't used)."""

    dicom: list[Part] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)


def kind_of(path: Path) -> Kind:
    """By its first bytes."""
    with path.open("rb") as file:
        head = file.read(_PREFIX_AT + 4)
    if head[_PREFIX_AT:] == b"DICM":
        return "dicom"
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")):
        return "picture"
    return "other"


def unpack(parts: list[Part], folder: Path, limit_bytes: int) -> Unpacked:
    """Zips among the parts are unpacked into the folder, one level deep.

    limit_bytes: of all that is unpacked. Raises BadBody for a zip that is beyond it, broken or encrypted.
    """
    found = Unpacked()
    left = limit_bytes
    for part in parts:
        kind = kind_of(part.path)
        if kind == "dicom":
            found.dicom.append(part)
        elif kind == "zip":
            for entry in _entries(part, folder, min(left, max(SMALL_BYTES, MOST_TIMES * part.size))):
                left -= entry.size
                if (inside := kind_of(entry.path)) == "dicom":
                    found.dicom.append(entry)
                else:
                    found.skipped.append((entry.name, _why(inside)))
                    entry.path.unlink()
        else:
            found.skipped.append((part.name, _why(kind)))
    return found


def _why(kind: Kind) -> str:
    return PICTURE_SKIPPED if kind == "picture" else _NO_DICOM


def _entries(part: Part, folder: Path, limit_bytes: int) -> Iterator[Part]:
    left = limit_bytes
    try:
        with zipfile.ZipFile(part.path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            if len(members) > MOST_ENTRIES:
                raise BadBody(413, f"the zip has {len(members)} files; at most {MOST_ENTRIES} are taken")
            for number, member in enumerate(members):
                path = folder / f"{part.path.name}-{number:06d}"
                with archive.open(member) as source, path.open("wb") as target:
                    size = _copy(source, target, left)
                if size > left:
                    raise BadBody(
                        413, f"the zip unpacks to more than {limit_bytes // 1_000_000} MB, the limit"
                    )
                left -= size
                yield Part(path, "", Path(member.filename).name[:200], size)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, ValueError) as error:
        raise BadBody(400, "the zip is broken, or packed in a way that isn't supported") from error
    except RuntimeError as error:  # zipfile's for a file that needs a password
        raise BadBody(400, "the zip is encrypted") from error


def _copy(source: IO[bytes], target: BinaryIO, limit_bytes: int) -> int:
    """Until the end or beyond the limit; returns how many bytes."""
    size = 0
    while size <= limit_bytes and (piece := source.read(_COPY_BYTES)):
        size += target.write(piece)
    return size
