"""Who holds the XDP programs of a device, and how to take off those that nobody holds any more.

The kernel names programs by id.  Which process holds one is read from /proc/PID/fdinfo, where descriptors of programs
and of bpf_links tell their prog_id (of other users' processes: CAP_SYS_PTRACE).  A bpf_link cannot be replaced
through netlink: EBUSY, "Can't replace active BPF XDP link" (dev_xdp_attach in net/core/dev.c).
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..device import netdev
from ..device.netdev import Holder
from ..device.netlink import iproute, outside_loop
from .program import program_name

__all__ = ["Owner", "clean", "describe", "owners"]

_FLAGS = {"generic": 1 << 1, "native": 1 << 2, "offload": 1 << 3}  # XDP_FLAGS_*_MODE, linux/if_link.h


@dataclass(frozen=True, slots=True)
class Owner:
    """A process with a descriptor of a program, or of a bpf_link that attaches it (``link``)."""

    pid: int
    command: str
    link: bool

    def __str__(self) -> str:
        return f"{'a bpf_link of ' if self.link else ''}process {self.pid} ({self.command})"


def owners(prog_id: int) -> tuple[Owner, ...]:
    """The processes that hold the program, each once, link owners first; those that may not be looked into are
    missing."""
    links: dict[int, bool] = {}
    for pid, link in _descriptors(prog_id):
        links[pid] = links.get(pid, False) or link
    found = (Owner(pid, _command(pid), link) for pid, link in links.items())
    return tuple(sorted(found, key=lambda owner: (not owner.link, owner.pid)))


def describe(holder: Holder) -> str:
    """Such as ``native program 'xdp_pass' (id 12)``."""
    name = program_name(holder.prog_id)
    return f"{holder.mode} program {f'{name!r} ' if name else ''}(id {holder.prog_id})"


def clean(device: str) -> list[str]:
    """Detach the XDP programs that were left on ``device`` by processes that are gone; says what it did.

    OSError EBUSY if a process or a pinned bpf_link holds one of them: then nothing is detached, and the message names
    who.  ENODEV for a missing device, EPERM without CAP_NET_ADMIN.  Not closed: the race with someone who attaches
    another program now, and processes of other PID namespaces, which cannot be seen (their bpf_links are refused).
    """
    index = netdev.device(device).index
    holders = netdev.xdp_holders(index)
    for holder in holders:
        if held := owners(holder.prog_id):
            who = " and ".join(map(str, held))
            raise OSError(errno.EBUSY, f"{device}: {describe(holder)} is held by {who}: stop it")
    return [outside_loop(lambda holder=holder: _detach(device, index, holder)) for holder in holders]  # type: ignore[misc]


def _detach(device: str, index: int, holder: Holder) -> str:
    what = f"{device}: {describe(holder)}"
    try:
        with iproute(f"detach {what}") as ip:
            xdp = {"attrs": [["IFLA_XDP_FD", -1], ["IFLA_XDP_FLAGS", _FLAGS[holder.mode]]]}
            ip.link("set", index=index, IFLA_XDP=xdp)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        raise OSError(
            errno.EBUSY,
            f"{what} is attached by a bpf_link that no visible process holds: remove its pin from /sys/fs/bpf, "
            "or look in other PID namespaces",
        ) from None
    return f"{what} detached"


def _descriptors(prog_id: int) -> Iterator[tuple[int, bool]]:
    """(pid, is a link) of each descriptor that leads to the program.  Processes come and go, or are not ours to see."""
    pattern = re.compile(rf"^prog_id:\s*{prog_id}$", re.MULTILINE)
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            for fd in os.listdir(process / "fd"):
                with suppress(OSError):
                    kind = os.readlink(process / "fd" / fd)
                    if kind.startswith("anon_inode:bpf") and pattern.search((process / "fdinfo" / fd).read_text()):
                        yield int(process.name), "link" in kind


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "gone"
