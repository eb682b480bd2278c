"""What summary.json says of ``Findings``: volumes in ml, distances as ratios, places in LPS mm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.quantify import SEVERITY_METHOD, severity
from pipelines.results.narrative import conclusion
from pipelines.volume import Findings, LungMeasures, Region


def summarise(findings: Findings) -> dict[str, Any]:
    """The part of summary.json (DESIGN section 5) that depends on the findings."""
    return {
        "findings": [_region(region) for region in findings.regions],
        "probability_method": findings.probability_method,
        "noisy_or": dict(findings.noisy_or),
        "case_type": findings.case_type,
        "conclusion": conclusion(findings),
        "noisy_or_method": "1 - product of (1 - probability) over the findings of the type",
        "lungs": {lung.name.lower(): _lung(measures) for lung, measures in findings.measures.items()},
        "lung_volume_ml": {lung.name.lower(): m.volume_ml for lung, m in findings.measures.items()},
        "lesion_volume_ml": {lung.name.lower(): m.lesions_ml for lung, m in findings.measures.items()},
        "involved_percent": findings.involved_percent,
        "peripheral_percent": findings.peripheral_percent,
        "severity": severity(findings.involved_percent),
        "severity_method": SEVERITY_METHOD,
    }


def _lung(measures: LungMeasures) -> dict[str, Any]:
    return {
        "volume_ml": measures.volume_ml,
        "lesion_volume_ml": dict(measures.lesion_volume_ml),
        "mean_hu": measures.mean_hu,
        "hu_percentiles": _percentiles(measures.hu_percentiles),
        "involved_percent": measures.involved_percent,
        "peripheral_percent": measures.peripheral_percent,
    }


def _percentiles(percentiles: Mapping[int, float]) -> dict[str, float]:
    return {str(n): hu for n, hu in percentiles.items()}


def _region(region: Region) -> dict[str, Any]:
    return {
        "number": region.number,
        "type": region.infection_type,
        "probability": region.probability,
        "votes": [
            {
                "type": patch.infection_type,
                "confidence": patch.confidence,
                "probabilities": dict(patch.probabilities),
                "relative_distance_from_edge": patch.relative_distance_from_edge,
                "axial_slice_row_column": list(patch.place),
            }
            for patch in region.votes
        ],
        "candidate_score": region.candidate_score,
        "lesion_type": region.lesion_type,
        "lesion_volume_ml": dict(region.lesion_volume_ml),
        "volume_ml": region.volume_ml,
        "mean_hu": region.mean_hu,
        "hu_percentiles": _percentiles(region.hu_percentiles),
        "laterality": region.laterality.name.lower(),
        "relative_distance_from_edge": region.relative_distance_from_edge,
        "centroid_lps_mm": list(region.centroid_lps_mm),
        "bounding_box": [list(limits) for limits in region.bounding_box],
        "key_slice": region.key_slice,
    }
