"""Attach a pipeline to a device and hold it there: want, require, got.

``mode`` and ``bind`` take "auto" (the best there is), "want:X" (X first, then what else works) or "X" (X or an error).
The modes are tried in this order: zero-copy, native copy, generic, TC ingress, AF_PACKET; ``link.attachment`` says
which one works and why those before it do not.

The attachment is a bpf_link: it ends with the process that holds it, however the process ends.  AF_PACKET receives
copies of packets and cannot stop the packets themselves.  So a pipeline that drops or transmits runs there only if that
mode is required by name: then its REDIRECT rules deliver copies, and every packet also goes on to the stack.

At TC every verdict has its full meaning, so "auto" may end there; REDIRECT copies packets into ring buffers.
tc_egress sees the packets that leave the host, not those that arrive, so "auto" never chooses it: it must be required
by name."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace

from ..compiler import Compiled
from ..compiler.built import Built, as_built
from ..device import netdev
from ..device.netdev import Device, Holder
from ..kernel.attachment import TC_MODES, Attachment, completes_checksums, ranges
from ..kernel.core import check, ffi, lib, text
from ..kernel.features import has, require
from ..kernel.holders import advice, describe, hold
from ..kernel.loaded import LoadedProgram
from ..language.actions import Mark
from ..language.errors import NotSupported
from ..language.metadata import absent_at, choose_reader_metadata, refuse_generic
from ..language.pipeline import Pipeline
from ..logs import logger
from ..sockets import options as choices
from ..sockets.options import L2_BYTES, NATIVE_FRAME_BYTES, Bind, Mode, SocketOptions
from .link import Link, Side, names_of, open_link, redirect_counter, tracker_for
from .pin import LinkPin, link_program
from .ruleset import Ruleset, refuse_sides, require_ethernet

__all__ = ["BINDS", "MODES", "Link", "attach", "parse_choice"]

MODES = ("native", "generic", "tc_ingress", "af_packet", "tc_egress")
#: Modes that neither "auto" nor "want:X" falls back to.
_BY_NAME_ONLY = ("tc_egress",)
BINDS = ("zerocopy", "copy")
_NO_QUEUE = "{} has no queue for a socket, because no program has opened it yet (a virtual machine, if it is a tap)"
_XDP_FLAGS = {"generic": 1 << 1, "native": 1 << 2}


def attach(
    pipeline: Pipeline | Compiled | Built,
    device: str,
    *,
    mode: Mode = "auto",
    bind: Bind = "auto",
    queues: Iterable[int] | None = None,
    timestamps: bool = False,
    options: SocketOptions | None = None,
    shadow: Pipeline | None = None,
    pin: str | None = None,
    learn: float = 0.0,
) -> Link:
    """Load ``pipeline`` (compiled now unless it was built ahead) and attach it to ``device``, a device of the calling
    thread's network namespace.

    ``queues``: RX queues that get sockets (default: all; TC has no such choice).  ``timestamps``: the program stamps
    each redirected packet and notes its rule and mark (TC always does, and XDP where a rule marks).  ``shadow``:
    another pipeline that judges and counts every packet, and acts on none; ``link.ledger().shadow`` says where its
    verdicts differ.  ``pin``: a name under which the link outlives this process (:meth:`Link.pin`).  Where a link is
    pinned under that name already, this one takes over: the pipeline that runs there is updated, no packet meets no
    rules in between, and sets, limits and counters go on.  ``learn``: where the pipeline tracks connections, for so
    many seconds packets in the middle of unknown ones are taken for established; the connections of this host's own
    sockets are known from the start.

    Raises OSError (the message names the call, and the program that holds a busy device); VerifierError; NotSupported
    for what this kernel or device cannot do: TC where the kernel has no tcx (before 6.6), zero-copy in another mode
    than native, rules that test ``meta.*`` where no program can, devices whose packets have no Ethernet header (tun,
    PPP, IP tunnels); ValueError for a mode, bind or queue that does not exist, and for TX at egress; TypeError where
    ``pipeline`` is none (:func:`xdpkit.load_file` reads the pipeline of a file)."""
    options = options or SocketOptions()
    modes, binds = parse_choice("mode", mode, MODES), parse_choice("bind", bind, BINDS)
    found = netdev.device(device)
    require_ethernet(found, f"pipelines on {found.name}")
    wanted = () if mode in TC_MODES and queues is None else queues_of(found, queues)
    built = as_built(pipeline, shadow)
    refuse_sides(built.pipeline)
    stamps = timestamps or Mark in built.pipeline.steps  # a mark reaches sockets with the time stamp
    request = Request(built, found, modes, binds, wanted, stamps, options, learn=learn)
    if pin is not None and LinkPin(pin).exists and not clear_if_gone(pin):
        return _take_over(pin, request)
    link = attach_first(request)
    return link if pin is None else _pinned(link, pin)


@dataclass(frozen=True, slots=True)
class Request:
    """The checked arguments of :func:`attach`.  ``modes`` and ``binds``: those to try, best first.  ``queues``: the RX
    queues that get sockets."""

    built: Built
    device: Device
    modes: tuple[str, ...]
    binds: tuple[str, ...]
    queues: tuple[int, ...]
    timestamps: bool
    options: SocketOptions
    side: Side | None = None
    learn: float = 0.0

    @property
    def pipeline(self) -> Pipeline:
        return self.built.pipeline

    @property
    def redirects(self) -> bool:
        return "REDIRECT" in self.pipeline.verdicts

    @property
    def suits_af_packet(self) -> bool:
        """Whether AF_PACKET, which receives copies of packets, does all that the pipeline declares."""
        return self.redirects and self.pipeline.verdicts <= {"PASS", "REDIRECT"}


def attach_first(request: Request) -> Link:
    """Attach in the first of the modes that works; the link's attachment says why those before it do not."""
    pipe, device = request.pipeline, request.device
    if request.modes == ("af_packet",) and not request.redirects:
        raise ValueError(f"{device.name}: pipeline {pipe.name!r} has no REDIRECT rule, so AF_PACKET would do nothing")
    if request.redirects and request.modes[0] not in ("af_packet", *TC_MODES):
        _check_mtu(device, request.options, request.modes[0], pipe)
    walk: list[str] = []
    last: OSError | NotSupported | None = None
    for mode in request.modes:
        if mode == "af_packet" and last is not None and not request.suits_af_packet:
            break
        try:
            link = _attach_mode(request, mode)
        except (OSError, NotSupported) as error:
            code = error.errno if isinstance(error, OSError) else None
            if code in (errno.EPERM, errno.ENODEV) or len(request.modes) == 1:
                raise
            walk.append(f"{mode} ({error.strerror if isinstance(error, OSError) else error.needs})")
            if mode in _XDP_FLAGS or last is None:  # the error of an XDP mode says most, so it is the one to raise
                last = error
            if code in (errno.EBUSY, errno.EEXIST):
                break
            continue
        link._attached.attachment = replace(link.attachment, walk=(*walk, *link.attachment.walk))
        logger.info("%s attached to %s: %s", pipe.name, device.name, link.attachment)
        for refused in walk:
            logger.warning("%s on %s is at %s, not %s", pipe.name, device.name, mode, refused)
        return link
    assert last is not None
    raise last


