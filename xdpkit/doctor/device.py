"""What the doctor says about one network device."""

from __future__ import annotations

from collections.abc import Iterator

from ..device import ethtool, napi, netdev
from ..device.netdev import Device
from ..device.netlink import iproute, outside_loop
from ..kernel.attachment import completes_checksums
from ..kernel.holders import advice, describe, hold
from ..language.metadata import offered_names
from ..sockets.options import KERNEL_HEADROOM, L2_BYTES, NATIVE_FRAME_BYTES
from .findings import Check

__all__ = ["AF_XDP_MTU", "NATIVE_FRAME_BYTES", "examine_device"]

#: Largest MTU whose frames, two VLAN tags included, fit into a 4096-byte chunk in copy mode (xsk_rcv in net/xdp/xsk.c).
AF_XDP_MTU = 4096 - KERNEL_HEADROOM - L2_BYTES


def examine_device(name: str) -> Iterator[Check]:
    """Findings about a device of this thread's network namespace; a missing one is a finding too."""
    try:
        device = netdev.device(name)
    except OSError as error:
        advice = "name one of these, or enter the namespace of the device (ip netns exec)"
        yield Check("device", "problem", str(error.strerror), advice)
        return
    kind = "" if device.kind in (None, device.driver) else f", kind {device.kind}"
    yield Check("device", "ok", f"{name}: driver {device.driver or 'none'}{kind}, index {device.index}, {device.mac}")
    if not device.is_ethernet:
        text = f"packets have no Ethernet header here ({device.link_type_name}): pipelines are refused in every mode"
        advice = "use the Ethernet device that these packets arrive on or leave by, or a tap in place of a tun"
        yield Check("Ethernet", "problem", text, advice)
    yield from _link(device)
    yield from _lower(device)
    yield _queues(device)
    yield from _features(device)
    yield _metadata(device)
    yield from _tx_metadata(device)
    yield from _mtu(device)
    yield from _busy_poll(device)
    yield from _holders(device)
    yield from _offloads(device)
    yield from _checksums(device)


def _link(device: Device) -> Iterator[Check]:
    if not device.up:
        yield Check("link", "problem", "the device is down", f"ip link set dev {device.name} up")
    elif not device.carrier:
        yield Check("link", "problem", "no carrier", "plug the cable in, or raise the other end (a veth's peer)")
    else:
        yield Check("link", "ok", "up, with carrier")

    def count() -> int:
        with iproute(f"look up {device.name}") as ip:
            return int(ip.link("get", index=device.index)[0].get_attr("IFLA_PROMISCUITY") or 0)

    if outside_loop(count):
        yield Check("promiscuity", "ok", "frames for every address are received")
    else:
        text = f"off: a network card passes on frames for {device.mac} and the groups joined, and XDP sees no others"
        yield Check("promiscuity", "note", text, "for a capture or a bridge, ask for promiscuous mode")


def _lower(device: Device) -> Iterator[Check]:
    if not device.lower:
        return
    below = ", ".join(device.lower)
    text = f"a {device.kind} over {below}: no driver queues of its own, so XDP and AF_XDP here are generic or slow"
    tag = " and match the tag (vlan.id)" if device.kind == "vlan" else ""
    yield Check("stack", "note", text, f"attach to {below}{tag}")


def _queues(device: Device) -> Check:
    text = f"{device.rx_queues} receive, {device.tx_queues} transmit, at most {device.max_rx_queues} receive"
    if device.rx_queues > 1:
        return Check("queues", "ok", text)
    if device.max_rx_queues > 1:
        advice = f"ethtool -L {device.name} combined {device.max_rx_queues} (or rx N tx N)"
        return Check("queues", "note", f"{text}: a single CPU receives everything", advice)
    advice = "enough for one worker; a veth gets more when it is made (numrxqueues)" if device.kind == "veth" else ""
    return Check("queues", "note", f"{text}: a single CPU receives everything", advice)


