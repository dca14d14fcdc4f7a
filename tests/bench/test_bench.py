"""The comparison of paths: what it counts and how it tells, never how fast anything is."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tmux import Pane
from traffic import until

from xdpkit import attach
from xdpkit.bench import measure as costs
from xdpkit.bench.native import loops, uring
from xdpkit.bench.page import page
from xdpkit.bench.run import DIRECTIONS, Plan, Results, measure
from xdpkit.bench.sample import Sample, rows
from xdpkit.bench.site import everything
from xdpkit.bench.verdict import verdicts
from xdpkit.kernel.core import check, ffi, lib
from xdpkit.language.errors import NotSupported

XDPKIT = str(Path(sys.executable).with_name("xdpkit"))
EXACT = {
    "receive": ("xdp-drop", "plain-c", "plain-c-2k", "afxdp", "afxdp-generic", "afxdp-python", "tpacket-v3",
                "recvmmsg", "recvfrom", "io-uring", "udp-recvmmsg", "udp-recv", "python-recv"),
    "send": ("afxdp-tx", "live-frames", "sendmmsg", "send"),
    "forward": ("devmap", "afxdp-forward", "bridge"),
}  # fmt: skip


def sample(path, rate, *, direction="receive", load="saturated", **more):
    return Sample(direction=direction, path=path, size=64, load=load, seconds=1.0, sent=rate, received=rate, **more)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """One quick run of every path, as the command makes it."""
    folder = tmp_path_factory.mktemp("bench")
    args = [XDPKIT, "bench", "paths", "--quick", "-o", str(folder / "out.json"), "--html", str(folder / "out.html")]
    done = subprocess.run(args, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "out.json").read_text()), (folder / "out.html").read_text(), done.stdout


def test_a_quick_run_measures_every_path_that_is_no_tool(quick):
    got, _, _ = quick
    assert got["missing"] == {}
    measured = {(r["direction"], r["path"]) for r in got["rows"]}
    assert {(d, p.name) for d, paths in DIRECTIONS.items() for p in paths if not p.tool} <= measured


def test_every_packet_of_every_path_is_accounted_for(quick):
    got, _, _ = quick
    for s in got["samples"]:
        assert s["received"] >= 0
        if s["path"] in EXACT.get(s["direction"], ()):
            assert s["unaccounted"] == 0, s


def test_a_probe_tells_delays_and_system_calls_and_no_delay_is_before_its_packet(quick):
    got, _, _ = quick
    probes = {s["path"]: s for s in got["samples"] if s["direction"] == "receive" and s["load"] == "probe"}
    delayed = [p.name for p in DIRECTIONS["receive"] if p.delays]
    for name in delayed:
        assert probes[name]["calls"] > 0
        p50, p99, p999 = probes[name]["delays_us"]
        assert 0 <= p50 <= p99 <= p999 < 60e6


def test_every_row_names_its_modes_and_its_knobs_and_never_calls_copy_zero_copy(quick):
    got, _, _ = quick
    assert all(r["attachment"] and r["knobs"] for r in got["rows"])
    (afxdp,) = (r for r in got["rows"] if (r["direction"], r["path"]) == ("receive", "afxdp"))
    assert afxdp["attachment"].startswith("native, copy")
    assert "not zero-copy" in afxdp["attachment"]


def test_the_page_stands_alone_with_its_charts_and_the_table_begins_with_verdicts(quick):
    got, html, table = quick
    assert html.count("data:image/svg+xml;base64,") >= 6
    assert "http://" not in html
    assert "https://" not in html
    assert [v["target"] in table for v in got["verdicts"]] == [v["measured"] is not None for v in got["verdicts"]]
    assert got["machine"].keys() >= {"kernel", "CPU", "driver", "load average"}


def test_paths_that_there_are_not_are_wrong_usage():
    done = subprocess.run([XDPKIT, "bench", "paths", "--only", "nonsense"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "unknown path 'nonsense'" in done.stderr.replace("\n", " ").replace("│", "")


def test_a_path_that_cannot_run_here_is_named_with_what_it_needs(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    loops.cache_clear()
    try:
        results = measure(Plan(sizes=(64,), runs=1, seconds=0.05, only=("plain-c", "tcpdump")))
    finally:
        loops.cache_clear()
    assert results.samples == []
    assert "apt-get install gcc" in results.missing["receive plain-c 64"]
    assert "apt-get install tcpdump" in results.missing["receive tcpdump 64"]


def test_jumbo_frames_reach_afxdp_and_the_plain_loop_says_why_not():
    results = measure(Plan(sizes=(9000,), runs=1, seconds=0.05, only=("plain-c", "afxdp")))
    assert "at most 3840 bytes" in results.missing["receive plain-c 9000"]
    assert {s.load for s in results.samples} == {"saturated", "fixed", "probe"}
    assert all(s.received and s.unaccounted == 0 and "multi-buffer" in s.attachment for s in results.samples)


def test_rows_are_medians_and_their_spread():
    (row,) = rows([sample("afxdp", n) for n in (3, 1, 2)])
    assert row.rate == (2, 1, 3)
    assert row.sender_bound
    lossy = Sample(
        direction="receive", path="x", size=64, load="saturated", seconds=1.0, sent=10, lost_kernel=4, received=5
    )
    (row,) = rows([lossy])
    assert (row.kernel_loss, row.unaccounted, row.sender_bound) == (0.4, 0.1, False)


def test_a_verdict_says_yes_no_or_not_measured():
    fast = [sample("afxdp", 400), sample("recvfrom", 100), sample("tpacket-v3", 300)]
    by_target = {v.target: v for v in verdicts(rows(fast), 0.0)}
    assert by_target["receive: afxdp / recvfrom, packets/s"].met is True
    assert by_target["receive: afxdp / tpacket-v3, packets/s"].met is False
    assert by_target["send: afxdp-tx / send, packets/s"].met is None


@pytest.mark.parametrize(("idle", "met"), [(0.0, True), (0.5, False)])
def test_cpu_is_judged_by_the_machine_when_it_is_quiet_and_else_by_the_processes(idle, met):
    costly = [
        sample(name, 1000, load="fixed", machine_s=machine, own_s=own)
        for name, machine, own in (("afxdp", 2.0, 4.0), ("tpacket-v3", 5.0, 5.0), ("xdp-drop", 1.0, 1.0))
    ]
    (verdict,) = (v for v in verdicts(rows(costly), idle) if v.target.startswith("receive: afxdp / tpacket-v3, CPU"))
    assert verdict.met is met


def test_system_calls_of_one_process_are_counted_and_no_others():
    with costs.Calls(os.getpid()) as mine, costs.Calls(1) as others:
        before, apart = mine.count(), others.count()
        for _ in range(1000):
            os.getppid()
        assert 1000 <= mine.count() - before < 5000
        assert others.count() - apart < 1000


def test_frames_carry_the_time_when_they_were_sent_and_a_sink_tells_their_delay(veth_pair):
    left, right = veth_pair
    delays = np.zeros(64, np.uint64)
    sink, worker = ffi.new("struct xk_sink **"), ffi.new("struct xk_worker **")
    frame = bytes.fromhex("ffffffffffff0200000000010800") + bytes(50)
    with right.namespace, attach(everything(), right.name, mode="native") as link, link.sockets() as sockets:
        check(lib.xk_sink_delays(42, ffi.from_buffer("uint64_t[]", delays, require_writable=True), 64, sink))
        check(lib.xk_worker_start_xsk(sockets.xsks[0].xsk, sink[0], 0, 0, 0, -1, worker))
        stats = ffi.new("struct xk_worker_stats *")

        def received():
            lib.xk_worker_stats(worker[0], stats)
            return stats.packets == 100

        with left.generator([frame], time_offset=42) as generator:
            generator.send(100)
        until(received, "100 packets received")
        sockets.stop_inflow()
        lib.xk_worker_stop(worker[0])
        lib.xk_worker_join(worker[0], stats)
        lib.xk_sink_close(sink[0])
    assert (stats.written, stats.refused) == (64, 36)
    assert (delays > 0).all()
    assert (delays < 60 * 10**9).all()


def test_io_uring_is_there_where_the_tests_run():
    assert uring().uring_run


def test_a_page_without_matplotlib_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(NotSupported, match=r"pip install 'xdpkit\[perf\]'"):
        page(Results(0.0), {})


def test_without_privileges_it_says_so_in_one_line():
    args = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", XDPKIT, "bench", "paths", "--quick"]
    done = subprocess.run(args, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "run as root" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_ctrl_c_ends_it_with_its_sender_and_no_traceback():
    args = [XDPKIT, "bench", "paths", "--only", "xdp-drop", "--seconds", "30"]
    child = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    children = Path(f"/proc/{child.pid}/task/{child.pid}/children")
    until(lambda: children.read_text().split(), "the sender")
    os.killpg(child.pid, signal.SIGINT)
    out, _ = child.communicate(timeout=60)
    assert child.returncode != 0
    assert "Traceback" not in out
    with pytest.raises(ProcessLookupError):
        os.killpg(child.pid, 0)


def test_verdicts_and_the_warning_come_first_and_fit_into_80_columns():
    from io import StringIO

    from xdpkit.bench.report import show
    from xdpkit.bench.run import Results
    from xdpkit.terminal import make_console

    def sample(path, received):
        return Sample(direction="receive", path=path, size=64, load="saturated", seconds=1.0, sent=received,
                      received=received)  # fmt: skip

    out = StringIO()
    show(make_console(file=out, width=80), Results(0.5, [sample("afxdp", 4000), sample("recvfrom", 1000)]), {})
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("This machine was not quiet: 0.50 CPUs did other work.")
    assert [line.split()[:4] for line in lines if line.strip().startswith("yes")] == [["yes", "4.00", ">=", "3.4"]]
    assert any("targets were not measured" in line for line in lines[:8])
    assert "not measured  " not in out.getvalue()


def test_what_is_not_known_is_blank_and_a_delay_that_does_not_fit_says_so():
    from dataclasses import replace

    from xdpkit.bench.report import _delay
    from xdpkit.bench.sample import Row
    from xdpkit.bench.verdict import _cpu

    assert (_delay(12.34, 1), _delay((2**32 - 1) / 1000, 0)) == ("12.3", "> 4.29 s")
    row = Row(direction="receive", path="", size=64, attachment="", knobs="")
    costs = {"afxdp": 100.0, "tpacket-v3": 300.0, "xdp-drop": 0.0}
    found = {("receive", name): replace(row, path=name, machine_ns=ns) for name, ns in costs.items()}
    assert _cpu(found, "machine", "afxdp").measured is None  # xdp-drop costs something: 0 is not known


@pytest.mark.parametrize("columns", [80, 120])
def test_every_table_fits_the_terminal_and_shows_every_column(veth_pair, columns):
    command = f"{XDPKIT} bench paths --quick --only afxdp,recvfrom,waits"
    with Pane(veth_pair[1], command, columns=columns, lines=200) as pane:
        shown = pane.wait_for("exit status").splitlines()
    assert "exit status 0" in shown
    assert not [line for line in shown if "…" in line]
    for header in ("packets/s", "min - max", "ring lost", "kernel lost", "fixed/s", "CPU ns", "syscalls/p"):
        assert any(header in line for line in shown), header
    rows = [line for line in shown if line.startswith(("afxdp ", "recvfrom ")) and ":" not in line]
    tables = [line for line in shown if line.startswith("path ")]
    assert len(rows) == 2 * len(tables)  # no row takes two lines
    assert len(tables) in (2, 3)  # as wide as the figures are


@pytest.mark.parametrize("columns", [80, 120])
def test_the_tables_of_all_paths_fit_the_terminal(columns):
    from io import StringIO

    from xdpkit.bench.report import show
    from xdpkit.terminal import make_console

    samples = [
        sample(path.name, 1_234_567, direction=direction, load=load, lost_ring=500_000, lost_kernel=200_000,
               machine_s=1.0, own_s=0.5, calls=300_000, delays_us=(99_999.9, 999_999.9, 1e9))
        for direction, paths in DIRECTIONS.items() for path in paths for load in ("saturated", "fixed", "probe")
    ]  # fmt: skip
    out = StringIO()
    show(make_console(file=out, width=columns, force_terminal=True, color_system=None), Results(0.0, samples), {})
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= columns
    assert "…" not in out.getvalue()
    for direction, paths in DIRECTIONS.items():
        tables = [n for n, line in enumerate(lines) if re.match(r"path\s", line)]
        assert tables
        for path in paths:
            assert any(line.startswith(f"{path.name} ") for line in lines), (direction, path.name)
