"""Actions: what a rule does with a packet.

An :class:`Action` ends the packet's way through the rules with a verdict.  A :class:`Step` does something with the
packet, and the packet goes on.  A rule that has only steps counts the packet and does the steps; then the next rule is
tried.  Steps may also stand in front of an action.  Two kinds of steps are defined in other modules: ``Log`` in
limits.py and ``Add`` in sets.py.
Verdicts carry the numbers of ``enum xdp_action``; CONTINUE and FORWARD are ours.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from .devices import MAX_DEVICE_NAME
from .errors import PipelineError
from .expr import here

__all__ = [
    "COUNT", "DROP", "PASS", "REDIRECT", "REJECT", "TX", "Action", "Count", "Forward", "Inspect", "Mark", "Mirror",
    "Redirect", "Reject", "Shadow", "Step", "Verdict",
]  # fmt: skip

#: A mirror copies at most this many bytes of a packet: a whole packet fits, also one that GRO has merged.
MAX_MIRROR_BYTES = 65_536


class Verdict(enum.IntEnum):
    """``enum xdp_action`` of linux/bpf.h, where there is one."""

    CONTINUE = 0
    DROP = 1
    PASS = 2
    TX = 3
    REDIRECT = 4
    FORWARD = 5
    REJECT = 6


@dataclass(frozen=True, slots=True)
class Action:
    """A verdict: PASS to the kernel's stack, DROP, or TX (back out of the device of arrival, with the Ethernet
    addresses exchanged)."""

    verdict: Verdict

    def __str__(self) -> str:
        return self.verdict.name

    @property
    def drops(self) -> bool:
        """The packet goes nowhere."""
        return self.verdict in (Verdict.DROP, Verdict.REJECT)

    @property
    def fallback(self) -> Action:
        """The action that is taken where the verdict finds no socket or device."""
        return PASS


@dataclass(frozen=True, slots=True)
class Redirect(Action):
    """REDIRECT into the AF_XDP socket of the queue of arrival.  ``otherwise`` is the verdict while no socket is there:
    PASS (fail open, the default) or DROP (fail closed).  ``group`` names a group of sockets that is opened by
    ``link.sockets(group=...)``; without it the packet goes to the link's ordinary ones.  PipelineError for another
    fallback or an empty name."""

    verdict: Verdict = Verdict.REDIRECT
    otherwise: Action = Action(Verdict.PASS)
    group: str = ""

    def __post_init__(self) -> None:
        _may_fall_back(self.verdict, self.otherwise)
        if not isinstance(self.group, str) or not self.group.isprintable():
            raise PipelineError(f"REDIRECT: the name of a socket group is wanted, not {self.group!r}", here())

    @property
    def fallback(self) -> Action:
        """The declared one."""
        return self.otherwise

    def __str__(self) -> str:
        name = f"REDIRECT to {self.group}" if self.group else "REDIRECT"
        return name if self.otherwise.verdict is not Verdict.DROP else f"{name} else {self.otherwise}"


#: The group of sockets of an inspector.
INSPECTORS = "/inspect"


@dataclass(frozen=True, slots=True)
class Inspect(Redirect):
    """On a bridge: a decision in user space, that of :meth:`Bridge.inspect`, passes the packet to the other device or
    drops it.  ``otherwise`` is the verdict while nobody inspects, and where the inspector is so slow that it has no
    room for more packets: PASS (fail open, the default) or DROP (fail closed)."""

    group: str = INSPECTORS

    def __post_init__(self) -> None:
        Redirect.__post_init__(self)
        if self.group != INSPECTORS:
            raise PipelineError("Inspect has no groups", here())

    def __str__(self) -> str:
        return "INSPECT" if self.otherwise.verdict is not Verdict.DROP else f"INSPECT else {self.otherwise}"


@dataclass(frozen=True, slots=True, init=False)
class Forward(Action):
    """FORWARD the packet, as it is, out of another device of the same network namespace, without the kernel's stack.
    ``otherwise`` is the verdict while that device is not there: DROP (the default) or PASS.  PipelineError for what
    cannot be the name of a device, and for another fallback."""

    device: str
    otherwise: Action

    def __init__(self, device: str, *, otherwise: Action = Action(Verdict.DROP), verdict: Verdict = Verdict.FORWARD):
        if not isinstance(device, str) or not 0 < len(device.encode()) <= MAX_DEVICE_NAME or "/" in device:
            raise PipelineError(f"FORWARD wants the name of a device, not {device!r}", here())
        _may_fall_back(verdict, otherwise)
        object.__setattr__(self, "verdict", verdict)
        object.__setattr__(self, "device", device)
        object.__setattr__(self, "otherwise", otherwise)

    @property
    def fallback(self) -> Action:
        """The declared one."""
        return self.otherwise

    def __str__(self) -> str:
        return f"FORWARD {self.device}" + ("" if self.otherwise == DROP else f" else {self.otherwise}")


#: The other device of a bridge, as it stands among the devices that rules FORWARD to.
OTHER = "/other"


@dataclass(frozen=True, slots=True, init=False)
class Across(Forward):
    """PASS on a bridge: the packet goes out of the other device, and is dropped while that is not there."""

    def __init__(self, device: str = OTHER, *, otherwise: Action = Action(Verdict.DROP),
                 verdict: Verdict = Verdict.FORWARD):  # fmt: skip
        object.__setattr__(self, "verdict", verdict)
        object.__setattr__(self, "device", device)
        object.__setattr__(self, "otherwise", otherwise)

    def __str__(self) -> str:
        return "PASS"


def across(action: Action) -> Action:
    """``action`` on a bridge: wherever it would pass the packet to the stack, it goes out of the other device."""
    if isinstance(action, Shadow):
        return replace(action, would=across(action.would))
    if action == PASS:
        return Across()
    if isinstance(action, Redirect) and action.otherwise == PASS:
        return replace(action, otherwise=Across())
    if isinstance(action, Forward) and action.otherwise == PASS:
        return type(action)(action.device, otherwise=Across())
    return action


#: What REJECT answers with: the codes of ICMP (RFC 792, RFC 1812) and of ICMPv6 (RFC 4443) destination unreachable.
ANSWERS = {
    "tcp-rst": (3, 4),
    "icmp-port-unreachable": (3, 4),
    "icmp-admin-prohibited": (13, 1),
    "icmp-host-unreachable": (1, 3),
    "icmp-net-unreachable": (0, 0),
    "icmp-proto-unreachable": (2, 4),
    "icmp-net-prohibited": (9, 1),
    "icmp-host-prohibited": (10, 1),
    "icmp-policy-fail": (13, 5),
    "icmp-reject-route": (13, 6),
}


@dataclass(frozen=True, slots=True, init=False)
class Reject(Action):
    """DROP the packet and tell its sender, by the device on which it came.  ``with_``: "icmp-port-unreachable" (the
    default), "icmp-admin-prohibited", "icmp-host-unreachable", "icmp-net-unreachable", "icmp-proto-unreachable",
    "icmp-net-prohibited", "icmp-host-prohibited", "icmp-policy-fail" or "icmp-reject-route", over IPv6 the nearest
    message of ICMPv6; or "tcp-rst", which is port unreachable for packets that are no TCP.  Packets that must not be
    answered are only dropped, and so are those that come faster than the pipeline's ``rejects``.  PipelineError for
    another answer."""

    with_: str

    def __init__(self, with_: str = "icmp-port-unreachable", *, verdict: Verdict = Verdict.REJECT):
        if with_ not in ANSWERS:
            raise PipelineError(f"REJECT answers with one of {', '.join(ANSWERS)}, not {with_!r}", here())
        object.__setattr__(self, "verdict", verdict)
        object.__setattr__(self, "with_", with_)

    @property
    def resets(self) -> bool:
        """TCP is reset."""
        return self.with_ == "tcp-rst"

    @property
    def code4(self) -> int:
        """The code of ICMP destination unreachable."""
        return ANSWERS[self.with_][0]

    @property
    def code6(self) -> int:
        """The code of ICMPv6 destination unreachable."""
        return ANSWERS[self.with_][1]

    @property
    def packed(self) -> int:
        """All three in 8 bits, as the data plane has them."""
        return self.resets << 7 | self.code4 << 3 | self.code6

    @property
    def fallback(self) -> Action:
        """DROP."""
        return DROP

    def __str__(self) -> str:
        return "REJECT" if self == REJECT else f"REJECT with {self.with_}"


@dataclass(frozen=True, slots=True)
class Shadow(Action):
    """The action of a shadow's rule.  It acts as PASS; ``would`` is the action that the rule declares, for display."""

    verdict: Verdict = Verdict.PASS
    would: Action = Action(Verdict.PASS)

    def __str__(self) -> str:
        return f"would {self.would}"


