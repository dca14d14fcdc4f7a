"""Fast traffic out of a lab port: copies of template frames, numbered and spread over flows by an XDP program.

    with port.generator([frame], sequence_offset=42) as generator:
        generator.send(1_000_000)
        generator.settle()
        assert generator.dropped == 0

BPF_PROG_TEST_RUN with live frames runs bitcode/generator.o on pages of its own and transmits each through the port's
`ndo_xdp_xmit` (Documentation/bpf/bpf_prog_run.rst): no socket, no skb.  Both ends must have NAPI, that is GRO on (the
lab's default) or an XDP program.

Which queue: veth gives a frame to receive queue `cpu % peer.queues` of the peer, `cpu` being the one that sends
(veth_select_rxq in drivers/net/veth.c).  So `cpu=` chooses the queue, and queues beyond the number of CPUs are out of
reach.  The sending CPU runs the peer's NAPI as well, between two batches: a slow peer slows the sender.

Where a frame can be lost on its way to the peer's XDP hook (Linux 6.18):
  1. before the device: it is down, or the frame exceeds its MTU + 18 bytes, or its own GRO is off (counted nowhere);
  2. at the peer: it is down or has no NAPI (`tx_dropped` of the sender);
  3. at the peer's ring of 256 frames, which is full, or the frame exceeds the peer's MTU + 18 bytes (`tx_dropped` and
     `tx_queue_N_xdp_xmit_errors` of the sender).
What passed is in `tx_queue_N_xdp_xmit`, so `dropped` = sent - passed is exact and covers all of these.  Between ring
and hook nothing is lost.  NAPI and sizes are checked beforehand.  The ring can fill only if NAPI does not empty it
between two batches of BATCH frames.  It does, if it runs on the sending CPU: the rule, when one CPU alone sends to that
queue.  It need not, if another CPU sends to the queue too (and polls it), or it is polled by a thread or a busy poller.
(A batch of 256, the kernel's largest, loses some at any time: the ring frees its entries 16 at a time.)
Two CPUs that transmit XDP frames into one queue at the same time race for its two counters, which come out some frames
too low; `rx_queue_N_xdp_packets` of the peer stays right.  So give each generator a queue of its own to be exact.

Starting such a run costs about 24 ms, as the kernel patches its XDP dispatcher for the program and waits for RCU,
unless the program is attached somewhere: it is, to `lo` of an empty namespace.  That leaves 17 us.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol, SupportsBytes

from ..compiler.bitcode import shipped
from ..device import ethtool
from ..device.netdev import Device
from ..device.netns import Namespace
from ..kernel.core import check, ffi, lib, text
from ..kernel.features import require
from ..language.errors import NotSupported
from .pace import Pace
from .template import Template, udp_frame

__all__ = ["BATCH", "Generator", "Template", "udp_frame"]

BATCH = 64  #: frames that the kernel transmits at once
_STRIDE = 1 << 16  # frames per call where nothing asks for fewer; what stop() has to wait for: about 30 ms
_LO, _XDP_FLAGS_SKB_MODE = 1, 2


class End(Protocol):
    """One end of a veth pair, as `xdpkit.lab.Port` is."""

    @property
    def name(self) -> str: ...
    @property
    def index(self) -> int: ...
    @property
    def namespace(self) -> Namespace: ...
    @property
    def device(self) -> Device: ...
    @property
    def peer(self) -> End: ...


class Generator:
    """Sends copies of `templates` (bytes or scapy packets) out of `port`, taking turns after each BATCH frames.

    `sequence_offset`: where in each frame its number goes, 64 bits big-endian, from 0, counting all frames of this
    generator.  `time_offset`: where the time goes at which it was made, 64 bits big-endian, ns of CLOCK_MONOTONIC.
    `flow_offset`: where a 16-bit word (a source port) goes, which runs through `flow_base` ..
    `flow_base + flows - 1`.  Checksums over these places are not corrected.  `cpu`: the CPU that sends (module text);
    None leaves it to the scheduler.  Needs CAP_NET_ADMIN, CAP_BPF and CAP_SYS_ADMIN.

    NotSupported: an end without NAPI.  ValueError: no template, or an offset outside one.  OSError EMSGSIZE: a frame
    beyond the MTU; EPERM; in sending EINVAL: a frame that does not fit into the kernel's page (here above 3408 bytes).
    """

    def __init__(
        self,
        port: End,
        templates: Sequence[SupportsBytes],
        *,
        sequence_offset: int | None = None,
        time_offset: int | None = None,
        flow_offset: int | None = None,
        flows: int = 1,
        flow_base: int = 1024,
        cpu: int | None = None,
    ) -> None:
        self.port, self.cpu = port, cpu
        self._frames = [bytes(template) for template in templates]
        self._stride = _STRIDE if len(self._frames) == 1 else BATCH
        self._turn = 0
        self._final = 0  # what `sent` was at the end
        self._lock = threading.Lock()  # held by whoever sends: the program's counter has one writer
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._run = (0, 0.0)  # frames and seconds of the last send or start
        if flows < 1 or flow_base < 0 or flow_base + flows > 65536:
            raise ValueError(f"{flows} flows from {flow_base} on do not fit into 16 bits")
        _check_offsets(self._frames, sequence_offset, 8)
        _check_offsets(self._frames, time_offset, 8)
        _check_offsets(self._frames, flow_offset, 2)
        require("live frames", f"a generator on {port.name}")
        self._check_ports()
        offsets = {"sequence_offset": sequence_offset, "time_offset": time_offset, "flow_offset": flow_offset}
        numbers = {name: offset or 0 for name, offset in offsets.items()}
        with ExitStack() as stack:
            self._program: ffi.CData | None = _load(numbers | {"flows": flows, "flow_base": flow_base})
            stack.callback(lib.xk_program_close, self._program)
            self._fd = check(lib.xk_program_fd(self._program))
            with stack.enter_context(_closing(Namespace("generator"))):
                link = check(lib.xk_link_xdp(self._fd, _LO, _XDP_FLAGS_SKB_MODE), "generator")
            stack.callback(os.close, link)
            self._passed_before = self._passed()
            self._taken_before = self._taken()
            self._close = stack.pop_all()

    def _check_ports(self) -> None:
        room = min(self.port.device.mtu, self.port.peer.device.mtu) + 14
        longest = max(map(len, self._frames))
        if longest > room:
            raise OSError(errno.EMSGSIZE, f"{self.port.name}: {longest} bytes is beyond the MTU")
        for end in (self.port, self.port.peer):
            features = end.device.xdp_features
            if features is not None and "ndo-xmit" not in features:
                need = "NAPI there, or they would be lost: turn GRO on (the lab's napi=True) or attach an XDP program"
                raise NotSupported(f"live frames on {end.name}", need)

    @property
    def sent(self) -> int:
        """Frames made since the generator was opened, also while it runs; the next one's number."""
        if self._program is None:
            return self._final
        out = ffi.new("uint64_t *")
        check(lib.xk_program_get_u64(self._program, b"sequence", out), "generator")
        return int(out[0])

    @property
    def dropped(self) -> int:
        """Frames that were sent and did not get into the peer's ring.  Exact while no one sends and if nothing
        else, another generator or a program that redirects, transmits XDP frames on this port."""
        return self.sent - (self._passed() - self._passed_before)

    @property
    def achieved_pps(self) -> float:
        """Frames per second that the last `send` or `start` achieved; 0.0 before its end."""
        frames, seconds = self._run
        return frames / seconds if seconds else 0.0

    def send(self, count: int) -> int:
        """Send exactly `count` frames as fast as the peer takes them, and return `count`.  Blocks; the GIL is free."""
        return self._transmit(count, Pace(None, self._stride), threading.Event())

    def start(
        self, count: int | None = None, *, rate_pps: float | None = None, burst: int | None = None,
        every: float = 100e-6,
    ) -> None:  # fmt: skip
        """Send in a thread until `stop`, or until `count` frames are sent.

        `rate_pps` paces chunks of what is due within `every` seconds (`xdpkit.lab.pace`): shorter is smoother, longer
        costs less CPU time, as the thread sleeps after each.  Who comes late catches up by `burst` frames at most
        (default: two chunks): more of them keep the rate, fewer the pace.  `achieved_pps` is the rate that was
        achieved.  The thread needs the GIL between chunks: a busy Python thread elsewhere in the process holds the pace
        up."""
        if self._thread:
            raise RuntimeError("the generator runs already: stop() it first")
        pace = Pace(rate_pps, self._stride, burst, every)
        self._stopping.clear()
        self._thread = threading.Thread(target=self._background, args=(count, pace), name="xdpkit-generator")
        self._thread.start()

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the frames of `start(count)` are sent, at most `timeout` seconds (then TimeoutError). Returns how
        many were sent."""
        if not self._thread:
            return self._run[0]
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutError(f"{self.port.name} is still sending after {timeout:g} s")
        self._thread = None
        error, self._error = self._error, None
        if error:
            raise error
        return self._run[0]

    def stop(self) -> int:
        """End the sending that `start` began. Returns how many frames it sent. Raises the error that ended it, if one
        did."""
        self._stopping.set()
        return self.wait()

    def settle(self, timeout: float = 5.0) -> None:
        """Wait until the peer's XDP hook has processed every frame in its ring, and packets have reached the sockets.

        TimeoutError after `timeout` seconds.  Counts what the peer received, so other traffic to it may end the wait
        early.
        """
        deadline = time.monotonic() + timeout
        while (behind := self._passed() - self._passed_before - (self._taken() - self._taken_before)) > 0:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.port.peer.name} left {behind} frames in its ring for {timeout:g} s")
            os.sched_yield()
        check(lib.xk_quiesce(), "settle")  # veth counts before it flushes what it redirected

    def close(self) -> None:
        """Stop, and let go of the program; again is harmless."""
        self._stopping.set()
        if self._thread:
            self._thread.join()
            self._thread = None
        self._final = self.sent
        self._program = None
        self._close.close()

    def __enter__(self) -> Generator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _background(self, count: int | None, pace: Pace) -> None:
        try:
            self._transmit(count, pace, self._stopping)
        except BaseException as error:
            self._error = error

    def _transmit(self, count: int | None, pace: Pace, stopping: threading.Event) -> int:
        if self._program is None:
            raise OSError(errno.EBADF, "the generator is closed")
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("the generator runs already: one thread sends at a time")
        try:
            with self.port.namespace, _on_cpu(self.cpu):
                self._run = (0, 0.0)
                first, begin = self.sent, time.monotonic()
                left = sys.maxsize if count is None else count
                while left > 0:
                    pace.wait(stopping)
                    if stopping.is_set():
                        break
                    chunk = min(pace.chunk, left)
                    self._live(chunk)
                    pace.sent(chunk)
                    left -= chunk
                self._run = (self.sent - first, time.monotonic() - begin)
                return self._run[0]
        finally:
            self._lock.release()

    def _live(self, count: int) -> None:
        """`count` copies of the template whose turn it is.  A signal ends the call early: the counter says where."""
        frame = self._frames[self._turn]
        self._turn = (self._turn + 1) % len(self._frames)
        goal = self.sent + count
        while left := goal - self.sent:
            result = lib.xk_test_run_live(self._fd, frame, len(frame), self.port.index, left, BATCH)
            if result != -errno.EINTR:
                hint = "the kernel takes live frames that fit into one page" if result == -errno.EINVAL else ""
                check(result, f"generate {len(frame)} byte frames on {self.port.name}", hint)

    def _passed(self) -> int:
        return _sum(self.port, "tx_queue_", "_xdp_xmit")

    def _taken(self) -> int:
        return _sum(self.port.peer, "rx_queue_", "_xdp_packets")


def _check_offsets(frames: Sequence[bytes], offset: int | None, width: int) -> None:
    if not frames:
        raise ValueError("a generator needs at least one template")
    shortest = min(*map(len, frames), 2048)  # the program can reach no further
    if offset is not None and not 0 < offset <= shortest - width:
        raise ValueError(f"{width} bytes at offset {offset} are not in every template: 1 to {shortest - width} are")


def _load(constants: dict[str, int]) -> ffi.CData:
    object_ = shipped("generator.o")
    out, log = ffi.new("struct xk_program **"), ffi.new("char[]", 4096)
    check(lib.xk_program_open(object_, len(object_), b"generator", out), "generator")
    try:
        for name, value in constants.items():
            check(lib.xk_program_set_u32(out[0], name.encode(), value), name)
        check(lib.xk_program_load(out[0], log, len(log)), "generator", f"needs CAP_BPF and CAP_NET_ADMIN: {text(log)}")
    except BaseException:
        lib.xk_program_close(out[0])
        raise
    return out[0]


@contextmanager
def _closing(namespace: Namespace) -> Iterator[Namespace]:
    try:
        yield namespace
    finally:
        namespace.close()


@contextmanager
def _on_cpu(cpu: int | None) -> Iterator[None]:
    """This thread on that CPU alone, and back."""
    before = os.sched_getaffinity(0)
    try:
        if cpu is not None:
            os.sched_setaffinity(0, {cpu})
        yield
    finally:
        os.sched_setaffinity(0, before)


def _sum(port: End, prefix: str, suffix: str) -> int:
    with port.namespace:
        counters = ethtool.counters(port.name)
    return sum(value for name, value in counters.items() if name.startswith(prefix) and name.endswith(suffix))
