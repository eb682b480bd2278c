"""As a new user would: README.md and deploy/systemd/README.md, command by command, on a bare Debian 12.

    python -m tests.bare_debian [--folder /var/tmp/bare-debian] [--bind FOLDER …] [--keep]

Runs `make demo` from a clone of the committed state; installs the service by the blocks of its README, as
they are; sends a phantom by DCMTK's storescu; kills every process of the service by kill -9 in the middle;
and has Debian's own Orthanc, beside it, count the results. Exit code 1 when anything differs.

Needs root, and apt-get install debootstrap systemd-container. --bind: a folder that pip's configuration of
this machine names, if it does.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.bare_debian.system import BareDebian
from tests.integration.test_readmes import ROOT, Block, blocks

README = "deploy/systemd/README.md"
CHECKOUT = "/root/pacsnode"
#: what README.md says that must be there
FIRST = "apt-get install -y -qq git make python3"
#: what the README leaves to the reader: who sends, and where results go
EDIT = """
/opt/pacsnode/.venv/bin/python - <<'END'
import yaml
path = "/etc/pacsnode/node.yaml"
config = yaml.safe_load(open(path))
config["data_dir"] = "/var/lib/pacsnode"
config["receive"]["allowed_calling_ae_titles"] = ["MODALITY"]
pacs = {"type": "cstore", "ae_title": "ORTHANC", "host": "127.0.0.1", "port": 4242}
config["destinations"] = {"pacs": pacs}
config["routes"][0]["destinations"] = ["pacs"]
config["log"] = {"format": "json"}
open(path, "w").write(yaml.safe_dump(config))
END
"""
#: it never ends by itself
FOLLOWS = "journalctl -u pacsnode -f"
RESULTS = 5
SECONDS = 300.0


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def script_of(block: Block) -> str:
    return "\n".join(line for line in block.commands if line != FOLLOWS)


def walk(system: BareDebian) -> list[str]:
    """Returns what differs from what is to be."""
    wrong = []
    system.sh(f"apt-get update -qq && DEBIAN_FRONTEND=noninteractive {FIRST}")
    system.trust()
    system.sh(f"rm -rf {CHECKOUT} && git clone -q -b main /root/repository.bundle {CHECKOUT}")
    say("make demo")
    started = time.monotonic()
    system.sh(f"cd {CHECKOUT} && make demo")
    say(f"make demo ended well after {time.monotonic() - started:.0f} s, installing included")
    install, begin = [block for block in blocks(README) if block.mark == "needs: root"]
    system.sh(f"cd {CHECKOUT}\n{script_of(install)}")
    system.sh("DEBIAN_FRONTEND=noninteractive apt-get install -y -qq dcmtk orthanc >/dev/null 2>&1")
    system.trust()
    system.sh("systemctl restart orthanc && sleep 2")
    system.sh(EDIT)
    say("the service's README")
    said = system.sh(f"cd {CHECKOUT}\n{script_of(begin)}", check=False)
    if "destination pacs: reachable" not in said:
        wrong.append(f"pacsnode check didn't reach Orthanc: {said}")
    if not waited(system, "curl -sf localhost:8090/readyz", '"ready":true'):
        wrong.append("the node doesn't get ready: " + system.sh("journalctl -u pacsnode | tail -20"))
        return wrong
    say(f"ready; {system.sh('systemd-analyze security pacsnode --no-pager | tail -1', check=False).strip()}")
    phantom = f"cd {CHECKOUT} && .venv/bin/python -c '{PHANTOM}'"
    system.sh(phantom)
    system.sh("storescu -aet MODALITY -aec PACSNODE +sd +r localhost 11112 /root/phantom")
    waited(system, "curl -s localhost:8090/api/jobs", '"state":"running"')
    system.sh("systemctl kill --kill-who=all -s KILL pacsnode")
    say("killed every process of the service while its job ran")
    if not waited(system, "curl -s localhost:8090/api/jobs", '"state":"done"'):
        wrong.append("the job didn't end: " + system.sh("curl -s localhost:8090/api/jobs", check=False))
    held = json.loads(system.sh("curl -s localhost:8042/statistics"))["CountInstances"]
    say(f"Orthanc has {held} objects")
    if held != RESULTS:
        wrong.append(f"Orthanc has {held} objects, not {RESULTS}")
    system.sh("systemctl stop pacsnode")
    if "Result=success" not in system.sh("systemctl show pacsnode -p Result"):
        wrong.append("the service didn't stop well")
    return wrong


#: the demo's phantom
PHANTOM = (
    "from pathlib import Path; from triton_models.data.dicom_series import write_series; "
    "from triton_models.data.phantom import chest_phantom; "
    'write_series(chest_phantom(9, slices=60, lesions="peripheral"), Path("/root/phantom"), seed=9)'
)


def waited(system: BareDebian, command: str, answer: str) -> bool:
    """Until the command answers so."""
    deadline = time.monotonic() + SECONDS
    while answer not in system.sh(command, check=False):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp/bare-debian"))
    parser.add_argument("--bind", type=Path, action="append", default=[])
    parser.add_argument("--keep", action="store_true", help="leave the system's files where they are")
    arguments = parser.parse_args()
    say("a bare Debian is made")
    system = BareDebian(arguments.folder, arguments.bind)
    bundle = arguments.folder / "root/repository.bundle"
    subprocess.run(["git", "bundle", "create", "-q", str(bundle), "HEAD", "main"], cwd=ROOT, check=True)
    with system:
        wrong = walk(system)
    if not arguments.keep:
        shutil.rmtree(arguments.folder)
    say("\n".join(wrong) if wrong else "all as it is to be")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
