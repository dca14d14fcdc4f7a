"""The AF_XDP sockets of a link's queues and their UMEM, opened with the best setup that the kernel accepts."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TypeVar

from ..device.netdev import Device
from ..device.placement import device_node
from ..kernel.attachment import Attachment
from ..kernel.core import check, lib
from ..kernel.features import require
from ..kernel.loaded import LoadedProgram
from ..language.actions import Redirect
from ..language.errors import NotSupported
from .attached import Attached
from .options import L2_BYTES, SPREAD_CHUNK, SocketOptions
from .umem import Pool, Umem
from .xsk import Socket
from .zerocopy import chunk_for_zerocopy

__all__ = ["Queues", "Refused", "Setup", "open_first", "open_queues", "setups"]

T = TypeVar("T")
_NAMES = {
    "huge_pages": "huge pages", "busy_poll": "busy poll", "zerocopy": "zero-copy", "tx_timestamp": "TX timestamps",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """One combination of switches for sockets, which the kernel may accept or refuse."""

    huge_pages: bool
    busy_poll: bool
    need_wakeup: bool
    shared_umem: bool
    tx_timestamp: bool
    zerocopy: bool
    multi_buffer: bool
    unaligned: bool

    def __str__(self) -> str:
        names = ("unaligned ",) * self.unaligned + ("multi-buffer ",) * self.multi_buffer
        return "".join(names) + ("zero-copy" if self.zerocopy else "copy")


def setups(at: Attached) -> Iterator[Setup]:
    """The setups to try, the best first.  NotSupported where zero-copy is required and the mode has none."""
    options = at.options
    binds = tuple(b for b in at.binds if at.attachment.mode == "native" or b == "copy")
    if not binds:
        raise NotSupported(f"{at.device.name}: zero-copy", f"mode native, and this is {at.attachment.mode}")
    multi_buffer = [m for m in options.switch("multi_buffer", auto=at.program.frags) if at.program.frags or not m]
    choices: dict[str, Sequence[bool]] = {
        "huge_pages": options.switch("huge_pages", auto=False),
        "busy_poll": options.switch("busy_poll", auto=False),
        "need_wakeup": options.switch("need_wakeup", auto=True),
        "shared_umem": options.switch("shared_umem", auto=False),
        "tx_timestamp": options.switch("tx_timestamp", auto=False),
        "zerocopy": [bind == "zerocopy" for bind in binds],
        "multi_buffer": multi_buffer or [False],
        "unaligned": options.switch("unaligned", auto=False),
    }  # the last one varies first
    for values in product(*choices.values()):
        yield Setup(**dict(zip(choices, values, strict=True)))


class Refused(Exception):
    """The kernel refuses ``switch`` (a field of Setup) here; with ``others``, it refuses them together.  ``error`` says
    why."""

    def __init__(self, switch: str, error: NotSupported, *others: str):
        self.switches, self.error = (switch, *others), error


def open_first(tries: Sequence[Setup], open_: Callable[[Setup], T]) -> tuple[T, Setup, tuple[str, ...]]:
    """Open the first of ``tries`` that works.  Returns the result of ``open_``, its setup, and what was refused before
    and why.  Where none works, the last error is raised: NotSupported where the kernel or the driver lacks it,
    otherwise OSError."""
    refused: dict[str, str] = {}
    impossible: set[tuple[str, ...]] = set()
    left = list(tries)
    while True:
        setup = left.pop(0)
        try:
            return open_(setup), setup, tuple(f"{what} ({why})" for what, why in refused.items())
        except Refused as no:
            impossible.add(no.switches)
            refused[" with ".join(_NAMES[switch] for switch in no.switches)] = no.error.needs
            error: Exception = no.error
        except OSError as failed:
            if failed.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTSUP):
                raise
            refused[str(setup)] = os.strerror(failed.errno)
            error = _not_supported(failed)
        left = [s for s in left if not any(all(getattr(s, name) for name in names) for names in impossible)]
        if not left:
            raise error


def _not_supported(error: OSError) -> Exception:
    """NotSupported for an error EOPNOTSUPP of check(); any other error as it is."""
    text = os.strerror(errno.EOPNOTSUPP)
    call, found, hint = str(error.strerror).partition(f": {text}")
    if error.errno != errno.EOPNOTSUPP or not found:
        return error
    return NotSupported(f"{call}: {text}", hint.removeprefix(": ") or "another driver or kernel")


@dataclass(slots=True)
class Queues:
    """Open sockets with their pools and UMEMs.  The sockets are in the order of the queues; those of one queue follow
    one another."""

    sockets: list[Socket] = field(default_factory=list)
    pools: list[Pool] = field(default_factory=list)
    umems: list[Umem] = field(default_factory=list)
    #: For each socket its group and its number in the group on its queue.  Empty: all are of the ordinary group.
    places: list[tuple[str, int]] = field(default_factory=list)

    def close(self) -> None:
        """Close everything; idempotent."""
        for socket in self.sockets:
            socket.close()
        for pool in self.pools:
            pool.close()
        for umem in self.umems:
            umem.close()

    def slot(self, program: LoadedProgram, number: int) -> int | None:
        """The entry of socket ``number`` in the program's XSKMAP; None where no rule redirects to its group."""
        name, nth = self.places[number] if self.places else ("", 0)
        groups = program.pipeline.targets(Redirect)
        if name not in groups:
            return None
        return (groups.index(name) * program.queues + self.sockets[number].queue) * program.spread + nth

    def reach(self, program: LoadedProgram) -> list[int]:
        """Put these sockets into the XSKMAP of ``program``, so that REDIRECT finds them.  Returns their entries."""
        slots = []
        for number, socket in enumerate(self.sockets):
            slot = self.slot(program, number)
            if slot is not None:
                what = f"{socket.device} queue {socket.queue}"
                check(lib.xk_xskmap_set(program.map_fd("xsks"), slot, socket.fd), what)
                slots.append(slot)
        return slots

    def of_group(self, name: str) -> Queues:
        """The sockets of one group.  This object still owns and closes them."""
        rows = [number for number, (group, _) in enumerate(self.places) if group == name]
        return Queues([self.sockets[n] for n in rows], places=[self.places[n] for n in rows])

    def attachment(self, before: Attachment, setup: Setup, refused: tuple[str, ...]) -> Attachment:
        """``before`` with what the kernel gave to these sockets, read back where the kernel has a call for it."""
        umems = [x._pool.umem for x in self.sockets]
        kinds = ("copy", "multi-buffer", "unaligned", *_NAMES.values())
        return replace(
            before,
            bind="zerocopy" if all(x.zerocopy for x in self.sockets) else "copy",
            need_wakeup=setup.need_wakeup,
            busy_poll=setup.busy_poll,
            huge_pages=all(u.page_size > os.sysconf("SC_PAGE_SIZE") for u in umems),
            multi_buffer=setup.multi_buffer,
            shared_umem=len(self.umems) < len(self.pools),
            unaligned=all(u.unaligned for u in umems),
            chunk_size=max(u.chunk_size for u in umems),
            tx_timestamp="off" if not setup.tx_timestamp else "device" if setup.zerocopy else "software",
            walk=(*(w for w in before.walk if not w.startswith(kinds)), *refused),
        )


