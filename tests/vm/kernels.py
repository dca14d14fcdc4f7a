"""Run xdpkit on Debian's kernels, each in a guest, and write down what works where (docs/kernels.md).

    python tests/vm/kernels.py            survey and tests on every kernel, then compare with docs/kernels.md
    python tests/vm/kernels.py --write    the same, then write docs/kernels.md

Exit status 1 if a test failed or the page says something else; 3 if a guest gave no result.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import debian
import guest

from xdpkit.features import FEATURES

SUITES = ("bookworm", "bookworm-backports", "trixie-backports")
#: What touches the kernel.  The engines' property tests are left to make test: they are slow without hardware.
TESTS = ("tests/kernels", "tests/test_link.py", "tests/test_sockets.py", "tests/test_tc.py")
PAGE = Path("docs/kernels.md")
BEGIN, END = "<!-- written by make test-kernels -->\n", "<!-- end -->\n"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One kernel: what works, and how the tests ended."""

    release: str
    rows: dict[str, bool]
    passed: int
    failed: int
    skipped: int


def survey(suite: str, timeout: float, say: guest.Say) -> Outcome:
    """Boot the suite's kernel, survey, run the tests."""
    qemu, kernel = debian.qemu(say), debian.kernel(suite, say)
    say(f"booting Linux {kernel.release}")
    python = f"{sys.executable} -u"
    tests = f"{python} -m pytest -q -p no:cacheprovider --junitxml=/out/tests.xml {' '.join(TESTS)}"
    command = ["sh", "-c", f"PYTHONPATH=tests:tests/zerocopy {python} tests/vm/survey.py && {tests}"]
    result = guest.run(qemu, kernel, command, cwd=Path.cwd(), timeout=timeout, prefix=f"{suite}: ")
    if not {"survey.json", "tests.xml"} <= result.files.keys():
        raise debian.LabError(f"the survey of Linux {kernel.release} ended with status {result.status}: see above")
    counts = ElementTree.fromstring(result.files["tests.xml"])[0].attrib
    failed, skipped = int(counts["failures"]) + int(counts["errors"]), int(counts["skipped"])
    passed = int(counts["tests"]) - failed - skipped
    return Outcome(kernel.release, json.loads(result.files["survey.json"]), passed, failed, skipped)


def table(outcomes: list[Outcome]) -> str:
    """The support table, in Markdown."""
    versions = [".".join(o.release.split(".")[:2]) for o in outcomes]
    lines = ["| | since Linux | " + " | ".join(versions) + " |", "|---|---|" + "---|" * len(outcomes)]
    for name in outcomes[-1].rows:
        since = FEATURES[name].version if name in FEATURES else ""
        use = f" ({FEATURES[name].use})" if name in FEATURES else ""
        cells = ("yes" if o.rows[name] else "no" for o in outcomes)
        lines.append(f"| {name}{use} | {since} | " + " | ".join(cells) + " |")
    tests = (f"{o.passed} passed, {o.skipped} skipped" + (f", {o.failed} FAILED" * bool(o.failed)) for o in outcomes)
    lines.append("| tests | | " + " | ".join(tests) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Every kernel in turn; the table is printed."""
    parser = argparse.ArgumentParser(description="Run xdpkit on Debian's kernels in QEMU guests.")
    parser.add_argument("--write", action="store_true", help=f"write the table into {PAGE}")
    parser.add_argument("--timeout", type=float, default=1500, metavar="S", help="seconds that a guest may take")
    options = parser.parse_args()
    say = guest.Say(time.monotonic())
    try:
        outcomes = [survey(suite, options.timeout, say) for suite in SUITES]
    except debian.LabError as error:
        print(f"xdpkit-vm: {error}", file=sys.stderr)
        return 3
    new = table(outcomes)
    print("\n" + new)
    before, _, rest = PAGE.read_text().partition(BEGIN)
    old, _, after = rest.partition(END)
    if options.write:
        PAGE.write_text(before + BEGIN + new + END + after)
    failed = any(o.failed for o in outcomes)
    if _support(old) != _support(new) and not options.write:
        print(f"{PAGE} says something else: make test-kernels WRITE=--write writes it anew", file=sys.stderr)
        return 1
    return int(failed)


def _support(text: str) -> list[str]:
    """The table without the line that counts tests."""
    return [line for line in text.splitlines() if line and not line.startswith("| tests")]


if __name__ == "__main__":
    sys.exit(main())
