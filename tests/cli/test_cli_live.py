"""`xdpkit run` while it runs: another ruleset, what rules log, copies, and a shadow."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
from blocks import capture
from commands import HERE, start, stop, xdpkit
from traffic import frames, number, until

RULES = """\
from xdpkit import *
pipe = Pipeline("live")
bad = pipe.set("bad", ip.src, source="bad.txt")
pipe.rule(udp, Mirror(64), name="copied")
pipe.rule(udp.dport == 53, log("100/second"), name="dns")
pipe.rule(bad, DROP, name="bad")
"""


@pytest.fixture
def rules(tmp_path):
    path = tmp_path / "live.py"
    path.write_text(RULES)
    (tmp_path / "bad.txt").write_text("203.0.113.0/24\n")
    return path


def reloaded(child):
    """What it says after SIGUSR1."""
    child.send_signal(signal.SIGUSR1)
    while not (line := child.stderr.readline()).startswith("xdpkit: "):
        pass
    return line


def test_a_reload_puts_the_changed_file_in_place_and_a_wrong_one_changes_nothing(make_veth, rules):
    left, right = make_veth()
    child = start(right, rules, "--json")
    with right.capture() as passed:
        left.send(frames(left, right, [1]))
        passed.wait(1)
        (rules.parent / "bad.txt").write_text("198.51.100.0/24\n")
        assert re.match(r"xdpkit: live is in place: compile .* ms, load .* ms, swap .* ms", reloaded(child))
        left.send(frames(left, right, [2]))
        rules.write_text(RULES + "pipe.rule(ip.nonsense == 1, DROP)\n")
        assert f"{rules}:7: ip has no field 'nonsense'" in reloaded(child)
        (rules.parent / "bad.txt").write_text("not an address\n")
        rules.write_text(RULES)
        assert "bad.txt:1" in reloaded(child)
        left.send(frames(left, right, [3]))
        (rules.parent / "bad.txt").write_text("")
        reloaded(child)
        left.send(frames(left, right, [4]))
        passed.wait(2)
    status, out, _ = stop(child)
    ledger = json.loads(out)
    assert (status, ledger["updates"], ledger["seen"], ledger["problems"]) == (0, 2, 4, [])
    assert [number(f) for f in passed] == [1, 4]
    assert {r["name"]: r["packets"] for r in ledger["rules"]} == {"copied": 4, "dns": 4, "bad": 2, "default": 2}


def test_what_rules_log_is_told_and_copies_are_written_with_verdicts(make_veth, rules, tmp_path):
    left, right = make_veth()
    (tmp_path / "bad.txt").write_text("198.51.100.1\n")
    child = start(right, rules, "--copies", tmp_path / "copies.pcapng")
    left.send(frames(left, right, [1, 2]))
    lines = [child.stderr.readline() for _ in range(2)]
    status, out, _ = stop(child)
    assert status == 0
    assert all(
        re.match(r"\d\d:\d\d:\d\d\.\d{6} dns: 198\.51\.100\.1\.4000 > 192\.0\.2\.1\.53 udp, 64 bytes\n", line)
        for line in lines
    )
    assert re.search(r"mirrored +2 ", out)
    _, packets, _ = capture((tmp_path / "copies.pcapng").read_bytes())
    assert [(number(p["data"]), p["verdict"][1]) for p in packets] == [(1, 1), (2, 1)]


def test_a_shadow_is_shown_with_where_it_differs(make_veth, rules, tmp_path):
    left, right = make_veth()
    new = tmp_path / "new.py"
    new.write_text(RULES.replace('"live"', '"new"') + 'pipe.rule(udp, DROP, name="all")\n')
    child = start(right, rules, "--shadow", new, "--json")
    with right.capture() as passed:
        left.send(frames(left, right, range(3)))
        passed.wait(3)
        until(lambda: len(passed) == 3, "3 packets passed")
    status, out, _ = stop(child)
    shadow = json.loads(out)["shadow"]
    assert (status, shadow["pipeline"], shadow["differences"]) == (0, "new", [["PASS", "DROP", 3]])


def test_the_buffer_for_copies_is_a_size(make_veth, rules, tmp_path):
    left, right = make_veth()
    child = start(right, rules, "--copies", tmp_path / "copies.pcapng", "--copies-buffer", "64K", "--json")
    left.send(frames(left, right, range(3)))
    until(lambda: len((tmp_path / "copies.pcapng").read_bytes()) > 500, "the copies")
    status, out, _ = stop(child)
    assert (status, json.loads(out)["mirrored"], json.loads(out)["mirror_full_on"]) == (0, 3, {})
    for wrong in ("64X", "-1", "M", "12"):
        done = xdpkit(right, "run", rules, "-i", right.name, "--copies-buffer", wrong)
        assert done.returncode == 2
        assert re.search(r"--copies-buffer|4096 bytes or more", done.stderr)


def test_wait_reaches_the_worker_that_writes_copies(make_veth, tmp_path):
    """One that is busy uses the CPU where nothing comes; by default it naps, and then sleeps."""
    _, right = make_veth()
    child = start(right, HERE / "pipelines" / "tap.py", "--copies", tmp_path / "busy.pcapng", "--wait", "busy")
    ticks = os.sysconf("SC_CLK_TCK") // 2
    until(lambda: max(cpu_times(child.pid)) >= ticks, "half a second of CPU time", timeout=60)
    assert stop(child)[0] == 0


def cpu_times(pid):
    """Of the threads beside the first, in clock ticks (proc_pid_stat(5): utime and stime)."""
    tasks = (task for task in Path(f"/proc/{pid}/task").iterdir() if task.name != str(pid))
    fields = [(task / "stat").read_text().rpartition(")")[2].split() for task in tasks]
    return [0, *(int(found[11]) + int(found[12]) for found in fields)]


def test_copies_of_what_no_rule_mirrors_are_wrong_usage(make_veth, tmp_path):
    _, right = make_veth()
    plain = tmp_path / "plain.py"
    plain.write_text("from xdpkit import *\npipe = Pipeline('plain')\n")
    done = xdpkit(right, "run", plain, "-i", right.name, "--copies", tmp_path / "c.pcapng")
    assert (done.returncode, "no rule that mirrors" in done.stderr) == (2, True)
    assert not (tmp_path / "c.pcapng").exists()