def _pinned(link: Link, pin: str) -> Link:
    """``link`` with its pin, or closed."""
    try:
        link.pin(pin)
    except BaseException:
        link.close()
        raise
    return link


def clear_if_gone(pin: str) -> bool:
    """Remove the pin of a link whose device was deleted, or which was detached by force; whether it was."""
    found = LinkPin(pin)
    fd = found.open_link()
    try:
        if link_program(fd)[0]:
            return False
        found.own()
        logger.warning("pinned link %s was on no device any more: it is attached anew, with empty counters", pin)
        found.remove()
        found.disown()
    finally:
        os.close(fd)
    return True


def _take_over(pin: str, request: Request) -> Link:
    """Put the pipeline of ``request`` in the place of the one that is pinned as ``pin``."""
    link = open_link(pin)
    try:
        at, device = link.attachment, request.device
        if link.device.index != device.index:
            said = f"pinned link {pin!r} is on {link.device.name}, not on {device.name}"
            raise OSError(errno.EBUSY, f"{said}: detach it there, or pin another")
        if at.mode not in request.modes:
            said = f"pinned link {pin!r} is attached at {at.mode}, not {request.modes[0]}"
            raise OSError(errno.EBUSY, f"{said}: detach it first")
        queues = request.queues if at.mode not in TC_MODES else ()
        timestamps = request.timestamps or at.mode in TC_MODES
        attachment = replace(at, queues=queues, timestamps=timestamps)
        link._take_over(request.built, attachment, request.binds, request.options)
    except BaseException:
        link.close()
        raise
    return link


