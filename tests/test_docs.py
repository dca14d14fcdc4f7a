"""What the documentation shows is run, and what it lists is complete."""

import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet
from traffic import frames, until

from xdpkit import XdpkitError, attach
from xdpkit.language.fields import FIELDS, INNER
from xdpkit.language.pipeline import Pipeline, load_file
from xdpkit.meaning.evaluate import State, evaluate

ROOT = Path(__file__).parent.parent


def blocks(name: str) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), flags=re.DOTALL)


@pytest.mark.root
def test_the_readme_example_receives_packets_and_accounts_for_them(make_veth, tmp_path):
    (source,) = blocks("README.md")
    left, right = make_veth(names=("eth0", "eth1"))
    script = tmp_path / "example.py"
    script.write_text(source)
    process = right.namespace.popen([sys.executable, "-u", str(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("native, copy, queue 0, veth")  # attached, sockets open
    ether = Ether(src=left.mac, dst=right.mac)
    left.send(
        [bytes(ether / IP(src="198.51.100.1") / UDP(dport=53))] * 3
        + [bytes(ether / IP(src="192.0.2.1") / UDP(dport=9))]
    )
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert re.search(r"dns +3 +REDIRECT", out)
    assert re.search(r"delivered +3\b", out)


@pytest.mark.root
def test_the_first_example_of_the_lab_sends_and_receives():
    source, _ = blocks("docs/lab.md")
    exec(source, {})


@pytest.mark.root
def test_the_test_file_of_the_lab_passes(tmp_path):
    _, source = blocks("docs/lab.md")
    (tmp_path / "test_blocks.py").write_text(source)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_blocks.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


@pytest.mark.root
@pytest.mark.parametrize("source", blocks("docs/library.md"))
def test_examples_for_programs_run(make_veth, tmp_path, monkeypatch, source):
    left, right = make_veth(names=("eth0", "eth1"))
    (tmp_path / "pipe.py").write_text(PIPELINE)
    monkeypatch.chdir(tmp_path)
    ended = threading.Event()

    async def handle(_):
        pass

    def stop_when_read():
        until(lambda: sockets.read == 3 or ended.is_set(), "the packets are read")
        sockets.stop()

    scope = {"threading": threading, "handle": handle, "work": list, "XdpkitError": XdpkitError}
    with right.namespace:
        if "attach(" in source:
            exec(source, scope)
            return
        with attach(load_file("pipe.py"), "eth1") as link, link.sockets() as sockets:
            left.send(frames(left, right, range(3)))
            stopper = threading.Thread(target=stop_when_read)
            stopper.start()
            try:
                exec(source, {**scope, "link": link, "sockets": sockets})
            finally:
                ended.set()
                stopper.join()


PIPELINE = """
from xdpkit import *
pipe = Pipeline("dns")
pipe.rule(udp.dport == 53, REDIRECT, name="dns")
"""

#: What examples of a line or two take for granted.
PRELUDE = """
from xdpkit import *
pipe = Pipeline("page")
blocked, trusted = pipe.set("blocked", ip.src, timeouts=True), pipe.set("trusted", ip.src)
scanners = pipe.set("scanners", ip.src, intervals=False, timeouts=True)
"""


@pytest.mark.parametrize("page", ["docs/pipelines.md", "docs/sets.md"])
def test_examples_of_pipelines_declare_what_they_say(page):
    for source in blocks(page):
        scope: dict[str, object] = {}
        exec(PRELUDE, scope)
        exec(compile(source, page, "exec"), scope)
        pipe = scope["pipe"]
        assert isinstance(pipe, Pipeline)
        assert pipe.rules


def test_every_field_is_in_the_documentation():
    text = (ROOT / "docs/pipelines.md").read_text()
    assert [
        spec.name
        for spec in FIELDS
        if not spec.name.startswith(INNER) and f"| `{spec.name}` | {spec.bits} | {spec.doc} |" not in text
    ] == []


def test_every_page_that_is_linked_exists():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.slow
def test_every_command_has_an_example_in_its_help():
    for command in ("run", "demo", "doctor", "show", "replay", "build"):
        done = subprocess.run(
            [sys.executable, "-m", "xdpkit.cli.main", command, "--help"], capture_output=True, text=True, check=True
        )
        assert "Example: xdpkit" in done.stdout, command


@pytest.mark.root
def test_every_command_of_the_first_hour_runs(make_veth, tmp_path):
    _, right = make_veth(names=("eth0", "eth1"))
    (tmp_path / "pipelines").symlink_to(ROOT / "pipelines")
    page = (ROOT / "docs/first-hour.md").read_text()
    commands = [line for block in re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL) for line in block.splitlines()]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for command in commands:
        done = right.namespace.run(
            ["sh", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
            timeout=60,
        )  # fmt: skip
        allowed = (0, 1) if command.startswith("xdpkit doctor") else (0,)  # 1: this machine has a problem
        assert done.returncode in allowed, (command, done.stderr)
    assert len(commands) == 10


def test_the_recipe_for_ssh_limits_new_connections_of_both_families_and_nobody_of_ours():
    (source,) = (block for block in blocks("docs/pipelines.md") if "ssh-too-fast" in block)
    scope: dict[str, object] = {}
    exec(PRELUDE + source, scope)
    pipe = scope["pipe"]
    assert isinstance(pipe, Pipeline)
    state = State(pipe)

    def names(network: Packet, flags: str) -> list[str]:
        data = bytes(Ether() / network / TCP(dport=22, flags=flags))
        return [evaluate(pipe, data, state=state).name for _ in range(5)]

    for other in (IP(src="198.51.100.1", dst="192.0.2.1"), IPv6(src="2001:db8:9::1", dst="2001:db8:1::1")):
        assert names(other, "S") == ["default"] * 3 + ["ssh-too-fast"] * 2
        assert names(other, "A") == ["default"] * 5
    for own in (IP(src="192.0.2.1", dst="192.0.2.2"), IPv6(src="2001:db8:1::2", dst="2001:db8:1::1")):
        assert names(own, "S") == ["own-ssh"] * 5


@pytest.mark.root
def test_the_examples_of_the_bridge_carry_traffic(lab, tmp_path):
    whole, inspecting = blocks("docs/bridge.md")
    middle = lab.namespace("middle")
    left, _ = lab.veth(lab.namespace("left"), middle, names=("left", "eth1"))
    _, right = lab.veth(middle, lab.namespace("right"), names=("eth2", "right"))
    script = tmp_path / "wire.py"
    script.write_text(whole)
    process = middle.popen([sys.executable, "-u", str(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("native, queue 0, veth")
    ether = Ether(src=left.mac, dst=right.mac)
    with right.capture() as got:
        left.send(
            [bytes(ether / IP(dst="192.0.2.1") / TCP(dport=80)), bytes(ether / IP(dst="192.0.2.1") / UDP(dport=1))]
        )
        got.wait(1, timeout=20)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert re.search(r"out +1 +PASS", out)
    assert re.search(r"default +1 +DROP", out)

    def serve(wire):
        with right.capture() as got:
            left.send([bytes(ether / IP(dst="192.0.2.1") / UDP(dport=53) / bytes(n)) for n in (30, 70)])
            until(lambda: wire.ledger().written == wire.ledger().refused == 1, "one crosses, one does not")
            got.wait(1, timeout=20)

    scope: dict[str, object] = {"serve": serve}
    exec("from xdpkit import *", scope)
    with middle:
        exec(inspecting, scope)


@pytest.mark.root
def test_the_examples_of_connections_let_a_client_in_and_report(make_veth, capsys):
    whole, report = blocks("docs/state.md")
    client, server = make_veth(addresses=("198.51.100.1/24", "198.51.100.2/24"))
    scope: dict[str, Any] = {}
    exec(whole, scope)
    exec(report, scope)
    with server.namespace, attach(scope["pipe"], server.name) as link:
        with socket.create_server(("198.51.100.2", 443)) as listener:
            with client.namespace:
                connection = socket.create_connection(("198.51.100.2", 443), timeout=5)
            with connection, listener.accept()[0] as accepted:
                accepted.sendall(b"hello")
                assert connection.recv(5) == b"hello"
                scope["report"](link)
                assert "1 connections, 0 half open" in capsys.readouterr().out
                assert len(link.flows()) == 0
