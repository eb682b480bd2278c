"""Every command of every README, and of docs/operations.md: executed here, or by a test that is named, or
marked in the text as needing what a test doesn't have (``<!-- needs: … -->`` before its block)."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from node.demo.archive import AE_TITLE
from node.triton_server import free_port
from node.web.users import read_users
from tests.integration.receiving import wait_for
from tests.integration.running import Pacs

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
DOCUMENTS = ["README.md", "docs/operations.md"]
DOCUMENTS += [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("deploy/*/README.md"))]
NEEDS = {"container engine", "root", "GPU", "network", "certificates of your CA"}

#: beginning of a command -> the test that executes it, and a text in it that does
ELSEWHERE = {
    "make demo": ("tests/integration/test_demo.py", '"demo", "--out"'),
    "make test": (".ci/run", "make test"),
    ".venv/bin/pacsnode process ": ("tests/integration/test_triage.py", '"process"'),
    ".venv/bin/pacsnode users add anna ": ("tests/unit/node/web/test_users.py", '"add"'),
    ".venv/bin/pacsnode run --config node.yaml --role ": ("tests/integration/composed.py", '["command"]'),
}
#: executed below
HERE = (
    "cp deploy/config.example.yaml node.yaml",
    ".venv/bin/pacsnode check --config node.yaml",
    ".venv/bin/pacsnode run --config node.yaml",
    "storescu ",
    ".venv/bin/pacsnode users token prometheus --file users.yaml",
    ".venv/bin/pacsnode explain PATH --config node.yaml",
    ".venv/bin/pacsnode jobs list --config node.yaml",
    ".venv/bin/pacsnode models list",
    ".venv/bin/pacsnode triton",
)
#: documents whose unmarked blocks are executed below as a whole
WHOLE = ("deploy/compose/README.md", "deploy/docker/README.md", "deploy/kubernetes/README.md")


@dataclass(frozen=True)
class Block:
    """mark: what the comment before it says, such as ``needs: root``; empty without one."""

    mark: str
    commands: tuple[str, ...]


def blocks(document: str) -> list[Block]:
    """The indented blocks, with continued lines joined and comments cut off."""
    text = (ROOT / document).read_text()
    text = re.sub(r"^( *[-*0-9.]+ .*\n)((?: {2,}.*\n)*)", r"\1", text, flags=re.MULTILINE)  # lists
    found = re.findall(r"(?:<!-- ([^>]*) -->\n\n)?((?:^    \S.*\n|^      +\S.*\n)+)", text, re.MULTILINE)
    made = []
    for mark, body in found:
        lines = body.replace("\\\n", " ").splitlines()
        commands = (re.sub(r"\s+# .*", "", line.strip()) for line in lines)
        made.append(Block(mark, tuple(re.sub(r"\s+", " ", one) for one in commands)))
    return made


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_is_executed_or_marked(document: str) -> None:
    assert blocks(document), "a document without a command isn't found as one"
    for block in blocks(document):
        if block.mark.startswith("needs: "):
            assert block.mark.removeprefix("needs: ") in NEEDS, block
            continue
        if block.mark == "no commands":
            continue
        if block.mark.startswith("drill: "):
            name = block.mark.removeprefix("drill: ")
            assert f'"{name}"' in (ROOT / "tests/integration/test_operations.py").read_text(), block
            continue
        for command in block.commands if document not in WHOLE else ():
            elsewhere = [of for start, of in ELSEWHERE.items() if command.startswith(start)]
            for test, text in elsewhere:
                assert text in (ROOT / test).read_text(), (command, test)
            assert elsewhere or command.startswith(HERE), f"{document}: {command}"


def command(document: str, start: str) -> str:
    """The command of the document that begins so."""
    assert start in HERE
    found = [one for block in blocks(document) for one in block.commands if one.startswith(start)]
    return found[0]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """As a new user has it after ``make demo``: what is written there isn't written here."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for path in ROOT.iterdir():
        if path.name not in {"deploy", "docs", "build", ".venv", ".git"}:
            (folder / path.name).symlink_to(path)
    for name in ("deploy", "docs"):
        secrets = shutil.ignore_patterns("secrets", "__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=secrets)
    (folder / "build").mkdir()
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def shell(checkout: Path, script: str) -> subprocess.CompletedProcess[str]:
    """By bash, as it is copied, without this test's own environment's programs."""
    environment = {name: value for name, value in os.environ.items() if name in {"HOME", "LANG", "TMPDIR"}}
    return subprocess.run(
        ["/bin/bash", "-ec", script],
        cwd=checkout,
        env=environment | {"PATH": "/usr/sbin:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("document", WHOLE)
def test_the_blocks_without_a_mark_run(checkout: Path, document: str) -> None:
    for block in blocks(document):
        if not block.mark:
            done = shell(checkout, "\n".join(block.commands))
            assert done.returncode == 0, done.stderr
    if document == "deploy/docker/README.md":
        assert json.loads((checkout / "build/sbom.cdx.json").read_text())["bomFormat"] == "CycloneDX"
        return
    secrets = checkout / Path(document).parent / "secrets"
    token = (secrets / "prometheus-token").read_text().strip()
    assert read_users(secrets / "users.yaml").of_token(token) is not None
    assert len((secrets / "database-password").read_text().strip()) == 48
    assert secrets.stat().st_mode & 0o777 == 0o700
    if document == "deploy/compose/README.md":
        password = (secrets / "admin-password").read_text().strip()
        assert read_users(secrets / "users.yaml").verify("admin", password)
        assert list(json.loads((secrets / "orthanc-users.json").read_text())["RegisteredUsers"]) == ["admin"]
        compose = yaml.safe_load((checkout / "deploy/compose/compose.yaml").read_text())
        for secret in compose["secrets"].values():
            assert (checkout / "deploy/compose" / secret["file"]).stat().st_mode & 0o777 == 0o644


class NewUser:
    """Goes by the README, and edits node.yaml as it says: senders, the PACS; and ports that are free here."""

    def __init__(self, checkout: Path, pacs: Pacs) -> None:
        self.checkout = checkout
        self.port = free_port()
        assert (
            shell(checkout, command("README.md", "cp deploy/config.example.yaml node.yaml")).returncode == 0
        )
        config = yaml.safe_load((checkout / "node.yaml").read_text())
        config["receive"] |= {"allowed_calling_ae_titles": ["MODALITY"], "port": self.port}
        config["web"]["port"] = free_port()
        config["routes"][0]["pipeline"] = "chest_ct_triage"  # the quicker one; test_compose.py has the other
        config["destinations"]["pacs"] |= {"port": pacs.port, "ae_title": AE_TITLE}
        (checkout / "node.yaml").write_text(yaml.safe_dump(config))

    def says(self, start: str, **places: object) -> str:
        """What a command of the README prints; places: what stands for what is the user's own."""
        line = command("README.md", start)
        for name, value in places.items():
            line = line.replace({"path": "PATH"}.get(name, name), str(value))
        done = shell(self.checkout, line)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def user(checkout: Path, pacs: Pacs) -> Iterator[NewUser]:
    one = NewUser(checkout, pacs)
    with (checkout / "log").open("wb") as log:
        line = command("README.md", ".venv/bin/pacsnode run --config node.yaml")
        node = subprocess.Popen(line.split(), cwd=checkout, stderr=log)
    yield one
    node.send_signal(signal.SIGTERM)
    assert node.wait(60) == 0


def test_from_the_readme_to_results_in_the_archive(user: NewUser, pacs: Pacs, phantom_series: Path) -> None:
    log = user.checkout / "log"
    wait_for(lambda: "node_ready" in log.read_text(), seconds=300, what=f"the node; see {log}")
    said = user.says(".venv/bin/pacsnode check --config node.yaml")
    assert "destination pacs: reachable" in said
    assert "chest_ct" in user.says(".venv/bin/pacsnode explain PATH --config node.yaml", path=phantom_series)
    line = command("README.md", "storescu ")
    sent = shell(user.checkout, line.replace("11112 /path/to/chest_ct", f"{user.port} {phantom_series}"))
    assert sent.returncode == 0, sent.stderr
    wait_for(
        lambda: " done " in user.says(".venv/bin/pacsnode jobs list --config node.yaml"),
        seconds=240,
        what=f"the job; see {log}",
    )
    assert "SR" in {tags["Modality"] for tags in pacs.instances().values()}
    assert "lungs" in user.says(".venv/bin/pacsnode models list")
    token = user.says(".venv/bin/pacsnode users token prometheus --file users.yaml").strip()
    assert read_users(user.checkout / "users.yaml").of_token(token) is not None


def test_the_embedded_triton_alone(checkout: Path) -> None:
    for port in (8000, 8001, 8002):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                pytest.skip(f"port {port} is in use on this machine")
    log = checkout / "log"
    line = command("README.md", ".venv/bin/pacsnode triton")
    with log.open("wb") as out:
        server = subprocess.Popen(line.split(), cwd=checkout, stdout=out, stderr=out)
    try:
        wait_for(
            lambda: "Triton is ready: gRPC 127.0.0.1:8001" in log.read_text(), seconds=300, what=str(log)
        )
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
