"""Checks of finished result files with validators that this project did not write, where they are installed.

In: a DICOM file.  Out: one Validation for each tool that was run. Reading it back with pydicom and highdicom
is always one of them. The others are dciodvfy (dicom3tools), PixelMed's SR and instance validators, DCMTK's
dsrdump, and dcmqi's segimage2itkimage and tid1500reader.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import highdicom as hd
import pydicom
from pydicom.errors import InvalidDicomError

from pipelines.results.segmentation import segment_numbers

_TIMEOUT_SECONDS = 180.0
_JAVA_FOLDER = Path("/usr/share/java")
#: Java's own limits on XPath are below what PixelMed's style sheets need
_JAVA_OPTIONS = ("xpathTotalOpLimit", "xpathExprOpLimit", "xpathExprGrpLimit")
_LINE = re.compile(r"^(Error|Warning|Abort)|Exception")
_BAD = re.compile(r"^(Error|Abort)|Exception")


@dataclass(frozen=True)
class Validation:
    """What one tool said. ok: it found no error. messages: its error and warning lines."""

    tool: str
    ok: bool
    messages: tuple[str, ...] = ()


def validate(path: Path) -> list[Validation]:
    """Run every installed validator that knows this kind of object. A tool that isn't there is left out."""
    modality, read_back = _read_back(path)
    results = [read_back]
    if read_back.ok:
        results += [_run(tool, arguments) for tool, arguments in _commands(path, modality)]
        if modality == "SEG" and (reader := _find("segimage2itkimage")):
            with tempfile.TemporaryDirectory() as folder:
                arguments = [reader, "--inputDICOM", str(path), "--outputDirectory", folder, "-t", "nrrd"]
                results.append(_run("segimage2itkimage", arguments, by_exit_code=True))
        if modality == "SR" and (reader := _find("tid1500reader")):
            with tempfile.TemporaryDirectory() as folder:
                output = str(Path(folder) / "report.json")
                arguments = [reader, "--inputDICOM", str(path), "--outputMetadata", output]
                results.append(_run("tid1500reader", arguments, by_exit_code=True))
    return results


def _read_back(path: Path) -> tuple[str, Validation]:
    """Parse the whole file; for SEG and SR also let highdicom check and index it."""
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
        return "", Validation("pydicom and highdicom", False, (f"Error: {type(error).__name__}: {error}",))
    return modality, Validation("pydicom and highdicom", True)


def _commands(path: Path, modality: str) -> Iterator[tuple[str, list[str]]]:
    if dciodvfy := _find("dciodvfy"):
        yield "dciodvfy", [dciodvfy, str(path)]
    java, jars = _find("java"), _jars()
    if java and jars:
        kind = "DicomSRValidator" if modality == "SR" else "DicomInstanceValidator"
        options = [f"-Djdk.xml.{name}=0" for name in _JAVA_OPTIONS]
        class_path = [*options, "-cp", ":".join(jars), f"com.pixelmed.validate.{kind}"]
        yield f"PixelMed {kind}", [java, *class_path, str(path)]
    if modality == "SR" and (dsrdump := _find("dsrdump")):
        yield "dsrdump", [dsrdump, str(path)]


def _find(name: str) -> str | None:
    """A tool on the PATH, or among this environment's scripts (dcmqi is a Python wheel)."""
    scripts = f"{sysconfig.get_path('scripts')}:{Path(sys.executable).parent}"
    return shutil.which(name) or shutil.which(name, path=scripts)


def _jars() -> list[str]:
    first = _JAVA_FOLDER / "pixelmed.jar"
    if not first.exists():
        return []
    others = (jar for jar in sorted(_JAVA_FOLDER.glob("*.jar")) if jar != first)
    # More than one logging binding on the class path makes SLF4J print warnings that look like ours
    return [
        str(first),
        *(str(jar) for jar in others if not re.search("slf4j|log4j", jar.name, re.IGNORECASE)),
    ]


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
    found = tuple(dict.fromkeys(line for line in lines if _LINE.search(line)))
    ok = not any(_BAD.search(line) for line in found)
    if tool == "dsrdump":
        ok = ok and done.returncode == 0
    return Validation(tool, ok, found)
