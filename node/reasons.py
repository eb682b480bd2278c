"""Why there is no result: the code of each reason and its sentence, worded here and nowhere else.

In: a code and what is particular of it (which AE title, which tag, which model), as they were recorded where
it happened.  Out: a ``Reason``. The pages, ``pacsnode explain`` and the log show its sentence as it is, and
its code is the label of the metric that counts it: so whoever asks, and wherever, is told the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """What became of it. Codes are unique within a kind."""

    REJECTED = "association rejected"
    REFUSED = "instance refused"
    QUARANTINED = "instance quarantined"
    INCOMPLETE = "series incomplete"
    UNMATCHED = "series unmatched"
    WAITING = "job waits"
    ENDED = "job ended"
    DELIVERY = "delivery failed"


@dataclass(frozen=True)
class _Metric:
    """name: of the counter.  label: that holds the code.  others: labels that tell it from what went well."""

    name: str
    label: str
    others: str = ""


_METRICS = {
    Kind.REJECTED: _Metric("pacsnode_associations_rejected_total", "reason"),
    Kind.REFUSED: _Metric("pacsnode_instances_total", "code", 'outcome="refused",'),
    Kind.QUARANTINED: _Metric("pacsnode_instances_total", "code", 'outcome="quarantined",'),
    Kind.INCOMPLETE: _Metric("pacsnode_series_incomplete_total", "by"),
    Kind.UNMATCHED: _Metric("pacsnode_routing_total", "reason", 'outcome="unmatched",'),
    Kind.WAITING: _Metric("pacsnode_job_retries_total", "code"),
    Kind.ENDED: _Metric("pacsnode_jobs_finished_total", "code"),
    Kind.DELIVERY: _Metric("pacsnode_delivery_failures_total", "code"),
}

_OF_JOBS = {
    # the series
    "geometry_duplicate_position": "two slices lie at one position",
    "geometry_invalid_orientation": "the orientation isn't one of a slice",
    "geometry_irregular_spacing": "the slices are spaced unevenly",
    "geometry_mismatch": "the series lies otherwise than its results",
    "geometry_missing": "an instance doesn't say where it lies",
    "geometry_missing_slices": "the series is incomplete",
    "geometry_mixed_frame_of_reference": "the series has several frames of reference",
    "geometry_mixed_matrix": "the slices aren't of one size",
    "geometry_mixed_orientation": "the slices aren't parallel",
    "geometry_shifted_planes": "the slices don't lie above each other",
    "geometry_tilted": "the geometry is tilted more than a gantry can be",
    "geometry_too_few_slices": "the series is no volume",
    "localizers_only": "the series has localizers only",
    "missing_attribute": "an attribute that is needed is missing or invalid",
    "mixed_series": "the instances aren't of one series",
    "no_instances": "the series has no instances",
    "no_lungs": "no lungs were found",
    "no_lungs_found": "no lungs were found",
    "not_hounsfield": "the values aren't Hounsfield units",
    "several_multiframe_instances": "the series has several multi-frame instances",
    "several_pictures": "the series has several pictures",
    "undecodable_pixels": "the pixels can't be decoded",
    "unreadable_instance": "an instance can't be read",
    "unsupported_pixels": "the pixels are of a kind that isn't supported",
    "unsupported_sop_class": "the SOP class isn't supported",
    "series_refused": "the series can't be processed",
    # the models
    "inference_failed": "a model failed on this input",
    "inference_interrupted": "a model didn't answer in time",
    "model_mismatch": "a served model isn't what the pipeline expects",
    "model_not_served": "a model that the pipeline needs isn't served",
    "triton_unavailable": "Triton isn't ready",
    "unknown_model": "a candidate names a model that its pipeline doesn't have",
    "unknown_pipeline": "the pipeline isn't known",
    # the node
    "cancelled": "it was cancelled",
    "delivery_failed": "a destination didn't take the results",
    "internal": "a defect of ours",
    "io_error": "the disk failed",
    "node_stopping": "the node was stopped while it ran",
    "predecessor_running": "the job of an earlier version has to end first",
    "rendering_unavailable": "this machine can't render",
    "step_timeout": "it took too long",
    "worker_crashed": "the process of the pipeline ended",
}
WORDS: Mapping[Kind, Mapping[str, str]] = {
    Kind.REJECTED: {
        "host": "the host isn't in receive.allowed_hosts",
        "calling_ae_title": "the calling AE title isn't allowed",
        "called_ae_title": "the called AE title isn't ours",
        "no_space": "less space than receive.free_disk_floor_bytes",
        "too_many_associations": "receive.max_associations are open",
        "too_many_of_peer": "receive.max_associations_per_peer are open from this host",
    },
    Kind.REFUSED: {
        "not_storage": "what was sent isn't for storage",
        "out_of_space": "the disk is out of space",
        "spool_error": "the disk or the database failed",
    },
    Kind.QUARANTINED: {
        "duplicate_different": "another instance has this UID",
        "file_missing": "the disk lost the file",
        "invalid_uid": "a UID isn't one",
        "missing_uid": "a UID that filing needs is missing",
        "uid_mismatch": "the instance isn't what its sender announced",
        "unreadable_dataset": "the header can't be read",
    },
    Kind.INCOMPLETE: dict.fromkeys(
        ("c_find", "series_count", "concatenation", "images_in_acquisition", "positions"),
        "instances are missing",
    ),
    Kind.WAITING: _OF_JOBS,
    Kind.ENDED: _OF_JOBS,
    Kind.DELIVERY: {
        "c_store_failed": "the destination refused it",
        "commitment_not_accepted": "the destination commits itself to nothing",
        "commitment_refused": "the destination refused to commit itself",
        "delivery_failed": "the delivery failed",
        "destination_down": "the destination is down",
        "destination_refused": "the destination refused the association",
        "destination_removed": "the destination isn't configured any more",
        "encoding_missing": "the results aren't there as the destination wants them",
        "internal": "a defect of ours",
        "io_error": "the disk failed",
        "not_committed": "the destination doesn't keep what it took",
        "paused": "the destination is paused",
        "predecessor_pending": "an earlier version has to be there first",
        "sop_class_not_accepted": "the destination doesn't take such objects",
        "stow_failed": "the destination refused it",
        "tls_failed": "TLS towards the destination failed",
        "token_unreadable": "the token for the destination can't be read",
    },
}
_NO_ROUTE = "no route matches"
_NO_ROUTES = "no routes are configured"
_UNKNOWN = "the reason wasn't recorded"


@dataclass(frozen=True)
class Reason:
    """sentence: what follows "because", without an end.  metric: the selector of the counter of such reasons.
    where: the destination, of a delivery."""

    kind: Kind
    code: str
    sentence: str
    metric: str
    where: str = ""


def worded(kind: Kind, code: str | None, detail: str | None, where: str = "") -> Reason:
    """The reason of a code, with what is particular of this one. Codes without words are told by it alone."""
    words = WORDS[kind].get(code or "", "") if kind is not Kind.UNMATCHED else _NO_ROUTE
    parts = [part for part in (words, (detail or "").strip().removesuffix(".")) if part]
    code, counted = code or "unknown", _METRICS[kind]
    metric = f'{counted.name}{{{counted.others}{counted.label}="{code}"}}'
    return Reason(kind, code, ": ".join(parts) or _UNKNOWN, metric, where)


def unmatched(code: str | None, routes: Sequence[Mapping[str, Any]]) -> Reason:
    """routes: the verdicts, each with its ``route`` and ``why``."""
    why = "; ".join(f"{route['route']}: {route['why']}" for route in routes)
    return worded(Kind.UNMATCHED, code, why or _NO_ROUTES)


def incomplete(evidence: Mapping[str, Any]) -> tuple[Reason, ...]:
    """What is known to be missing of a series that was completed all the same."""
    found = []
    if evidence.get("missing_instances"):
        by = evidence["expected_by"]
        said = f"{evidence['instances']} of {evidence['expected']} came, by {by.replace('_', ' ')}"
        found.append(worded(Kind.INCOMPLETE, by, said))
    if positions := evidence.get("missing_positions"):
        found.append(worded(Kind.INCOMPLETE, "positions", f"{positions['count']} slice positions are empty"))
    return tuple(found)


def of_job(job: Mapping[str, Any]) -> Reason | None:
    """Of a row of ``jobs``: why it ended without results, or waits; None where it says nothing. One that
    delivers and has a reason delivers nothing but that."""
    if job["state"] in ("failed", "cancelled"):
        return worded(Kind.ENDED, job["reason_code"], job["reason"])
    if job["state"] == "done" or not (job["reason_code"] or job["reason"]):
        return None
    if job["state"] == "delivering":
        return worded(Kind.ENDED, job["reason_code"], job["reason"])
    return worded(Kind.WAITING, job["reason_code"], job["reason"])


def of_delivery(row: Mapping[str, Any]) -> Reason | None:
    """Of a row of ``deliveries``: why it failed, or waits; None where it doesn't."""
    if row["state"] == "delivered" or not row["last_error"]:
        return None
    return worded(Kind.DELIVERY, row["reason_code"], row["last_error"], row["destination"])


def of_instance(row: Mapping[str, Any]) -> Reason:
    """Of a quarantined row of ``instances``."""
    return worded(Kind.QUARANTINED, row["reason_code"], row["reason"])


def of_refusal(row: Mapping[str, Any]) -> Reason:
    """Of a row of ``refusals``."""
    return worded(Kind(row["kind"]), row["code"], row["reason"])
