"""``xdpkit demo``, as a newcomer runs it."""

import subprocess
import sys

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
