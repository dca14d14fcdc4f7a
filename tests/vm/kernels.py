"""Run xdpkit on Debian's kernels, each in a guest, and write down what works where (docs/kernels.md).

    python tests/vm/kernels.py            survey and tests on every kernel, then compare with docs/kernels.md
    python tests/vm/kernels.py --write    the same, then write docs/kernels.md
    python tests/vm/kernels.py tests/link/test_link.py      these tests only

Exit status 1 if a test failed or the page says something else; 3 if a guest gave no result.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import debian
import guest

from xdpkit.kernel.features import FEATURES

SUITES = ("bookworm", "bookworm-backports", "trixie-backports")
#: What touches the kernel.  The engines' property tests are left to make test: they are slow without hardware.
TESTS = ("tests/kernels", "tests/link/test_link.py", "tests/sockets/test_sockets.py", "tests/link/test_tc.py")
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


def survey(
    qemu: debian.Qemu, suite: str, kernel: debian.Kernel, tests: list[str], timeout: float, say: guest.Say
) -> Outcome:
    """Boot the suite's kernel, survey, run the tests."""
    say(f"booting Linux {kernel.release}")
    python = f"{sys.executable} -u"
    run = f"{python} -m pytest -v -p no:cacheprovider --junitxml=/out/tests.xml {' '.join(tests)}"
    command = ["sh", "-c", f"PYTHONPATH=tests:tests/zerocopy {python} tests/vm/survey.py && {run}"]
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
    return "\n".join(lines) + "\n"


def main() -> int:
    """Every kernel in turn; the table is printed."""
    parser = argparse.ArgumentParser(description="Run xdpkit on Debian's kernels in QEMU guests.")
    parser.add_argument(
        "tests", nargs="*", default=list(TESTS), help="what pytest runs; default: what touches the kernel"
    )
    parser.add_argument("--write", action="store_true", help=f"write the table into {PAGE}")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="guests at a time")
    parser.add_argument("--timeout", type=float, default=1500, metavar="S", help="seconds that a guest may take")
    options = parser.parse_args()
    say = guest.Say(time.monotonic())
    try:
        qemu, kernels = debian.qemu(say), {suite: debian.kernel(suite, say) for suite in SUITES}
        with ThreadPoolExecutor(options.jobs) as pool:
            surveys = [
                pool.submit(survey, qemu, *item, options.tests, options.timeout, say) for item in kernels.items()
            ]
            outcomes = [each.result() for each in surveys]
    except debian.LabError as error:
        print(f"xdpkit-vm: {error}", file=sys.stderr)
        return 3
    new = table(outcomes)
    print("\n" + new)
    for each in outcomes:
        print(f"Linux {each.release}: {each.passed} tests passed, {each.failed} failed, {each.skipped} skipped")
    before, _, rest = PAGE.read_text().partition(BEGIN)
    old, _, after = rest.partition(END)
    if options.write:
        PAGE.write_text(before + BEGIN + new + END + after)
    failed = any(o.failed for o in outcomes)
    if old != new and not options.write:
        print(f"{PAGE} says something else: make test-kernels KERNELS=--write writes it anew", file=sys.stderr)
        return 1
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