def _attach_mode(request: Request, mode: str) -> Link:
    """Attach in one mode; at XDP with packets of several buffers or without, as the options and the MTU say."""
    if mode not in _XDP_FLAGS:
        return _attach(request, mode, "socket" if mode == "af_packet" else "tc")
    if request.side is not None and request.side.twin is not None:
        return _attach(request, mode, request.side.twin.program.hook)
    *first, last = _multi_buffers(request.device, request.options, mode, request.pipeline)
    for frags in first:
        with suppress(OSError):
            return _attach(request, mode, "xdp_frags" if frags else "xdp")
    return _attach(request, mode, "xdp_frags" if last else "xdp")


def _multi_buffers(device: Device, options: SocketOptions, mode: str, pipe: Pipeline) -> tuple[bool, ...]:
    """The values to try, best first, for whether packets may have several buffers.  In generic mode packets come as the
    stack has them: merged by GRO, or not yet cut to the MTU by their sender (TSO, GSO), up to 64 KiB."""
    longest = max(device.mtu + L2_BYTES, (device.peer_mtu or 0) + 14)
    tries = options.multi_buffers(longest, NATIVE_FRAME_BYTES)
    if mode == "generic" and options.multi_buffer == "auto" and "REDIRECT" in pipe.verdicts and not any(tries):
        return (True, False) if has("AF_XDP multi-buffer") else tries
    return tries


def _attach(request: Request, mode: str, hook: str) -> Link:
    """Load the program for ``hook`` and attach it.  On an error nothing stays loaded or attached."""
    device, options, pipe = request.device, request.options, request.pipeline
    _check_mode(request, mode)
    built, rx_metadata, missing = _with_reader_metadata(request, mode, hook)
    timestamps = request.timestamps or bool(rx_metadata)
    ruleset = Ruleset(
        built,
        hook,
        queues=device.rx_queues,
        metadata=timestamps,
        spread=options.sockets_per_queue,
        device=device if mode == "native" else None,
        devices=names_of(device, request.side, mode),
        twin=request.side.twin if request.side is not None else None,
        completes=completes_checksums(mode, device.driver),
    )
    fd, redirects, tracker = -1, None, None
    try:
        tracker = tracker_for(ruleset, device, mode, request.side, request.learn)
        redirects = redirect_counter(pipe, device, mode)  # it must count from the first packet on
        fd = _link_program(ruleset.program, device, mode)
        at_tc = mode in TC_MODES
        absent = absent_at(mode, device.rx_metadata, (*pipe.metadata, *sorted(pipe.headerless_fields)))
        attachment = Attachment(
            device.name, device.driver, mode, None, () if at_tc else request.queues, timestamps or at_tc, missing,
            absent=absent, rx_metadata=rx_metadata,
        )  # fmt: skip
        return Link(ruleset, device, fd, attachment, request.binds, options, redirects, request.side, tracker)
    except BaseException:
        if fd >= 0:
            os.close(fd)
        if redirects is not None:
            redirects.close()
        if tracker is not None:
            tracker.close()
        ruleset.close()
        raise


def _check_mode(request: Request, mode: str) -> None:
    """Refuse what ``mode`` cannot do, before anything is loaded."""
    if mode in TC_MODES:
        _check_tc(request, mode)
    if mode in _XDP_FLAGS and request.redirects and not request.queues:
        raise OSError(errno.ENXIO, f"{_NO_QUEUE.format(request.device.name)}: start that first, or use mode tc_ingress")
    refuse_generic(request.pipeline.metadata, mode, request.device.name)


def _link_program(program: LoadedProgram, device: Device, mode: str) -> int:
    """Attach ``program``; the descriptor of the bpf_link, or -1 for AF_PACKET, which has none."""
    if mode == "af_packet":
        return -1
    if mode in TC_MODES:
        return _link_tcx(program, device, mode)
    fd: int = lib.xk_link_xdp(program.fd, device.index, _XDP_FLAGS[mode])
    if fd < 0:
        raise _refused(-fd, program, device, mode)
    return fd


def _with_reader_metadata(request: Request, mode: str, hook: str) -> tuple[Built, tuple[str, ...], tuple[str, ...]]:
    """The programs with the metadata that readers request, the names of that metadata, and why others are missing."""
    built, options, device = request.built, request.options, request.device
    names, missing = choose_reader_metadata(
        options.rx_wanted, options.rx_required, mode, device.rx_metadata, device.name
    )
    if not names:
        return built, (), missing
    try:
        return built.with_reader_metadata(hook, names), names, missing
    except NotSupported as error:  # the pipeline was built ahead, and llvmlite is not installed here
        if options.rx_required:
            raise
        return built, (), (*missing, f"RX metadata {', '.join(names)} ({error.needs})")


