"""Packages that are put in place are run by whoever first asks them for a name, once."""

import subprocess
import sys

import pytest

from xdpkit.lazy import put_in_place


def printed(source: str) -> str:
    """What a Python process of its own prints."""
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True).stdout


def test_a_package_runs_when_it_is_first_asked_for_a_name():
    source = """
import sys
from xdpkit.lazy import put_in_place
put_in_place("numpy")
import numpy as np
print("numpy._core" in sys.modules)
print(np.arange(3).sum(), "numpy._core" in sys.modules, hasattr(np, "nothing"))
put_in_place("numpy")
print(np is sys.modules["numpy"])
"""
    assert printed(source).split() == ["False", "3", "True", "False", "True"]


@pytest.mark.parametrize("way", ["from numpy.typing import NDArray", "import numpy.typing", "from numpy import typing"])
def test_a_module_of_a_package_runs_the_package_first(way):
    source = f"from xdpkit.lazy import put_in_place; put_in_place('numpy'); import numpy; {way}; print(numpy.arange(2))"
    assert printed(source) == "[0 1]\n"


def test_threads_that_ask_at_once_get_the_whole_package():
    source = """
import threading
from xdpkit.lazy import put_in_place
put_in_place("numpy")
import numpy
ready, sums = threading.Barrier(8), []
def ask():
    ready.wait()
    sums.append(int(numpy.linalg.norm(numpy.full(4, 2)).sum()))
threads = [threading.Thread(target=ask) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(sums)
"""
    assert printed(source) == f"{[4] * 8}\n"


def test_a_package_that_fails_is_tried_again(tmp_path, monkeypatch):
    (tmp_path / "wanting").mkdir()
    (tmp_path / "wanting/__init__.py").write_text("import os\nif 'READY' not in os.environ: raise ImportError\nx = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    put_in_place("wanting")
    import wanting  # type: ignore[import-not-found]

    with pytest.raises(ImportError):
        wanting.x  # noqa: B018
    monkeypatch.setenv("READY", "1")
    assert wanting.x == 1
    del sys.modules["wanting"]


def test_a_package_that_is_missing_is_said_at_once():
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        put_in_place("no_such_package")
