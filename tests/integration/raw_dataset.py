"""Data sets encoded by hand, right or wrong in any way, with text in every character set."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

from pydicom.uid import CTImageStorage

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"

_LONG_VRS = (b"OB", b"OW", b"SQ", b"UN", b"UT")

#: tag, VR, value
Element = tuple[int, bytes, bytes]

#: defined terms of (0008,0005) Specific Character Set (PS3.3 C.12.1.1.2) and a name written in each
CHARACTER_SETS: tuple[tuple[bytes, bytes], ...] = (
    (b"", b"Adams^John"),
    (b"ISO_IR 6", b"Adams^John"),
    (b"ISO_IR 100", "Buc^Jérôme".encode("latin-1")),
    (b"ISO_IR 101", "Wałęsa".encode("iso8859-2")),
    (b"ISO_IR 109", "Ĉapek^Ĝoĝo".encode("iso8859-3")),
    (b"ISO_IR 110", "Kęstučio".encode("iso8859-4", "replace")),
    (b"ISO_IR 144", "Люкceмбypг".encode("iso8859-5")),
    (b"ISO_IR 127", "قباني^لنزار".encode("iso8859-6")),
    (b"ISO_IR 126", "Διονυσιος".encode("iso8859-7")),
    (b"ISO_IR 138", "שרון^דבורה".encode("iso8859-8")),
    (b"ISO_IR 148", "Çavuşoğlu".encode("iso8859-9")),
    (b"ISO_IR 203", "Œuvré€".encode("iso8859-15")),
    (b"ISO_IR 13", "ﾔﾏﾀﾞ^ﾀﾛｳ".encode("shift_jis")),
    (b"ISO_IR 166", "นามสกุล".encode("tis-620")),
    (b"ISO_IR 192", "Wang^XiaoDong=王^小東=".encode()),
    (b"GB18030", "Wang^XiaoDong=王^小东=".encode("gb18030")),
    (b"GBK", "Wang^XiaoDong=王^小东=".encode("gbk")),
    (b"ISO 2022 IR 6\\ISO 2022 IR 100", b"Buc^J\x1b-A\xe9r\xf4me"),
    (b"\\ISO 2022 IR 101", b"\x1b-BWa\xb3\xeasa"),
    (b"\\ISO 2022 IR 109", b"\x1b-C\xc6apek"),
    (b"\\ISO 2022 IR 110", b"\x1b-DK\xeastu"),
    (b"\\ISO 2022 IR 144", b"\x1b-L\xbb\xee\xda"),
    (b"\\ISO 2022 IR 127", b"\x1b-G\xe2\xc8\xc7"),
    (b"\\ISO 2022 IR 126", b"\x1b-F\xc4\xe9\xef"),
    (b"\\ISO 2022 IR 138", b"\x1b-H\xf9\xf8\xe5"),
    (b"\\ISO 2022 IR 148", b"\x1b-M\xc7avu\xfe"),
    (b"\\ISO 2022 IR 203", b"\x1b-b\xbcuvr\xe9"),
    (b"\\ISO 2022 IR 166", b"\x1b-T\xb9\xd2\xc1"),
    (b"ISO 2022 IR 13\\ISO 2022 IR 87", b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J"),
    (b"\\ISO 2022 IR 87", b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B"),
    (b"\\ISO 2022 IR 159", b"Ueda=\x1b$(D\x22\x71\x1b(B"),
    (b"\\ISO 2022 IR 149", b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7"),
    (b"\\ISO 2022 IR 58", b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab"),
)


def image_elements(
    sop_instance_uid: str | bytes,
    series_instance_uid: str | bytes = b"1.2.3",
    *,
    sop_class_uid: str | bytes = CTImageStorage,
    study_instance_uid: str | bytes = b"1.2.3.1",
    text: Sequence[Element] = (),
    pixels: bytes = bytes(64),
) -> list[Element]:
    """A small CT image, in ascending order of tags. ``text``: more elements."""

    def uid(value: str | bytes) -> bytes:
        return value.encode() if isinstance(value, str) else value

    return sorted(
        [
            (0x00080016, b"UI", uid(sop_class_uid)),
            (0x00080018, b"UI", uid(sop_instance_uid)),
            (0x00080060, b"CS", b"CT"),
            (0x0020000D, b"UI", uid(study_instance_uid)),
            (0x0020000E, b"UI", uid(series_instance_uid)),
            (0x00280010, b"US", b"\x04\0"),
            (0x7FE00010, b"OW", pixels),
            *text,
        ]
    )


def encode(elements: Sequence[Element], transfer_syntax: str = EXPLICIT, *, odd: bool = False) -> bytes:
    """A data set in the order given. ``odd``: without padding to even lengths."""
    encoded = b"".join(encode_element(one, transfer_syntax, odd=odd) for one in elements)
    if transfer_syntax == DEFLATED:
        deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        encoded = deflate.compress(encoded) + deflate.flush()
    return encoded


def encode_element(one: Element, transfer_syntax: str = EXPLICIT, *, odd: bool = False) -> bytes:
    tag, vr, value = one
    if not odd and len(value) % 2:
        value += b"\0" if vr in (b"UI", b"OB") else b" "
    order = ">" if transfer_syntax == BIG_ENDIAN else "<"
    head = struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF)
    if transfer_syntax == IMPLICIT:
        return head + struct.pack("<L", len(value)) + value
    if vr in _LONG_VRS:
        return head + vr + b"\0\0" + struct.pack(f"{order}L", len(value)) + value
    return head + vr + struct.pack(f"{order}H", min(len(value), 0xFFFF)) + value
