"""Start a program that ends with us: ``python -m node.child PROGRAM [ARGUMENT …]``.

Asks the kernel to send SIGTERM when the parent dies (prctl PR_SET_PDEATHSIG, Linux), then becomes the
program. So ``kill -9`` of the node leaves neither a Triton server nor a worker behind.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def command(*program: str) -> list[str]:
    """The argument list that starts ``program`` so that it ends with this process.

    The signal comes when the *thread* that started it ends, so start it from a thread that lives long.
    """
    return [sys.executable, "-m", "node.child", str(os.getpid()), *program]


def main() -> None:
    parent, program = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before we asked
        sys.exit(1)
    os.execvp(program[0], program)  # noqa: S606 - an argument list of ours, no shell


if __name__ == "__main__":
    main()
