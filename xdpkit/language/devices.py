"""Conditions on the device where a packet is judged: ``dev.name == "eth1"``, ``dev.inside`` (pure).

At XDP and TC ingress that is the device on which the packet arrived, at TC egress the one by which it leaves.  Names
become device indexes when the program is loaded; a name that is none of the program's own devices never matches.  On a
bridge each device also has a side.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

from .errors import PipelineError
from .expr import Expr, Named, Not, here

__all__ = ["INSIDE", "MAX_DEVICES", "OUTBOUND", "OUTSIDE", "SIDES", "OnDevice", "dev", "device_name", "devices_of"]

#: Linux's IFNAMSIZ, without the zero at the end.
MAX_DEVICE_NAME = 15
#: Names that the rules of one pipeline may ask for: entries of ``device_indexes`` in bpf/act.h.
MAX_DEVICES = 64
#: The sides of a bridge, as they stand among the names of devices: no device can have such a name.
INSIDE, OUTSIDE = SIDES = ("/inside", "/outside")
#: The packet leaves by the device; it stands among the names of devices as the sides do.
OUTBOUND = "/outbound"


@dataclass(frozen=True, slots=True, repr=False)
class OnDevice(Expr):
    """The packet is judged on one of the devices ``names``; a name of SIDES stands for that side of a bridge."""

    names: tuple[str, ...]

    @property
    def device_names(self) -> tuple[str, ...]:
        return self.names

    @property
    def needs_brackets(self) -> bool:
        return len(self.names) == 1 and self.names[0] not in SIDES

    def __str__(self) -> str:
        if self.names[0] in SIDES:
            return f"dev.{self.names[0][1:]}"
        if len(self.names) == 1:
            return f"dev.name == {self.names[0]!r}"
        return f"dev.name.isin({list(self.names)!r})"


def devices_of(nodes: Iterable[Expr]) -> tuple[str, ...]:
    """The names that conditions ask for, each once, in order."""
    return tuple(dict.fromkeys(name for node in nodes for name in node.device_names))


class DeviceName(Named):
    """The name of the device where the packet is judged: ``dev.name == "eth1"``, ``.isin(["eth1", "eth2"])``."""

    def __repr__(self) -> str:
        return "dev.name"

    def __hash__(self) -> int:
        return object.__hash__(self)

    def condition(self) -> NoReturn:
        """Always PipelineError: the name alone is no condition."""
        raise PipelineError("dev.name is no condition: compare it, as in dev.name == 'eth1'", here())

    def __eq__(self, name: object) -> Expr:  # type: ignore[override]
        return OnDevice((device_name(name),), where=here())

    def __ne__(self, name: object) -> Expr:  # type: ignore[override]
        return Not(OnDevice((device_name(name),), where=here()), where=here())

    def isin(self, names: Iterable[str]) -> Expr:
        """It is one of ``names``.  PipelineError for what cannot be a device's name, and for none."""
        if isinstance(names, str) or not isinstance(names, Iterable):
            raise PipelineError(f"dev.name.isin wants a list of names, not {names!r}", here())
        wanted = tuple(dict.fromkeys(map(device_name, names)))
        if not wanted:
            raise PipelineError("dev.name.isin([]) can never match", here())
        return OnDevice(wanted, where=here())

    def __lt__(self, other: object) -> NoReturn:
        _no_order(other)

    def __le__(self, other: object) -> NoReturn:
        _no_order(other)

    def __gt__(self, other: object) -> NoReturn:
        _no_order(other)

    def __ge__(self, other: object) -> NoReturn:
        _no_order(other)


def _no_order(other: object) -> NoReturn:
    said = f"dev.name compares by == and != and .isin([...]), not with {other!r} in this way"
    raise PipelineError(said, here())


class DeviceOf:
    """The device where a packet is judged: its ``name`` and, on a bridge, its side."""

    name: DeviceName = DeviceName()

    def __repr__(self) -> str:
        return "dev"

    @property
    def inside(self) -> Expr:
        """The packet came from the inside of the bridge; on anything but a bridge a pipeline with it is refused."""
        return OnDevice((INSIDE,), where=here())

    @property
    def outside(self) -> Expr:
        """The packet came from the outside of the bridge; as :attr:`inside`."""
        return OnDevice((OUTSIDE,), where=here())

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)
        raise PipelineError(f"dev has no {name!r}; it has name, inside, outside", here())


def device_name(name: object, what: str = "dev.name") -> str:
    """``name``, which ``what`` compares with; PipelineError if it cannot be the name of a device."""
    if not isinstance(name, str) or not 0 < len(name.encode()) <= MAX_DEVICE_NAME or set(name) & set("/:*? \t\n"):
        said = f"{what} compares with the name of a device, of at most {MAX_DEVICE_NAME} bytes, not {name!r}"
        hint = ": write each name, as in dev.name.isin(['eth1', 'eth2'])" if "*" in str(name) else ""
        raise PipelineError(said + hint, here())
    return name


dev: DeviceOf = DeviceOf()
"""The device where the packet is judged: ``dev.name``, and on a bridge ``dev.inside`` and ``dev.outside``."""
