"""Run a command in a guest with emulated zero-copy NICs, in this directory of this machine's root (see guest.py).

    python tests/vm/run.py -- .venv/bin/python -m pytest tests/zerocopy      what make test-zerocopy does
    python tests/vm/run.py --kernel bookworm -- uname -a                     another kernel: a Debian suite

The exit status is the command's; 3 when the lab cannot be set up or the guest gave no result.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import debian
import guest

RECENT = "trixie-backports"  # igb has zero-copy from Linux 6.14 on


def main() -> int:
    """Parse the command line, fetch, boot."""
    parser = argparse.ArgumentParser(description="Run a command in a QEMU guest with zero-copy NICs.")
    parser.add_argument("--kernel", default=RECENT, metavar="SUITE", help="the Debian suite of the kernel")
    parser.add_argument("--timeout", type=float, default=600, metavar="S", help="seconds the guest may take")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    say = guest.Say(time.monotonic())
    try:
        qemu, kernel = debian.qemu(say), debian.kernel(options.kernel, say)
        say(f"booting Linux {kernel.release}")
        result = guest.run(qemu, kernel, options.command, cwd=Path.cwd(), timeout=options.timeout)
    except debian.LabError as error:
        print(f"xdpkit-vm: {error}", file=sys.stderr)
        return 3
    say(f"exit status {result.status}")
    return result.status


if __name__ == "__main__":
    sys.exit(main())
