"""Names that others chose reach a terminal as text: no markup of rich's, no control characters."""

import ast
import json
import os
import subprocess
from pathlib import Path

import pytest
from commands import HERE, XDPKIT, fails, misused, start, stop, xdpkit
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.utils import wrpcap
from tmux import Pane
from traffic import frames

from xdpkit.doctor.findings import Check, render
from xdpkit.terminal import make_console, visible

NAMES = ("edge[/in]", "list [blocked]", "[bold red]x", ":smile:")
RULES = "from xdpkit import *\npipe = Pipeline('names')\n" + "".join(
    f"pipe.rule(udp.dport == {port}, DROP, name={name!r})\n" for port, name in enumerate(NAMES, 53)
)
#: Escape sequence, new line, right-to-left override, a byte that is no UTF-8.
BAD, SHOWN = "a\x1b[31mb\nc\u202ed\udcff", r"a\x1b[31mb\nc\u202ed\xff"


@pytest.fixture
def rules(tmp_path):
    path = tmp_path / "names.py"
    path.write_text(RULES)
    return path


@given(st.text(st.characters()))
def test_what_is_made_visible_is_printable_and_printable_text_stays(text):
    assert visible(text).isprintable()
    assert visible(visible(text)) == visible(text)


def test_a_character_that_is_not_printable_is_shown_as_its_escape():
    assert visible(BAD) == SHOWN
    assert visible("a\tb\nc", keep="\n\t") == "a\tb\nc"


@pytest.mark.parametrize("command", [["run", "RULES", "-i"], ["doctor"], ["doctor", "--clean"], ["firewall", "status"]])
def test_a_name_that_is_not_utf8_text_is_wrong_usage_in_one_line(rules, command):
    arguments = [str(rules) if word == "RULES" else word for word in command]
    done = subprocess.run([XDPKIT, *arguments, b"e\xff"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert r"e\xff" in done.stderr or r"e\udcff" in done.stderr


def test_brackets_in_names_of_rules_are_text_in_the_live_table_and_at_the_end(make_veth, rules):
    left, right = make_veth()
    with Pane(right, f"{XDPKIT} run {rules} -i right", columns=80) as pane:
        pane.wait_for("packets/s")
        left.send(frames(left, right, range(3)))
        live = pane.wait_for(r"edge\[/in\] +3 ")
        pane.interrupt()
        end = pane.wait_for("exit status 0")
    for name in NAMES:
        assert name in live
        assert name in end


def test_brackets_in_names_of_rules_are_text_where_no_terminal_is(make_veth, rules):
    left, right = make_veth()
    child = start(right, rules)
    left.send(frames(left, right, range(3)))
    status, out, err = stop(child)
    assert (status, err) == (0, "")
    assert all(name in out for name in NAMES)


@pytest.mark.parametrize("command", ["show", "replay", "build", "doctor"])
def test_brackets_in_names_are_text_in_every_offline_command(make_veth, rules, tmp_path, command):
    _, right = make_veth()
    wrpcap(str(tmp_path / "[red]a.pcap"), [Ether() / IP() / UDP(dport=53)])
    shadow = tmp_path / "[bold].py"
    shadow.write_text(RULES.replace("DROP", "PASS"))
    args = {
        "show": ["show", rules],
        "replay": ["replay", rules, tmp_path / "[red]a.pcap", "--against", shadow],
        "build": ["build", rules, "-o", tmp_path / "[red].xdp"],
        "doctor": ["doctor", "[red]"],
    }[command]
    done = xdpkit(right, *args)
    assert done.stderr == ""
    expected = {"show": NAMES, "replay": (*NAMES, "[red]a.pcap #1", "[bold].py:3"), "build": ("[red].xdp",)}
    for text in expected.get(command, ("'[red]'",)):
        assert text in done.stdout


def test_control_characters_of_a_file_name_stay_off_the_terminal(make_veth, tmp_path):
    _, right = make_veth()
    folder = tmp_path / BAD
    folder.mkdir()
    path = folder / "p.py"
    path.write_text(RULES)
    done = xdpkit(right, "build", path, "-o", folder / "out.xdp")
    assert (done.returncode, SHOWN in done.stdout) == (0, True)
    path.write_text("x = 1 / 0\n")
    fails(xdpkit(right, "show", path), r"a\x1b[31mb")
    path.write_text(RULES + "pipe.rule(udp.dport == 53, PASS)\n")
    warned = xdpkit(right, "build", path, "-o", folder / "out.xdp")
    assert (warned.returncode, warned.stderr.count("\n")) == (0, 1)
    assert SHOWN in warned.stderr


@pytest.mark.parametrize("args", [["run", "\x1b[31m.py", "-i", "x"], ["\x1b[31m"], ["show", "--\x1b[31m"]])
def test_control_characters_of_wrong_usage_stay_off_the_terminal(make_veth, args):
    _, right = make_veth()
    done = xdpkit(right, *args)
    misused(done)
    assert "\x1b" not in done.stderr


def test_control_characters_of_devices_and_processes_stay_off_the_terminal(make_veth, rules):
    _, right = make_veth()
    fails(xdpkit(right, "run", rules, "-i", BAD[:-1]), r"a\x1b[31mb\nc\u202ed")
    with make_console(width=100, force_terminal=False, file=open(os.devnull, "w"), record=True) as console:
        render([Check("holder", "problem", f"held by process 1 ({BAD})", f"stop [red]{BAD}")], console)
    assert SHOWN in console.export_text().replace("\n", "")


def test_control_characters_of_a_set_member_stay_off_the_terminal(make_veth):
    _, right = make_veth()
    fails(xdpkit(right, "set", "test", BAD, BAD))
    fails(xdpkit(right, "set", "show", BAD))


def test_json_holds_names_as_they_are(make_veth, rules):
    _, right = make_veth()
    found = json.loads(xdpkit(right, "show", rules, "--json").stdout)
    assert [r["name"] for r in found["rules"]] == [*NAMES, "default"]


def test_every_console_is_made_by_the_one_function_that_takes_text_as_it_is():
    found = []
    for path in (*(HERE / "xdpkit").rglob("*.py"), *(HERE / "perf").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("Console", "from_markup"):
                found.append(Path(path).relative_to(HERE).as_posix())
    assert found == ["xdpkit/terminal.py"]
