"""Boot a kernel in QEMU with emulated NICs and run one command in it, over this machine's own root.

The guest sees the host's root directory read-only (9p) under an overlay in memory: the checkout and its .venv are there
under their own paths, and nothing that the guest writes reaches the host, but for the directory /out, through which the
command, its exit status and files that it leaves there are carried.

Its devices: two igb joined by a hub, and two virtio-net joined by another.  igb is the one NIC with AF_XDP zero-copy
that QEMU emulates; virtio-net has it where the device sits behind the DMA API (iommu_platform=on).  Each igb needs a
PCIe port of its own.  Processors are emulated (no KVM is needed), so a figure measured in a guest means nothing.
"""

from __future__ import annotations

import os
import selectors
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from debian import Kernel, LabError, Qemu

MEMORY_MB = 2048
CPUS = 2  # igb makes a queue for each
TRIES = 3  # only where the guest died before it could say anything
#: On the kernel's command line, where a test can see that it runs in such a guest and touches no real device.
MARK = "xdpkit.guest"


@dataclass(frozen=True, slots=True)
class Say:
    """Prints what is under way, with the seconds since ``start`` (time.monotonic)."""

    start: float

    def __call__(self, text: str) -> None:
        print(f"[{time.monotonic() - self.start:4.0f} s] {text}", flush=True)


@dataclass(frozen=True, slots=True)
class Result:
    """How the command ended in the guest, and the files that it left in /out."""

    status: int
    files: dict[str, str]


def run(qemu: Qemu, kernel: Kernel, command: Sequence[str], *, cwd: Path, timeout: float, prefix: str = "") -> Result:
    """Boot, run ``command`` in ``cwd``, power off.  Its output is printed as it comes, each line after ``prefix``.

    LabError: the guest died TRIES times without an exit status, or it all took more than ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    with tempfile.TemporaryDirectory(prefix="xdpkit-vm-") as name:
        work = Path(name)
        (work / "initrd").write_bytes(_initrd(qemu, kernel))
        for _ in range(TRIES):
            out = work / "out"
            out.mkdir()
            (out / "command").write_text(f"cd {shlex.quote(str(cwd))} && exec {shlex.join(command)}\n")
            last = _boot(_arguments(qemu, kernel, work), qemu, deadline, prefix)
            files = {p.name: p.read_text(errors="replace") for p in out.iterdir() if p.is_file()}
            if (status := files.pop("status", "").strip()).isdigit():
                return Result(int(status), files)
            print(f"{prefix}xdpkit-vm: the guest died", flush=True)
            out.rename(work / f"died-{time.monotonic_ns()}")
    raise LabError(f"Linux {kernel.release} in QEMU died {TRIES} times without a result; its last line: {last}")


def _boot(arguments: Sequence[str], qemu: Qemu, deadline: float, prefix: str) -> str:
    """Until QEMU ends; its last line of output."""
    last = ""
    with subprocess.Popen(
        arguments, env=qemu.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process, selectors.DefaultSelector() as selector:  # fmt: skip
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        selector.register(process.stdout, selectors.EVENT_READ)
        pending = b""
        try:
            while selector.select(max(0, deadline - time.monotonic())):
                if not (data := process.stdout.read(1 << 16)):
                    return last
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    last = line.decode(errors="replace").strip("\r\n") or last
                    _show(line, prefix)
        finally:
            process.kill()
    raise LabError(f"the guest did not end in time (--timeout); its last line: {last}")


def _show(line: bytes, prefix: str) -> None:
    text = line.decode(errors="replace").replace("\r", "")
    if "is not connected to host network" not in text:  # what a hub between guests is for
        print(prefix + text, file=sys.stdout, flush=True)


def _arguments(qemu: Qemu, kernel: Kernel, work: Path) -> list[str]:
    arguments = ["setpriv", "--pdeathsig", "KILL", "--"]  # no guest outlives a killed runner
    arguments += [str(qemu.program), *qemu.options, "-nodefaults", "-no-user-config", "-no-reboot"]
    arguments += ["-machine", "q35", "-cpu", "max", "-accel", "tcg,thread=multi", "-smp", str(CPUS)]
    arguments += ["-m", str(MEMORY_MB), "-display", "none", "-serial", "stdio"]
    arguments += ["-kernel", str(kernel.image), "-initrd", str(work / "initrd")]
    arguments += ["-append", f"console=ttyS0 quiet panic=-1 nokaslr mitigations=off {MARK}"]
    for number in (0, 1):
        mac = f"mac=52:54:00:00:00:0{number + 1}"
        arguments += [
            "-netdev",
            f"hubport,hubid=0,id=i{number}",
            "-device",
            f"pcie-root-port,id=p{number},chassis={number}",
        ]
        arguments += ["-device", f"igb,netdev=i{number},bus=p{number},romfile=,{mac}"]
    for number in (0, 1):
        mac = f"mac=52:54:00:00:01:0{number + 1}"
        arguments += ["-netdev", f"hubport,hubid=1,id=v{number}"]
        arguments += ["-device", f"virtio-net-pci,netdev=v{number},disable-legacy=on,iommu_platform=on,romfile=,{mac}"]
    share = "local,security_model=none"
    arguments += ["-virtfs", f"{share},path=/,mount_tag=host,readonly=on,multidevs=remap"]
    return [*arguments, "-virtfs", f"{share},path={work / 'out'},mount_tag=out"]


def _initrd(qemu: Qemu, kernel: Kernel) -> bytes:
    """busybox, the modules and init as a cpio archive, "newc" format (Documentation/driver-api/early-userspace/
    buffer-format.rst of the kernel)."""
    directory, program, plain = 0o040755, 0o100755, 0o100644
    entries: list[tuple[str, int, bytes]] = [
        (name, directory, b"") for name in ("bin", "dev", "proc", "sys", "modules", "host", "out", "upper", "root")
    ]
    entries.append(("bin/busybox", program, qemu.busybox.read_bytes()))
    entries.append(("init", program, Path(__file__).with_name("init").read_bytes()))
    entries += [(f"modules/{m.name}", plain, m.read_bytes()) for m in kernel.modules]
    entries.append(("modules/order", plain, "\n".join(m.name for m in kernel.modules).encode()))
    archive = bytearray()
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        archive += b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        archive += bytes(-len(archive) % 4) + data
        archive += bytes(-len(archive) % 4)
    return bytes(archive)
