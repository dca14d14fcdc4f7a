"""Attach a pipeline to a device and hold it there: want, require, got.

``mode`` and ``bind`` take "auto" (the best there is), "want:X" (X first, then what else works) or "X" (X or an error).
The walk goes zero-copy, native copy, generic, TC ingress, AF_PACKET; ``link.attachment`` says where it stopped and why.

The attachment is a bpf_link: it goes with the process that holds it, however that ends.  AF_PACKET sees copies, so a
pipeline that drops or transmits runs there only when that mode is required by name: its REDIRECT rules then deliver,
and every packet goes on to the stack.

TC gives every verdict its full meaning, so the walk may stop there; REDIRECT copies into one ring buffer.  What leaves
the host is another matter than what arrives, so tc_egress is no step of the walk: it is required by name.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

from ..compiler import Compiled
from ..compiler.built import Built, as_built
from ..device import netdev
from ..device.netdev import Device, Holder
from ..kernel.attachment import TC_MODES, Attachment, ranges
from ..kernel.core import check, ffi, lib, text
from ..kernel.features import require
from ..kernel.holders import advice, describe, hold
from ..kernel.loaded import LoadedProgram
from ..language.actions import Mark
from ..language.errors import NotSupported
from ..language.metadata import absent_at, choose_reader_metadata, refuse_generic
from ..language.pipeline import Pipeline
from ..logs import logger
from ..sockets import options as choices
from ..sockets.options import L2_BYTES, NATIVE_FRAME_BYTES, Bind, Mode, SocketOptions
from .link import Link, open_link, redirect_counter, ring_bytes_for
from .pin import LinkPin, link_program
from .redirects import RedirectCounter
from .ruleset import Ruleset, require_ethernet

__all__ = ["BINDS", "MODES", "Link", "attach", "parse_choice"]

MODES = ("native", "generic", "tc_ingress", "af_packet", "tc_egress")
#: What is never put in the place of something else.
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
) -> Link:
    """Load ``pipeline`` (compiled now unless it was built ahead) and attach it to ``device``, which is one of the
    calling thread's network namespace.

    ``queues``: RX queues that get sockets (default: all; TC has no such choice).  ``timestamps``: the program stamps
    each redirected packet and notes its rule and mark (TC always does, and XDP where a rule marks).  ``shadow``:
    another pipeline that is tried beside this one: it judges and counts every packet, and acts on none;
    ``link.ledger().shadow`` says where it differs.  ``pin``: a name under which the link outlives this process
    (:meth:`Link.pin`).  Where a link is pinned under it already, this one takes over: the pipeline that runs there is
    updated, without a packet in between that meets no rules, and sets, limits and counters go on.

    Raises OSError (names the call, and the program that holds a busy device), VerifierError, NotSupported for what
    this kernel or device cannot do: TC where the kernel has no tcx (before 6.6), zero-copy in another mode than native,
    rules that test ``meta.*`` where that cannot be, packets without an Ethernet header (tun, PPP, IP tunnels);
    ValueError for a mode, bind or queue that there is not, and for TX at egress; TypeError for what is no pipeline (a
    file's name: :func:`xdpkit.load_file` reads it).
    """
    options = options or SocketOptions()
    modes, binds = parse_choice("mode", mode, MODES), parse_choice("bind", bind, BINDS)
    found = netdev.device(device)
    require_ethernet(found, f"pipelines on {found.name}")
    wanted = () if mode in TC_MODES and queues is None else _queues(found, queues)
    built = as_built(pipeline, shadow)
    if pin is not None and LinkPin(pin).exists and not _clear_if_gone(pin):
        return _take_over(pin, built, found, modes, binds, wanted, timestamps, options)
    pipe = built.pipeline
    redirects = "REDIRECT" in pipe.verdicts
    timestamps = timestamps or Mark in pipe.steps  # marks go the same way; so does metadata, see _attach()
    acts = pipe.verdicts - {"PASS", "REDIRECT"}
    if mode == "af_packet" and not redirects:
        raise ValueError(f"{device}: pipeline {pipe.name!r} has no REDIRECT rule, so AF_PACKET would do nothing")
    if redirects and modes[0] not in ("af_packet", *TC_MODES):
        _preflight(found, options)
    walk: list[str] = []
    last: OSError | NotSupported | None = None
    for step in modes:
        if step == "af_packet" and last is not None and (acts or not redirects):
            break  # it could not do what the pipeline declares
        try:
            link = _attach_any(built, found, step, binds, wanted, timestamps, options)
        except (OSError, NotSupported) as error:
            code = error.errno if isinstance(error, OSError) else None
            if code in (errno.EPERM, errno.ENODEV) or len(modes) == 1:
                raise
            walk.append(f"{step} ({error.strerror if isinstance(error, OSError) else error.needs})")
            if step in _XDP_FLAGS or last is None:  # why there is no XDP is what one wants to know
                last = error
            if code in (errno.EBUSY, errno.EEXIST):
                break
            continue
        link._attached.attachment = replace(link.attachment, walk=(*walk, *link.attachment.walk))
        logger.info("%s attached to %s: %s", pipe.name, device, link.attachment)
        for refused in walk:
            logger.warning("%s on %s is at %s, not %s", pipe.name, device, step, refused)
        return link if pin is None else _pinned(link, pin)
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


def _clear_if_gone(pin: str) -> bool:
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


def _take_over(
    pin: str,
    built: Built,
    device: Device,
    modes: tuple[str, ...],
    binds: tuple[str, ...],
    queues: tuple[int, ...],
    timestamps: bool,
    options: SocketOptions,
) -> Link:
    """Put ``built`` in the place of the pipeline that is pinned as ``pin``."""
    link = open_link(pin)
    try:
        there = link.attachment
        if link.device.index != device.index:
            said = (
                f"pinned link {pin!r} is on {link.device.name}, not on {device.name}: detach it there, or pin another"
            )
            raise OSError(errno.EBUSY, said)
        if there.mode not in modes:
            said = f"pinned link {pin!r} is attached at {there.mode}, not {modes[0]}: detach it first"
            raise OSError(errno.EBUSY, said)
        wanted = queues if there.mode not in TC_MODES else ()
        timestamps = timestamps or Mark in built.pipeline.steps or there.mode in TC_MODES
        link._take_over(built, replace(there, queues=wanted, timestamps=timestamps), binds, options)
    except BaseException:
        link.close()
        raise
    return link


def _attach_any(
    built: Built,
    device: Device,
    mode: str,
    binds: tuple[str, ...],
    queues: tuple[int, ...],
    timestamps: bool,
    options: SocketOptions,
) -> Link:
    """With packets of several buffers or without, as the options and the MTU say."""
    if mode not in _XDP_FLAGS:
        return _attach(built, device, mode, binds, queues, timestamps, options, False)
    *first, last = _multi_buffers(device, options)
    for frags in first:
        with suppress(OSError):
            return _attach(built, device, mode, binds, queues, timestamps, options, frags)
    return _attach(built, device, mode, binds, queues, timestamps, options, last)


def _multi_buffers(device: Device, options: SocketOptions) -> tuple[bool, ...]:
    longest = max(device.mtu + L2_BYTES, (device.peer_mtu or 0) + 14)
    return options.multi_buffers(longest, NATIVE_FRAME_BYTES)


def _attach(
    built: Built,
    device: Device,
    mode: str,
    binds: tuple[str, ...],
    queues: tuple[int, ...],
    timestamps: bool,
    options: SocketOptions,
    frags: bool,
) -> Link:
    if mode in TC_MODES:
        _check_tc(built.pipeline, device, mode, binds, queues)
    if mode in _XDP_FLAGS and "REDIRECT" in built.pipeline.verdicts and not queues:
        raise OSError(errno.ENXIO, f"{_NO_QUEUE.format(device.name)}: start that first, or use mode tc_ingress")
    metadata = built.pipeline.metadata
    refuse_generic(metadata, mode, device.name)
    hook = "socket" if mode == "af_packet" else "tc" if mode in TC_MODES else "xdp_frags" if frags else "xdp"
    built, rx_metadata, missing = _with_reader_metadata(built, device, mode, hook, options)
    timestamps = timestamps or bool(rx_metadata)
    ruleset = Ruleset(
        built,
        hook,
        queues=device.rx_queues,
        metadata=timestamps,
        spread=options.sockets_per_queue,
        device=device if mode == "native" else None,
        ring_bytes=ring_bytes_for(built.pipeline, device, options),
    )
    program, fd = ruleset.program, -1
    redirects: RedirectCounter | None = None
    try:
        redirects = redirect_counter(built.pipeline, device, mode)  # before any packet is forwarded
        if mode in TC_MODES:
            fd, queues, timestamps = _link_tcx(program, device, mode), (), True
        elif mode != "af_packet":
            fd = lib.xk_link_xdp(program.fd, device.index, _XDP_FLAGS[mode])
            if fd < 0:
                raise _refused(-fd, program, device, mode)
        absent = absent_at(mode, device.rx_metadata, (*metadata, *sorted(built.pipeline.asked)))
        attachment = Attachment(
            device.name, device.driver, mode, None, queues, timestamps, missing, absent=absent, rx_metadata=rx_metadata,
        )  # fmt: skip
        return Link(ruleset, device, fd, attachment, binds, options, redirects)
    except BaseException:
        if fd >= 0:
            os.close(fd)
        if redirects is not None:
            redirects.close()
        ruleset.close()
        raise


def _with_reader_metadata(
    built: Built, device: Device, mode: str, hook: str, options: SocketOptions
) -> tuple[Built, tuple[str, ...], tuple[str, ...]]:
    """The object with the metadata that readers want, the names of that metadata, and why others are missing."""
    names, missing = choose_reader_metadata(
        options.rx_wanted, options.rx_required, mode, device.rx_metadata, device.name
    )
    if not names:
        return built, (), missing
    try:
        return built.with_reader_metadata(hook, names), names, missing
    except NotSupported as error:  # built ahead, and no llvmlite here
        if options.rx_required:
            raise
        return built, (), (*missing, f"RX metadata {', '.join(names)} ({error.needs})")


def _check_tc(pipe: Pipeline, device: Device, mode: str, binds: tuple[str, ...], queues: tuple[int, ...]) -> None:
    """What TC cannot do, said before anything is loaded."""
    if mode == "tc_egress" and "TX" in pipe.verdicts:
        names = ", ".join(repr(r.name) for r in pipe.outcomes if r.action.verdict.name == "TX")
        raise ValueError(
            f"{device.name}: TX sends a packet back to where it came from, and at egress it comes from this host: "
            f"pipeline {pipe.name!r} must not transmit there (rule {names})"
        )
    if queues and len(queues) < device.rx_queues:
        raise NotSupported(f"a choice of queues at {mode}", "XDP: the one ring buffer of TC takes the packets of all")
    if "copy" not in binds:
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
    """Why the kernel refused to attach: who holds the device, or its own words, and what to do."""
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
        limit = min(m for m in (device.mtu, device.peer_mtu) if m)
        reason += (
            f": MTU here is {device.mtu}, of the peer {device.peer_mtu}: lower both"
            if device.peer_mtu
            else (f": MTU is {limit}: lower it")
        )
    return OSError(error, f"{what}: {reason}")


def _held(holder: Holder, device: str) -> str:
    """Who holds the device, and how to live beside it."""
    held = hold(holder.prog_id)
    return f"{describe(holder)}, {held}: {advice(held, device)}, or use mode tc_ingress or af_packet beside it"


def parse_choice(name: str, value: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """The order in which to try: all for auto, X first for want:X, X alone for X."""
    return choices.parse_choice(name, value, known, _BY_NAME_ONLY)


def _queues(device: Device, queues: Iterable[int] | None) -> tuple[int, ...]:
    if queues is None:
        return tuple(range(device.rx_queues))  # none for a tap that no program has opened
    wanted = tuple(sorted(set(queues)))
    if not wanted:
        raise ValueError("no queue given")
    if not device.rx_queues:
        raise ValueError(f"queue {wanted[0]} is out of range: {_NO_QUEUE.format(device.name)}")
    if wanted[0] < 0 or wanted[-1] >= device.rx_queues:
        wrong = next(q for q in wanted if not 0 <= q < device.rx_queues)
        raise ValueError(f"queue {wrong} is out of range: {device.name} has {ranges(range(device.rx_queues))}")
    return wanted


def _preflight(device: Device, options: SocketOptions) -> None:
    try:
        if not any(_multi_buffers(device, options)):
            options.chunk_for(device.mtu + L2_BYTES)
    except ValueError as error:
        largest = options.room() - L2_BYTES
        raise OSError(
            errno.EMSGSIZE,
            f"{device.name}: MTU {device.mtu} is too large for AF_XDP: {error}: "
            f"lower it ('ip link set dev {device.name} mtu {largest}' or less), allow multi_buffer, "
            "or use mode af_packet",
        ) from None
