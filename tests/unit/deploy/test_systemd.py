"""The systemd unit: systemd's own opinion of it, and that it starts what there is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
UNIT = ROOT / "deploy/systemd/pacsnode.service"
ANALYZE = "/usr/bin/systemd-analyze"


def test_systemd_takes_it(tmp_path: Path) -> None:
    installed = tmp_path / UNIT.name
    program = Path(sys.executable).parent / "pacsnode"
    installed.write_text(UNIT.read_text().replace("/opt/pacsnode/.venv/bin/pacsnode", str(program)))
    said = subprocess.run([ANALYZE, "verify", str(installed)], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert UNIT.name not in said.stderr


def test_systemd_calls_it_well_confined() -> None:
    command = [ANALYZE, "security", "--offline=yes", str(UNIT)]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    (level,) = re.findall(r"exposure level for pacsnode\.service: ([\d.]+)", said)
    assert float(level) <= 2.0
    assert f"rates the unit {level} of 10" in (UNIT.parent / "README.md").read_text().replace("\n", " ")


def test_it_is_not_restarted_for_a_mistake_in_the_configuration(tmp_path: Path) -> None:
    command = re.findall(r"^ExecStart=\S+ (.*)$", UNIT.read_text(), re.MULTILINE)
    assert command == ["run --config /etc/pacsnode/node.yaml"]
    (tmp_path / "node.yaml").write_text("receive: {port: -1}\n")
    done = subprocess.run(
        [sys.executable, "-m", "node", "run", "--config", str(tmp_path / "node.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    (prevented,) = re.findall(r"^RestartPreventExitStatus=(\d+)$", UNIT.read_text(), re.MULTILINE)
    assert done.returncode == int(prevented), done.stderr
