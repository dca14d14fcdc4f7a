"""Run the property tests with new examples until the time is over: properties.py SECONDS [pytest arguments]

Each round has a seed of its own.  What a failing round printed is saved in fuzz-found/SEED.txt, its first line being
the command that runs it again; hypothesis keeps the failing examples in fuzz-found/examples and tries them first from
then on.  Exit status 1 if anything was found.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOUND = ROOT / "fuzz-found"
TESTS = (
    "tests/meaning/test_engines.py",
    "tests/meaning/test_reference.py",
    "tests/language/test_pcap.py",
    "tests/language/test_metadata.py",
    "tests/test_replay.py",
    "tests/fuzz/test_files.py",
)


def run_round(seed: int, seconds: float, extra: list[str]) -> str | None:
    """One round, cut off after ``seconds``; what it printed if a test failed."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", f"--hypothesis-seed={seed}", *(extra or TESTS)]
    environment = os.environ | {"HYPOTHESIS_PROFILE": "fuzz", "XDPKIT_FUZZ_EXAMPLES": str(FOUND / "examples")}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.communicate()
        return None
    if process.returncode == 0:
        return None
    again = f"HYPOTHESIS_PROFILE=fuzz python -m pytest -x --hypothesis-seed={seed} {' '.join(extra or TESTS)}"
    return f"{again}\n\n{output}"


def main() -> int:
    if len(sys.argv) < 2 or not sys.argv[1].isdigit():
        print(__doc__.splitlines()[0], file=sys.stderr)
        return 2
    end, found, rounds = time.monotonic() + int(sys.argv[1]), 0, 0
    FOUND.mkdir(exist_ok=True)
    while (left := end - time.monotonic()) > 1:
        seed = int.from_bytes(os.urandom(4))
        failure = run_round(seed, left, sys.argv[2:])
        rounds += 1
        if failure:
            found += 1
            (FOUND / f"{seed}.txt").write_text(failure)
            print(f"found: {FOUND / f'{seed}.txt'}", flush=True)
        print(f"round {rounds} (seed {seed}): {found} found, {max(0, end - time.monotonic()):.0f} s left", flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
