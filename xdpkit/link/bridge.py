"""One ruleset on two devices that it joins to a wire: what it passes goes out of the other device, in the kernel.

    with bridge(pipe, inside="eth1", outside="eth2") as wire:
        ...
    print(wire.ledger())

A bridge is two links with programs made of one object.  They share every map of what rules remember: sets, limits,
copies for user space.  Each has its own counters, sockets and devices to forward to, so that the ledger of either
direction is known, and each is bound to its own device where it must ask the driver for VLAN tags.  PASS is compiled as
FORWARD to the other device (:class:`xdpkit.language.actions.Across`).

What stays when user space is gone is declared as ``fail``; :func:`bridge` says what each word means.
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field, replace
from threading import RLock
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from ..compiler import Compiled
from ..compiler.built import Built, as_built
from ..device import netdev
from ..device.netdev import Device, State
from ..kernel.attachment import Attachment
from ..language.actions import DROP, OTHER, Mark
from ..language.devices import INSIDE, OUTSIDE
from ..language.pipeline import Pipeline
from ..logs import logger
from ..sets.live import LiveSet
from ..sockets.options import Bind, SocketOptions, Wait
from ..sockets.sockets import Copies
from .attach import BINDS, Request, attach, attach_first, clear_if_gone, parse_choice, queues_of
from .events import Event
from .inspect import Decide, Inspector, inspect
from .ledger import Ledger
from .link import CHECK_SECONDS, Link, Side, Update, open_link
from .pin import LinkPin
from .presence import namespace_id
from .ruleset import folder_of, require_ethernet

if TYPE_CHECKING:
    from .flows import Flows

__all__ = ["Bridge", "BridgeMode", "Fail", "bridge", "detach_bridge"]

#: What stays of a bridge when its process is gone.
Fail = Literal["detach", "closed", "open"]
FAILS = ("detach", "closed", "open")
#: Where its programs run.
BridgeMode = Literal["auto", "native", "generic", "tc_ingress"]
MODES = ("native", "generic", "tc_ingress")


def bridge(
    pipeline: Pipeline | Compiled | Built,
    *,
    inside: str,
    outside: str,
    fail: Fail = "detach",
    mode: BridgeMode = "auto",
    bind: Bind = "auto",
    mirror_carrier: bool = False,
    timestamps: bool = False,
    options: SocketOptions | None = None,
    shadow: Pipeline | None = None,
    learn: float = 0.0,
) -> Bridge:
    """Join two devices to a wire, with ``pipeline`` in it.  PASS, also as a default and as what REDIRECT falls back to,
    sends a packet out of the other device, and DROP while that is not there; nothing goes to the host's own stack.
    ``dev.inside`` and ``dev.outside`` say where a packet came from.

    ``fail``: what becomes of traffic when this process ends, however it ends (also by SIGKILL).  "detach": the devices
    are as before; nothing crosses, and what arrives goes to the host's stack.  "closed": nothing crosses, and what
    arrives is dropped, by programs at TC that stay.  "open": the rules, sets and limits as they are go on in the
    kernel, and the next bridge() between these devices takes them over without losing a packet.  :meth:`Bridge.detach`
    and :func:`detach_bridge` take away what stays.

    ``mode``: "native", "generic", "tc_ingress" (merged segments and VLAN tags beside the frame go through as they are),
    or "auto", which tries them in this order.  ``mirror_carrier``: when one device loses its carrier, the other is
    taken down until it is back, so that both ends of the wire see it; it needs :meth:`Bridge.check`.  ``bind``,
    ``timestamps``, ``options``, ``shadow``: as for :func:`xdpkit.attach`.  ``learn``: where the pipeline tracks
    connections, for so many seconds packets in the middle of unknown ones are taken for established, so that those
    which cross already are not cut.

    Raises what :func:`xdpkit.attach` raises, and ValueError for one device twice.  Then nothing stays attached."""
    if fail not in FAILS:
        raise ValueError(f"fail {fail!r}: one of {', '.join(FAILS)}")
    devices = _two_devices(inside, outside)
    options, built = options or SocketOptions(), crossing(as_built(pipeline, shadow))
    request = _BridgeRequest(
        built, devices, parse_choice("mode", mode, MODES), parse_choice("bind", bind, BINDS),
        timestamps or Mark in built.pipeline.steps, options, learn,
    )  # fmt: skip
    names = BridgeNames(inside, outside)
    with ExitStack() as undo:
        closing = undo.enter_context(ExitStack())
        if fail == "closed":
            for name, device in zip(names.guards, devices, strict=True):
                _guard(name, device.name, undo)
        if fail != "open":
            for device in devices:
                closing.enter_context(netdev.promiscuous(device.index))
        there = _left_open(names, request) if fail == "open" and names.is_open() else None
        links = there or _attach_both(request)
        for link in links:  # the outside, which uses the maps of the inside, is closed first
            closing.callback(link.close)
        wire = Bridge(links, fail, mirror_carrier=mirror_carrier)
        if there is not None:
            wire._update(built, learn)
        elif fail == "open":
            for link, name in zip(links, names.links, strict=True):
                link.pin(name)
                undo.callback(LinkPin(name).remove)
        if fail == "open":
            for device in devices:
                netdev.set_promiscuous(device.index, True)
        undo.pop_all()
        wire._closing = closing
    return wire


def _two_devices(inside: str, outside: str) -> tuple[Device, Device]:
    devices = netdev.device(inside), netdev.device(outside)
    if devices[0].index == devices[1].index:
        raise ValueError(f"{inside} cannot be both sides of a bridge")
    for device in devices:
        require_ethernet(device, f"a bridge on {device.name}")
    return devices


def detach_bridge(*, inside: str, outside: str) -> bool:
    """Take away what a bridge between these devices has left behind, pinned links and programs that drop; whether there
    was any.  OSError: EBUSY where a process still runs the bridge."""
    names, found = BridgeNames(inside, outside), False
    for name in names.all:
        if LinkPin(name).exists:
            found = True
            if not clear_if_gone(name):
                with open_link(name) as link:
                    link.detach()
    for device in (inside, outside):
        with suppress(OSError):
            if found:
                netdev.set_promiscuous(netdev.device(device).index, False)
    return found


def bridge_pins(name: str) -> tuple[str, str] | None:
    """The pinned links of both sides, the inside first, of the bridge that ``name`` is one of; None where it is none of
    a bridge's."""
    match = re.fullmatch(r"(bridge-.+-open)[12]", name)
    return None if match is None else (f"{match[1]}1", f"{match[1]}2")


