"""``xdpkit demo``, as a newcomer runs it."""

import os
import subprocess
import sys

from commands import DNS, FIREWALL, XDPKIT
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.l2 import Ether

from xdpkit.cli.demo import templates
from xdpkit.device import netdev


def test_the_demo_accounts_for_every_packet_and_its_capture_is_dns(tmp_path):
    before = netdev.device("lo")
    done = subprocess.run(
        [sys.executable, "-m", "xdpkit.cli.main", "demo", "-w", "demo.pcapng", "--duration", "0.5"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "every packet is accounted for" in done.stdout
    assert "native, copy, queues 0-1, veth; not zero-copy" in done.stdout
    read = subprocess.run(
        ["tcpdump", "-nr", "demo.pcapng"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert len(read) > 100
    assert all("A? example.org." in line for line in read)
    assert netdev.device("lo") == before


def test_without_root_the_demo_fails_in_one_line_before_it_says_what_it_will_do(tmp_path):
    command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--", XDPKIT, "demo"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "xdpkit: unshare of a network namespace needs CAP_SYS_ADMIN: run as root\n"
    assert list(tmp_path.iterdir()) == []


def test_the_frames_of_the_demo_are_what_scapy_would_build():
    for frame in templates("02:00:00:00:00:01", "02:00:00:00:00:02"):
        packet = Ether(frame)
        del packet[IP].chksum
        for layer in (TCP, ICMP):
            if layer in packet:
                del packet[layer].chksum
        assert bytes(packet) == frame


def test_neither_the_demo_nor_a_comparison_of_rulesets_wants_scapy(tmp_path):
    (tmp_path / "scapy.py").write_text("raise ImportError('scapy is not installed here')\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    demo = ["demo", "--duration", "0.2", "-w", "demo.pcapng"]
    for args in (demo, ["replay", DNS, "demo.pcapng", "--against", FIREWALL]):
        done = subprocess.run(
            [XDPKIT, *args], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
    assert "#1: 198.51.100.7.5353 > 192.0.2.1.53 udp" in done.stdout
