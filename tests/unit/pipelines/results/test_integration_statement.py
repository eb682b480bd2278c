"""What docs/conformance-statement.md declares of IHE AI Results is what the objects have, gaps included."""

from __future__ import annotations

from pathlib import Path

from tests.unit.pipelines.results.test_report import groups, items, make

STATEMENT = (Path(__file__).parents[4] / "docs/conformance-statement.md").read_text()
DECLARED = STATEMENT.split("## 7. IHE integration statement")[1].split("\n## ")[0]


def test_contributing_equipment_is_as_declared(tmp_path: Path) -> None:
    report, _, _ = make(tmp_path)
    models = list(report.ContributingEquipmentSequence)[1:]
    purposes = {item.PurposeOfReferenceCodeSequence[0].CodeValue for item in models}
    assert purposes == {"109102"}
    assert '(109102, DCM, "Processing Equipment")' in DECLARED
    assert ("no Device UID" in DECLARED) == all("DeviceUID" not in item for item in models)


def test_primitives_are_where_the_statement_says(tmp_path: Path) -> None:
    report, _, findings = make(tmp_path)
    assert report.VerificationFlag == "UNVERIFIED"
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert report.SOPClassUID.name == "Comprehensive 3D SR Storage"
    for template, least in {"1411": len(findings.regions), "1410": 1, "1501": 1}.items():
        assert len(groups(report, template)) >= least
        assert f"TID {template}" in DECLARED
    (observer,) = items(report, "121005")
    assert observer.ConceptCodeSequence[0].CodeValue == "121007", "a device"
    trackings = {next(items(group, "112040")).UID for group in groups(report, "1411")}
    assert len(trackings) == len(findings.regions)