def crossing(built: Built) -> Built:
    """What was declared, compiled for a bridge."""
    return Built(built.pipeline.across(), {}, folder_of(built))


@dataclass(frozen=True, slots=True)
class BridgeNames:
    """The names under which a bridge between two devices of this network namespace pins what stays."""

    inside: str
    outside: str

    def _names(self, what: str) -> tuple[str, str]:
        devices = (re.sub(r"[^A-Za-z0-9_-]", "_", name) for name in (self.inside, self.outside))
        both = "-".join((str(namespace_id()), *devices))
        return f"bridge-{both}-{what}1", f"bridge-{both}-{what}2"

    @property
    def links(self) -> tuple[str, str]:
        """Of the two links of a bridge that fails open."""
        return self._names("open")

    @property
    def guards(self) -> tuple[str, str]:
        """Of the programs that drop where it fails closed."""
        return self._names("closed")

    @property
    def all(self) -> tuple[str, ...]:
        """All of them; the outside first, which uses the maps of the inside."""
        return (*reversed(self.links), *self.guards)

    def is_open(self) -> bool:
        """Both links are there, each on its device.  What is left of others is removed."""
        there = [LinkPin(name).exists and not clear_if_gone(name) for name in self.links]
        if all(there):
            return True
        for name, found in zip(self.links, there, strict=True):
            if found:
                with open_link(name) as link:
                    link.detach()
        return False


