"""The laboratory against the real kernel."""

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Dot1Q, Ether

from xdpkit.device import ethtool
from xdpkit.lab import Lab, Namespace

OWN = "/proc/thread-self/ns/net"


def here():
    return os.stat(OWN).st_ino


def rx_per_queue(port):
    with port.namespace:
        counters = ethtool.counters(port.name)
    return [counters[f"rx_queue_{queue}_xdp_packets"] for queue in range(port.queues)]


def test_entering_nests_and_comes_back():
    before = here()
    one, two = Namespace("one"), Namespace("two")
    with one:
        inside = here()
        with two:
            with one:
                assert here() == inside
            assert here() not in (inside, before)
        assert here() == inside
    assert here() == before
    one.close()
    two.close()


def test_an_exception_brings_the_thread_back(lab):
    before = here()
    with pytest.raises(KeyError), lab.namespace():
        raise KeyError
    assert here() == before


def test_a_closed_namespace_cannot_be_entered():
    namespace = Namespace("gone")
    namespace.close()
    namespace.close()
    with pytest.raises(OSError, match="namespace 'gone' is closed"), namespace:
        pass


def test_a_command_runs_inside(lab):
    namespace = lab.namespace()
    with namespace:
        inside = here()
    output = namespace.run(["stat", "-Lc", "%i", "/proc/self/ns/net"], stdout=subprocess.PIPE).stdout
    assert int(output) == inside


def test_a_person_can_enter_by_path(lab):
    namespace = lab.namespace()
    with namespace:
        inside = here()
    seen = subprocess.check_output(["nsenter", f"--net={namespace.path}", "stat", "-Lc", "%i", OWN])
    assert int(seen) == inside


def test_a_failing_command_raises_and_a_missing_one_is_named(lab):
    namespace = lab.namespace()
    with pytest.raises(subprocess.CalledProcessError):
        namespace.run(["false"])
    with pytest.raises(FileNotFoundError, match="no command 'no-such-command'"):
        namespace.popen(["no-such-command"])


def test_closing_kills_what_was_started_inside():
    with Lab() as lab:
        child = lab.namespace().popen(["sleep", "1000"])
    assert child.returncode == -signal.SIGKILL


def test_frames_arrive_whole_and_in_order(veth_pair):
    left, right = veth_pair
    frames = [Ether(src=left.mac, dst=right.mac) / IP() / UDP(sport=n) / bytes(n % 1400) for n in range(2000)]
    with right.capture() as got:
        assert left.send(frames) == 2000
        got.wait(2000)
    assert got == [bytes(frame) for frame in frames]


def test_a_capture_does_not_see_what_its_own_port_sends(veth_pair):
    left, right = veth_pair
    with left.capture() as own, right.capture() as got:
        left.send([b"\xff" * 60])
        got.wait(1)
    assert own == []


def test_vlan_tags_are_captured_as_on_the_wire(veth_pair):
    left, right = veth_pair
    tagged = Ether(src=left.mac, dst=right.mac) / Dot1Q(vlan=5, prio=3) / IP() / UDP() / b"single"
    stacked = Ether(src=left.mac, dst=right.mac, type=0x88A8) / Dot1Q(vlan=7) / Dot1Q(vlan=8) / IP() / b"two"
    zero = Ether(src=left.mac, dst=right.mac) / Dot1Q(vlan=0) / IP() / UDP() / b"priority tag"
    with right.capture() as got:
        left.send([tagged, stacked, zero])
        got.wait(3)
    assert got == [bytes(tagged), bytes(stacked), bytes(zero)]


def test_waiting_for_more_than_came_says_how_many_came(veth_pair):
    left, right = veth_pair
    with right.capture() as got:
        left.send([b"\xff" * 60])
        with pytest.raises(TimeoutError, match=r"1 of 2 frames reached right within 0\.1 s"):
            got.wait(2, timeout=0.1)