def _features(device: Device) -> Iterator[Check]:
    features = device.xdp_features
    if features is None:
        text = "the kernel does not tell what the driver can (before 6.3)"
        yield Check("XDP", "note", text, "mode auto tries zero-copy, native, generic in turn")
        return
    names = ", ".join(sorted(features)) or "none"
    if "basic" not in features:
        text = f"the driver has no native XDP (features: {names}): generic mode runs after the skb is made, more slowly"
        yield Check("XDP", "note", text, "use mode generic or auto; or attach to the device below, if there is one")
    else:
        yield Check("XDP", "ok", f"native; features: {names}")
        if "redirect" not in features:
            yield Check("redirect", "problem", "the driver cannot redirect: no AF_XDP in native mode", "mode generic")
        if "ndo-xmit" not in features:
            veth = f"turn GRO on at both ends (ethtool -K {device.name} gro on)"
            advice = veth if device.kind == "veth" else f"many drivers can once {device.name} has an XDP program"
            yield Check("forward", "note", "frames cannot be redirected into this device now", advice)
    if "xsk-zerocopy" in features:
        segments = f", packets of up to {device.xdp_zc_max_segs} buffers" if device.xdp_zc_max_segs > 1 else ""
        yield Check("zero-copy", "ok", f"the driver has AF_XDP zero-copy{segments}")
    else:
        text = "the driver has no AF_XDP zero-copy: the kernel copies each packet into the UMEM"
        yield Check("zero-copy", "note", text, "bind copy or auto; never bind zerocopy here")


def _metadata(device: Device) -> Check:
    """The metadata that the driver offers to a program in native mode; a kernel before 6.3 offers none."""
    names = offered_names(device.rx_metadata)
    if names:
        return Check("metadata", "ok", f"the driver offers {', '.join(names)} in native mode")
    text = "the driver offers none: rules on meta.* match nothing in native mode"
    return Check("metadata", "note", text, "mode tc_ingress reads what the skb carries")


def _tx_metadata(device: Device) -> Iterator[Check]:
    """What a driver with zero-copy does for packets that sockets transmit; in copy mode the kernel does it."""
    if "xsk-zerocopy" not in (device.xdp_features or ()):
        return
    names = [name for name in ("tx-timestamp", "tx-checksum") if name in device.xsk_features]
    if names:
        yield Check("TX metadata", "ok", f"the driver offers {', '.join(names)} in zero-copy")
    else:
        text = "the driver offers no TX timestamps and no checksums in zero-copy"
        yield Check("TX metadata", "note", text, "bind copy or auto where you ask for them: the kernel does it then")


def _mtu(device: Device) -> Iterator[Check]:
    """One finding for each mode: native, generic, AF_XDP."""
    native = NATIVE_FRAME_BYTES - 14 if device.kind == "veth" else NATIVE_FRAME_BYTES - L2_BYTES
    if device.xdp_features is None or "basic" in device.xdp_features:
        yield _native_mtu(device, native)
    yield Check("MTU generic", "ok", f"{device.mtu}: no limit")
    if device.mtu <= AF_XDP_MTU:
        yield Check("MTU AF_XDP", "ok", f"{device.mtu} of at most {AF_XDP_MTU} for a frame")
        return
    text = f"{device.mtu} is above {AF_XDP_MTU}, what a frame of 4096 bytes holds: packets take several"
    if "xsk-zerocopy" in (device.xdp_features or ()) and device.xdp_zc_max_segs <= 1:
        advice = f"ip link set dev {device.name} mtu {AF_XDP_MTU} for zero-copy"
        yield Check("MTU AF_XDP", "note", f"{text}, in copy mode only: zero-copy here takes one each", advice)
    else:
        yield Check("MTU AF_XDP", "ok", text)