@dataclass(frozen=True, slots=True)
class _BridgeRequest:
    """The checked arguments of :func:`bridge`."""

    built: Built
    devices: tuple[Device, Device]
    modes: tuple[str, ...]
    binds: tuple[str, ...]
    timestamps: bool
    options: SocketOptions
    learn: float
    lock: RLock = field(default_factory=RLock)

    def side(self, number: int, twin: Link | None) -> Side:
        """How a link is told that it is side 0 or 1."""
        inside, outside = self.devices
        names = {inside.name: inside.index, outside.name: outside.index, INSIDE: inside.index, OUTSIDE: outside.index}
        other = self.devices[1 - number].index
        return Side({**names, OTHER: other}, twin._ruleset if twin is not None else None, _not_yet, self.lock)

    def link(self, number: int, twin: Link | None) -> Request:
        """How a link is attached."""
        device = self.devices[number]
        queues = queues_of(device, None)
        side, options = self.side(number, twin), self.options
        largest = max(d.mtu for d in self.devices)
        modes = self.modes if twin is None else (twin.attachment.mode,)
        return Request(
            self.built,
            replace(device, mtu=largest),
            modes,
            self.binds,
            queues,
            self.timestamps,
            options,
            side,
            self.learn,
        )


def _not_yet(built: Built) -> None:
    """Stands in for the update of the bridge until there is one."""


def _attach_both(request: _BridgeRequest) -> tuple[Link, Link]:
    """Both links, or none."""
    first = attach_first(request.link(0, None))
    try:
        return first, attach_first(request.link(1, first))
    except BaseException:
        first.close()
        raise


def _left_open(names: BridgeNames, request: _BridgeRequest) -> tuple[Link, Link]:
    """The links that another process has left, whose rules run; OSError where they cannot be taken over."""
    with ExitStack() as stack:
        links = [stack.enter_context(open_link(name)) for name in names.links]
        for number, link in enumerate(links):
            if link.device.index != request.devices[number].index or link.attachment.mode not in request.modes:
                said = f"a bridge in mode {link.attachment.mode} is there, on {link.device.name}"
                raise OSError(errno.EBUSY, f"{said}: take it away first (xdpkit.detach_bridge)")
            link._side, link._lock = request.side(number, None), request.lock
            queues = () if link.attachment.mode == "tc_ingress" else queues_of(link.device, None)
            link._attached.attachment = replace(link.attachment, queues=queues, timestamps=request.timestamps)
            link._attached.binds = request.binds
            link.options = link._attached.options = request.options
        stack.pop_all()
    return links[0], links[1]


def _guard(name: str, device: str, undo: ExitStack) -> None:
    """The program that drops what arrives while nothing stands in front of it; it stays."""
    is_new = not LinkPin(name).exists
    attach(Pipeline("closed", default=DROP), device, mode="tc_ingress", pin=name).close()
    if is_new:
        undo.callback(LinkPin(name).remove)


