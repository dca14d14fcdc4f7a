"""The `xdpkit` command as a user meets it: a process, its exit status, what it prints, what it leaves."""

import json
import os
import pty
import re
import select
import signal
import subprocess
from pathlib import Path

import pytest
from blocks import capture
from commands import DNS, FIREWALL, PIPELINES, REFLECT, XDPKIT, fails, held, misused, process, start, stop, xdpkit
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether
from traffic import frames, take, until

from xdpkit import Pipeline, attach, load_file
from xdpkit.compiler.built import as_built
from xdpkit.device.netlink import iproute
from xdpkit.link.ruleset import Ruleset

NO_CAPABILITIES = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")


@pytest.fixture
def veth(make_veth):
    return make_veth(queues=2)


# ---- what goes wrong ----


def test_a_missing_device_is_one_line_that_names_those_there_are(veth):
    _, right = veth
    for run in (xdpkit, process):
        fails(run(right, "run", DNS, "-i", "eth7"), "no network device 'eth7'", "right")


def test_a_busy_device_is_one_line_that_names_the_program(veth, tmp_path):
    _, right = veth
    old = tmp_path / "old.pcapng"
    old.write_bytes(b"precious")
    with right.namespace, attach(Pipeline("holder"), right.name):
        before = held(right)
        done = xdpkit(right, "run", DNS, "-i", right.name, "-w", old)
        fails(done, "right is held by native program 'xdpkit' (id", "of process")
        assert held(right) == before
    assert old.read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pipe = (\n", ["bad.py:1: ", "'(' was never closed"]),
        ("from xdpkit import *\npipe = Pipeline('p')\npipe.rule(udp.dport == 99999, DROP)\n", ["bad.py:3: ", "99999"]),
        ("from xdpkit import *\npipe = Pipeline('p')\n\npipe.rule(udp.dport == 1, 5)\n", ["bad.py:4: ", "no action"]),
        ("import xdpkit\nx = 1 / 0\n", ["bad.py:2: ", "ZeroDivisionError"]),
        ("import no_such_module\n", ["bad.py:1: ", "no_such_module"]),
        ("raise SystemExit(0)\n", ["bad.py:1: ", "SystemExit"]),
        ("x = 1\n", ["bad.py:1: declares 0 pipelines"]),
        ("from xdpkit import *\na = Pipeline('a')\nb = Pipeline('b')\n", ["bad.py:1: declares 2 pipelines"]),
        ("from xdpkit import *\npipe = 3\n", ["declares 0 pipelines"]),
        ("", ["declares 0 pipelines"]),
        ("pipe = '\xe9'\n".encode("latin-1"), ["bad.py:", "utf-8"]),
        (b"\x00\xff\x7fELF", ["bad.py:"]),
    ],
)
def test_a_bad_pipeline_file_is_one_line_with_its_place(veth, tmp_path, text, words):
    _, right = veth
    bad = tmp_path / "bad.py"
    bad.write_bytes(text if isinstance(text, bytes) else text.encode())
    fails(xdpkit(right, "run", bad, "-i", right.name), *words)
    assert held(right) == ()


@pytest.mark.parametrize("path", ["/no/such/directory/out.pcapng", "/proc/out.pcapng", "/", "/dev/full"])
def test_a_capture_file_that_cannot_be_written_is_one_line_that_names_it(veth, path):
    _, right = veth
    fails(xdpkit(right, "run", DNS, "-i", right.name, "-w", path), f"xdpkit: {path}: ")
    assert held(right) == ()


@pytest.mark.parametrize("device", ["eth7", "right"])
def test_a_capture_file_is_kept_when_the_run_cannot_start_and_none_is_left_behind(veth, tmp_path, device):
    _, right = veth
    old, new = tmp_path / "old.pcapng", tmp_path / "new.pcapng"
    old.write_bytes(b"precious")
    for path in (old, new):
        fails(xdpkit(right, "run", DNS, "-i", device, "--bind", "zerocopy", "-w", path))
    assert old.read_bytes() == b"precious"
    assert not new.exists()
    assert held(right) == ()


