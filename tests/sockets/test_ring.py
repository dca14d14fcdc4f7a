"""The rings and the pool of csrc on plain memory, under sanitizers: one pytest for each test of
tests/sockets/c/test_ring.c."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).parent / "c" / "test_ring.c"
TESTS = re.findall(r"^TEST\((\w+)\)", SOURCE.read_text(), flags=re.MULTILINE)


@pytest.fixture(scope="module", params=["address,undefined", "thread"])
def binary(request, tmp_path_factory):
    """The tests, compiled with the sanitizers named."""
    path = tmp_path_factory.mktemp("ring") / "test_ring"
    flags = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", f"-fsanitize={request.param}"]
    flags += ["-fno-sanitize-recover=all", f"-I{ROOT / 'csrc'}", "-pthread"]
    subprocess.run(["cc", *flags, str(SOURCE), "-o", str(path)], check=True)
    return path


@pytest.mark.parametrize("test", TESTS)
def test_ring(binary, test):
    run = subprocess.run([binary, test], check=False, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
