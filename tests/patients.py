"""Patients that are sent, and whether anything tells of them that isn't to (DESIGN I8).

In: images, logs, a node's web address.  Out: where a word was found that only the images have.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import httpx
from pydicom import Dataset, dcmread

#: nobody's, and none of it a part of any other word, path or number
IDENTITY = {
    "SpecificCharacterSet": "ISO_IR 192",
    "PatientName": "Wróblewiczowa^Quirine^Ysolde",
    "PatientID": "QZ-739104-XK",
    "PatientBirthDate": "19370429",
    "OtherPatientNames": "Zwartebroeck^Ysolde",
    "AccessionNumber": "ACC-8841-YQ",
    "ReferringPhysicianName": "Oppenhuizen^Tjitske",
}
_DATE = "PatientBirthDate"
_WORDS = frozenset(IDENTITY) - {"SpecificCharacterSet", _DATE}
#: what a page links to and that is none, or never ends, or is there to name the patient to who may ask
_NO_PAGE = re.compile(r"^/(static|events|logout|upload)|/patient$|/pictures/")
MOST_PAGES = 200


def give_identity(image: Dataset) -> None:
    for keyword, value in IDENTITY.items():
        setattr(image, keyword, value)


def give_identity_to(folder: Path) -> None:
    """Every DICOM file below it; what isn't DICOM stays as it is."""
    for path in folder.rglob("*.dcm"):
        image = dcmread(path, force=True)
        if "SOPInstanceUID" in image:
            give_identity(image)
            image.save_as(path)


def words(image: Dataset) -> set[str]:
    """Names in whole and in parts, identifiers, and the birth date as it may be written."""
    found = set()
    for keyword in _WORDS:
        value = str(image.get(keyword, ""))
        found |= {value, *re.split(r"[\^= ]+", value)}
    if born := str(image.get(_DATE, "")):
        found |= {born, f"{born[:4]}-{born[4:6]}-{born[6:]}", f"{born[6:]}.{born[4:6]}.{born[:4]}"}
    return {word for word in found if len(word) > 3}


def told(texts: Mapping[str, str], of: Iterable[str]) -> list[str]:
    """Where each text tells one of these words, in whatever case, or as JSON escapes it."""
    forms = {form.lower() for word in of for form in (word, json.dumps(word)[1:-1])}
    return sorted(
        f"{name} tells {form!r}" for name, text in texts.items() for form in forms if form in text.lower()
    )


def served(url: str) -> dict[str, str]:
    """Path -> what it answers: metrics, lists and every page that links lead to, without any login."""
    waiting = ["/", "/metrics", "/openapi.json", "/readyz", "/api/series", "/api/jobs", "/api/refused"]
    waiting += ["/studies", "/destinations", "/models", "/routes", "/api/destinations", "/api/models"]
    found: dict[str, str] = {}
    with httpx.Client(base_url=url, timeout=60.0) as client:
        while waiting and len(found) < MOST_PAGES:
            path = waiting.pop(0)
            if path in found:
                continue
            found[path] = client.get(path).text
            links = re.findall(r'href="(/[^"#]*)"', found[path])
            waiting += [link for link in links if not _NO_PAGE.search(link)]
            waiting += [f"/api{link}" for link in links if re.fullmatch(r"/studies/[^/?]+", link)]
    return found
