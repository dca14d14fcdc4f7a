"""`xdpkit run` in ten variants under traffic, and what must hold however such a run ends.  The fuzzers of signals and
of device events use it."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the helpers of the tests, when this runs as a script

from blocks import capture
from traffic import frames

from xdpkit.lab import Lab, Port
from xdpkit.sets.pins import FOLDER

COMMAND = [str(Path(sys.executable).with_name("xdpkit")), "run"]
PIPELINE = """\
from xdpkit import *
pipe = Pipeline("fuzzed")
blocked = pipe.set("{set_name}", ip.src, pinned={pinned})
pipe.rule(blocked, DROP, name="blocked")
{mirror}
pipe.rule(udp.dport == 53, REDIRECT, name="dns")
"""
#: Seconds within which the kernel has taken away what a process held: it closes sockets and links in the background.
GONE_SECONDS = 10.0
#: Seconds that a run may take from a signal to its end, on a loaded machine.
END_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to run: options of the command, and what its pipeline has besides a REDIRECT rule."""

    name: str
    options: tuple[str, ...] = ()
    output: str = "file"  # where packets go: file, stdout or copies
    mirror: bool = False
    pinned: bool = False
    shadow: bool = False


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("file"),
        Variant("stdout", output="stdout"),
        Variant("shadow", shadow=True),
        Variant("pinned", pinned=True),
        Variant("copies", output="copies", mirror=True),
        Variant("tc-ingress", ("--mode", "tc-ingress")),
        Variant("tc-egress", ("--mode", "tc-egress")),
        Variant("generic", ("--mode", "generic")),
        Variant("af-packet", ("--mode", "af-packet")),
        Variant("busy-poll", ("-o", "busy_poll=want:on", "--wait", "busy")),
    )
}


@dataclass(slots=True)
class Ended:
    """How a run ended."""

    status: int
    out: str
    err: str
    packets: bytes
    #: Packets that the final ledger says were written; None without a ledger.
    written: int | None = None


class Run:
    """One variant as a process on the right port of a pair."""

    def __init__(self, variant: Variant, port: Port, folder: Path) -> None:
        self.variant, self.port, self.folder = variant, port, folder
        self.set_name = f"fuzz_{os.getpid()}"
        self.target = folder / "packets.pcapng"
        self.out, self.err = folder / "out", folder / "err"
        pipeline = folder / "pipeline.py"
        mirror = 'pipe.rule(udp, Mirror(), name="copied")' if variant.mirror else ""
        pipeline.write_text(PIPELINE.format(set_name=self.set_name, pinned=variant.pinned, mirror=mirror))
        if variant.shadow:
            (folder / "shadow.py").write_text(PIPELINE.format(set_name=self.set_name, pinned=False, mirror=""))
        self.target.unlink(missing_ok=True)
        self.started = time.monotonic()
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = port.namespace.popen(
                [*COMMAND, str(pipeline), "-i", port.name, *self._options()], stdout=out, stderr=err
            )

    def _options(self) -> list[str]:
        options = list(self.variant.options)
        if self.variant.shadow:
            options += ["--shadow", str(self.folder / "shadow.py")]
        if self.variant.output == "stdout":
            return [*options, "-w", "-"]
        return [*options, "--json", "--copies" if self.variant.output == "copies" else "-w", str(self.target)]

    def ready(self) -> bool:
        """Whether the run has said that it is attached."""
        return b" on " in self.err.read_bytes()

    def wait(self, seconds: float = END_SECONDS) -> Ended:
        """Until it ends; what it left.  subprocess.TimeoutExpired where it does not."""
        status = self.process.wait(seconds)
        err, raw = self.err.read_text(), self.out.read_bytes()
        if self.variant.output == "stdout":
            return Ended(status, "", err, raw)
        packets = self.target.read_bytes() if self.target.exists() else b""
        ended = Ended(status, raw.decode(), err, packets)
        if self.variant.output == "file" and raw.startswith(b"{"):
            ended.written = json.loads(raw)["written"]
        return ended

    def kill(self) -> None:
        """End the process where it is still there."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def faults(ended: Ended, *, whole: bool) -> list[str]:
    """What is wrong with what a run printed and wrote; ``whole``: its file must end with a whole block."""
    found = []
    if "Traceback" in ended.err or "Exception ignored" in ended.err:
        found.append(f"a traceback: {ended.err.strip().splitlines()[-1]}")
    lines = [line for line in ended.err.splitlines() if line and not line.startswith("xdpkit: ")]
    if lines and not found and not ended.err.lstrip().startswith("Usage"):
        table = any(" on " in line for line in lines)
        if not table:
            found.append(f"a line that is not xdpkit's: {lines[0]!r}")
    data, rest = ended.packets, 0
    if not whole:
        data, rest = whole_blocks(data)
    try:
        packets = capture(data)[1] if data else []
    except Exception as error:
        return [*found, f"the file cannot be read: {type(error).__name__} {error}"]
    if rest > 1 << 20:
        found.append(f"{rest} bytes after the last whole block")
    if ended.written is not None and ended.written != len(packets):
        found.append(f"written says {ended.written}, the file has {len(packets)}")
    return found


def whole_blocks(data: bytes) -> tuple[bytes, int]:
    """The part of a pcapng file that is whole blocks, and how many bytes follow it."""
    at = 0
    while at + 12 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], sys.byteorder)
        if size < 12 or at + size > len(data):
            break
        at += size
    return data[:at], len(data) - at


def left_behind(port: Port) -> list[str]:
    """What is still attached to a port: programs at XDP and TC, promiscuous mode, packet sockets."""
    shown = json.loads(port.namespace.run(["bpftool", "-j", "net", "show"], capture_output=True, text=True).stdout)[0]
    found = [f"{hook}: {entry}" for hook in ("xdp", "tc") for entry in shown[hook]]
    said = port.namespace.run(["ip", "-j", "-d", "link", "show", port.name], capture_output=True, text=True).stdout
    if promiscuity := json.loads(said)[0]["promiscuity"]:
        found.append(f"promiscuity {promiscuity}")
    return found


def gone(port: Port) -> list[str]:
    """What is still attached when the kernel had time to take it away."""
    deadline = time.monotonic() + GONE_SECONDS
    while (found := left_behind(port)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def pins(name: str) -> list[str]:
    """What is in the bpffs under a set's name that a set does not consist of."""
    folder = FOLDER / name
    return (
        sorted(path.name for path in folder.iterdir() if path.name not in ("members", "kind"))
        if folder.exists()
        else []
    )


def remove_pins(name: str) -> None:
    """Remove the set that the variant with a pinned set left, as it should."""
    folder = FOLDER / name
    if folder.exists():
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


@contextmanager
def traffic(left: Port, right: Port) -> Iterator[None]:
    """Packets in both directions for as long as the block runs, from a thread."""
    some = frames(left, right, range(50)) + frames(left, right, range(10), dport=80)
    other = frames(right, left, range(50))
    stop = threading.Event()

    def send() -> None:
        while not stop.wait(0.01):
            try:
                left.send(some)
                right.send(other)
            except OSError:  # a device that is down, or away
                continue

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def site() -> Iterator[tuple[Port, Port, Path]]:
    """A pair of ports with two queues, and a folder."""
    with ExitStack() as stack:
        left, right = stack.enter_context(Lab.pair(queues=2))
        yield left, right, Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xdpkit-fuzz-")))
