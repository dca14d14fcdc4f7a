"""The commands of the Makefile, the perf scripts and the lists of tests in the runners name what is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TARGETS = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)


def listed_tests(script: str) -> tuple[str, ...]:
    """The tests that a runner of tests starts by default: its ``TESTS``."""
    source = (ROOT / script).read_text()
    found = re.search(r"^TESTS = (\(.*?\))$", source, re.MULTILINE | re.DOTALL)
    assert found, script
    return tuple(re.findall(r'"([^"]+)"', found[1]))


@pytest.mark.parametrize("script", ["tests/fuzz/properties.py", "tests/vm/kernels.py"])
def test_a_runner_of_tests_lists_tests_that_exist(script):
    names = listed_tests(script)
    assert names
    assert not [name for name in names if not (ROOT / name).exists()]


@pytest.mark.parametrize("target", TARGETS)
def test_the_programs_that_a_target_starts_exist(target):
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True)
    scripts = re.findall(r"(?<=python )\S+\.py", done.stdout)
    assert not [script for script in scripts if not (ROOT / script).exists()]
    assert not re.search(r"--timeout\s+--", done.stdout), "a variable of the Makefile is empty"


def test_no_two_files_of_tests_have_one_name():
    """Folders of tests are no packages: pytest imports a file by its name alone."""
    names = [path.name for path in (ROOT / "tests").glob("*/test_*.py")]
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)


def test_the_makefile_gives_no_warning():
    done = subprocess.run(["make", "-n", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted((ROOT / "perf").glob("*.py")), ids=lambda path: path.stem)
def test_a_perf_script_starts(script):
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()
