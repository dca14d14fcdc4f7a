"""What this machine and a device can do for xdpkit, and what to do where they cannot.

Everything is tried for real where that leaves no trace: a pipeline is compiled and loaded, an AF_XDP socket is opened.
Without privilege the findings say what could not be seen; nothing here raises because of it.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import socket
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..compiler.bitcode import DIRECTORY
from ..kernel.features import FEATURES, has
from ..kernel.holders import clean
from .device import examine_device
from .findings import Check, as_json, render

__all__ = ["Check", "as_json", "clean", "examine", "render"]

_AF_XDP = 44
_IPC_LOCK, _SYS_ADMIN = 14, 21
_ADMIN_TOO = ("CAP_BPF", "CAP_PERFMON")

#: name, bit (linux/capability.h), what needs it.  CAP_SYS_ADMIN stands in for CAP_BPF and CAP_PERFMON.
CAPABILITIES = (
    ("CAP_BPF", 39, "load programs and maps (CAP_SYS_ADMIN does too)"),
    ("CAP_PERFMON", 38, "pass the verifier with pointer arithmetic (CAP_SYS_ADMIN does too)"),
    ("CAP_NET_ADMIN", 12, "load XDP programs, attach them, change queues, MTU and offloads"),
    ("CAP_NET_RAW", 13, "open AF_XDP and AF_PACKET sockets, set promiscuous mode"),
    ("CAP_SYS_ADMIN", _SYS_ADMIN, "name the programs of others, enter network namespaces (the lab)"),
)
_HOW = "run as root, or give the capability (capsh, systemd AmbientCapabilities=)"


def examine(device: str | None = None) -> list[Check]:
    """Findings about the machine, and about ``device`` of this thread's network namespace if one is named."""
    findings = [*_kernel(), *_packages(), *_capabilities(), *_memlock(), _huge_pages()]
    return findings + list(examine_device(device)) if device is not None else findings


def _kernel() -> Iterator[Check]:
    release = os.uname().release
    parts = re.match(r"(\d+)\.(\d+)", release)
    known = (int(parts[1]), int(parts[2])) if parts else (0, 0)
    if known < (5, 9):
        yield Check("kernel", "problem", f"Linux {release} has no bpf_link for XDP", "use Linux 5.9 or newer")
    elif known < (6, 3):
        text = f"Linux {release} cannot tell the XDP features of its devices"
        yield Check("kernel", "note", text, "nothing must be done; Linux 6.3 and newer can tell")
    else:
        yield Check("kernel", "ok", f"Linux {release}")
    yield from _features()
    yield from _ebpf()
    yield _af_xdp()
    if Path("/sys/kernel/btf/vmlinux").exists():
        yield Check("BTF", "ok", "the kernel describes its types (/sys/kernel/btf/vmlinux)")
    else:
        text = "the kernel does not describe its types: no kfuncs, so no hardware time stamps or hashes"
        yield Check("BTF", "note", text, "pipelines work; else use a kernel with CONFIG_DEBUG_INFO_BTF=y")


def _features() -> Iterator[Check]:
    """The features that this kernel does not have.  Without the privilege to try a feature nothing is reported."""
    if _effective() >> _SYS_ADMIN & 1:
        for feature in FEATURES.values():
            if not has(feature.name):
                text = f"missing in this kernel; it is for {feature.use}"
                yield Check(feature.name, "note", text, f"Linux {feature.version} or newer has it")


def _ebpf() -> Iterator[Check]:
    """Compile and load a pipeline of one rule; nothing is attached."""
    try:
        from ..compiler import compile_pipeline
        from ..kernel.program import Program
        from ..language.actions import DROP
        from ..language.headers import udp
        from ..language.pipeline import Pipeline

        pipe = Pipeline("doctor")
        pipe.rule(udp.dport == 9, DROP, name="discard")
        compiled = compile_pipeline(pipe)
    except Exception as error:
        advice = "reinstall xdpkit: pip install --force-reinstall xdpkit"
        yield Check("compiler", "problem", f"a pipeline does not compile: {_line(error)}", advice)
        return
    yield Check("compiler", "ok", f"a pipeline compiles to {len(compiled.object)} bytes of eBPF object")
    try:
        with Program(compiled) as program:
            info = program.info()
    except Exception as error:
        lacking = any(finding.status == "problem" for finding in _capabilities())
        advice = _HOW if lacking else "the kernel needs CONFIG_BPF_SYSCALL=y; if that is there, report this as a bug"
        yield Check("eBPF", "problem", f"an XDP program does not load: {_line(error)}", advice)
        return
    yield Check("eBPF", "ok", f"an XDP program loads: {info['verified_instructions']} instructions verified")
    if info["jited_bytes"]:
        yield Check("JIT", "ok", f"the program became {info['jited_bytes']} bytes of machine code")
    else:
        yield Check("JIT", "problem", "programs are interpreted: slow", "sysctl net.core.bpf_jit_enable=1")


