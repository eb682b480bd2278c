"""PixelMed's validators over many files in one Java process: most of their time goes into starting.

In: pairs of kind (``sr`` or ``iod``) and path as arguments.  Out: one JSON line a file, in that order, with
what the validator printed. Run as a process of its own, so that no Java lives in ours:

    python -m pipelines.results.pixelmed sr report.dcm iod picture.dcm
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_JAVA_FOLDER = Path("/usr/share/java")
#: Java's own limits on XPath are below what the style sheets need
_JAVA_OPTIONS = (
    *(f"-Djdk.xml.{name}=0" for name in ("xpathTotalOpLimit", "xpathExprOpLimit", "xpathExprGrpLimit")),
    *("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),  # a short life: compile little, collect simply
)
_CONTEXT_GROUPS = "DicomContextGroupsSource.xml"
_SECONDS_A_FILE, _SECONDS_TO_START = 60.0, 120.0

#: kind -> the validator that is meant
TOOLS = {"sr": "PixelMed DicomSRValidator", "iod": "PixelMed DicomInstanceValidator"}


def jars() -> list[str]:
    """The class path, PixelMed's own first; empty where it isn't installed (apt: libpixelmed-java)."""
    first = _JAVA_FOLDER / "pixelmed.jar"
    if not first.exists() or find_spec("jpype") is None:
        return []
    others = (jar for jar in sorted(_JAVA_FOLDER.glob("*.jar")) if jar != first)
    # More than one logging binding on the class path makes SLF4J print warnings that look like ours
    return [
        str(first),
        *(str(jar) for jar in others if not re.search("slf4j|log4j", jar.name, re.IGNORECASE)),
    ]


def pixelmed(files: Sequence[tuple[str, Path]]) -> list[str]:
    """What the validator of each (kind, path) says of it. Raises OSError or subprocess.SubprocessError."""
    if not files:
        return []
    arguments = [part for kind, path in files for part in (kind, str(path))]
    done = subprocess.run(
        [sys.executable, "-m", __name__, *arguments],
        capture_output=True,
        text=True,
        errors="replace",
        check=True,
        timeout=_SECONDS_TO_START + _SECONDS_A_FILE * len(files),
    )
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('"')]
    if len(said) != len(files):
        raise OSError(f"PixelMed answered for {len(said)} of {len(files)} files")
    return said


class _Java:
    """The Java of this process, and PixelMed's validators in it, each made when it is first asked."""

    def __init__(self) -> None:
        import jpype  # noqa: PLC0415 - only this process has a Java

        jpype.startJVM(*_JAVA_OPTIONS, classpath=jars(), convertStrings=True)
        self._jpype = jpype
        self.exception: type[Exception] = jpype.JException
        self._package = jpype.JPackage("com").pixelmed
        self._made: dict[str, Any] = {}

    def validate(self, kind: str, path: str) -> str:
        if kind not in self._made:
            validators = self._package.validate
            made = validators.DicomSRValidator() if kind == "sr" else validators.DicomInstanceValidator()
            self._parse_context_groups_once(made)
            self._made[kind] = made
        if kind == "sr":
            return str(self._made[kind].validate(path))
        attributes = self._package.dicom.AttributeList()
        attributes.read(path, self._package.dicom.TagFromName.PixelData)
        return str(self._made[kind].validate(attributes))

    def _parse_context_groups_once(self, validator: Any) -> None:
        """Of 24 s for a report, 23 s went into parsing the same list of codes for each code.

        Java's XSLT keeps a document that has a system id; the validators' own URIResolver gives none.
        """
        kind = self._jpype.JClass("javax.xml.transform.Transformer").class_
        for field in validator.getClass().getDeclaredFields():
            if field.getType().equals(kind):
                field.setAccessible(True)
                transformer = field.get(validator)
                if transformer.getURIResolver() is not None:
                    resolver = _Named(transformer.getURIResolver())
                    proxy = self._jpype.JProxy("javax.xml.transform.URIResolver", inst=resolver)
                    transformer.setURIResolver(proxy)


class _Named:
    """A javax.xml.transform.URIResolver: another one, whose documents get their name as system id."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def resolve(self, href: str, base: str) -> Any:
        source = self._inner.resolve(href, base)
        if str(href) == _CONTEXT_GROUPS:
            source.setSystemId(href)
        return source


def main() -> None:
    java = _Java()
    for kind, path in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        try:
            said = java.validate(kind, path)
        except java.exception as error:
            said = f"Error: {error}"
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
