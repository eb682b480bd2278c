"""Checks of finished result files with validators that this project did not write, where they are installed.

In: DICOM files.  Out: for each, one Validation for each tool that was run. Reading it back with pydicom and
highdicom is always one of them. The others are dciodvfy (dicom3tools), PixelMed's SR and instance validators,
DCMTK's dsrdump, and dcmqi's segimage2itkimage and tid1500reader.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import highdicom as hd
import pydicom
from pydicom.errors import InvalidDicomError

from pipelines.results.pixelmed import TOOLS, jars, pixelmed
from pipelines.results.segmentation import segment_numbers

_TIMEOUT_SECONDS = 180.0
#: newer than dciodvfy
_LABEL_MAP_SEGMENTATION_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"
#: modalities of structured reports: measurement reports and Key Object Selections
_REPORTS = ("SR", "KO")
_LINE = re.compile(r"^(Error|Warning|Abort)|Exception")
_BAD = re.compile(r"^(Error|Abort)|Exception")
#: PixelMed, as Debian has it, takes any character of a Person Name for wrong that isn't ASCII, whatever the
#: Specific Character Set says (PS3.5 6.1)
_WRONGLY_BAD = re.compile(r"^Error(?=.*Illegal character\(s\) '[^\x00-\x7f]+' in value of PN VR)")
#: what validators quote of, and nobody is to read in their messages (DESIGN I8)
_IDENTIFYING = (
    *("PatientName", "PatientID", "PatientBirthDate", "OtherPatientNames", "AccessionNumber"),
    *("ReferringPhysicianName", "PatientComments", "AdditionalPatientHistory"),
)


@dataclass(frozen=True)
class Validation:
    """What one tool said. ok: it found no error. messages: its error and warning lines, without the patient's
    name and the like."""

    tool: str
    ok: bool
    messages: tuple[str, ...] = ()


def validate(path: Path) -> list[Validation]:
    """``validate_all`` of one file."""
    return validate_all([path])[path]


def validate_all(paths: Sequence[Path]) -> dict[Path, list[Validation]]:
    """Run every installed validator that knows this kind of object. A tool that isn't there is left out.

    Many files at once are much faster than one by one: PixelMed's validators start once for all.
    """
    found: dict[Path, list[Validation]] = {}
    kinds: list[tuple[str, Path]] = []
    secrets: dict[Path, list[str]] = {}
    for path in paths:
        dataset, read_back = _read_back(path)
        found[path] = [read_back]
        if dataset is not None:
            modality = str(dataset.Modality)
            secrets[path] = _secrets(dataset)
            found[path] += _of_one(path, str(dataset.SOPClassUID), modality)
            kinds.append(("sr" if modality in _REPORTS else "iod", path))
    for path, said in _pixelmed(kinds):
        found[path].append(said)
    for path, words in secrets.items():
        found[path] = [_discreet(one, words) for one in found[path]]
    return found


def _secrets(dataset: pydicom.Dataset) -> list[str]:
    """Values that tell who the patient is, longest first; of single letters there is nothing to tell."""
    found = {str(dataset.get(keyword) or "") for keyword in _IDENTIFYING}
    return sorted((value for value in found if len(value) > 1), key=len, reverse=True)


def _discreet(said: Validation, secrets: Sequence[str]) -> Validation:
    messages = list(said.messages)
    for secret in secrets:
        messages = [message.replace(secret, "…") for message in messages]
    return replace(said, messages=tuple(messages))


def _of_one(path: Path, sop_class: str, modality: str) -> Iterator[Validation]:
    """What the tools say that take one file a process."""
    if (dciodvfy := _find("dciodvfy")) and sop_class != _LABEL_MAP_SEGMENTATION_STORAGE:
        yield _run("dciodvfy", [dciodvfy, str(path)])
    if modality in _REPORTS and (dsrdump := _find("dsrdump")):
        yield _run("dsrdump", [dsrdump, str(path)])
    reader = {"SEG": "segimage2itkimage", "SR": "tid1500reader"}.get(modality, "")
    if program := _find(reader) if reader else None:
        with tempfile.TemporaryDirectory() as folder:
            output = {
                "SEG": ["--outputDirectory", folder, "-t", "nrrd"],
                "SR": ["--outputMetadata", str(Path(folder) / "report.json")],
            }[modality]
            yield _run(reader, [program, "--inputDICOM", str(path), *output], by_exit_code=True)


def _pixelmed(kinds: Sequence[tuple[str, Path]]) -> list[tuple[Path, Validation]]:
    if not _find("java") or not jars():
        return []
    try:
        said = pixelmed(kinds)
    except (OSError, subprocess.SubprocessError) as error:
        why = f"Error: {error} {getattr(error, 'stderr', None) or ''}".strip()
        return [(path, Validation(TOOLS[kind], False, (why,))) for kind, path in kinds]
    return [
        (path, _judged(TOOLS[kind], [_WRONGLY_BAD.sub("Warning", line) for line in text.splitlines()]))
        for (kind, path), text in zip(kinds, said, strict=True)
    ]


def _read_back(path: Path) -> tuple[pydicom.Dataset | None, Validation]:
    """The file, None where it doesn't parse; highdicom checks and indexes SEG and SR."""
    try:
        dataset = pydicom.dcmread(path)
        modality = str(dataset.Modality)
        if modality == "SEG":
            segmentation = hd.seg.segread(path)
            segmentation.get_pixels_by_source_instance  # noqa: B018 - highdicom has indexed the frames
            if not segment_numbers(segmentation):
                raise ValueError("the segmentation has no segment")
        elif modality == "SR":
            hd.sr.srread(path).content.get_image_measurement_groups()
        elif "PixelData" in dataset:
            _ = dataset.pixel_array
    except (
        InvalidDicomError,
        OSError,
        AttributeError,
        ValueError,
        KeyError,
        RuntimeError,
        TypeError,
    ) as error:
        why = f"Error: {type(error).__name__}: {error}"
        return None, Validation("pydicom and highdicom", False, (why,))
    return dataset, Validation("pydicom and highdicom", True)


def _find(name: str) -> str | None:
    """A tool on the PATH, or among this environment's scripts (dcmqi is a Python wheel)."""
    scripts = f"{sysconfig.get_path('scripts')}:{Path(sys.executable).parent}"
    return shutil.which(name) or shutil.which(name, path=scripts)


def _run(tool: str, arguments: Sequence[str], *, by_exit_code: bool = False) -> Validation:
    """Run one tool. ``by_exit_code``: a reader that says by its exit code whether it could read."""
    try:
        done = subprocess.run(
            arguments,
            capture_output=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
            text=True,
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Validation(tool, False, (f"Error: {error}",))
    lines = [line.strip() for line in (done.stdout + "\n" + done.stderr).splitlines()]
    if by_exit_code:
        tail = [line for line in lines if line][-3:]
        return Validation(tool, done.returncode == 0, () if done.returncode == 0 else tuple(tail))
    said = _judged(tool, lines)
    if tool == "dsrdump" and done.returncode != 0:
        return replace(said, ok=False)
    return said


def _judged(tool: str, lines: Sequence[str]) -> Validation:
    found = tuple(dict.fromkeys(line for line in lines if _LINE.search(line)))
    return Validation(tool, not any(_BAD.search(line) for line in found), found)
