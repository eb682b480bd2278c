#!/usr/bin/env python3
"""What is installed beside the node, and under which licences.

In: the running Python's environment (importlib.metadata).  Out: a CycloneDX 1.6 document of the node and of
everything that it needs, or with --licences the table in docs/licences.md.

    python deploy/docker/sbom.py --out sbom.cdx.json
    python deploy/docker/sbom.py --licences --out docs/licences.md
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

PROJECT = "pacsnode"
#: of a licence's many names (classifiers, free text) -> SPDX
SPDX = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "BSD 3-Clause License": "BSD-3-Clause",
    "GNU Lesser General Public License v3 (LGPLv3)": "LGPL-3.0-only",
    "GNU General Public License v3 (GPLv3)": "GPL-3.0-only",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "PSF": "PSF-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
    "ZPL 2.1": "ZPL-2.1",
    "Zope Public License": "ZPL-2.1",
}
_TABLE = """# Licences

What the node installs from PyPI, and under which licence; written from the metadata of what is installed,
by

    .venv/bin/python deploy/docker/sbom.py --licences --out docs/licences.md

A test compares it. The node is Apache-2.0 ([LICENSE](../LICENSE)); licences of the models' weights and of
what they were trained on are in their cards (`triton_models/repository/*/README.md`). Wheels carry compiled
libraries with licences of their own, which their `*.dist-info/licenses` list. Debian's packages
(`deploy/install-system.sh`) bring theirs in `/usr/share/doc/*/copyright`.

All are permissive or LGPL, but `certifi`, which is MPL-2.0, file by file. None is under the GPL: a test says
so.

| distribution | licence |
|---|---|
"""


def normalized(name: str) -> str:
    """A distribution's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(name: str, extras: frozenset[str] = frozenset()) -> dict[str, Distribution]:
    """A distribution and everything that it needs here, by normalized name.

    Raises PackageNotFoundError for what isn't installed.
    """
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(name, extras)]
    while waiting:
        name, extras = waiting.pop()
        if (normalized(name), extras) in seen:
            continue
        seen.add((normalized(name), extras))
        one = found[normalized(name)] = distribution(name)
        for text in one.requires or ():
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": e}) for e in (*extras, "")):
                waiting.append((requirement.name, frozenset(requirement.extras)))
    return dict(sorted(found.items()))


def licence(one: Distribution) -> str:
    """An SPDX expression where the metadata allows to tell, otherwise what they say."""
    metadata = one.metadata
    if expression := metadata.get("License-Expression"):
        return str(expression)
    classified = [
        text.rpartition(" :: ")[2]
        for text in metadata.get_all("Classifier", [])
        if text.startswith("License :: ") and not text.endswith("OSI Approved")
    ]
    stated = str(metadata.get("License", "")).strip().splitlines()
    # the text says more than the classifier does where it is a short one that we know
    if stated and stated[0] in SPDX:
        return SPDX[stated[0]]
    names = classified or stated[:1]
    return " AND ".join(sorted({SPDX.get(name, name) for name in names})) or "not stated"


def _dependencies(one: Distribution, known: set[str]) -> list[str]:
    names = {normalized(Requirement(text).name) for text in one.requires or ()}
    return sorted(names & known)


def cyclonedx(found: dict[str, Distribution]) -> dict[str, Any]:
    """A CycloneDX 1.6 document; https://cyclonedx.org/docs/1.6/json/."""

    def component(one: Distribution, kind: str) -> dict[str, Any]:
        name, said = normalized(one.metadata["Name"]), licence(one)
        purl = f"pkg:pypi/{name}@{one.version}"
        expression = re.fullmatch(r"[A-Za-z0-9.+-]+( (AND|OR|WITH) [A-Za-z0-9.+-]+)*", said)
        licences = [{"expression": said}] if expression else [{"license": {"name": said}}]
        return {
            "type": kind,
            "bom-ref": purl,
            "name": name,
            "version": one.version,
            "purl": purl,
            "licenses": licences,
        }

    of = {name: component(one, "library") for name, one in found.items() if name != PROJECT}
    main = component(found[PROJECT], "application")
    refs = {name: part["bom-ref"] for name, part in {**of, PROJECT: main}.items()}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
            "component": main,
            "properties": [{"name": "python", "value": sys.version.split()[0]}],
        },
        "components": list(of.values()),
        "dependencies": [
            {"ref": refs[name], "dependsOn": [refs[d] for d in _dependencies(one, set(found))]}
            for name, one in found.items()
        ],
    }


def _rows(found: dict[str, Distribution]) -> Iterator[str]:
    for name, one in found.items():
        if name != PROJECT:
            yield f"| {name} | {licence(one).replace('|', '/')} |\n"


def main(arguments: list[str] | None = None) -> None:
    """Write the document or the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--licences", action="store_true", help="the table of docs/licences.md instead")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    found = needed(PROJECT)
    if options.licences:
        options.out.write_text(_TABLE + "".join(_rows(found)), encoding="utf-8")
        print(f"{options.out}: {len(found) - 1} distributions")
        return
    document = cyclonedx(found)
    others = {normalized(one.metadata["Name"]) for one in distributions()} - set(found)
    if others:
        print(
            f"not needed by {PROJECT}, so not in the document: {', '.join(sorted(others))}", file=sys.stderr
        )
    options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"{options.out}: {len(document['components'])} components")


if __name__ == "__main__":
    main()
