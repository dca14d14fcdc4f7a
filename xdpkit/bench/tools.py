"""Tools that receive, where they are installed: tcpdump, dumpcap and netsniff-ng to a file, DPDK's testpmd."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path as File

from ..language.errors import NotSupported
from .site import Path, Running, Site

__all__ = ["TOOLS"]

_READY_SECONDS = 20.0


class _Process:
    """A tool at work; what it says is kept."""

    def __init__(self, child: subprocess.Popen[bytes], name: str):
        self.child, self.name, self.said = child, name, ""

    def until(self, words: str, seconds: float) -> None:
        """Read what it says until a word of the pattern; OSError with its last line if it ends, or takes too long."""
        deadline, out = time.monotonic() + seconds, self.child.stdout
        assert out is not None
        while not re.search(words, self.said):
            if not select.select([out], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise OSError(f"{self.name}: not ready after {seconds:g} s")
            data = os.read(out.fileno(), 4096)
            if not data:
                last = ([line for line in self.said.splitlines() if line.strip()] or ["it said nothing"])[-1]
                raise OSError(f"{self.name} ended: {last}")
            self.said += data.decode(errors="replace")

    def end(self, interrupt: bool) -> str:
        """Ask it to stop; all it said."""
        if interrupt:
            self.child.send_signal(signal.SIGINT)
        try:
            self.said += self.child.communicate(b"\n", timeout=_READY_SECONDS)[0].decode(errors="replace")
        except subprocess.TimeoutExpired:
            self.child.kill()
            raise OSError(f"{self.name}: does not stop") from None
        return self.said


def _tool(
    command: Callable[[Site, str], list[str]], package: str, ready: str, received: str, lost: str, *, linger: float,
    interrupt: bool = True,
) -> Callable[[Site], AbstractContextManager[Running]]:  # fmt: skip
    """``ready``, ``received``, ``lost``: patterns of what it says, the last two with the number; ``linger``: seconds
    after which what it buffers has reached it."""

    @contextmanager
    def path(site: Site) -> Iterator[Running]:
        with tempfile.TemporaryDirectory() as folder:
            args = command(site, str(File(folder, "capture")))
            if not shutil.which(args[0]):
                raise NotSupported(args[0], f"apt-get install {package}")
            streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
            child = site.port.namespace.popen(
                ["stdbuf", "-oL", *args], cwd=folder, preexec_fn=lambda: os.sched_setaffinity(0, {site.cpu}), **streams
            )
            process, me = _Process(child, args[0]), Running(args[0], (child.pid,))
            try:
                process.until(ready, _READY_SECONDS)
                yield me
                time.sleep(linger)
                said = process.end(interrupt)
            finally:
                child.kill()
                child.wait()
            counts = [re.search(pattern, said) for pattern in (received, lost)]
            if counts[0] is None or counts[1] is None:
                raise OSError(f"{args[0]} does not say what it received: {said.strip()[-200:]!r}")
            me.received, me.lost = int(counts[0][1]), int(counts[1][1])

    return path


def _testpmd(device: str) -> Callable[[Site], AbstractContextManager[Running]]:
    def command(site: Site, _: str) -> list[str]:
        lcores = f"--lcores=0@{site.cpu},1@{site.cpu}"
        device_ = f"--vdev={device}0,iface={site.port.name}"
        return [
            *("dpdk-testpmd", "--no-huge", "--no-pci", "--no-shconf", "--no-telemetry", "-m", "256", lcores, device_),
            *("--", "--forward-mode=rxonly", "--total-num-mbufs=8192", "--no-mlockall"),
        ]

    return _tool(
        command, "dpdk-dev", "Press enter to exit", r"RX-packets: *(\d+)", r"RX-dropped: *(\d+)",
        linger=0.1, interrupt=False,
    )  # fmt: skip


TOOLS = (
    Path(
        "tcpdump",
        _tool(
            lambda site, file: ["tcpdump", "-i", site.port.name, "-w", file, "-B", "16384"], "tcpdump", "listening on",
            r"(\d+) packets? captured", r"(\d+) packets? dropped by kernel", linger=1.1,
        ),
        "to a file, -B 16384", delays=False, tool=True,
    ),
    Path(
        "netsniff-ng",
        _tool(
            lambda site, file: ["netsniff-ng", "-i", site.port.name, "-o", file + ".pcap", "-s"], "netsniff-ng",
            "Hang up", r"(\d+) *packets passed filter", r"(\d+) *packets failed filter", linger=0.2,
        ),
        "to a file", delays=False, tool=True,
    ),
    Path(
        "dumpcap",
        _tool(
            lambda site, file: ["dumpcap", "-i", site.port.name, "-w", file, "-q", "-B", "16"], "wireshark-common",
            "File: ", r"interface '[^']*': (\d+)/\d+", r"interface '[^']*': \d+/(\d+)", linger=1.1,
        ),
        "to a file, -B 16", delays=False, tool=True,
    ),
    Path("testpmd-afxdp", _testpmd("net_af_xdp"), "rxonly, net_af_xdp, --no-huge, polls", delays=False,
         tool=True),
    Path("testpmd-packet", _testpmd("net_af_packet"), "rxonly, net_af_packet, --no-huge, polls", delays=False,
         tool=True),
)  # fmt: skip