def open_queues(at: Attached, setup: Setup) -> Queues:
    """Open sockets on every queue of a device.  Raises Refused, or OSError that names call, device and queue; nothing
    stays open then."""
    options, queues = at.options, at.attachment.queues
    used = {rule.action.group for rule in at.program.pipeline.outcomes if isinstance(rule.action, Redirect)} or {""}
    groups = [name for name in at.program.pipeline.targets(Redirect) if name in used]
    places = [(name, n) for name in groups for n in range(options.sockets_per_queue)]
    frames = options.frames or (1 + len(places)) * options.ring_size
    opened = Queues()
    try:
        for queue in queues:
            if not opened.umems or not setup.shared_umem:
                opened.umems.append(
                    open_umem((at,), frames * (len(queues) if setup.shared_umem else 1), setup, options)
                )
            opened.pools.append(Pool(opened.umems[-1], frames, f"{at.device.name} queue {queue}"))
            for place in places:
                sibling = opened.sockets[-1] if opened.sockets and opened.sockets[-1].queue == queue else None
                opened.sockets.append(open_socket(at, queue, opened.pools[-1], setup, options, sibling))
                opened.places.append(place)
    except BaseException:
        opened.close()
        raise
    return opened


def open_umem(places: Sequence[Attached], frames: int, setup: Setup, options: SocketOptions) -> Umem:
    """Memory for ``frames`` frames that take the packets of all ``places``, near the first one's device."""
    _check_tx_metadata([at.device for at in places], setup, options)
    longest = max(at.device.mtu for at in places) + L2_BYTES
    try:
        chunk = options.chunk_for(longest)
        if setup.zerocopy and not setup.multi_buffer:
            chunk = max(chunk_for_zerocopy(at.device, at.program.pipeline, options) for at in places)
    except ValueError:  # a packet needs several frames
        chunk = options.chunk_size or 4096
    except NotSupported as error:
        raise Refused("zerocopy", error) from None
    if setup.unaligned and chunk == 2048 and options.chunk_size is None and not setup.zerocopy:
        chunk = SPREAD_CHUNK
    try:
        return Umem(
            frames,
            chunk,
            options,
            unaligned=setup.unaligned,
            huge=setup.huge_pages,
            node=device_node(places[0].device),
            software_checksum=not setup.zerocopy,
            tx_metadata=options.checksum or setup.tx_timestamp,
        )
    except NotSupported as error:
        raise Refused("huge_pages", error) from None


