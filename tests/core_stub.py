"""xdpkit/_core.pyi: the types of the C core, written from the compiled module.

`python tests/core_stub.py` writes it again after a change of csrc/xdpkit.h; a test holds it to what is compiled.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import xdpkit
from xdpkit._core import ffi, lib

STUB = Path(xdpkit.__file__).parent / "_core.pyi"
HEADER = Path(__file__).parents[1] / "csrc" / "xdpkit.h"

HEAD = '''"""The C core through cffi (API mode); csrc/xdpkit.h says what each function does.

Numbers are int; pointers, structures and arrays are CData, which cffi gives no type: they are Any here.
Written by tests/core_stub.py.
"""

from typing import Any

from cffi import FFI

ffi: FFI

class _Lib:
'''
#: What is new in xdpkit.h is Any until the stub is written again.
TAIL = """
    def __getattr__(self, name: str) -> Any: ...

lib: _Lib
"""


def stub() -> str:
    """The text of the stub for the core that is compiled."""
    names = _parameters(HEADER.read_text())
    lines = []
    for name in sorted(dir(lib)):
        value = getattr(lib, name)
        if isinstance(value, int):
            lines.append(f"    {name}: int")
            continue
        kind = ffi.typeof(value)
        given = zip(names[name], kind.args, strict=True)
        parameters = "".join(f", {parameter}: {_python(arg)}" for parameter, arg in given)
        positional = ", /" if kind.args else ""
        lines.append(f"    def {name}(self{parameters}{positional}) -> {_python(kind.result)}: ...")
    return HEAD + "\n".join(lines) + "\n" + TAIL


def _python(kind: Any) -> str:
    if kind.kind == "void":
        return "None"
    return "int" if kind.kind in ("primitive", "enum") else "Any"


def _parameters(header: str) -> dict[str, list[str]]:
    """The names of each function's parameters."""
    text = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    found = {}
    for name, inside in re.findall(r"\b(xk_\w+)\(([^()]*)\);", text):
        parameters = [] if inside.strip() == "void" else inside.split(",")
        words = [re.findall(r"\w+", parameter.split("[")[0])[-1] for parameter in parameters]
        found[name] = [f"{word}_" if word in ("from", "in", "is", "def") else word for word in words]
    return found


if __name__ == "__main__":
    STUB.write_text(stub())
