"""How far two result sets of one series agree, whatever pipeline made them.

In: two folders as ``process`` leaves them.  Out: numbers for summary.json:

    dice        segment -> 2 |A and B| / (|A| + |B|) over all voxels. Segments are told by their labels,
                numbered ones ("Region 3") together, since two runs number what they find each in its own
                way. One that only one side has is 0.0
    case_type   live, candidate, equal
    noisy_or    type -> live, candidate, difference (candidate - live); a type that one side lacks counts as 0

A pipeline takes part by what every result set has: ``case_type`` and ``noisy_or`` in summary.json, and its
segmentations, of whatever is segmented, if it makes any.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.uid import SegmentationStorage

from pipelines.request import SUMMARY

#: what a frame lies on: SOP Instance UID and frame number of a source image
_Place = tuple[str, int]
_Bits = NDArray[np.uint8]
_BITS_OF_BYTE = np.array([value.bit_count() for value in range(256)], np.uint8)
_NUMBER = re.compile(r"\s+\d+$")


def compare(live: Path, candidate: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """live, candidate: folders of the sets. summary: the candidate's, which needn't be written yet."""
    of_live: Mapping[str, Any] = json.loads((live / SUMMARY).read_text(encoding="utf-8"))
    types = {"live": of_live["case_type"], "candidate": summary["case_type"]}
    return {
        "dice": _dice(_masks(live, of_live), _masks(candidate, summary)),
        "case_type": {**types, "equal": types["live"] == types["candidate"]},
        "noisy_or": {
            name: _difference(of_live["noisy_or"].get(name, 0.0), summary["noisy_or"].get(name, 0.0))
            for name in sorted({*of_live["noisy_or"], *summary["noisy_or"]})
        },
    }


def _difference(live: float, candidate: float) -> dict[str, float]:
    return {"live": live, "candidate": candidate, "difference": candidate - live}


def _dice(
    live: Mapping[str, Mapping[_Place, _Bits]], candidate: Mapping[str, Mapping[_Place, _Bits]]
) -> dict[str, float]:
    found = {}
    for name in sorted({*live, *candidate}):
        ours, theirs = live.get(name, {}), candidate.get(name, {})
        both = sum(_count(ours[place] & theirs[place]) for place in ours.keys() & theirs.keys())
        either = sum(_count(bits) for side in (ours, theirs) for bits in side.values())
        found[name] = round(2 * both / either, 6) if either else 1.0
    return found


def _count(bits: _Bits) -> int:
    return int(_BITS_OF_BYTE[bits].sum())


def _masks(folder: Path, summary: Mapping[str, Any]) -> dict[str, dict[_Place, _Bits]]:
    """Segment -> place -> its voxels there, eight a byte: 300 slices with regions would be 400 MB else."""
    masks: dict[str, dict[_Place, _Bits]] = defaultdict(dict)
    for entry in summary["results"]:
        if entry["sop_class_uid"] != SegmentationStorage:
            continue
        segmentation = dcmread(folder / entry["path"])
        if segmentation.SegmentationType != "BINARY":  # results in the default encoding are
            continue
        names = {
            int(item.SegmentNumber): _NUMBER.sub("", str(item.SegmentLabel))
            for item in segmentation.SegmentSequence
        }
        for number, place, bits in _frames(segmentation):
            of_segment = masks[names[number]]
            of_segment[place] = of_segment[place] | bits if place in of_segment else bits
    return masks


def _frames(segmentation: Dataset) -> Iterator[tuple[int, _Place, _Bits]]:
    """Segment Number, place and voxels of every frame. Frames follow each other bit by bit (PS3.5 8.1.1)."""
    pixels = np.frombuffer(segmentation.PixelData, np.uint8)
    size = int(segmentation.Rows) * int(segmentation.Columns)
    for index, groups in enumerate(segmentation.PerFrameFunctionalGroupsSequence):
        start = index * size
        bits = pixels[start // 8 : (start + size + 7) // 8]
        if start % 8 or size % 8:
            single = np.unpackbits(bits, bitorder="little")[start % 8 : start % 8 + size]
            bits = np.packbits(single, bitorder="little")
        source = groups.DerivationImageSequence[0].SourceImageSequence[0]
        place = (str(source.ReferencedSOPInstanceUID), int(source.get("ReferencedFrameNumber") or 1))
        yield int(groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber), place, bits