def _check_tx_metadata(devices: Sequence[Device], setup: Setup, options: SocketOptions) -> None:
    """Refuse TX metadata that the kernel does not know, or in zero-copy the driver."""
    if options.checksum:
        require("TX metadata", f"checksums on {devices[0].name}")
    if setup.tx_timestamp:
        try:
            require("TX metadata", f"TX timestamps on {devices[0].name}")
        except NotSupported as error:
            raise Refused("tx_timestamp", error) from None
    for device in devices if setup.zerocopy else ():
        if options.checksum and "tx-checksum" not in device.xsk_features:
            needs = f"a driver that computes checksums for AF_XDP, which {device.driver} does not"
            raise Refused("zerocopy", NotSupported(f"zero-copy with checksums on {device.name}", needs))
        if setup.tx_timestamp and "tx-timestamp" not in device.xsk_features:
            needs = f"a driver that reports when packets left, which {device.driver} does not"
            lacking = NotSupported(f"zero-copy with TX timestamps on {device.name}", needs)
            raise Refused("zerocopy", lacking, "tx_timestamp")


def open_socket(
    at: Attached, queue: int, pool: Pool, setup: Setup, options: SocketOptions, sibling: Socket | None = None
) -> Socket:
    """Open one socket of a link's queue.  Raises as :func:`open_queues` does."""
    socket = Socket(
        at.device.name, at.device.index, queue, pool, options, zerocopy=setup.zerocopy, need_wakeup=setup.need_wakeup,
        busy_poll=setup.busy_poll, multi_buffer=setup.multi_buffer, metadata=at.attachment.timestamps,
        known=bool(at.attachment.rx_metadata), tx_timestamp=setup.tx_timestamp, sibling=sibling,
    )  # fmt: skip
    if setup.busy_poll and not socket.busy_poll:
        socket.close()
        needs = f"a driver that names the NAPI of a queue, which {at.device.driver} does not"
        raise Refused("busy_poll", NotSupported(f"busy polling on {at.device.name}", needs))
    return socket
