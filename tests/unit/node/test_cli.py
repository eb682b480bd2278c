"""The command line: exit codes, messages, and JSON for machines."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from sqlalchemy import insert, update
from typer.core import TyperCommand, TyperGroup
from typer.testing import CliRunner

from node import __version__
from node.__main__ import app, main
from node.database import deliveries, jobs, open_database, shadows
from node.files import lock
from node.triton_server import free_port
from tests.unit.node.deliver.conftest import write_object
from tests.unit.node.rows import job_row
from triton_models.registry import MODELS, weights_sha256

COMMANDS = ("run", "check", "demo", "process", "explain", "jobs", "models", "triton")
JOB_ID = "0123456789abcdef"
ROUTE = {"name": "r", "pipeline": "chest_ct_pneumonia", "when": {"fact": "modality", "equals": "CT"}}


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Ended]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run ``pacsnode`` with these arguments, in this process."""

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as raised:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Ended(int(raised.value.code or 0), said.out, said.err)

    return run


@pytest.fixture
def configure(tmp_path: Path) -> Callable[..., Path]:
    """Write a configuration with these sections; nobody listens at its Triton."""

    def write(**sections: Any) -> Path:
        path = tmp_path / "node.yaml"
        ours = {"triton": {"url": f"127.0.0.1:{free_port()}"}, "receive": {"port": 0}, "web": {"port": 0}}
        path.write_text(yaml.safe_dump({"data_dir": "var", **ours, **sections}))
        return path

    return write


@pytest.fixture
def config(configure: Callable[..., Path], tmp_path: Path) -> Path:
    """A configuration whose database holds one failed job; its reason looks like markup."""
    engine = open_database(tmp_path / "var")
    with engine.begin() as connection:
        connection.execute(
            insert(jobs).values(
                job_row(job_id=JOB_ID, state="failed", reason_code="io_error", reason="[/red] broke")
            )
        )
        connection.execute(
            insert(deliveries).values(job_id=JOB_ID, destination="pacs", state="delivered", updated_at=1.0)
        )
    engine.dispose()
    return configure()


def set_state(config: Path, state: str) -> None:
    engine = open_database(config.parent / "var")
    with engine.begin() as connection:
        connection.execute(update(jobs).values(state=state))
    engine.dispose()


def test_help_names_every_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "node", "--help"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0
    assert all(name in done.stdout for name in COMMANDS)


def leaves(
    command: TyperCommand | TyperGroup, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], TyperCommand]]:
    if isinstance(command, TyperCommand):
        yield words, command
        return
    for name, child in command.commands.items():
        assert isinstance(child, TyperCommand | TyperGroup)
        yield from leaves(child, (*words, name))


def test_every_command_that_ends_answers_machines() -> None:
    options = {
        words: {text for parameter in command.params for text in parameter.opts}
        for words, command in leaves(typer.main.get_group(app))
    }
    assert len(options) > 15
    assert {words for words, known in options.items() if "--json" not in known} == {("run",), ("triton",)}
    assert all("--help" in get_help(words) for words in options)


