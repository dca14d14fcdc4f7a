"""The C loops that AF_XDP is compared with, compiled when a comparison runs: loops.c, and uring.c where liburing is.

They are no part of the core, so that xdpkit itself needs neither a compiler nor liburing.
"""

from __future__ import annotations

import functools
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import cffi

from ..language.errors import NotSupported

__all__ = ["DELAYS", "ffi", "loops", "uring"]

#: Delays of one run that are kept.
DELAYS = 1 << 20

ffi = cffi.FFI()
ffi.cdef("""
struct delays { uint64_t *ns; uint32_t room, count, offset; };
int plain_open(int ifindex, int queue, uint32_t frame_size);
uint64_t plain_run(const int *stop, struct delays *delays);
uint64_t receive_run(int fd, int batch, const int *stop, struct delays *delays);
uint64_t send_run(int fd, const uint8_t *frame, uint32_t size, int batch, double rate_pps, uint32_t time_offset,
                  const int *stop);
uint64_t forward_run(int from, int to, const int *stop);
uint64_t echo_run(int fd, const int *stop);
uint32_t ping_run(int fd, const uint8_t *frame, uint32_t size, uint32_t count, uint32_t gap_us, uint32_t *rtt_ns);
int64_t uring_run(int fd, const int *stop, struct delays *delays);
""")


@functools.cache
def loops() -> Any:
    """loops.c; NotSupported without a C compiler."""
    return _compiled("loops.c", "a C compiler: apt-get install gcc libc6-dev")


@functools.cache
def uring() -> Any:
    """uring.c; NotSupported without liburing."""
    return _compiled("uring.c", "liburing 2.3 or later: apt-get install liburing-dev", "-luring")


def _compiled(name: str, needs: str, *flags: str) -> Any:
    source = Path(__file__).with_name(name)
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "loops.so")
        command = ["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source), *flags]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise NotSupported(f"compiling {name}", "a C compiler: apt-get install gcc libc6-dev") from None
        if done.returncode:
            raise NotSupported(f"compiling {name}", needs)
        return ffi.dlopen(str(library))
