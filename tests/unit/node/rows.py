"""Rows of the database with everything that must be there; each test says what matters to it."""

from __future__ import annotations

from typing import Any


def instance_row(**changes: Any) -> dict[str, Any]:
    """A stored instance."""
    return {
        "sop_instance_uid": "1.2.3.0",
        "sop_class_uid": "1",
        "transfer_syntax_uid": "1",
        "path": "0.dcm",
        "bytes": 1,
        "association_id": "a",
        "calling_ae_title": "SCANNER",
        "state": "stored",
        "received_at": 1.0,
    } | changes


def series_row(**changes: Any) -> dict[str, Any]:
    """Version 1 of a series."""
    return {
        "series_instance_uid": "1.2.3",
        "version": 1,
        "study_instance_uid": "1.2",
        "calling_ae_title": "SCANNER",
        "state": "routed",
        "instance_count": 1,
        "opened_at": 1.0,
        "last_instance_at": 1.0,
    } | changes


def job_row(**changes: Any) -> dict[str, Any]:
    """A queued job of that series."""
    return {
        "job_id": "j1",
        "series_instance_uid": "1.2.3",
        "series_version": 1,
        "study_instance_uid": "1.2",
        "pipeline": "chest_ct_pneumonia",
        "route": "r",
        "destinations": ["pacs"],
        "priority": 100,
        "state": "queued",
        "created_at": 1.0,
    } | changes