def _af_xdp() -> Check:
    try:
        socket.socket(_AF_XDP, socket.SOCK_RAW, 0).close()
    except PermissionError:
        return Check("AF_XDP", "problem", "a socket may not be opened: it needs CAP_NET_RAW", _HOW)
    except OSError as error:
        advice = "the kernel needs CONFIG_XDP_SOCKETS=y; until then use mode af_packet"
        return Check("AF_XDP", "problem", f"a socket cannot be opened: {error.strerror}", advice)
    return Check("AF_XDP", "ok", "a socket opens")


def _packages() -> Iterator[Check]:
    try:
        yield Check("llvmlite", "ok", f"version {version('llvmlite')}")
    except PackageNotFoundError:
        yield Check("llvmlite", "problem", "not installed: pipelines cannot be compiled", "pip install llvmlite")
    missing = [name for name in ("xdp.bc", "socket.bc", "generator.o") if not (DIRECTORY / name).exists()]
    if missing:
        text = f"{', '.join(missing)} missing from {DIRECTORY}"
        yield Check("bitcode", "problem", text, "reinstall xdpkit; a build from source needs clang 15 to 20")
    else:
        yield Check("bitcode", "ok", "the data plane is installed")
    try:
        version_string = ctypes.CDLL("libbpf.so.1").libbpf_version_string
        version_string.restype = ctypes.c_char_p
        yield Check("libbpf", "ok", f"version {version_string().decode().removeprefix('v')}")
    except (OSError, AttributeError):
        yield Check("libbpf", "note", "libbpf.so.1 is not where the loader looks: it is linked in, or old")


def _capabilities() -> Iterator[Check]:
    held = _effective()
    for name, bit, need in CAPABILITIES:
        if held >> bit & 1:
            yield Check(name, "ok", f"held: {need}")
        elif name in _ADMIN_TOO and held >> _SYS_ADMIN & 1:
            yield Check(name, "ok", "not held, but CAP_SYS_ADMIN stands in for it")
        else:
            text = f"not held, needed to {need}"
            yield Check(name, "note" if bit == _SYS_ADMIN else "problem", text, _HOW)


def _huge_pages() -> Check:
    with open("/proc/meminfo") as file:
        meminfo = dict(line.split(":") for line in file)
    free, size = meminfo.get("HugePages_Free", "0").strip(), meminfo.get("Hugepagesize", "0 kB").strip()
    if free != "0":
        return Check("huge pages", "ok", f"{free} of {size} are free")
    advice = "for huge_pages=on: echo 32 > /proc/sys/vm/nr_hugepages"
    return Check("huge pages", "ok", f"none of {size} is reserved, and UMEM in small ones works", advice)


def _memlock() -> Iterator[Check]:
    """BPF memory counts against the cgroup since 5.11, a UMEM against RLIMIT_MEMLOCK (xdp_umem_account_pages)."""
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if _effective() >> _IPC_LOCK & 1:
        yield Check("memlock", "ok", "CAP_IPC_LOCK is held: no limit for UMEM")
    elif limit == resource.RLIM_INFINITY:
        yield Check("memlock", "ok", "no limit for UMEM")
    else:
        text = f"all UMEMs of this user may take {limit >> 10} KiB (RLIMIT_MEMLOCK); more is refused with ENOBUFS"
        advice = "raise it (ulimit -l, LimitMEMLOCK=), hold CAP_IPC_LOCK, or use fewer frames"
        yield Check("memlock", "note", text, advice)


def _effective() -> int:
    """The effective capabilities of this thread, a bit each: CapEff in proc_pid_status(5)."""
    status = Path("/proc/thread-self/status").read_text()
    return int(re.search(r"^CapEff:\s*(\w+)$", status, re.MULTILINE)[1], 16)  # type: ignore[index]


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
