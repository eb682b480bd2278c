"""``pacsnode explain PATH``: which routes match the series in a folder, and why the others don't.

In: a file or folder of DICOM, the compiled routes. Out: one decision a series and the files that aren't
usable, as data (``to_json``) or plain text (``explain_text``). Nothing is stored or sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom.errors import InvalidDicomError

from node.route.facts import FactCollector, read_header
from node.route.router import Decision, Route, decide

#: Facts that the text rendering shows for each series, in this order, when they have a value.
_SHOWN = (
    "modality",
    "sop_class",
    "image_type",
    "body_part_examined",
    "study_description",
    "series_description",
    "protocol_name",
    "manufacturer",
    "model",
    "instance_count",
    "frame_count",
    "orientation",
    "spacing_between_positions_mm",
    "slice_thickness_mm",
    "gantry_tilt_degrees",
    "mixed_facts",
    "unreadable_count",
)


@dataclass(frozen=True)
class PathExplanation:
    """``series``: a decision for each, by Series Instance UID. ``skipped``: (file, why it isn't used).
    ``files``: with the SOP Instance UID of each, "" where it can't be read."""

    series: tuple[Decision, ...]
    skipped: tuple[tuple[Path, str], ...]
    files: Mapping[Path, str] = field(default_factory=dict)

    @property
    def any_match(self) -> bool:
        return any(decision.matched for decision in self.series)

    def to_json(self) -> dict[str, Any]:
        """Plain data; with free text, as it is for the operator's own terminal."""
        return {
            "series": [
                {
                    "series_instance_uid": decision.facts.series_instance_uid,
                    "matched": [route.name for route in decision.matched],
                    "routes": [verdict.to_json(show_free_text=True) for verdict in decision.verdicts],
                    "facts": {
                        name: list(value) if isinstance(value, tuple) else value
                        for name, value in decision.facts.values.items()
                    },
                }
                for decision in self.series
            ],
            "skipped": [{"path": str(path), "reason": reason} for path, reason in self.skipped],
        }


def explain(path: Path, routes: Sequence[Route]) -> PathExplanation:
    """Read every file under ``path`` (or the one file) and decide for each series found.

    Raises FileNotFoundError when there is no such path.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    collectors: dict[str, FactCollector] = {}
    skipped: list[tuple[Path, str]] = []
    read = dict.fromkeys(files, "")
    for file in files:
        try:
            header, transfer_syntax_uid = read_header(file)
            uid = str(header.get("SeriesInstanceUID") or "")
            read[file] = str(header.get("SOPInstanceUID") or "")
        except InvalidDicomError:
            skipped.append((file, "not a DICOM file (no DICM prefix after 128 bytes)"))
            continue
        except Exception as error:  # what pydicom raises for damaged headers is an open list; it is shown
            skipped.append((file, f"the header can't be read: {type(error).__name__}"))
            continue
        if not uid:
            skipped.append((file, "Series Instance UID is missing or empty; the node would quarantine it"))
            continue
        collectors.setdefault(uid, FactCollector(uid)).add(header, transfer_syntax_uid)
    decisions = tuple(decide(collectors[uid].facts(), routes) for uid in sorted(collectors))
    return PathExplanation(decisions, tuple(skipped), read)


def explain_text(explanation: PathExplanation) -> str:
    """Plain text for a terminal, in lines."""
    lines: list[str] = []
    for decision in explanation.series:
        lines.append(f"series {decision.facts.series_instance_uid}")
        for name in _SHOWN:
            value = decision.facts[name]
            if value not in (None, 0):
                shown = "\\".join(value) if isinstance(value, tuple) else value
                lines.append(f"  {name:<29} {shown}")
        for verdict in decision.verdicts:
            mark = "matches" if verdict.matches else "does not match"
            lines.append(f"  route {verdict.route.name} -> {verdict.route.pipeline}: {mark}")
            lines.append(f"    because {verdict.why(show_free_text=True)}")
        if not decision.verdicts:
            lines.append("  no routes are configured")
        lines.append("")
    if not explanation.series:
        lines += ["no DICOM series found", ""]
    if explanation.skipped:
        lines.append(f"{len(explanation.skipped)} file(s) not used:")
        lines += [f"  {path}: {reason}" for path, reason in explanation.skipped]
    return "\n".join(lines).rstrip() + "\n"