def _may_fall_back(verdict: Verdict, otherwise: object) -> None:
    if otherwise not in (PASS, DROP) and not isinstance(otherwise, Across):
        raise PipelineError(f"{verdict.name} falls back to PASS or DROP, not {otherwise}", here())


class Step:
    """What a rule does with a packet that then goes on."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Count(Step):
    """Count packets and bytes, as every rule does, and do nothing else."""

    def __str__(self) -> str:
        return "COUNT"


@dataclass(frozen=True, slots=True)
class Mirror(Step):
    """Send a copy of the packet's first ``bytes`` (0: all of it) to user space, with the packet's final verdict; see
    ``link.copies()``.  A packet that several rules mirror is copied once, with the largest of their sizes.
    PipelineError for another size."""

    bytes: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.bytes, bool) or not isinstance(self.bytes, int) or not (
            self.bytes == 0 or 14 <= self.bytes <= MAX_MIRROR_BYTES
        ):  # fmt: skip
            raise PipelineError(f"Mirror: 14 to {MAX_MIRROR_BYTES} bytes, or 0 for all, not {self.bytes!r}", here())

    def __str__(self) -> str:
        return f"MIRROR {self.bytes} bytes" if self.bytes else "MIRROR"


@dataclass(frozen=True, slots=True)
class Mark(Step):
    """Give the packet a mark, a number of 32 bits.  The mark goes with the packet to user space (``batch.marks``); at
    TC it also becomes the mark of the skb.  Where several rules mark a packet, the last one wins.  PipelineError for
    another number."""

    value: int

    def __post_init__(self) -> None:
        if isinstance(self.value, bool) or not isinstance(self.value, int) or not 0 <= self.value < 1 << 32:
            raise PipelineError(f"Mark: a number of 32 bits, not {self.value!r}", here())

    def __str__(self) -> str:
        return f"MARK {self.value:#x}"


PASS = Action(Verdict.PASS)
"""The packet goes on to the network stack."""
DROP = Action(Verdict.DROP)
"""The packet is dropped."""
TX = Action(Verdict.TX)
"""The packet goes back out of the device that it came in on, with its Ethernet addresses exchanged."""
REDIRECT = Redirect()
"""The packet goes to an AF_XDP socket; where there is none it passes (see Redirect for other choices)."""
REJECT = Reject()
"""The packet is dropped and its sender told, by ICMP port unreachable (see Reject for other answers)."""
COUNT = Count()
"""A step: count the packet under this rule, and go on with the next rule."""
#: The action of a rule that has only steps.
CONTINUE = Action(Verdict.CONTINUE)
