"""Who holds the XDP programs of a device, and how to detach those that nobody holds.

The kernel identifies programs by id.  An attachment stays because of one of these:

* a bpf_link that a process holds: read from /proc/PID/fdinfo, where descriptors of programs and links say their prog_id
  (of other users' processes: CAP_SYS_PTRACE);
* a bpf_link or a program that is pinned in a bpffs, by whoever wants it to outlive the process; the programs behind a
  libxdp dispatcher are pinned as links whose target it is;
* nothing: a program that was attached through netlink (``ip link set dev X xdp``, xdp-loader) stays until it is
  detached.  No process holds it, but it may still be wanted.

A bpf_link cannot be replaced through netlink: EBUSY, "Can't replace active BPF XDP link" (dev_xdp_attach in
net/core/dev.c).
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
from .core import lib
from .program import program_name

__all__ = ["Hold", "Owner", "advice", "bpffs_mounts", "clean", "describe", "hold", "owners", "pins"]

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
    """A program as text, such as ``native program 'xdp_pass' (id 12)``."""
    name = program_name(holder.prog_id)
    return f"{holder.mode} program {f'{name!r} ' if name else ''}(id {holder.prog_id})"


@dataclass(frozen=True, slots=True)
class Hold:
    """What keeps a program attached: processes, paths where the program or its link is pinned, and whether a bpf_link
    attaches it (None where this process may not see that)."""

    owners: tuple[Owner, ...]
    pins: tuple[str, ...]
    link: bool | None

    @property
    def loose(self) -> bool:
        """Whether nothing visible holds it, because it was attached through netlink."""
        return not (self.owners or self.pins or self.link)

    def __str__(self) -> str:
        by = [f"held by {' and '.join(map(str, self.owners))}"] if self.owners else []
        by += [f"pinned at {' and '.join(self.pins)}"] if self.pins else []
        if not by and self.link:
            return "attached by a bpf_link whose holder or pin cannot be seen from here"
        return " and ".join(by) or "attached without a process, as by 'ip link set' or xdp-loader"


def hold(prog_id: int) -> Hold:
    """What keeps the program attached."""
    linked = lib.xk_program_has_link(prog_id)
    return Hold(owners(prog_id), pins(prog_id), None if linked < 0 else bool(linked))


def pins(prog_id: int) -> tuple[str, ...]:
    """Where the program, or a bpf_link of it, is pinned in the bpffs of this mount namespace."""
    found = []
    for mount in bpffs_mounts():
        for folder, _, names in os.walk(mount):
            for name in names:
                path = os.path.join(folder, name)
                fd = lib.xk_pinned(os.fsencode(path))
                if fd >= 0:
                    with suppress(OSError):
                        if _leads_to(prog_id, Path(f"/proc/self/fdinfo/{fd}").read_text()):
                            found.append(path)
                    os.close(fd)
    return tuple(sorted(found))


def bpffs_mounts() -> list[str]:
    """Where a bpffs is mounted, in this mount namespace (proc_pid_mountinfo(5))."""
    lines = Path("/proc/thread-self/mountinfo").read_text().splitlines()
    return list(dict.fromkeys(line.split()[4] for line in lines if " - bpf " in line))


def clean(device: str, *, force: bool = False) -> list[str]:
    """Detach the XDP programs on ``device`` that nothing holds.  Returns a line for each.

    Such programs were attached through netlink, and one may be a firewall that is still wanted.  So without ``force``
    it raises OSError ECANCELED.  EBUSY if a process, a pin or a bpf_link holds one of them: then nothing is detached,
    and the message names the holder.  ENODEV for a missing device, EPERM without CAP_NET_ADMIN, ValueError for a name
    that no device can have.  Two cases remain: another process may attach a program at the same moment, and processes
    of other PID namespaces cannot be seen (their bpf_links are refused)."""
    index = netdev.device(device).index
    holders = netdev.xdp_holders(index)
    for holder in holders:
        held = hold(holder.prog_id)
        what = f"{device}: {describe(holder)} is {held}"
        if not held.loose:
            raise OSError(errno.EBUSY, f"{what}: {advice(held, device)}")
        if not force:
            raise OSError(
                errno.ECANCELED, f"{what}, and may be wanted: to take it off, xdpkit doctor {device} --clean --force"
            )
    return [outside_loop(lambda holder=holder: _detach(device, index, holder)) for holder in holders]  # type: ignore[misc]


def advice(held: Hold, device: str) -> str:
    """Advice on how to remove a program that holds the device."""
    if held.owners:
        return "stop it"
    if held.pins:
        return f"unload it with the tool that pinned it (xdp-loader unload {device} --all), or remove the pin"
    if held.link:
        return "look in other PID and mount namespaces"
    return f"if nobody wants it: xdpkit doctor {device} --clean"


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
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            for fd in os.listdir(process / "fd"):
                with suppress(OSError):
                    kind = os.readlink(process / "fd" / fd)
                    if kind.startswith("anon_inode:bpf") and _leads_to(prog_id, (process / "fdinfo" / fd).read_text()):
                        yield int(process.name), "link" in kind


def _leads_to(prog_id: int, fdinfo: str) -> bool:
    """Whether ``fdinfo`` is that of a descriptor of the program, of a link that attaches it, or of a link that replaces
    it by another program.  The last has attach type 0 (BPF_PROG_TYPE_EXT); links that only trace it have other
    types."""
    said = dict(re.findall(r"^(\w+):\s*(\S+)$", fdinfo, re.MULTILINE))
    target = said.get("target_obj_id") if said.get("attach_type") == "0" else None
    return str(prog_id) in (said.get("prog_id"), target)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "gone"
