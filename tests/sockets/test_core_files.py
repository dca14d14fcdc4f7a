"""The files of the C core: which of them call which."""

import re
from graphlib import TopologicalSorter
from pathlib import Path

CSRC = Path(__file__).parents[2] / "csrc"
COMMENTS = re.compile(r"/\*.*?\*/", re.DOTALL)
#: A function that other files may call: its name stands on a line that starts with its type, and its body follows.
DEFINED = re.compile(r"^(?!static)[a-z][\w \*]*\b(xk_\w+)\([^;{]*\)\n\{", re.MULTILINE)


def text(path: Path) -> str:
    return COMMENTS.sub("", path.read_text())


def test_no_files_call_each_other_in_a_circle():
    files = {path.stem: text(path) for path in CSRC.glob("*.c")}
    homes = {name: file for file, code in files.items() for name in DEFINED.findall(code)}
    assert len(homes) > 90
    calls = {
        file: {homes[name] for name in re.findall(r"\b(xk_\w+)\(", code) if homes.get(name, file) != file}
        for file, code in files.items()
    }
    order = list(TopologicalSorter(calls).static_order())  # CycleError names the circle
    assert order.index("base") < order.index("umem") < order.index("xsk") < order.index("receive")


def test_the_interface_for_python_is_all_that_xdpkit_h_holds():
    """What the files of the core know of each other is in headers of their own."""
    code = text(CSRC / "xdpkit.h")
    marked = (CSRC / "xdpkit.h").read_text().split("/* cdef end */")[1]
    assert not marked.strip()
    declared = set(re.findall(r"\b(xk_\w+)\(", code))
    defined = {name for path in CSRC.glob("*.c") for name in DEFINED.findall(text(path))}
    assert declared <= defined