def test_nothing_is_lost_when_senders_outrun_the_receiver(veth_pair):
    """Three threads fill one ring of 256, whose owner is busy with the frames of the others."""
    left, right = veth_pair
    threads = [threading.Thread(target=left.send, args=([bytes(60)] * 50_000,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right.stats()["rx_packets"] == 150_000


@pytest.mark.parametrize("queues", [1, 2, 4])
def test_every_queue_of_the_peer_can_be_chosen(make_veth, queues):
    left, right = make_veth(queues=queues)
    frame = Ether(src=left.mac, dst=right.mac) / IP() / UDP() / b"the same flow in every queue"
    with right.capture() as got:
        for queue in range(queues):
            left.send([bytes(frame)] * (10 + queue), queue=queue)
        got.wait(sum(range(10, 10 + queues)))
    assert rx_per_queue(right) == list(range(10, 10 + queues))


def test_without_a_queue_flows_spread(make_veth):
    left, right = make_veth(queues=4)
    flows = [Ether(src=left.mac, dst=right.mac) / IP() / UDP(sport=n) for n in range(1000, 1256)]
    with right.capture() as got:
        left.send(flows, queue=1)
        left.send(flows)
        got.wait(512)
    assert all(rx_per_queue(right))
    assert sum(rx_per_queue(right)) == 512


def test_a_queue_out_of_range_is_refused(make_veth):
    with pytest.raises(ValueError, match="left has queues 0 to 1, not 2"):
        make_veth(queues=2)[0].send([], queue=2)


def test_a_frame_beyond_the_mtu_is_refused(veth_pair):
    with pytest.raises(OSError, match="left: 1515 bytes is beyond the MTU"):
        veth_pair[0].send([bytes(1515)])


def test_a_jumbo_mtu_carries_jumbo_frames(make_veth):
    left, right = make_veth(mtu=9000)
    with right.capture() as got:
        left.send([b"\xff" * 9014])
        got.wait(1)
    assert got == [b"\xff" * 9014]


def test_the_ports_are_silent(make_veth):
    """Router solicitations and MLD reports would come within a second of link up, DAD at once."""
    ports = make_veth(addresses=("10.0.0.1/24", "10.0.0.2/24"))
    with ports[1].capture() as got, pytest.raises(TimeoutError, match=r"^0 of 1"):
        got.wait(1, timeout=1.5)
    assert [port.stats()["rx_packets"] for port in ports] == [0, 0]


@pytest.mark.parametrize("addresses", [("10.0.0.1/24", "10.0.0.2/24"), ("fd01::1/64", "fd01::2/64")])
def test_stacks_talk_when_addresses_are_given(make_veth, addresses):
    """And every datagram leaves with a real checksum."""
    left, right = make_veth(addresses=addresses)
    far = addresses[1].split("/")[0]
    family = socket.AF_INET6 if ":" in far else socket.AF_INET
    with left.namespace:
        client = socket.socket(family, socket.SOCK_DGRAM)
    with right.namespace:
        server = socket.socket(family, socket.SOCK_DGRAM)
    with client, server, right.capture() as got:
        server.settimeout(5)
        server.bind((far, 7))
        client.sendto(b"ping", (far, 7))
        assert server.recv(10) == b"ping"
    (frame,) = (Ether(data) for data in got if UDP in Ether(data))
    claimed = frame[UDP].chksum
    del frame[UDP].chksum
    assert Ether(bytes(frame))[UDP].chksum == claimed


def test_the_stack_answers_what_is_sent_by_hand(make_veth):
    left, right = make_veth(addresses=(None, "10.0.0.2/24"))
    with right.namespace:
        Path("/proc/sys/net/ipv4/conf/right/rp_filter").write_text("0")
    request = Ether(src=left.mac, dst="ff:ff:ff:ff:ff:ff", type=0x0806) / bytes.fromhex(
        "0001080006040001" + left.mac.replace(":", "") + "0a000001" + "000000000000" + "0a000002"
    )
    with left.capture() as got:
        left.send([request])
        got.wait(1)
    assert Ether(got[0]).src == right.mac


def test_segments_of_one_tcp_flow_are_never_merged(make_veth, tmp_path):
    """With GRO made to wait as long as it can for more segments of the flow."""
    left, right = make_veth()
    knob = tmp_path / "class/net/right/gro_flush_timeout"  # ns
    script = f"mount -t sysfs none {tmp_path} && echo 200000000 > {knob}"
    right.namespace.run(["unshare", "--mount", "sh", "-c", script])
    assert ethtool_feature(right, "rx-gro")
    segments = [
        bytes(Ether(src=left.mac, dst=right.mac) / IP() / TCP(flags="A", seq=1 + 100 * n) / bytes(100))
        for n in range(8)
    ]
    with right.capture() as got:
        left.send(segments)
        got.wait(8)
    assert got == segments


def ethtool_feature(port, name):
    with port.namespace:
        return ethtool.feature(port.name, name)


def test_one_lab_can_be_a_chain_of_namespaces(lab):
    a, b, c = (lab.namespace(label) for label in "abc")
    first, near = lab.veth(a, b, names=("ab", "ba"))
    far, last = lab.veth(b, c, names=("bc", "cb"))
    assert (first.peer, near.peer, far.peer, last.peer) == (near, first, last, far)
    with near.namespace:
        assert {name for _, name in socket.if_nameindex()} >= {"ba", "bc"}


def test_two_ends_may_share_a_namespace(lab):
    alone = lab.namespace()
    left, right = lab.veth(alone, alone)
    with right.capture() as got:
        left.send([b"\xff" * 60])
        got.wait(1)


def test_a_taken_name_is_told(lab):
    a, b = lab.namespace(), lab.namespace()
    lab.veth(a, b)
    with pytest.raises(OSError, match="make the veth pair left, other: File exists"):
        lab.veth(a, b, names=("left", "other"))


def test_no_descriptor_is_left():
    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    with Lab.pair(queues=2):
        pass
    before = descriptors()
    with Lab.pair(queues=2) as (left, right), right.capture() as got:
        left.send([b"\xff" * 60], queue=1)
        got.wait(1)
    assert descriptors() == before


OWNER = """
import signal, sys
from xdpkit.lab import Lab, Namespace
from xdpkit.device.netlink import iproute
lab = Lab()
inner = lab.namespace("inner")
lab.veth(lab.namespace(), inner)
child = inner.popen(["sleep", "1000"])
with iproute("reach out") as ip:
    ip.link("add", ifname="canary", kind="veth", peer={"ifname": "in", "net_ns_fd": inner.fd})
print("ready", flush=True)
signal.pause()
"""


def test_a_killed_owner_leaves_no_namespace_behind(lab):
    """A veth between the owner's namespace and ours goes when the kernel has removed the owner's namespace,
    although a command that the owner started was still running inside."""
    ours = lab.namespace("ours")
    with ours, socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as events:
        events.settimeout(20)
        events.bind((0, 1))  # RTMGRP_LINK
        owner = ours.popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
        assert owner.stdout.readline() == "ready\n"
        assert "canary" in dict(socket.if_nameindex()).values()
        owner.kill()
        while "canary" in dict(socket.if_nameindex()).values():
            events.recv(1 << 16)
        owner.stdout.close()


PLUGIN_TEST = "def test_needs_a_lab(xdp_veth_pair): pass"


def test_without_privilege_the_fixtures_fail_with_one_line(tmp_path):
    (tmp_path / "test_one.py").write_text(PLUGIN_TEST)
    drop = ["setpriv", "--bounding-set", "-sys_admin"]
    tests = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", str(tmp_path)]
    run = subprocess.run([*drop, *tests], check=False, capture_output=True, text=True)
    assert run.returncode == 1
    assert "the xdpkit lab cannot start: unshare of a network namespace needs CAP_SYS_ADMIN" in run.stdout
    assert "1 error" in run.stdout