def get_help(words: tuple[str, ...]) -> str:
    return CliRunner().invoke(app, [*words, "--help"]).output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_are_told_what_there_is(shell: str) -> None:
    """As the script asks that ``pacsnode --install-completion`` puts in place."""
    words = "pacsnode jobs re"
    asked = {
        "bash": {"_PACSNODE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "2"},
        "zsh": {"_PACSNODE_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": words},
        "fish": {
            "_PACSNODE_COMPLETE": "complete_fish",
            "_TYPER_COMPLETE_ARGS": words,
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        },
    }
    program = Path(sys.executable).with_name("pacsnode")
    done = subprocess.run(
        [program], env=os.environ | asked[shell], capture_output=True, text=True, timeout=60, check=False
    )
    assert "retry" in done.stdout and "cancel" not in done.stdout, done.stderr


def test_the_version(cli: Cli) -> None:
    ended = cli("--version")
    assert (ended.code, ended.out) == (0, f"{__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [("nonsense",), ("run",), ("jobs", "list"), ("jobs", "list", "--limit", "0"), ("explain", "/nowhere")],
)
def test_bad_usage_exits_with_2(cli: Cli, arguments: tuple[str, ...]) -> None:
    ended = cli(*arguments)
    assert ended.code == 2
    assert ended.err


@pytest.mark.parametrize("command", [("run",), ("check",), ("jobs", "list"), ("triton",)])
def test_a_bad_configuration_exits_with_2_and_names_the_field(
    cli: Cli, configure: Callable[..., Path], command: tuple[str, ...]
) -> None:
    path = configure(receive={"port": 70000})
    ended = cli(*command, "--config", path)
    assert ended.code == 2
    assert f"error: {path}: receive.port: " in ended.err
    assert "70000" in ended.err and "65535" in ended.err
    assert "hint: see deploy/config.example.yaml" in ended.err


def test_a_configuration_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    ended = cli("check", "--config", tmp_path / "nowhere.yaml")
    assert ended.code == 2
    assert "nowhere.yaml: cannot be read: No such file or directory" in ended.err


def test_a_route_to_an_unknown_pipeline(cli: Cli, configure: Callable[..., Path]) -> None:
    destinations = {"a": {"type": "folder", "path": "a"}}
    route = {**ROUTE, "pipeline": "nonsense", "destinations": ["a"]}
    ended = cli("check", "--config", configure(destinations=destinations, routes=[route]))
    assert ended.code == 2
    assert "routes[r].pipeline: 'nonsense' isn't known; allowed are" in ended.err


def test_check_names_a_tls_file_that_cannot_be_used(cli: Cli, configure: Callable[..., Path]) -> None:
    tls = {"certificate": "tls/node.crt", "key": "tls/node.key", "require_client_certificate": False}
    path = configure(receive={"tls": tls})
    for command in ("check", "run"):
        ended = cli(command, "--config", path)
        assert ended.code == 2
        file = path.parent / "tls/node.crt"
        assert f"receive.tls.certificate: {file} can't be read: No such file or directory" in ended.err


def test_check_names_a_port_that_another_program_has(cli: Cli, configure: Callable[..., Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        path = configure(web={"port": port}, receive={"port": free_port()})
        ended = cli("check", "--config", path)
    assert ended.code == 1
    assert f"error: web.port: 127.0.0.1:{port}: Address already in use" in ended.err
    assert "port receive.port: " in ended.out


def test_check_of_a_running_node_asks_for_no_ports(
    cli: Cli, configure: Callable[..., Path], tmp_path: Path
) -> None:
    path = configure(web={"port": free_port()})
    (tmp_path / "var").mkdir()
    with ExitStack() as stack:
        lock(tmp_path / "var/lock", stack)
        assert "port " not in cli("check", "--config", path).out
    assert "port web.port" in cli("check", "--config", path).out


def test_check_of_what_can_be_reached(cli: Cli, configure: Callable[..., Path], tmp_path: Path) -> None:
    path = configure(destinations={"outbox": {"type": "folder", "path": "out"}})
    ended = cli("check", "--config", path)
    assert ended.code == 0
    assert f"{path}: valid, 0 route(s), 1 destination(s)\ndestination outbox: reachable\n" == ended.out
    assert (tmp_path / "out").is_dir()


def test_check_names_all_that_cannot_be_reached(cli: Cli, configure: Callable[..., Path]) -> None:
    port = free_port()
    peer = {"type": "cstore", "ae_title": "PACS", "host": "127.0.0.1", "port": port}
    path = configure(destinations={"pacs": peer}, routes=[{**ROUTE, "destinations": ["pacs"]}])
    ended = cli("check", "--config", path)
    assert ended.code == 1
    assert f"destination pacs (PACS at 127.0.0.1:{port}): no connection" in ended.err
    assert "model lungs at" in ended.err and "model lesions at" in ended.err


def test_explain(cli: Cli, tmp_path: Path) -> None:
    series = tmp_path / "series"
    series.mkdir()
    for number in range(8):
        write_object(series, number)
    ended = cli("explain", series, "--json")
    assert ended.code == 0
    (decision,) = ended.json()["series"]
    assert decision["matched"] == ["chest_ct"]
    assert "route chest_ct -> chest_ct_pneumonia: matches" in cli("explain", series).out


def test_explain_with_routes_of_ones_own(cli: Cli, tmp_path: Path, configure: Callable[..., Path]) -> None:
    path = write_object(tmp_path, 1)
    route = {**ROUTE, "when": {"fact": "modality", "equals": "MR"}, "destinations": ["a"]}
    own = configure(destinations={"a": {"type": "folder", "path": "a"}}, routes=[route])
    (decision,) = cli("explain", path, "--json", "--config", own).json()["series"]
    assert decision["matched"] == []
    assert decision["routes"][0]["why"] == "modality is CT, wanted MR"


def test_explain_by_the_database(cli: Cli, config: Path, tmp_path: Path) -> None:
    ended = cli("explain", "SOMEONE", "--config", config)
    assert ended.code == 1 and "nothing is known of 'SOMEONE'" in ended.err
    assert cli("explain", "--refused", "--config", config).out == "nothing was turned away\n"
    path = write_object(tmp_path, 1)
    assert cli("explain", path, "--json", "--config", config).json()["node"] is None


def test_explain_of_one_thing(cli: Cli, config: Path, tmp_path: Path) -> None:
    for arguments in ((), ("SOMEONE", "--refused", "--config", config), ("SOMEONE",)):
        assert cli("explain", *arguments).code == 2
    fresh = tmp_path / "fresh.yaml"
    fresh.write_text("data_dir: nowhere\n")
    ended = cli("explain", "SOMEONE", "--config", fresh)
    assert ended.code == 1 and "no node has run there" in ended.err
    assert not (tmp_path / "nowhere").exists()


def test_jobs_list(cli: Cli, config: Path) -> None:
    ended = cli("jobs", "list", "--json", "--config", config)
    assert ended.code == 0
    (job,) = ended.json()
    assert (job["job_id"], job["state"], job["reason"]) == (JOB_ID, "failed", "[/red] broke")
    assert [delivery["destination"] for delivery in job["deliveries"]] == ["pacs"]
    assert cli("jobs", "list", "--json", "--state", "done", "--config", config).json() == []
    shown = cli("jobs", "list", "--config", config).out
    assert JOB_ID[:12] in shown and "[/red]" in shown


def test_jobs_show(cli: Cli, config: Path) -> None:
    assert cli("jobs", "show", JOB_ID[:4], "--json", "--config", config).json()["job_id"] == JOB_ID
    shown = cli("jobs", "show", JOB_ID, "--config", config).out
    assert "pacs: delivered after 0 attempt(s)" in shown
    assert "[/red] broke" in shown
    assert "1970-01-01 00:00:01" in shown


def test_jobs_shadows(cli: Cli, config: Path) -> None:
    assert cli("jobs", "shadows", "--json", "--config", config).json() == []
    agreement = {
        "dice": {"Left lung": 0.975},
        "case_type": {"live": "a", "candidate": "b", "equal": False},
        "noisy_or": {"covid19": {"live": 0.5, "candidate": 0.25, "difference": -0.25}},
    }
    row = {"job_id": JOB_ID, "candidate": "next", "created_at": 1.0}
    engine = open_database(config.parent / "var")
    with engine.begin() as connection:
        done = row | {"state": "done", "finished_at": 2.0, "agreement": agreement}
        failed = row | {"candidate": "other", "state": "failed", "reason": "it [broke]", "agreement": None}
        connection.execute(insert(shadows), [done | {"reason": None}, failed | {"finished_at": 2.0}])
    engine.dispose()
    shown = cli("jobs", "show", JOB_ID, "--config", config).out
    assert "next: done, other case type; Dice Left lung 0.975" in " ".join(shown.split())
    assert "other: failed it [broke]" in shown
    shown = cli("jobs", "shadows", "--config", config).out
    assert "next: done 1\n" in shown and "other: failed 1\n" in shown
    rows = [" ".join(line.replace("│", " ").split()) for line in shown.splitlines()]
    assert {"1 runs: equal case type 0.0%", "Dice of Left lung 0.975 0.975"} <= set(rows)
    assert "Noisy-OR of covid19, difference 0.250 0.250" in rows


def test_jobs_retry_and_cancel(cli: Cli, config: Path) -> None:
    ended = cli("jobs", "retry", JOB_ID[:4], "--config", config)
    assert (ended.code, ended.out) == (0, f"job {JOB_ID}: retry requested\n")
    ended = cli("jobs", "retry", JOB_ID, "--config", config)
    assert ended.code == 1
    assert f"error: job {JOB_ID} is retry; retry is for jobs that are failed" in ended.err
    ended = cli("jobs", "cancel", JOB_ID, "--config", config)
    assert (ended.code, ended.out) == (0, f"job {JOB_ID}: cancelled\n")
    ended = cli("jobs", "retry", JOB_ID, "--config", config, "--json")
    assert ended.json() == {"job_id": JOB_ID, "state": "retry"}
    set_state(config, "done")
    assert cli("jobs", "cancel", JOB_ID, "--config", config).code == 1


def test_a_job_that_is_not_there(cli: Cli, config: Path) -> None:
    for command in ("show", "retry", "cancel"):
        ended = cli("jobs", command, "%", "--config", config)
        assert ended.code == 1
        assert "no jobs have an id that begins with '%'" in ended.err
        assert "hint: see `pacsnode jobs list`" in ended.err


def test_models_list(cli: Cli) -> None:
    ended = cli("models", "list")
    assert ended.code == 0
    for name, entry in MODELS.items():
        assert name in ended.out
        assert not entry.is_built or weights_sha256(entry) in ended.out


def test_process_says_what_failed(cli: Cli, tmp_path: Path, configure: Callable[..., Path]) -> None:
    out = tmp_path / "out"
    arguments = ("process", tmp_path, "--out", out, "--config", configure())
    ended = cli(*arguments, "--pipeline", "nonsense")
    assert ended.code == 1
    assert "pipeline 'nonsense' isn't known; known are chest_ct_picture, chest_ct_pneumonia" in ended.err
    assert not out.exists()
    ended = cli(*arguments)
    assert ended.code == 1
    assert "error: model lungs at 127.0.0.1:" in ended.err
