"""The case in lines of plain ASCII, which any character set of the input can hold; what matters most first.

They open the report (``document.build_document``), so that who reads it with ``dsrdump`` or as HTML
understands the case before the measurements begin. Each line says in its first 27 characters what it is
about: ``dsrdump`` shows no more unless it is asked to.
"""

from __future__ import annotations

from pydicom.sr.coding import Code

from pipelines.drawing import palette
from pipelines.quantify import severity
from pipelines.results import codes
from pipelines.results.outlines import Outline
from pipelines.volume import INFECTION_TYPES, NO_FINDING, Findings, Lung, Region, ResultContext, Volume

#: regions that are described, largest first
MOST_REGIONS = 3
REVIEW = "Not reviewed: made by software, no person has looked at it."


def conclusion(findings: Findings) -> str:
    """The case in one or two sentences."""
    if not findings.regions:
        return "No infection found: no candidate region was voted an infection."
    parts = [
        f"{codes.FINDING[name].meaning} P = {findings.noisy_or[name]:.3f} ({_regions(findings, name)})"
        for name in INFECTION_TYPES
    ]
    return (
        f"{codes.FINDING[findings.case_type].meaning}. Noisy-OR: {'; '.join(parts)}. "
        f"{findings.involved_percent:.1f} % of the lungs involved ({severity(findings.involved_percent)})."
    )


def narrative(
    volume: Volume, findings: Findings, outlines: dict[int, Outline], context: ResultContext
) -> list[tuple[Code, str]]:
    """(Conclusion, …), then a (Comment, …) each: probabilities, lungs, largest regions, what to know of it.

    outlines: region number -> where it is drawn.
    """
    lines = [_case(findings)]
    lines += [
        f"{_p(findings, name)} for {palette.NAMES[name]}, {_regions(findings, name)}"
        for name in INFECTION_TYPES
        if name != findings.case_type
    ]
    lines.append(_lungs(findings))
    shown = findings.regions[:MOST_REGIONS]
    lines += [_region(region, volume, outlines[region.number]) for region in shown]
    if more := len(findings.regions) - len(shown):
        lines.append(f"{more} more, smaller: see the measurements")
    warning = "" if context.clinical_use else f"{palette.NOT_CLINICAL}. "
    lines += [warning + REVIEW, *(f"Note: {note}" for note in findings.notes)]
    return [(codes.CONCLUSION if n == 0 else codes.COMMENT, line) for n, line in enumerate(lines)]


def _case(findings: Findings) -> str:
    if findings.case_type == NO_FINDING:
        return "No infection found: no candidate region was voted an infection."
    name = findings.case_type
    return f"{palette.NAMES[name]}, {_p(findings, name)}, {_regions(findings, name)}"


def _p(findings: Findings, name: str) -> str:
    """Never "1.000": many regions round Noisy-OR to 1, and no model is certain."""
    p = findings.noisy_or[name]
    return "P > 0.999" if p >= 0.9995 else f"P = {p:.3f}"


def _regions(findings: Findings, name: str) -> str:
    count = sum(region.infection_type == name for region in findings.regions)
    return "1 region" if count == 1 else f"{count} regions"


def _lungs(findings: Findings) -> str:
    sides = ", ".join(
        f"{lung.name.lower()} {findings.measures[lung].involved_percent:.1f} % of "
        f"{findings.measures[lung].volume_ml:.0f} ml"
        for lung in Lung
        if lung in findings.measures
    )
    grade = severity(findings.involved_percent)
    return f"Lungs {findings.involved_percent:.1f} % involved, {grade}: {sides}"


def _region(region: Region, volume: Volume, drawn: Outline) -> str:
    image = volume.sources[drawn.source].get("InstanceNumber")
    where = f", image {image}" if image is not None else ""
    if "SharedFunctionalGroupsSequence" in volume.sources[drawn.source]:
        where = f", frame {drawn.frame}"
    return (
        f"Region {region.number}: {region.volume_ml:.1f} ml, {region.laterality.name.lower()} lung, mostly "
        f"{palette.NAMES[region.lesion_type].lower()}, {palette.NAMES[region.infection_type]} "
        f"p = {region.probability:.3f}{where}"
    )