@pytest.mark.parametrize(
    ("before", "args", "words"),
    [
        (NO_CAPABILITIES, [], ["loading eBPF needs CAP_BPF", "root"]),
        (NO_CAPABILITIES, ["--mode", "af_packet"], ["loading eBPF needs CAP_BPF", "root"]),
        (
            ("setpriv", "--bounding-set=-net_raw"),
            [],
            ["right queue 0: socket(AF_XDP): Operation not permitted", "CAP_NET_RAW"],
        ),
        (("setpriv", "--bounding-set=-net_raw"), ["--mode", "af_packet"], ["socket(AF_PACKET)", "CAP_NET_RAW"]),
        (("setpriv", "--bounding-set=-net_admin,-sys_admin"), [], ["CAP_NET_ADMIN", "root"]),
    ],
    ids=["none", "none-af_packet", "net_raw", "net_raw-af_packet", "net_admin"],
)
def test_a_missing_capability_is_one_line_that_names_call_and_capability(veth, before, args, words):
    _, right = veth
    fails(process(right, "run", DNS, "-i", right.name, *args, before=before), *words)
    assert held(right) == ()


def test_required_zero_copy_is_one_line_that_names_device_queue_and_call(veth):
    _, right = veth
    done = xdpkit(right, "run", DNS, "-i", right.name, "--bind", "zero-copy")
    fails(done, "right queue 0: bind(AF_XDP): Operation not supported: the driver has no zero-copy")
    assert held(right) == ()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("ring_size=3", "ring_size 3: a power of two"),
        ("busy_poll=maybe", "busy_poll 'maybe': auto, on, off"),
        ("ring_size=many", "a whole number"),
        ("unaligned=perhaps", "unaligned 'perhaps': auto, on, off"),
        ("debug=perhaps", "on or off"),
        ("colour=red", "no socket option 'colour': there are ring_size, frames"),
        ("tx", "NAME=VALUE"),
    ],
)
def test_socket_options_that_mean_nothing_are_wrong_usage(veth, option, said):
    done = xdpkit(veth[1], "run", DNS, "-i", veth[1].name, "-o", option)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.replace("│", " ").split())


def test_an_mtu_too_large_is_one_line_with_the_limit(make_veth):
    _, right = make_veth(mtu=9000)
    single = ("-o", "multi_buffer=off")
    fails(xdpkit(right, "run", DNS, "-i", right.name, *single), "MTU 9000 is too large", "mtu 3818")
    fails(xdpkit(right, "run", FIREWALL, "-i", right.name, "--mode", "native", *single), "MTU", "lower both")
    assert held(right) == ()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--queues", "2"], ["queue 2 is out of range: right has 0-1"]),
        (["--queues", "0-9999999999"], ["queues are written 0-3,5"]),
        (["--queues", "one"], ["'one': queues are written 0-3,5"]),
        (["--queues", "1-0"], ["no queue is chosen"]),
        (["--mode", "fast"], ["mode 'fast': auto, native, generic, tc_ingress, af_packet"]),
        (["--bind", "zero"], ["bind 'zero': auto, zerocopy, copy"]),
        (["--count", "-1"], ["--count"]),
        (["--no-such-flag"], ["--no-such-flag"]),
        (["-w", "-", "--json"], ["all want standard output"]),
    ],
)
def test_a_wrong_argument_is_a_usage_error_that_says_what_is_right(veth, args, words):
    _, right = veth
    misused(xdpkit(right, "run", DNS, "-i", right.name, *args), *words)
    assert held(right) == ()


def test_a_pipeline_file_that_is_not_there_or_a_missing_device_option_is_a_usage_error(veth, tmp_path):
    _, right = veth
    misused(process(right, "run", tmp_path / "none.py", "-i", right.name), "none.py", "does not exist")
    misused(xdpkit(right, "run", tmp_path, "-i", right.name), "is a directory")
    misused(xdpkit(right, "run", DNS), "--interface")
    misused(xdpkit(right, "show", DNS, "--hook", "nose"), "one of")


def test_writing_what_a_pipeline_never_redirects_is_a_usage_error_and_touches_no_file(veth, tmp_path):
    _, right = veth
    path = tmp_path / "out.pcapng"
    misused(xdpkit(right, "run", FIREWALL, "-i", right.name, "-w", path), "has no REDIRECT rule")
    misused(xdpkit(right, "run", FIREWALL, "-i", right.name, "--mode", "af_packet"), "no REDIRECT rule")
    assert not path.exists()


def test_a_write_that_fails_in_mid_run_is_one_line_and_the_ledger_still_sums(veth):
    left, right = veth
    reader, writer = os.pipe()
    child = start(right, DNS, "-w", f"/proc/{os.getpid()}/fd/{writer}", "--json")
    os.close(reader)
    os.close(writer)
    left.send(frames(left, right, range(10)))
    out, err = child.communicate(timeout=30)  # it ends by itself
    assert (child.returncode, err.count("\n")) == (1, 1), err
    assert "Broken pipe" in err
    ledger = json.loads(out)
    assert (ledger["written"], ledger["problems"]) == (0, [])
    assert ledger["delivered"] == ledger["refused"] > 0
    assert held(right) == ()


