"""`xdpkit firewall`: rules stay in force without a process, are exchanged, confirmed, rolled back and taken off."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest
from commands import XDPKIT, xdpkit
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import ICMPv6ND_NS, IPv6
from scapy.layers.l2 import ARP, Ether
from traffic import frames, until

from xdpkit import DROP, PASS, Pipeline, PipelineError, icmp6, ip, pinned_links, src, tcp, udp
from xdpkit.firewall.apply import Bounds, answers, split_canary
from xdpkit.firewall.session import Session, cuts, ssh_session
from xdpkit.meaning.evaluate import evaluate

RULES = """
from xdpkit import DROP, PASS, Pipeline, udp
pipe = Pipeline("edge")
pipe.management("192.0.2.0/28", "2001:db8::/64")
pipe.rule(pipe.bans(), DROP, name="banned")
pipe.rule(udp.dport == {port}, DROP, name="closed")
"""
CUTTING = """
from xdpkit import DROP, PASS, Pipeline, udp
pipe = Pipeline("closed", default=DROP)
pipe.rule(udp.dport == 53, PASS, name="dns")
"""


@pytest.fixture
def guarded(make_veth, tmp_path, monkeypatch):
    """(a port that sends, a port to guard, a name, a file of rules): the firewall is taken off at the end."""
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    left, right = make_veth(addresses=("198.51.100.1/24", "198.51.100.2/24"))
    name, file = f"fw-{os.getpid()}", tmp_path / "rules.py"
    file.write_text(RULES.format(port=53))
    yield left, right, name, file
    if name in pinned_links():
        assert xdpkit(right, "firewall", "detach", name).returncode == 0


def counted(right, name) -> dict[str, int]:
    done = xdpkit(right, "firewall", "status", name, "--json")
    assert done.returncode == 0, done.stderr
    return {rule["name"]: rule["packets"] for rule in json.loads(done.stdout)["rules"] if rule["packets"]}


def test_rules_stay_in_force_and_are_exchanged(guarded):
    left, right, name, file = guarded
    done = xdpkit(right, "firewall", "apply", file, "-i", right.name, "--name", name)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"edge is in force on {right.name}, attached: native, ")
    left.send(frames(left, right, range(5), source="198.51.100.7"))
    until(lambda: counted(right, name).get("closed") == 5, "five dropped")

    done = xdpkit(right, "firewall", "ban", "198.51.100.7", "2001:db8:1::/48", "--timeout", "1h", "--name", name)
    assert (done.returncode, done.stdout) == (0, f"{name}: 2 banned\n")
    left.send(frames(left, right, range(3), source="198.51.100.7"))
    until(lambda: counted(right, name).get("banned") == 3, "three banned")
    listed = xdpkit(right, "firewall", "bans", "--name", name).stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["198.51.100.7", "2001:db8:1::/48"]

    file.write_text(RULES.format(port=54))
    done = xdpkit(right, "firewall", "apply", file, "-i", right.name, "--name", name)
    assert "edge is in force on right, updated" in done.stdout
    assert xdpkit(right, "firewall", "unban", "198.51.100.7", "--name", name).stdout == f"{name}: 1 let in again\n"
    left.send(frames(left, right, range(2), source="198.51.100.7", dport=54))
    until(lambda: counted(right, name).get("closed") == 7, "two more")
    shown = xdpkit(right, "firewall", "status", name).stdout
    assert f"{name}: in force for 0:00:" in shown
    assert ", 1 update, from " in shown
    done = xdpkit(right, "firewall", "detach", name)
    assert (done.returncode, done.stdout) == (0, f"{name} is detached\n")
    assert name not in pinned_links()


def test_a_ruleset_that_nobody_confirms_is_rolled_back(guarded):
    _, right, name, file = guarded
    begun = ["firewall", "apply", file, "-i", right.name, "--name", name]
    done = xdpkit(right, *begun, "--confirm", "0.2")
    assert done.returncode == 1
    assert f"nobody confirmed it: {name} is detached, as it was before" in done.stderr
    assert name not in pinned_links()
    assert xdpkit(right, *begun).returncode == 0
    file.write_text(RULES.format(port=54).replace('"edge"', '"other"'))
    done = xdpkit(right, *begun, "--confirm", "0.2")
    assert "edge is in force again, as it was before" in done.stderr
    assert json.loads(xdpkit(right, "firewall", "status", name, "--json").stdout)["pipeline"] == "edge"


@pytest.mark.parametrize("how", ["confirm", "hangup"])
def test_another_shell_confirms_and_a_lost_session_rolls_back(guarded, how):
    _, right, name, file = guarded
    command = [XDPKIT, "firewall", "apply", str(file), "-i", right.name, "--name", name, "--confirm", "60"]
    child = right.namespace.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "is in force" in child.stdout.readline()
    assert "press Enter, or run" in child.stderr.readline()
    assert "NOT CONFIRMED: rolled back in" in xdpkit(right, "firewall", "status", name).stdout
    if how == "confirm":
        assert xdpkit(right, "firewall", "confirm", name).stdout == f"{name} is confirmed\n"
        out, err = child.communicate(timeout=20)
        assert (child.returncode, err) == (0, "")
        assert "edge is confirmed" in out
        assert name in pinned_links()
    else:
        child.send_signal(signal.SIGHUP)
        out, err = child.communicate(timeout=20)
        assert child.returncode == 1
        assert "it was interrupted" in err
        assert name not in pinned_links()


def test_a_canary_that_stops_to_answer_rolls_back(guarded):
    _, right, name, file = guarded
    file.write_text(CUTTING)
    done = xdpkit(
        right,
        "firewall",
        "apply",
        file,
        "-i",
        right.name,
        "--name",
        name,
        "--confirm",
        "60",
        "--canary",
        "198.51.100.1",
    )
    assert done.returncode == 1
    assert f"198.51.100.1 does not answer: {name} is detached" in done.stderr
    with right.namespace:
        assert answers("198.51.100.1")


def test_rules_that_cut_the_ssh_session_are_refused(guarded, monkeypatch):
    _, right, name, file = guarded
    monkeypatch.setenv("SSH_CONNECTION", "203.0.113.9 50000 192.0.2.5 22")
    file.write_text(CUTTING)
    done = xdpkit(right, "firewall", "apply", file, "-i", right.name, "--name", name)
    assert done.returncode == 1
    assert (
        "drops ARP requests of this SSH session (203.0.113.9 to 192.0.2.5 port 22): nothing was changed" in done.stderr
    )
    assert name not in pinned_links()
    checked = xdpkit(right, "firewall", "check", file)
    assert checked.returncode == 1
    assert "rule 'default' drops its packets of this SSH session" in checked.stdout
    assert xdpkit(right, "firewall", "apply", file, "-i", right.name, "--name", name, "--force").returncode == 0


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["status", "none-such"], "no pinned link 'none-such'"),
        (["detach", "none-such"], "no pinned link 'none-such'"),
        (["confirm"], "no ruleset waits to be confirmed"),
    ],
)
def test_what_is_not_there_is_said(veth_pair, args, said):
    done = xdpkit(veth_pair[1], "firewall", *args)
    assert done.returncode == 1
    assert said in done.stderr or "no firewall is in force" in done.stderr


def test_management_passes_in_both_directions_and_before_all_others():
    pipe = Pipeline("edge", default=DROP)
    pipe.management("192.0.2.0/28", "2001:db8::/64", ports=(22, 8022))
    pipe.rule(tcp.present, DROP, name="all")
    ether = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")

    def rule(packet) -> str:
        return evaluate(pipe, bytes(ether / packet)).name

    assert rule(IP(src="192.0.2.3", dst="198.51.100.1") / TCP(dport=22)) == "management"
    assert rule(IPv6(src="2001:db8::3", dst="2001:db8:9::1") / TCP(dport=8022)) == "management"
    assert rule(IP(dst="192.0.2.3", src="198.51.100.1") / TCP(sport=22)) == "management-replies"
    assert rule(IP(src="192.0.2.3", dst="198.51.100.1") / TCP(dport=23)) == "all"
    assert rule(IP(src="192.0.2.77", dst="198.51.100.1") / TCP(dport=22)) == "all"
    assert rule(ARP()) == "management-neighbours"
    assert rule(IPv6(src="fe80::1", dst="ff02::1") / ICMPv6ND_NS()) == "management-neighbours"


def test_management_behind_a_rule_that_drops_is_refused():
    pipe = Pipeline("edge")
    pipe.rule(ip.present, PASS, name="fine")
    pipe.rule(src.within("10.0.0.0/8"), DROP, name="bogons")
    with pytest.raises(
        PipelineError, match=r"rule 'bogons' \(.*\) could cut management off: declare management before"
    ):
        pipe.management("192.0.2.0/28")


def test_a_session_of_ssh():
    assert ssh_session("203.0.113.9 50000 192.0.2.5 22") == Session("203.0.113.9", 50000, "192.0.2.5", 22)
    assert ssh_session("fe80::9%eth0 50000 fe80::1%eth0 22") == Session("fe80::9", 50000, "fe80::1", 22)
    for other in (None, "", "a b c d", "192.0.2.1 1 2001:db8::1 22"):
        assert ssh_session(other) is None
    pipe = Pipeline("six", default=DROP)
    pipe.rule(tcp.dport == 22, PASS)
    assert [cut.what for cut in cuts(pipe, Session("2001:db8::9", 5, "2001:db8::1", 22))] == ["neighbour solicitations"]
    pipe.rule(icmp6.present | udp.present, PASS)
    assert not cuts(pipe, Session("2001:db8::9", 5, "2001:db8::1", 22))


def test_canaries_are_addresses_with_or_without_a_port():
    assert split_canary("192.0.2.1") == ("192.0.2.1", None)
    assert split_canary("192.0.2.1:443") == ("192.0.2.1", 443)
    assert split_canary("[2001:db8::1]:443") == ("2001:db8::1", 443)
    assert split_canary("2001:db8::1") == ("2001:db8::1", None)
    for wrong in ("", ":", "host:", "192.0.2.1:0", "192.0.2.1:70000", "[2001:db8::1]:x"):
        with pytest.raises(ValueError, match="canary"):
            Bounds((wrong,))
    with pytest.raises(ValueError, match="0 to 100 percent"):
        Bounds(max_drop=1.2)


def test_wrong_usage_has_status_2(veth_pair, tmp_path):
    file = tmp_path / "rules.py"
    file.write_text(RULES.format(port=53))
    for extra in (["--canary", "192.0.2.1"], ["--max-drop", "half", "--confirm", "9"], ["--mode", "fast"]):
        done = xdpkit(veth_pair[1], "firewall", "apply", file, "-i", veth_pair[1].name, *extra)
        assert done.returncode == 2, done.stderr


def test_a_bridge_is_guarded_exchanged_and_taken_away(lab, tmp_path, monkeypatch):
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    middle = lab.namespace("middle")
    left, inside = lab.veth(lab.namespace("left"), middle, names=("left", "a"))
    outside, right = lab.veth(middle, lab.namespace("right"), names=("b", "right"))
    file = tmp_path / "rules.py"
    file.write_text(RULES.format(port=53))
    where = ["--inside", inside.name, "--outside", outside.name]
    done = xdpkit(inside, "firewall", "apply", file, *where)
    assert done.returncode == 0, done.stderr
    assert "edge is in force on a and b, attached" in done.stdout or "edge is in force on" in done.stdout
    try:
        with right.capture() as arrived:
            left.send(frames(left, right, range(5)) + frames(left, right, range(5), dport=80))
            arrived.wait(5)
            name = next(n for n in pinned_links() if n.endswith("-open1") and "-a-b-" in n)
            assert xdpkit(inside, "firewall", "ban", "198.51.100.1", "--name", name).stdout == f"{name}: 1 banned\n"
            left.send(frames(left, right, range(5), dport=80))
            until(lambda: counted(inside, name).get("banned") == 5, "the banned are dropped")
        assert len(arrived) == 5
        file.write_text(RULES.format(port=80).replace('"edge"', '"other"'))
        done = xdpkit(inside, "firewall", "apply", file, *where, "--confirm", "0.2")
        assert "edge is in force again, as it was before" in done.stderr, done.stderr
        assert json.loads(xdpkit(inside, "firewall", "status", name, "--json").stdout)["pipeline"] == "edge"
        assert counted(inside, name)["banned"] == 5
    finally:
        done = xdpkit(inside, "firewall", "detach", name)
    assert (done.returncode, done.stdout) == (0, "the bridge between a and b is detached\n"), done.stderr
    assert name not in pinned_links()


@pytest.mark.parametrize(
    "args", [[], ["-i", "a", "--inside", "b"], ["--inside", "a"], ["--inside", "a", "--outside", "b", "--name", "c"]]
)
def test_a_host_or_a_bridge(veth_pair, tmp_path, args):
    (tmp_path / "rules.py").write_text(CUTTING)
    assert xdpkit(veth_pair[1], "firewall", "apply", tmp_path / "rules.py", *args).returncode == 2
