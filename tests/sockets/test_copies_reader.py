"""The reader of ring buffers in csrc on plain memory, under sanitizers: one pytest for each test of
tests/sockets/c/test_copies.c."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).parent / "c" / "test_copies.c"
TESTS = re.findall(r"^TEST\((\w+)\)", SOURCE.read_text(), flags=re.MULTILINE)


@pytest.fixture(scope="module", params=["address,undefined", "thread"])
def binary(request, tmp_path_factory):
    """The tests, which include csrc/copies.c, and the rest of the core, compiled with the sanitizers named."""
    path = tmp_path_factory.mktemp("copies") / "test_copies"
    flags = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", f"-fsanitize={request.param}"]
    flags += ["-fno-sanitize-recover=all", f"-I{ROOT / 'csrc'}", "-pthread"]
    sources = [SOURCE, *sorted(path for path in (ROOT / "csrc").glob("*.c") if path.name != "copies.c")]
    subprocess.run(["cc", *flags, *map(str, sources), "-lbpf", "-o", str(path)], check=True)
    return path


@pytest.mark.parametrize("test", TESTS)
def test_copies_reader(binary, test):
    run = subprocess.run([binary, test], check=False, capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stderr) == (0, "")
