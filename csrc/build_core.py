"""cffi build of ``xdpkit._core`` (API mode): the marked region of xdpkit.h is the interface."""

import re
from pathlib import Path

from cffi import FFI

CSRC = Path(__file__).parent
SOURCES = (
    "base",
    "umem",
    "xsk",
    "receive",
    "transmit",
    "forward",
    "checksum",
    "packet",
    "copies",
    "sink",
    "block",
    "merge",
    "write",
    "worker",
    "loader",
    "maps",
    "keys",
)


def cdef() -> str:
    """The region between the cdef marks of xdpkit.h, without comments."""
    text = (CSRC / "xdpkit.h").read_text()
    region = text.split("/* cdef begin */")[1].split("/* cdef end */")[0]
    return re.sub(r"/\*.*?\*/", "", region, flags=re.DOTALL)


ffibuilder = FFI()
ffibuilder.cdef(cdef())
ffibuilder.set_source(
    "xdpkit._core",
    '#include "xdpkit.h"',
    sources=[f"csrc/{name}.c" for name in SOURCES],
    depends=[str(path.relative_to(CSRC.parent)) for path in sorted(CSRC.glob("*.h"))],
    include_dirs=["csrc"],
    libraries=["bpf", "pthread"],
    extra_compile_args=["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror=implicit-function-declaration"],
)
