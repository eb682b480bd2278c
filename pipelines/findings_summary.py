"""What summary.json says of ``Findings``: volumes in ml, distances as ratios, places in LPS mm."""

from __future__ import annotations

from typing import Any

from pipelines.results.report import conclusion
from pipelines.volume import Findings, Region


def summarise(findings: Findings) -> dict[str, Any]:
    """The part of summary.json (DESIGN section 5) that depends on the findings."""
    return {
        "findings": [_region(region) for region in findings.regions],
        "probability_method": findings.probability_method,
        "noisy_or": dict(findings.noisy_or),
        "case_type": findings.case_type,
        "conclusion": conclusion(findings),
        "lung_volume_ml": {lung.name.lower(): ml for lung, ml in findings.lung_volume_ml.items()},
        "lesion_volume_ml": {lung.name.lower(): ml for lung, ml in findings.lesion_volume_ml.items()},
        "involved_percent": findings.involved_percent,
    }


def _region(region: Region) -> dict[str, Any]:
    return {
        "number": region.number,
        "type": region.finding_type,
        "probability": region.probability,
        "type_probabilities": dict(region.type_probabilities),
        "volume_ml": region.volume_ml,
        "mean_hu": region.mean_hu,
        "laterality": region.laterality.name.lower(),
        "relative_distance_from_edge": region.relative_distance_from_edge,
        "centroid_lps_mm": list(region.centroid_lps_mm),
        "bounding_box": [list(limits) for limits in region.bounding_box],
        "key_slice": region.key_slice,
    }
