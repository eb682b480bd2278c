"""A Debian that nobody has installed anything on, booted with its own systemd in a container.

Made by debootstrap, run by systemd-nspawn: root on a Debian machine is needed (apt-get install debootstrap
systemd-container). It shares this machine's network, and gets its sources of packages: what apt and pip are
configured with here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.processes import children

RELEASE = "bookworm"
#: where this machine says where packages come from
SOURCES = (
    *("/etc/apt/sources.list", "/etc/apt/sources.list.d", "/etc/apt/apt.conf.d", "/usr/share/keyrings"),
    *("/etc/pip.conf", "/etc/xdg/pip"),
)
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BOOT_SECONDS = 60.0


class BareDebian:
    """Use as a context manager: boots, and is powered off in the end. The folder stays."""

    def __init__(self, folder: Path, binds: Sequence[Path]) -> None:
        """folder: for its files; what is there is used again.  binds: folders of this machine to be seen."""
        self.folder = folder
        self._binds = binds
        if not (folder / "etc/debian_version").exists():
            self._make()

    def _make(self) -> None:
        subprocess.run(["debootstrap", "--variant=minbase", RELEASE, str(self.folder)], check=True)
        self._inside("/etc/apt/sources.list").unlink(missing_ok=True)
        for name in SOURCES:
            if (source := Path(name)).is_dir():
                shutil.copytree(source, self._inside(name), dirs_exist_ok=True)
            elif source.exists():
                shutil.copyfile(source, self._inside(name))
        # no systemd, no booting: all that a bare system lacks beside what the READMEs ask for
        script = "apt-get update -qq && apt-get install -y -qq --no-install-recommends systemd-sysv dbus curl"
        environment = {"PATH": _PATH, "DEBIAN_FRONTEND": "noninteractive"}
        command = ["chroot", str(self.folder), "/bin/sh", "-ec", script]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)

    def _inside(self, name: str) -> Path:
        return self.folder / name.lstrip("/")

    def __enter__(self) -> BareDebian:
        options = ["--boot", "--register=no", "--keep-unit", "--resolv-conf=copy-host"]
        options += [f"--bind-ro={path}" for path in self._binds]
        self._process = subprocess.Popen(
            ["systemd-nspawn", "--quiet", "-D", str(self.folder), *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + _BOOT_SECONDS
        while "running" not in self.sh("systemctl is-system-running || true", check=False):
            if time.monotonic() > deadline:
                break  # degraded: what a container can't do fails, such as mounting debugfs
            time.sleep(1.0)
        return self

    def __exit__(self, *_: object) -> None:
        self.sh("systemctl poweroff", check=False)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def trust(self) -> None:
        """The CAs that this machine trusts: those of a mirror's certificate may be a site's own."""
        self._inside(CERTIFICATES).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(CERTIFICATES, self._inside(CERTIFICATES))

    def sh(self, script: str, *, check: bool = True, seconds: float = 1200.0) -> str:
        """Run a script by its bash, as root; returns what it said. Raises RuntimeError when it fails."""
        leaders = children(self._process.pid)
        if not leaders:
            return ""
        handed_on = [f"{key}={value}" for key, value in os.environ.items() if key.startswith("PIP_")]
        entered = ["nsenter", "-t", str(leaders[-1]), "-a", "env", "-i"]
        command = [*entered, f"PATH={_PATH}", "HOME=/root", "LANG=C.UTF-8", "TERM=dumb", *handed_on]
        done = subprocess.run(
            [*command, "/bin/bash", "-ec", script],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"{script}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr
