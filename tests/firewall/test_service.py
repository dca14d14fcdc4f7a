"""`xdpkit firewall run`: a process beside rules that act without it; metrics, and the unit that starts it at boot."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import urllib.request

import pytest
from commands import XDPKIT, xdpkit
from prometheus_client.parser import text_string_to_metric_families
from traffic import frames, until

from xdpkit import pinned_links
from xdpkit.firewall.metrics import METRICS

RULES = """
from xdpkit import DROP, PASS, Feed, Pipeline, log, src, udp
pipe = Pipeline("edge")
listed = pipe.set("listed", src, feed=Feed("list.txt"))
pipe.rule(listed, log("100/second"), DROP, name="listed")
pipe.rule(udp.dport == {port}, DROP, name="closed")
"""


@pytest.fixture
def service(make_veth, tmp_path, monkeypatch):
    """(a port that sends, a port to guard, a name, a file of rules, a function that starts the command)."""
    left, right = make_veth()
    name, file = f"service-{os.getpid()}", tmp_path / "rules.py"
    file.write_text(RULES.format(port=53))
    (tmp_path / "list.txt").write_text("198.51.100.1\n")
    children = []

    def begin(*args, **options):
        command = [XDPKIT, "firewall", "run", str(file), "-i", right.name, "--name", name, *args]
        child = right.namespace.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
        children.append(child)
        while not (line := child.stderr.readline()).startswith("xdpkit: edge is in force on right"):
            assert line, child.wait()
        return child

    yield left, right, name, file, begin
    for child in children:
        if child.poll() is None:
            child.kill()
        child.communicate()
    if name in pinned_links():
        assert xdpkit(right, "firewall", "detach", name).returncode == 0


def metrics(text: str) -> dict[tuple[str, ...], float]:
    """{(name, value of a label, ...): value}, without the label `firewall`."""
    return {
        (sample.name, *(v for k, v in sample.labels.items() if k != "firewall")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_it_logs_reloads_and_leaves_the_rules_in_force(service, tmp_path):
    left, right, name, file, begin = service
    child = begin()
    left.send(frames(left, right, range(2)))
    event = json.loads(child.stdout.readline())
    assert (event["rule"], event["packet"]) == ("listed", "198.51.100.1.4000 > 192.0.2.1.53 udp")
    assert re.match(r"20\d\d-\d\d-\d\dT.*\+00:00", event["time"])

    file.write_text(RULES.format(port="wrong"))
    child.send_signal(signal.SIGHUP)
    assert "the new rules are refused, the old ones go on" in child.stderr.readline()
    file.write_text(RULES.format(port=54))
    child.send_signal(signal.SIGHUP)
    assert "edge is in force: compile" in child.stderr.readline()
    left.send(frames(left, right, range(3), dport=54, source="198.51.100.2"))

    def counted() -> dict[tuple[str, ...], float]:
        done = xdpkit(right, "firewall", "metrics", name)
        assert done.returncode == 0, done.stderr
        return metrics(done.stdout)

    until(lambda: counted()["xdpkit_rule_packets_total", "DROP", "closed"] == 3, "three dropped")
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 0
    assert f"edge stays in force on right: 'xdpkit firewall detach {name}' takes it off" in err
    assert counted()["xdpkit_verdict_packets_total", "DROP"] == 5


def test_a_stream_meets_rules_while_it_is_killed_and_started_again(service):
    """Every numbered packet of a denied source is dropped: none reaches the stack while processes come and go."""
    left, right, name, _, begin = service
    sent = 0
    with right.capture() as arrived:
        for _ in range(3):
            child = begin()
            left.send(frames(left, right, range(sent, sent + 200)))
            child.send_signal(signal.SIGKILL)
            left.send(frames(left, right, range(sent + 200, sent + 400)))
            child.wait()
            sent += 400
        until(
            lambda: json.loads(xdpkit(right, "firewall", "status", name, "--json").stdout)["seen"] == sent,
            "all are seen",
        )
    assert not arrived
    rules = json.loads(xdpkit(right, "firewall", "status", name, "--json").stdout)["rules"]
    assert {r["name"]: r["packets"] for r in rules if r["packets"]} == {"listed": sent}


def test_prometheus_is_answered_with_every_metric(service, tmp_path):
    left, right, _name, _, begin = service
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    begin("--metrics", f"127.0.0.1:{port}")
    left.send(frames(left, right, range(4)))
    with right.namespace:
        seen: dict[tuple[str, ...], float] = {}

        def ask() -> dict[tuple[str, ...], float]:
            nonlocal seen
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                seen = metrics(answer.read().decode())
            return seen

        until(lambda: ask()["xdpkit_seen_packets_total",] == 4, "four seen")
    assert seen["xdpkit_set_members", "listed"] == seen["xdpkit_feed_members", "listed"] == 1
    assert seen["xdpkit_feed_failed", "listed"] == 0
    assert seen["xdpkit_up",] == seen["xdpkit_info", "right", "native", "edge"] == 1
    names = {key[0].removesuffix("_total") for key in seen if not key[0].endswith("_created")}
    assert names == {metric[0] for metric in METRICS}


def test_systemd_is_told_when_the_rules_are_in_force(service, tmp_path):
    _, right, *_, begin = service
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        listener.settimeout(30)
        begin(env={**os.environ, "NOTIFY_SOCKET": path, "WATCHDOG_USEC": "400000"})
        assert listener.recv(1000) == f"READY=1\nSTATUS=edge is in force on {right.name}".encode()
        assert listener.recv(1000) == b"WATCHDOG=1"
        assert listener.recv(1000) == b"WATCHDOG=1"


def test_the_unit_is_one_that_systemd_understands(service, tmp_path):
    _, right, name, file, _ = service
    done = xdpkit(right, "firewall", "install", file, "-i", right.name, "--name", name, "--folder", tmp_path)
    assert done.returncode == 0, done.stderr
    path = tmp_path / f"xdpkit-firewall-{name}.service"
    assert f"systemctl enable --now {path.name}" in done.stdout
    assert f"ExecStart={XDPKIT} firewall run {file} -i right --name {name} --metrics 127.0.0.1:9464" in path.read_text()
    checked = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, check=False)
    mine = [line for line in checked.stderr.splitlines() if path.name in line]
    assert not mine
    security = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", path], capture_output=True, text=True, check=False
    )
    level = re.search(r"Overall exposure level for .*: (\d\.\d)", security.stdout)
    assert level, security.stderr
    assert float(level[1]) < 5


def test_a_feed_is_read_on_demand(service):
    _, right, name, _, begin = service
    begin().send_signal(signal.SIGTERM)
    file = service[3].parent / "list.txt"
    file.write_text("198.51.100.1\n198.51.100.2\n")
    done = xdpkit(right, "firewall", "sync", name)
    assert (done.returncode, "1 added" in done.stdout) == (0, True), done
    file.write_text("")
    done = xdpkit(right, "firewall", "sync", name)
    assert done.returncode == 1
    assert "warning" not in done.stdout
    assert "the last good copy stays, 2 members" in done.stderr
    assert xdpkit(right, "firewall", "sync", name, "--set", "none").returncode == 1


def test_wrong_addresses_of_metrics_are_wrong_usage(service):
    _, right, _name, _file, _ = service
    for wrong in ("9464", "127.0.0.1:", "127.0.0.1:x", ":1"):
        done = xdpkit(right, "firewall", "metrics", "--listen", wrong)
        assert done.returncode == 2, done.stderr


def test_fail2ban_understands_its_action(service, tmp_path):
    _, right, *_ = service
    done = xdpkit(right, "firewall", "fail2ban")
    folder = tmp_path / "fail2ban"
    subprocess.run(["cp", "-r", "/etc/fail2ban", folder], check=True)
    (folder / "action.d/xdpkit.conf").write_text(done.stdout)
    (folder / "jail.local").write_text("[DEFAULT]\nbanaction = xdpkit\nbackend = polling\n[sshd]\nenabled = true\n")
    (tmp_path / "auth.log").touch()
    (folder / "jail.local").open("a").write(f"logpath = {tmp_path}/auth.log\n")
    dumped = subprocess.run(["fail2ban-client", "-c", folder, "-d"], capture_output=True, text=True, check=False).stdout
    assert "'xdpkit firewall ban <ip> --timeout <bantime> '" in dumped or "xdpkit firewall ban <ip> --timeout" in dumped