def _check_tc(request: Request, mode: str) -> None:
    """Refuse what TC cannot do."""
    pipe, device = request.pipeline, request.device
    if mode == "tc_egress" and "TX" in pipe.verdicts:
        names = ", ".join(repr(r.name) for r in pipe.outcomes if r.action.verdict.name == "TX")
        raise ValueError(
            f"{device.name}: TX sends a packet back to where it came from, and at egress it comes from this host: "
            f"pipeline {pipe.name!r} must not transmit there (rule {names})"
        )
    if request.queues and len(request.queues) < device.rx_queues:
        raise NotSupported(f"a choice of queues at {mode}", "XDP: the ring buffers of TC take the packets of all")
    if "copy" not in request.binds:
        raise NotSupported(f"{device.name}: zero-copy", f"mode native, and this is {mode}")
    require("tcx", f"{mode} on {device.name}")


def _link_tcx(program: LoadedProgram, device: Device, mode: str) -> int:
    fd: int = lib.xk_link_tcx(program.fd, device.index, mode == "tc_egress")
    if fd >= 0:
        return fd
    hints = {errno.EPERM: "attaching needs CAP_NET_ADMIN: run as root", errno.ERANGE: "64 programs are there already"}
    check(fd, f"attach to {device.name} at {mode}", hints.get(-fd, ""))
    raise AssertionError("unreachable")


def _refused(error: int, program: LoadedProgram, device: Device, mode: str) -> OSError:
    """The error for a refused attachment: it names who holds the device, or quotes the kernel, and says what to do."""
    what = f"attach {mode} XDP to {device.name}"
    holders = netdev.xdp_holders(device.index)
    if error in (errno.EBUSY, errno.EEXIST) and holders:
        return OSError(error, f"{what}: {device.name} is held by {'; '.join(_held(h, device.name) for h in holders)}")
    said = ffi.new("char[512]")
    lib.xk_attach_reason(program.fd, device.index, _XDP_FLAGS[mode], said, 512)
    reason = text(said) or os.strerror(error)
    if error == errno.EPERM:
        reason += ": attaching needs CAP_NET_ADMIN: run as root"
    elif "MTU" in reason or error == errno.ERANGE:
        both = f"MTU here is {device.mtu}, of the peer {device.peer_mtu}: lower both"
        reason += f": {both if device.peer_mtu else f'MTU is {device.mtu}: lower it'}"
    return OSError(error, f"{what}: {reason}")


def _held(holder: Holder, device: str) -> str:
    """The program that holds the device, and how to attach all the same."""
    held = hold(holder.prog_id)
    return f"{describe(holder)}, {held}: {advice(held, device)}, or use mode tc_ingress or af_packet beside it"


def parse_choice(name: str, value: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """The modes or binds to try, in order: all for "auto", X first for "want:X", only X for "X".  ValueError for a name
    that does not exist."""
    return choices.parse_choice(name, value, known, _BY_NAME_ONLY)


def queues_of(device: Device, queues: Iterable[int] | None) -> tuple[int, ...]:
    if queues is None:
        return tuple(range(device.rx_queues))  # a tap that no program has opened has none
    wanted = tuple(sorted(set(queues)))
    if not wanted:
        raise ValueError("no queue is chosen: name at least one, or leave the choice out for all")
    if not device.rx_queues:
        raise ValueError(f"queue {wanted[0]} is out of range: {_NO_QUEUE.format(device.name)}")
    if wanted[0] < 0 or wanted[-1] >= device.rx_queues:
        wrong = next(q for q in wanted if not 0 <= q < device.rx_queues)
        raise ValueError(f"queue {wrong} is out of range: {device.name} has {ranges(range(device.rx_queues))}")
    return wanted


def _check_mtu(device: Device, options: SocketOptions, mode: str, pipe: Pipeline) -> None:
    """OSError EMSGSIZE where the MTU is too large for the frames of AF_XDP sockets."""
    try:
        if not any(_multi_buffers(device, options, mode, pipe)):
            options.chunk_for(device.mtu + L2_BYTES)
    except ValueError as error:
        largest = options.room() - L2_BYTES
        raise OSError(
            errno.EMSGSIZE,
            f"{device.name}: MTU {device.mtu} is too large for AF_XDP: {error}: "
            f"lower it ('ip link set dev {device.name} mtu {largest}' or less), allow multi_buffer, "
            "or use mode af_packet",
        ) from None
