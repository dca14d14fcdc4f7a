"""What a terminal of 80 and of 120 columns shows, and the question of --confirm."""

import json
import re
import signal

import pytest
from commands import DNS, FIREWALL, XDPKIT, held, start, xdpkit
from tmux import Pane
from traffic import frames, until


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (80, 8), (120, 40)])
def test_the_live_table_leaves_nothing_behind_and_the_headline_is_printed_once(make_veth, columns, lines):
    left, right = make_veth()
    with Pane(right, f"{XDPKIT} run {FIREWALL} -i right", columns=columns, lines=lines) as pane:
        pane.wait_for("firewall on right: native")
        left.send(frames(left, right, range(5)))
        pane.wait_for(r"firewall on right")
        pane.interrupt()
        end = pane.wait_for("exit status 0")
    assert end.count("firewall on right") == 1
    assert end.count("packets/s") == 1
    assert len([line for line in end.splitlines() if line.strip()]) == len(re.findall(r".+\n", end))
    assert max(map(len, end.splitlines())) <= columns


def test_a_terminal_says_what_it_waits_for_while_the_rules_are_compiled(make_veth, tmp_path):
    _, right = make_veth()
    slow = tmp_path / "slow.py"
    lines = ["from xdpkit import *", "pipe = Pipeline('slow')"]
    lines += [
        f"pipe.rule(ip.src.within('10.{n >> 8}.{n & 255}.0/24') & (tcp.dport == {n + 1}), DROP)" for n in range(2000)
    ]
    slow.write_text("\n".join(lines))
    with Pane(right, f"{XDPKIT} run {slow} -i right", columns=80) as pane:
        pane.wait_for("compiling slow, attaching it to right")
        shown = pane.wait_for("slow on right")
        pane.interrupt()
        pane.wait_for("exit status 0")
    assert "compiling" not in shown


def test_a_run_that_is_confirmed_with_enter_goes_on(make_veth):
    _, right = make_veth()
    with Pane(right, f"{XDPKIT} run {FIREWALL} -i right --confirm 600", columns=80) as pane:
        pane.wait_for("press Enter or send SIGUSR2 within")
        pane.type("Enter")
        until(lambda: "press Enter" not in pane.screen() and "packets/s" in pane.screen(), "the question is answered")
        assert len(held(right)) == 1
        pane.interrupt()
        pane.wait_for("exit status 0")


def test_a_run_that_nobody_confirms_is_taken_off_again(make_veth):
    _, right = make_veth()
    done = xdpkit(right, "run", FIREWALL, "-i", right.name, "--confirm", "0.5")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "xdpkit: firewall was not confirmed: it is taken off right again"
    assert "seen" in done.stdout
    assert held(right) == ()


def test_a_run_is_confirmed_by_a_signal(make_veth):
    _, right = make_veth()
    child = start(right, FIREWALL, "--confirm", "2", "--duration", "3")
    assert "press Enter or send SIGUSR2 within" in child.stderr.readline()
    child.send_signal(signal.SIGUSR2)
    assert child.wait(30) == 0
    assert child.stderr.read() == ""


def test_lines_of_json_come_while_it_runs(make_veth):
    left, right = make_veth()
    child = start(right, DNS, "--json-lines", "0.2")
    left.send(frames(left, right, range(5)))
    while json.loads(child.stdout.readline())["seen"] < 5:
        pass
    child.send_signal(signal.SIGINT)
    rest = child.stdout.read().splitlines()
    assert child.wait(30) == 0
    assert json.loads(rest[-1])["final"] is True


def test_a_table_in_a_file_has_no_blanks_at_the_ends_of_its_lines(make_veth):
    _, right = make_veth()
    for args in (["run", DNS, "-i", right.name, "--duration", "0.1"], ["doctor", right.name], ["show", DNS]):
        done = xdpkit(right, *args)
        assert [line for line in done.stdout.splitlines() if line != line.rstrip()] == [], args
