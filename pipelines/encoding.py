"""How a destination wants segmentations encoded. Imports nothing heavy: the node names encodings, too.

An encoding other than the default is another SOP Instance, in a series of its own, and so is the report that
refers to it: ``Encoding.suffix`` is part of their UIDs' roles. What a region is (its tracking UID) is the
same in all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

SegmentationType = Literal["binary", "labelmap", "fractional"]
EmptyFrames = Literal["omit", "include"]


@dataclass(frozen=True)
class Encoding:
    """Segmentation Type (0062,0001), and whether frames without a voxel are there."""

    segmentation: SegmentationType = "binary"
    empty_frames: EmptyFrames = "omit"

    @property
    def name(self) -> str:
        return f"{self.segmentation}-{self.empty_frames}"

    @property
    def suffix(self) -> str:
        """What distinguishes roles and file names from those of the default encoding; empty for that."""
        return "" if self == DEFAULT else f".{self.name}"

    @classmethod
    def named(cls, name: str) -> Encoding:
        """The inverse of ``name``. Raises ValueError."""
        segmentation, _, empty_frames = name.partition("-")
        for kind in get_args(SegmentationType):
            for frames in get_args(EmptyFrames):
                if (segmentation, empty_frames) == (kind, frames):
                    return cls(kind, frames)
        raise ValueError(f"no such encoding: {name!r}")


DEFAULT = Encoding()
