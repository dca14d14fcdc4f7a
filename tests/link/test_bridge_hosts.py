"""Real clients and servers on both sides of a bridge, with default offloads: curl, iperf3, ping, fragments, VLANs."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from contextlib import ExitStack

import pytest
from giving import in_vlan

from xdpkit import DROP, PASS, Inspect, Pipeline, bridge, dev, icmp, icmp6, ip, ip6, tcp, udp
from xdpkit.device import ethtool

MODES = ["native", "generic", "tc_ingress"]
MERGES, SEGMENTS = ["rx-gro"], ["tx-tcp-segmentation", "tx-tcp6-segmentation", "tx-generic-segmentation"]


@pytest.fixture
def hosts(lab):
    """(left, a, b, right): as of test_bridge.py, with IPv4 and IPv6 on both hosts, all offloads on."""
    middle = lab.namespace("middle")
    left, a = lab.veth(
        lab.namespace("left"), middle, names=("left", "a"), addresses=("10.0.0.1/24", None), offloads=True
    )
    b, right = lab.veth(
        middle, lab.namespace("right"), names=("b", "right"), addresses=(None, "10.0.0.2/24"), offloads=True
    )
    for port, host in ((left, 1), (right, 2)):
        run = port.namespace.run
        run(["sysctl", "-qw", f"net.ipv6.conf.{port.name}.disable_ipv6=0"])
        run(["ip", "addr", "add", f"fd00::{host}/64", "dev", port.name, "nodad"])
    return left, a, b, right


def firewall():
    """The inside may ask for everything; the outside may answer, and ask for nothing but echoes."""
    pipe = Pipeline("wire", default=DROP)
    pipe.neighbours(multicast=True)
    pipe.rule(icmp | icmp6, PASS, name="ping")
    pipe.rule(ip.fragment & ip, PASS, name="fragments")
    pipe.rule(dev.inside & (ip | ip6), PASS, name="out")
    pipe.rule(dev.outside & ((tcp & ~(tcp.syn & ~tcp.ack)) | (udp.sport == 5201)), PASS, name="answers")
    return pipe


SERVER = """
import functools, http.server, socket, sys
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass
server = Server(("::", int(sys.argv[1])), functools.partial(Quiet, directory=sys.argv[2]))
print("ready", flush=True)
server.serve_forever()
"""


def serve(port, number, folder):
    process = port.namespace.popen(
        [sys.executable, "-c", SERVER, str(number), str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"


def curl(port, url):
    done = port.namespace.run(
        ["curl", "-sS", "--max-time", "4", "--globoff", url], check=False, capture_output=True, timeout=30
    )
    return done.stdout if done.returncode == 0 else None


def do_as_it_says(left, a, b, right):
    """What the note of a bridge in generic mode tells to turn off."""
    for port, features in ((left, SEGMENTS), (a, MERGES), (b, MERGES), (right, SEGMENTS)):
        with port.namespace:
            ethtool.set_features(port.name, dict.fromkeys(features, False))


@pytest.mark.parametrize("tagged", [False, True], ids=["plain", "tagged"])
@pytest.mark.parametrize("mode", MODES)
def test_hosts_reach_each_other_as_the_rules_say_byte_for_byte(hosts, tmp_path, mode, tagged):
    """Tagged: with tags that stand beside the frame, as network cards and veth have them."""
    left, a, b, right = hosts
    data = b"".join(hashlib.sha512(str(n).encode()).digest() for n in range(30_000))  # some 2 MB
    (tmp_path / "file").write_bytes(data)
    serve(right, 8080, tmp_path)
    serve(left, 8080, tmp_path)
    with ExitStack() as stack:
        for port in (left, right) if tagged else ():
            stack.enter_context(in_vlan(port))
        stack.enter_context(a.namespace)
        wire = stack.enter_context(bridge(firewall(), inside="a", outside="b", mode=mode))
        if mode == "generic":
            assert any(
                "ethtool -K a gro off; where they are sent, ethtool -K DEV tso off gso off" in n for n in wire.notes
            )
            do_as_it_says(left, a, b, right)
        for address in ("10.0.0.2", "[fd00::2]"):
            assert curl(left, f"http://{address}:8080/file") == data, address
        for address in ("10.0.0.1", "[fd00::1]"):
            assert curl(right, f"http://{address}:8080/file") is None, address
        for address, size in (("10.0.0.2", 56), ("fd00::2", 56), ("10.0.0.2", 4000)):
            done = left.namespace.run(
                ["ping", "-c", "3", "-i", "0.1", "-W", "3", "-s", str(size), address], capture_output=True, text=True
            )
            assert "3 received" in done.stdout
        assert wire.ledger().dropped_there == 0
    ledger = wire.ledger()
    assert ledger.problems() == ()
    taken = {rule.name: rule.packets for rule in ledger.rules}
    assert taken["default"] >= 4  # SYNs, with their repetitions
    assert taken["fragments"] >= 12
    assert taken["neighbours-arp"] > 0


@pytest.mark.parametrize("tagged", [False, True], ids=["plain", "tagged"])
def test_hosts_reach_each_other_through_an_inspector_byte_for_byte(hosts, tmp_path, tagged):
    left, a, _, right = hosts
    data = b"".join(hashlib.sha512(str(n).encode()).digest() for n in range(30_000))
    (tmp_path / "file").write_bytes(data)
    serve(right, 8080, tmp_path)
    pipe = Pipeline("inspected", default=PASS)
    pipe.rule(tcp, Inspect(otherwise=DROP), name="tcp")
    with ExitStack() as stack:
        for port in (left, right) if tagged else ():
            stack.enter_context(in_vlan(port))
        stack.enter_context(a.namespace)
        wire = stack.enter_context(bridge(pipe, inside="a", outside="b", mode="native"))
        stack.enter_context(wire.inspect(lambda batch: batch.headers.protocol == 6))
        for address in ("10.0.0.2", "[fd00::2]"):
            assert curl(left, f"http://{address}:8080/file") == data, address
    ledger = wire.ledger()
    assert (ledger.problems(), ledger.lost, ledger.refused) == ((), 0, 0)
    assert ledger.no_socket < 10  # what closes connections may come when nobody inspects any more
    assert ledger.written > 1000
    assert ledger.completed > 1000


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("iperf3") is None, reason="iperf3 is not installed")
@pytest.mark.parametrize("version", ["-4", "-6"])
def test_a_stream_of_tcp_and_one_of_udp_lose_nothing(hosts, version):
    left, a, _, right = hosts
    address = "10.0.0.2" if version == "-4" else "fd00::2"
    with a.namespace, bridge(firewall(), inside="a", outside="b") as wire:
        for kind in ([], ["-u", "-b", "20M"]):
            server = right.namespace.popen(["iperf3", "-s", "-1", "--forceflush"], stdout=subprocess.PIPE, text=True)
            while not re.search("listening", server.stdout.readline()):
                pass
            done = left.namespace.run(
                ["iperf3", version, "-c", address, "-t", "2", "-J", *kind], capture_output=True, text=True, check=False
            )
            told = json.loads(done.stdout)
            assert "error" not in told, told
            if kind:
                assert told["end"]["sum"]["lost_packets"] == 0
            else:
                assert told["end"]["sum_received"]["bytes"] > 1 << 20
            server.wait(10)
    assert wire.ledger().problems() == ()
