"""Pictures of a job's results, as browsers show them.

In: a job, and the number of an object in its result set.  Out: PNG of its first frame.
"""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

from PIL import Image
from pydicom.pixels import pixel_array
from sqlalchemy import Engine, select

from node.database import jobs
from node.web.study import PICTURE_CLASSES
from pipelines.request import SUMMARY


def picture(
    engine: Engine, data_dir: Path, study_instance_uid: str, job_id: str, number: int
) -> bytes | None:
    """None when the study has no such job, or the job no such picture (any more)."""
    query = select(jobs.c.result_dir).where(
        jobs.c.job_id == job_id, jobs.c.study_instance_uid == study_instance_uid
    )
    with engine.connect() as connection:
        result_dir = connection.execute(query).scalar_one_or_none()
    if result_dir is None or number < 0:
        return None
    folder = data_dir / result_dir
    try:
        results = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))["results"]
        if number >= len(results) or results[number]["sop_class_uid"] not in PICTURE_CLASSES:
            return None
        frame = pixel_array(folder / results[number]["path"], index=0)
    except (OSError, ValueError):
        return None
    encoded = BytesIO()
    Image.fromarray(frame).save(encoded, "PNG", compress_level=3)
    return encoded.getvalue()