class Bridge:
    """A pipeline on two devices that it joins to a wire.  Context manager; ``close()`` is idempotent, and leaves what
    ``fail`` declares."""

    def __init__(self, links: tuple[Link, Link], fail: Fail, *, mirror_carrier: bool):
        self.inside: Link = links[0]
        self.outside: Link = links[1]
        self.fail: Fail = fail
        self._mirrors, self._closing, self._final = mirror_carrier, ExitStack(), False
        self._notes: tuple[str, ...] = ()
        self._next_check = time.monotonic() + CHECK_SECONDS
        self._states = {link.device.index: _state(link.device) for link in links}
        self._taken_down: set[int] = set()
        for link in links:
            assert link._side is not None
            link._side.update = self._update
        self._check_devices()

    def __repr__(self) -> str:
        return f"<Bridge {self.pipeline.name} on {self.name}: {self.attachment.mode}, fail {self.fail}>"

    @property
    def links(self) -> tuple[Link, Link]:
        """The inside and the outside."""
        return self.inside, self.outside

    @property
    def name(self) -> str:
        """The two devices, as messages name them."""
        return f"{self.inside.device.name} and {self.outside.device.name}"

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline that runs now, as it is on a bridge."""
        return self.inside.pipeline

    @property
    def attachment(self) -> Attachment:
        """What the kernel gave on the inside."""
        return self.inside.attachment

    @property
    def sets(self) -> Mapping[str, LiveSet]:
        """The sets and verdict maps of the pipeline, by name; both sides look them up."""
        return self.inside.sets

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be known of the bridge from the start, and what :meth:`check` found, a line each."""
        return tuple(dict.fromkeys((*self._notes, *self.inside.notes, *self.outside.notes)))

    @property
    def lost(self) -> str | None:
        """Why the bridge is cut, None while it is not: see :attr:`Link.lost`."""
        return self.inside.lost or self.outside.lost

    def _note(self, text: str) -> None:
        self._notes += (text,)
        logger.warning("bridge of %s: %s", self.name, text)

    def _check_devices(self) -> None:
        """Say at the start what will not cross."""
        inside, outside = (netdev.device(link.device.name) for link in self.links)
        if inside.mtu != outside.mtu:
            small, large = sorted((inside, outside), key=lambda d: d.mtu)
            self._note(
                f"the MTU of {small.name} is {small.mtu} and that of {large.name} {large.mtu}: longer packets are "
                f"lost: give both the same (ip link set {large.name} mtu {small.mtu})"
            )
        for device in (inside, outside):
            features = device.xdp_features
            if self.attachment.mode == "native" and features is not None and "ndo-xmit" not in features:
                veth = f"turn GRO on at both ends (ethtool -K {device.name} gro on)"
                advice = veth if device.kind == "veth" else "use mode generic or tc_ingress"
                self._note(f"{device.name} takes no packets from XDP now: {advice}")
            if not device.carrier:
                self._note(f"{device.name} has no carrier")

    def check(self) -> None:
        """Look whether both sides are as they were, and what of the devices has changed: :meth:`Link.check` for each,
        and carrier and MTU.  Call it every second or so; it looks twice a second at most.

        Raises OSError when a side is gone: ENODEV, ENOLINK.  What arrives on the other side is dropped then, and
        counted as ``no device``."""
        if time.monotonic() < self._next_check or self._final:
            return
        self._next_check = time.monotonic() + CHECK_SECONDS
        for link in self.links:
            link.check()
        for link, other in ((self.inside, self.outside), (self.outside, self.inside)):
            now, before = _state(link.device), self._states[link.device.index]
            if now is None or before is None:
                continue
            self._states[link.device.index] = now
            self._follow(link.device, other.device, before, now)

    def _follow(self, device: Device, other: Device, before: State, now: State) -> None:
        if device.index not in self._taken_down and (now.up, now.carrier) != (before.up, before.carrier):
            self._follow_carrier(device, other, now)
        theirs = self._states[other.index]
        if now.mtu != before.mtu and theirs is not None and theirs.mtu != now.mtu:
            small, large = sorted(((now.mtu, device), (theirs.mtu, other)), key=lambda pair: pair[0])
            self._note(f"the MTU of {small[1].name} is {small[0]} and that of {large[1].name} {large[0]}: "
                       "longer packets are lost")  # fmt: skip

    def _follow_carrier(self, device: Device, other: Device, now: State) -> None:
        state = "is down" if not now.up else "is up again" if now.carrier else "has no carrier"
        done = ""
        if self._mirrors and now.carrier == (other.index in self._taken_down):
            with suppress(OSError):  # the other device is gone, which its own check says
                netdev.set_up(other.index, now.carrier)
                done = f", so {other.name} was {'raised' if now.carrier else 'taken down'}"
                (self._taken_down.discard if now.carrier else self._taken_down.add)(other.index)
        self._note(f"{device.name} {state}{done}")

    def update(
        self, pipeline: Pipeline | Compiled | Built, *, shadow: Pipeline | None = None, learn: float = 0.0
    ) -> Update:  # fmt: skip
        """Put another pipeline in the place of this one on both sides, or on neither: no packet meets both or none.
        One side follows the other some milliseconds later.  Otherwise as :meth:`Link.update`."""
        return self._update(crossing(as_built(pipeline, shadow)), learn)

    def _update(self, built: Built, learn: float = 0.0) -> Update:
        a, b = self.links
        with a._lock, b._lock:
            start, olds = time.perf_counter_ns(), (a._ruleset, b._ruleset)
            built = b._next(a._next(built))
            built.compiled(olds[0].program.hook)
            first = a._load_next(built, learn=learn)
            try:
                second = b._load_next(built, first)
            except BaseException:
                a._withdraw(first)
                raise
            loaded = time.perf_counter_ns()
            try:
                a._swap(first)
                try:
                    b._swap(second)
                except BaseException:
                    a._swap(olds[0])
                    raise
            except BaseException:
                b._withdraw(second)
                a._withdraw(first)
                raise
            swapped = time.perf_counter_ns()
            b._settle(second)
            a._settle(first)
            took = Update(0, loaded - start, swapped - loaded, time.perf_counter_ns() - swapped)
            logger.info("%s replaces %s on %s: %s", built.pipeline.name, olds[0].pipeline.name, self.name, took)
            return took

    def flows(self) -> Flows:
        """The connections that cross; see :meth:`Link.flows`."""
        return self.inside.flows()

    def forget(self, flows: Flows) -> int:
        """Forget some of them; see :meth:`Link.forget`."""
        return self.inside.forget(flows)

    def learn(self, seconds: float) -> None:
        """Take connections that nobody knows for established; see :meth:`Link.learn`."""
        self.inside.learn(seconds)

    def ledger(self) -> Ledger:
        """Where every packet of both directions went so far; after close() the final one.  ``inside.ledger()`` and
        ``outside.ledger()`` are the ledgers of what came from each side."""
        a, b = self.links
        with a._lock, b._lock:
            both = a.ledger().joined(b.ledger())
        return replace(both, notes=self.notes)

    def inspect(
        self, decide: Decide | int, *, context: int = 0, wait: Wait = "adaptive", cpus: Sequence[int] | None = None
    ) -> Inspector:
        """Judge the packets that rules with the action ``Inspect`` send to user space, until the Inspector is closed.

        ``decide`` gets a batch of packets of one side (:class:`xdpkit.Inspected`) and returns an array of bool, or one
        for all: True lets a packet go on to the other device.  It is called in the C threads of the queues, one for
        each pair, and nothing of these queues moves meanwhile.  A decision in C is the address of a function
        ``xk_decide`` (csrc/xdpkit.h), and ``context`` the address that it gets first.  ``wait``, ``cpus``: as for
        :func:`xdpkit.forward`.

        Raises ValueError where no rule inspects or the devices have different numbers of queues, NotSupported in mode
        tc_ingress, OSError that names call, device and queue; nothing stays open then."""
        return inspect(self.inside, self.outside, decide, context=context, wait=wait, cpus=cpus)

    def copies(self) -> Copies:
        """The copies that rules mirror on both sides; see :meth:`Link.copies`."""
        return self.inside.copies()

    def events(self, *, timeout: float | None = None) -> Iterator[Event]:
        """What rules log on both sides; see :meth:`Link.events`."""
        return self.inside.events(timeout=timeout)

    def handle_events(self, handle: Callable[[Event], None]) -> AbstractContextManager[None]:
        """As :meth:`Link.handle_events`, for both sides."""
        return self.inside.handle_events(handle)

    def detach(self) -> None:
        """Take the bridge away, with all that ``fail`` lets stay; then it is closed."""
        names = BridgeNames(self.inside.device.name, self.outside.device.name)
        for link in (self.outside, self.inside):
            link.detach()
        self.close()
        detach_bridge(inside=names.inside, outside=names.outside)

    def close(self) -> None:
        """Let go of both sides.  What stays is what ``fail`` declares; the ledger is final unless it is "open"."""
        self._final = True
        self._closing.close()
        for index in tuple(self._taken_down):
            with suppress(OSError):
                netdev.set_up(index, True)
            self._taken_down.discard(index)

    def __enter__(self) -> Bridge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _state(device: Device) -> State | None:
    with suppress(OSError):
        return netdev.state(device.index)
    return None