def test_a_device_that_goes_away_ends_the_run_with_one_line(veth, tmp_path):
    left, right = veth
    path = tmp_path / "out.pcapng"
    child = start(right, DNS, "-w", path, "--json")
    left.send(frames(left, right, range(10)))
    until(lambda: path.stat().st_size > 1000, "captured packets")
    with left.namespace, iproute("delete") as ip:
        ip.link("del", index=left.index)
    out, err = child.communicate(timeout=30)
    assert (child.returncode, err.count("\n")) == (1, 1), err
    assert err.startswith("xdpkit: right: the device was deleted")
    assert (json.loads(out)["written"], json.loads(out)["problems"]) == (10, [])
    assert len(capture(path.read_bytes())[1]) == 10


# ---- what goes right ----


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_run_with_the_ledger(veth, tmp_path, number):
    left, right = veth
    path = tmp_path / "out.pcapng"
    child = start(right, DNS, "-w", path)
    left.send(frames(left, right, range(500)) + frames(left, right, range(3), dport=80))
    status, out, err = stop(child, number)
    assert (status, err) == (0, "")
    assert held(right) == ()
    rows = {row[0]: row[1:] for line in out.splitlines()[1:] if (row := line.split())}
    assert [rows[name][0] for name in ("seen", "dns-udp", "redirected", "written")] == ["503", "500", "500", "500"]
    assert out.startswith("dns on right: native, copy, queues 0-1, veth")
    assert len(capture(path.read_bytes())[1]) == 500


@pytest.mark.parametrize("mode", ["native", "generic", "af_packet"])
def test_when_it_says_that_it_is_ready_no_packet_finds_its_socket_missing(veth, mode):
    left, right = veth
    child = start(right, DNS, "--mode", mode, "--json")
    left.send(frames(left, right, range(2000)))
    status, out, _ = stop(child)
    ledger = json.loads(out)
    assert status == 0
    assert (ledger["seen"], ledger["no_socket"], ledger["delivered"]) == (2000, 0, 2000 - ledger["lost"])
    assert (ledger["in_flight"], ledger["waiting"], ledger["problems"], ledger["final"]) == (0, 0, [], True)
    assert (ledger["attachment"]["mode"], ledger["attachment"]["bind"], ledger["sink"]) == (mode, "copy", "counted")
    assert held(right) == ()


def test_count_is_exact_and_ends_the_run(veth, tmp_path):
    left, right = veth
    path = tmp_path / "out.pcapng"
    child = start(right, DNS, "-w", path, "--count", 100, "--snaplen", 42, "--json")
    for queue in (0, 1):
        left.send(frames(left, right, range(80)), queue=queue)
    out, _ = child.communicate(timeout=30)
    packets = capture(path.read_bytes())[1]
    assert (child.returncode, len(packets), json.loads(out)["written"]) == (0, 100, 100)
    assert {len(p["data"]) for p in packets} == {42}
    assert held(right) == ()


def test_count_without_sockets_counts_what_was_seen(veth):
    left, right = veth
    child = start(right, FIREWALL, "--count", 10, "--json")
    left.send(frames(left, right, range(10)))
    out, _ = child.communicate(timeout=30)
    assert (child.returncode, json.loads(out)["seen"]) == (0, 10)


def test_duration_ends_the_run(veth):
    _, right = veth
    done = xdpkit(right, "run", DNS, "-i", right.name, "--duration", "0.2", "--json", "-q")
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert done.stderr.startswith("xdpkit: dns on right: native, copy")  # ready, also with -q
    assert json.loads(done.stdout)["seconds"] >= 0.2
    assert held(right) == ()