def _native_mtu(device: Device, limit: int) -> Check:
    topic = "MTU native"
    if "rx-sg" in (device.xdp_features or ()):
        return Check(topic, "ok", f"{device.mtu}: the driver takes packets of several buffers")
    if device.kind != "veth":
        if device.mtu <= limit:
            return Check(topic, "ok", f"{device.mtu}, within what drivers take")
        text = f"{device.mtu} is above {limit}: most drivers then refuse programs without fragments (ERANGE or EINVAL)"
        return Check(topic, "note", text, f"ip link set dev {device.name} mtu {limit}, or mode generic")
    if device.peer_mtu is None:
        text = f"the peer's MTU cannot be seen from here; above {limit} veth refuses native programs (ERANGE)"
        return Check(topic, "note", text, "look in the peer's namespace")
    if device.peer_mtu > limit:
        text = f"the peer's MTU is {device.peer_mtu}, and above {limit} veth refuses native programs (ERANGE)"
        return Check(topic, "problem", text, f"set the peer's MTU to {limit} or less, or use mode generic")
    return Check(topic, "ok", f"the peer's {device.peer_mtu} of at most {limit}")


def _busy_poll(device: Device) -> Iterator[Check]:
    """Whether sockets can busy poll.  Interrupts should stay off while a socket polls
    (Documentation/networking/napi.rst)."""
    found = napi.of_queue(device.index, 0)
    if found is None:
        text = "kernel or driver do not tell which NAPI serves a queue: sockets cannot busy poll"
        yield Check("busy poll", "note", text, "leave busy_poll off")
    elif found.defer_hard_irqs and found.gro_flush_timeout_ns:
        text = f"interrupts are deferred by {found.defer_hard_irqs} polls, {found.gro_flush_timeout_ns} ns each"
        yield Check("busy poll", "ok", text)
    else:
        place = f"/sys/class/net/{device.name}"
        advice = f"for busy_poll: echo 2 > {place}/napi_defer_hard_irqs; echo 200000 > {place}/gro_flush_timeout"
        yield Check("busy poll", "note", "possible, but interrupts go on beside it", advice)


def _holders(device: Device) -> Iterator[Check]:
    holders = netdev.xdp_holders(device.index)
    if not holders:
        yield Check("holder", "ok", "no XDP program is attached")
    for holder in holders:
        held = hold(holder.prog_id)
        text, what = f"{describe(holder)} is {held}", advice(held, device.name)
        if held.loose:
            xdp = {"native": "xdpdrv", "generic": "xdpgeneric", "offload": "xdpoffload"}[holder.mode]
            what += f" (or ip link set dev {device.name} {xdp} off)"
        elif held.owners:
            what = f"stop process {held.owners[0].pid}"
            if not held.owners[0].link:
                what += f", then xdpkit doctor {device.name} --clean"
        yield Check("holder", "problem", text, what)


def _offloads(device: Device) -> Iterator[Check]:
    """Driver features that change the packets that XDP sees, or with which drivers refuse XDP."""
    if _on(device, "rx-vlan-hw-parse"):
        text = "tags may arrive beside the frame (rx-vlan-hw-parse): rules on vlan do not see those, meta.vlan does"
        off = "its peer txvlan off" if device.kind == "veth" else f"{device.name} rxvlan off"
        yield Check("VLAN", "note", text, f"to match tags: ethtool -K {off}")
    merging = [name for name in ("rx-lro", "rx-gro-hw") if _on(device, name)]
    if merging:
        text = f"the device merges packets ({', '.join(merging)}): drivers refuse native XDP, or XDP sees them merged"
        flags = " ".join(f"{name} off" for name in merging)
        yield Check("merging", "problem", text, f"ethtool -K {device.name} {flags}")


def _checksums(device: Device) -> Iterator[Check]:
    """Senders on the same machine leave checksums to their device; XDP does not see which."""
    if completes_checksums("native", device.driver):
        text = (
            "senders on this machine may leave TCP and UDP checksums to their device: forward() completes them, and so "
            "do programs in native mode for FORWARD and TX, but not those of SCTP, of fragments and inside tunnels"
        )
        yield Check("checksums", "note", text, "for those, at the senders: ethtool -K DEV tx off")


def _on(device: Device, feature: str) -> bool:
    try:
        return ethtool.feature(device.name, feature)
    except (OSError, KeyError):
        return False
