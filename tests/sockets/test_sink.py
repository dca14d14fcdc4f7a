"""Sinks and workers of csrc on sources that are pipes, under sanitizers: one pytest for each test of
tests/sockets/c/test_sink.c."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).parent / "c" / "test_sink.c"
TESTS = re.findall(r"^TEST\((\w+)\)", SOURCE.read_text(), flags=re.MULTILINE)


@pytest.fixture(scope="module", params=["address,undefined", "thread"])
def binary(request, tmp_path_factory):
    """The tests and the whole core, compiled with the sanitizers named."""
    path = tmp_path_factory.mktemp("sink") / "test_sink"
    flags = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", f"-fsanitize={request.param}"]
    flags += ["-fno-sanitize-recover=all", f"-I{ROOT / 'csrc'}", "-pthread"]
    sources = [SOURCE, *sorted((ROOT / "csrc").glob("*.c"))]
    subprocess.run(["cc", *flags, *map(str, sources), "-lbpf", "-o", str(path)], check=True)
    return path


@pytest.mark.parametrize("test", TESTS)
def test_sink(binary, test):
    run = subprocess.run([binary, test], check=False, capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stderr) == (0, "")
