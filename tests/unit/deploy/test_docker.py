"""The Dockerfile: what it refers to is there; the lock file and the wheel are whole; the SBOM is valid."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement

from tests.unit.deploy.scripts import load_script

ROOT = Path(__file__).parents[3]
DOCKER = ROOT / "deploy/docker"
sbom = load_script(DOCKER / "sbom.py")
lock = load_script(DOCKER / "lock.py")


def instructions() -> list[tuple[str, str]]:
    """(instruction, the rest) of each, with continued lines joined."""
    text = re.sub(r"^#.*\n", "", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def pinned() -> dict[str, tuple[str, str]]:
    """Distribution -> (version, hash)."""
    found = {}
    for line in (DOCKER / "requirements.lock").read_text().splitlines():
        if not line.startswith("#"):
            match = re.fullmatch(r"([a-z0-9-]+)==(\S+) --hash=sha256:([0-9a-f]{64})", line)
            assert match, line
            found[match[1]] = (match[2], match[3])
    return found


def test_two_stages_without_privileges_and_with_a_health_check() -> None:
    steps = instructions()
    stages = [rest for name, rest in steps if name == "FROM"]
    assert stages == ["${DEBIAN} AS build", "${DEBIAN}"]
    last = steps[[i for i, step in enumerate(steps) if step[0] == "FROM"][-1] :]
    (user,) = [rest for name, rest in last if name == "USER"]
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user), (
        "a number, so that Kubernetes can tell that it isn't root"
    )
    after_user = [name for name, _ in last[[name for name, _ in last].index("USER") :]]
    assert "RUN" not in after_user
    assert "HEALTHCHECK" in after_user
    assert not [rest for name, rest in steps if name == "ADD"]


def test_what_is_copied_is_there_and_reaches_the_builder() -> None:
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    sent = [line[1:] for line in ignored if line.startswith("!")]
    assert "*" in ignored
    copied = [
        source
        for name, rest in instructions()
        if name == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    ]
    assert sorted(copied) == sorted(sent)
    for source in copied:
        assert (ROOT / source).exists(), source


def test_debian_packages_are_those_of_the_demo() -> None:
    script = (ROOT / "deploy/install-system.sh").read_text()
    (demo,) = re.findall(r"^demo=\((.*)\)$", script, re.MULTILINE)
    last = [rest for name, rest in instructions() if name == "RUN"][-1]
    (installed,) = re.findall(r"apt-get install --yes --no-install-recommends ([^&]*)&&", last)
    assert installed.split() == demo.split()


def test_only_what_is_pinned_by_hash_is_installed_from_pypi() -> None:
    installs = [rest for name, rest in instructions() if name == "RUN" and "pip install" in rest]
    assert len(installs) == 2
    assert "--require-hashes --no-deps --only-binary=:all: -r /build/requirements.lock" in installs[0]
    assert "pip install --no-deps --no-build-isolation /build " in installs[1]


def test_the_lock_holds_all_that_the_project_needs() -> None:
    """The project's requirements, and those of each distribution that is installed in the pinned version."""
    held = pinned()
    wanted = [Requirement(text) for text in distribution("pacsnode").requires or ()]
    seen: set[str] = set()
    while wanted:
        one = wanted.pop()
        name = lock.normalized(one.name)
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        assert name in held, f"{one}: run deploy/docker/lock.py"
        assert one.specifier.contains(held[name][0], prereleases=True), f"{one}: {held[name][0]} is pinned"
        if name not in seen:
            seen.add(name)
            for extra in ("", *sorted(one.extras)):
                wanted += [
                    Requirement(text)
                    for text in _requires(name)
                    if (r := Requirement(text)).marker is None or r.marker.evaluate({"extra": extra})
                ]
    assert "setuptools" in held, "the build needs it"


def _requires(name: str) -> list[str]:
    try:
        return [r for r in distribution(name).requires or () if "extra ==" not in r]
    except PackageNotFoundError:
        return []


def test_pip_without_a_hash_is_refused() -> None:
    item = {"metadata": {"name": "A_b", "version": "1"}, "download_info": {"url": "x", "archive_info": {}}}
    with pytest.raises(ValueError, match="A_b"):
        lock.locked({"install": [item]})
    item["download_info"] = {"url": "x", "archive_info": {"hashes": {"sha256": "0" * 64}}}
    ours = {"metadata": {"name": "pacsnode", "version": "1"}, "download_info": {"url": "file:"}}
    assert lock.locked({"install": [item, ours]}).splitlines()[1:] == [f"a-b==1 --hash=sha256:{'0' * 64}"]


def test_the_wheel_has_every_file_of_the_packages(tmp_path: Path) -> None:
    """Models, their backend and the default routes included: an installed node needs no checkout."""
    code = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    built = tmp_path / "tree"
    built.mkdir()
    tracked = subprocess.run(
        ["git", "ls-files", "node", "pipelines", "triton_models", "pyproject.toml", "README.md", "LICENSE"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in tracked:
        target = built / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(ROOT / name)
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=built, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("pacsnode-*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    packaged = {name for name in tracked if name.startswith(("node/", "pipelines/", "triton_models/"))}
    assert not packaged - inside


def test_the_sbom_is_valid_and_names_what_is_installed(tmp_path: Path) -> None:
    out = tmp_path / "sbom.cdx.json"
    sbom.main(["--out", str(out)])
    document = json.loads(out.read_text())
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(out.read_text()) is None
    versions = {part["name"]: part["version"] for part in document["components"]}
    assert versions["pydicom"] == version("pydicom")
    assert "pytest" not in versions
    (ours,) = [one for one in document["dependencies"] if one["ref"].startswith("pkg:pypi/pacsnode@")]
    assert f"pkg:pypi/highdicom@{version('highdicom')}" in ours["dependsOn"]


def test_the_table_of_licences_is_that_of_what_is_pinned() -> None:
    text = (ROOT / "docs/licences.md").read_text()
    table = dict(re.findall(r"^\| ([a-z0-9-]+) \| (.+) \|$", text, re.MULTILINE))
    table.pop("distribution")
    held = pinned()
    assert set(table) == set(held) - {"setuptools"}
    for name, said in table.items():
        try:
            one = distribution(name)
        except PackageNotFoundError:
            continue
        if one.version == held[name][0]:
            assert said == sbom.licence(one), name
    assert "not stated" not in table.values()
    strong = {name: said for name, said in table.items() if re.search(r"(?<!L)GPL", said)}
    assert not strong, "who passes the node on with these passes it on under the GPL"
