"""Who the patient of a study is: read from the header of one received instance, kept nowhere.

In: a Study Instance UID.  Out: what its instances say of the patient, in words, for who may see it.
"""

from __future__ import annotations

from pathlib import Path

from pydicom.errors import InvalidDicomError
from sqlalchemy import Engine, select

from node.database import instances, series
from node.header import read_header

_SHOWN = {
    "PatientName": "Name",
    "PatientID": "Patient ID",
    "PatientBirthDate": "Born",
    "PatientSex": "Sex",
    "AccessionNumber": "Accession number",
    "StudyDate": "Study date",
    "StudyDescription": "Study",
}


def patient_of(engine: Engine, data_dir: Path, study_instance_uid: str) -> dict[str, str] | None:
    """Label -> value, "" where it isn't given; None when no instance of the study is here (any more)."""
    its_series = select(series.c.series_instance_uid).where(series.c.study_instance_uid == study_instance_uid)
    query = (
        select(instances.c.path)
        .where(instances.c.series_instance_uid.in_(its_series), instances.c.state == "stored")
        .limit(5)
    )
    with engine.connect() as connection:
        paths = connection.execute(query).scalars().all()
    for path in paths:
        try:
            header = read_header(data_dir / path, list(_SHOWN))
            return {label: str(header.get(keyword) or "") for keyword, label in _SHOWN.items()}
        except (OSError, InvalidDicomError, ValueError, LookupError):
            continue  # a header that can't be decoded; the others may be better
    return None