def test_a_capture_on_standard_output_flows_into_tcpdump(veth):
    left, right = veth
    reader, writer = os.pipe()
    child = start(right, DNS, "-w", "-", stdout=writer)
    os.close(writer)
    with subprocess.Popen(
        ["tcpdump", "-nr", "-"], stdin=reader, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as tcpdump:
        os.close(reader)
        left.send(frames(left, right, range(20)))
        child.send_signal(signal.SIGTERM)
        _, err = child.communicate(timeout=30)
        lines = tcpdump.communicate(timeout=30)[0].decode().splitlines()
    assert (child.returncode, tcpdump.returncode) == (0, 0)
    assert len(lines) == 20
    assert all("192.0.2.1.53" in line for line in lines)
    assert "written" in err  # the ledger


def test_a_capture_appends_where_the_shell_appends(veth, tmp_path):
    _, right = veth
    path = tmp_path / "log"
    path.write_bytes(b"before")
    with path.open("ab") as file:
        run = ("run", DNS, "-i", right.name, "-w", "-", "--duration", "0.1")
        done = process(right, *run, capture_output=False, stdout=file)
    assert done.returncode == 0
    assert path.read_bytes()[:6] == b"before"
    capture(path.read_bytes()[6:])


def test_a_reader_of_the_capture_that_goes_away_ends_the_run_with_one_line(veth):
    left, right = veth
    child = start(right, DNS, "-w", "-")
    child.stdout.close()
    left.send(frames(left, right, range(10)))
    err = child.stderr.read()
    assert child.wait(30) == 1
    assert err.splitlines()[-1] == "xdpkit: standard output: Broken pipe"
    assert held(right) == ()


def test_a_terminal_shows_a_live_table_with_rates_and_stops_cleanly(veth):
    left, right = veth
    ours, theirs = pty.openpty()
    env = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
    child = right.namespace.popen(
        [XDPKIT, "run", DNS, "-i", right.name], stdout=theirs, stderr=subprocess.PIPE, env=env
    )
    os.close(theirs)
    shown = ""

    def read():
        nonlocal shown
        while select.select([ours], [], [], 0.02)[0]:
            try:
                shown += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", os.read(ours, 65536).decode())
            except OSError:  # the other end is closed
                return True
        return False

    def rates():
        left.send(frames(left, right, range(50)))
        read()
        return re.search(r"delivered +[1-9][\d,]* +[1-9]", shown)

    until(rates, "a rate in the live table", timeout=20)
    assert "packets/s" in shown
    assert "dns on right: native, copy" in shown
    shown = ""
    child.send_signal(signal.SIGINT)
    until(read, "the end of the output")
    assert child.wait(30) == 0
    assert child.stderr.read() == b""
    assert re.search(r"seen +\d", shown)
    assert "Traceback" not in shown
    os.close(ours)
    assert held(right) == ()


def test_standard_output_that_is_full_is_one_line(veth):
    _, right = veth
    for args in (["run", DNS, "-i", right.name, "--duration", "0.1", "-q"], ["show", DNS], ["show", DNS, "--json"]):
        with open("/dev/full", "w") as full:
            done = process(right, *args, capture_output=False, stdout=full, stderr=subprocess.PIPE)
        assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "xdpkit: No space left on device")
        assert "Traceback" not in done.stderr


# ---- show ----


@pytest.mark.parametrize("hook", ["xdp", "tc", "socket"])
def test_show_prints_the_python_lines_beside_their_instructions(veth, hook):
    _, right = veth
    done = process(right, "show", DNS, "--hook", hook, "--rules", before=NO_CAPABILITIES)
    assert (done.returncode, done.stderr) == (0, "")
    for line, text in enumerate(Path(DNS).read_text().splitlines(), 1):
        if text.startswith("pipe.rule"):
            assert re.search(re.escape(f"dns.py:{line}  {text}\n") + r"(LBB\w+:\n)*( +\d+: \S.*\n)+", done.stdout)


def test_show_as_json_parses_and_names_file_and_line(veth):
    _, right = veth
    done = xdpkit(right, "show", DNS, "--json")
    found = json.loads(done.stdout)
    assert (found["pipeline"], found["hook"], len(found["digest"])) == ("dns", "xdp", 64)
    mine = [b for b in found["blocks"] if b["file"].endswith("pipelines/dns.py")]
    lines = Path(DNS).read_text().splitlines()
    assert {lines[b["line"] - 1] for b in mine} >= {line for line in lines if line.startswith("pipe.rule")}
    assert all(b["instructions"] for b in mine)


def test_show_says_which_rules_are_a_table_and_where_they_stand(veth, tmp_path):
    _, right = veth
    path, lines = tmp_path / "many.py", ["from xdpkit import DROP, Pipeline, tcp", "pipe = Pipeline('many')"]
    path.write_text("\n".join(lines + [f"pipe.rule(tcp.dport == {port}, DROP)" for port in range(40)]))
    done = process(right, "show", str(path), before=NO_CAPABILITIES)
    assert f"rules 0 to 39: a decision tree, 42 entries, at most 2 for a packet ({path}:3 to {path}:42)" in done.stdout
    (table,) = json.loads(xdpkit(right, "show", str(path), "--json").stdout)["tables"]
    assert (table["first"], table["last"], table["depth"]) == (0, 39, 2)


# ---- the pipelines that people start from ----


@pytest.mark.parametrize("path", PIPELINES, ids=lambda p: p.stem)
def test_every_pipeline_passes_the_verifier_for_every_hook_and_runs(veth, path):
    left, right = veth
    pipe = load_file(path)
    for hook in ("xdp", "tc", "socket"):
        with Ruleset(as_built(pipe), hook, explain=True) as ruleset:
            assert ruleset.program.info()["verified_instructions"] > 0
    child = start(right, path, "--json")
    left.send(frames(left, right, range(10), dport=9))
    status, out, err = stop(child)
    assert (status, err) == (0, "")
    assert json.loads(out)["seen"] == 10
    assert json.loads(out)["problems"] == []
    assert held(right) == ()
    assert "xdpkit run pipelines/" in path.read_text()  # says how to run it
    for spec in pipe.sets:
        if spec.pinned:
            assert xdpkit(right, "set", "delete", spec.name).returncode == 0


def ether(left, right):
    return Ether(src=left.mac, dst=right.mac)


def test_the_dns_pipeline_takes_queries_and_answers_and_nothing_else(veth):
    left, right = veth
    head = ether(left, right) / IP(src="198.51.100.1", dst="192.0.2.1")
    mine = [
        head / UDP(sport=9, dport=53),
        head / UDP(sport=53, dport=9),
        head / TCP(sport=9, dport=53),
        head / TCP(sport=53),
    ]
    others = [head / UDP(sport=9, dport=54), head / TCP(sport=9, dport=80), ether(left, right) / ARP()]
    with right.namespace, right.capture() as stack, attach(load_file(DNS), right.name) as link:
        left.send(mine, queue=0)  # no socket yet: the host keeps its DNS
        stack.wait(4)
        with link.sockets() as sockets:
            left.send(mine + others, queue=0)
            assert take(sockets, 4) == [bytes(p) for p in mine]
            stack.wait(7)
    assert stack == [bytes(p) for p in mine + others]


def test_the_firewall_pipeline_drops_what_is_not_wanted_and_lets_management_through(veth):
    left, right = veth

    def packet(layer, source="198.51.100.1"):
        return ether(left, right) / IP(src=source, dst="192.0.2.1") / layer

    wanted = [
        ether(left, right) / ARP(),
        packet(TCP(dport=22, flags="S"), "192.0.2.5"),
        packet(ICMP(type=8)),
        packet(TCP(dport=443, flags="S")),
        packet(TCP(dport=40000, flags="A")),
        packet(UDP(sport=53, dport=40000)),
    ]
    unwanted = [
        packet(TCP(dport=22, flags="S"), "192.0.2.16"),
        packet(TCP(dport=443, flags="S"), "10.1.2.3"),
        packet(TCP(dport=40000, flags="S")),
        packet(UDP(sport=9, dport=9)),
        packet(ICMP(type=5)),
        ether(left, right) / IPv6(src="2001:db8::1", dst="2001:db8::2") / UDP(sport=9, dport=9),
        ether(left, right) / b"what is this",
    ]
    with right.namespace, right.capture() as stack, attach(load_file(FIREWALL), right.name) as link:
        left.send([*unwanted, *wanted], queue=0)
        stack.wait(len(wanted))
        counts = {r.name: r.packets for r in link.ledger().rules}
    assert stack == [bytes(p) for p in wanted]
    assert counts == {
        "neighbours": 1, "management": 1, "bogons": 1, "ping": 1, "web": 1, "replies": 1, "dns-and-time": 1,
        "no-ipv6": 1, "default": 5,
    }  # fmt: skip


def test_the_reflect_pipeline_sends_test_traffic_back_and_passes_the_rest(veth):
    left, right = veth
    test = ether(left, right) / IP(src="198.18.0.1", dst="198.19.255.254") / UDP(sport=1, dport=9, chksum=0) / b"test"
    rest = [
        ether(left, right) / IP(src="198.18.0.1", dst="198.20.0.1") / UDP(),
        ether(left, right) / IP(dst="198.18.0.1") / TCP(),
    ]
    with left.namespace:
        polled = attach(Pipeline("pass"), left.name)  # veth wakes a peer for XDP_TX only if that has a program too
    with polled, right.namespace, left.capture() as back, right.capture() as stack:
        with attach(load_file(REFLECT), right.name):
            left.send([test, *rest], queue=1)
            back.wait(1)
            stack.wait(2)
    assert back == [bytes(ether(right, left) / test[IP])]
    assert stack == [bytes(p) for p in rest]
