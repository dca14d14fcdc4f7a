"""Captures through pipelines, offline: the commands as a user types them, with tcpdump as a peer."""

import gzip
import json
import os
import struct
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Dot1Q, Ether
from scapy.utils import PcapNgWriter, PcapWriter, RawPcapReader
from strategies import make_frame, pipelines

from xdpkit import DROP, limit
from xdpkit.cli import replay as replaying
from xdpkit.compiler import HOOKS
from xdpkit.compiler.built import Built, build, needs, read, write
from xdpkit.files import pcapng
from xdpkit.files.reader import CapturedPacket, read_captures
from xdpkit.language.errors import PipelineError
from xdpkit.language.pipeline import Pipeline, load_file
from xdpkit.replay import replay

RULES = """
from xdpkit import DROP, PASS, REDIRECT, Pipeline, ip, tcp, udp
pipe = Pipeline("small", default=PASS)
pipe.rule(udp.dport == 53, REDIRECT, name="dns")
pipe.rule(ip.src.within("192.0.2.0/24"), DROP, name="bad-net")
"""
KINDS = """
from xdpkit import *
pipe = Pipeline("kinds", default=PASS)
pipe.rule(pcap("tcp dst port 443") & ~vlan, DROP, name="string")
pipe.rule((tcp.flags & 0x12) == 0x02, DROP, name="mask")
pipe.rule(inner.ip.dst.within("10.1.0.0/16") & (vxlan.vni == 7), REDIRECT, name="tunnel")
pipe.rule(payload[0:5] == b"query", DROP, name="payload")
pipe.rule(tcp.syn & ~tcp.ack, DROP, name="flags")
pipe.rule(pcap("ip6 protochain 17"), Redirect(otherwise=DROP), name="loop")
pipe.rule(meta.hash == 1, DROP, name="known")
"""
OTHER = RULES.replace('"small"', '"other"').replace("192.0.2.0/24", "192.0.2.0/25")


def frame(n: int) -> bytes:
    """Packets 0 and 1 of 4 are DNS, 2 is from the bad net (both halves in turn), 3 is something else."""
    ether, kind = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02"), n % 4
    if kind < 2:
        return bytes(ether / Dot1Q(vlan=5) / IP(src="198.51.100.1") / UDP(sport=n, dport=53) / b"query")
    if kind == 2:
        return bytes(ether / IP(src=f"192.0.2.{n % 256}") / TCP(sport=1000, dport=80))
    return bytes(ether / IP(src="198.51.100.2") / TCP(sport=n, dport=443) / bytes(n))


FRAMES_OF_CAPTURE = [frame(n) for n in range(200)]


def pcap(records, linktype: int = 1) -> bytes:
    """A nanosecond pcap file of ((seconds, nanoseconds), data)."""
    head = struct.pack("=IHHIIII", 0xA1B23C4D, 2, 4, 0, 0, 65535, linktype)
    return head + b"".join(struct.pack("=IIII", *time, len(data), len(data)) + data for time, data in records)


@pytest.fixture
def files(tmp_path):
    """rules.py, other.py and day.pcap of 200 packets, a second apart with nanoseconds."""
    (tmp_path / "rules.py").write_text(RULES)
    (tmp_path / "other.py").write_text(OTHER)
    times = [(1_700_000_000 + n, 123_456_789) for n in range(len(FRAMES_OF_CAPTURE))]
    (tmp_path / "day.pcap").write_bytes(pcap(zip(times, FRAMES_OF_CAPTURE, strict=True)))
    return tmp_path


def xdpkit(*args, cwd, before=(), **options):
    command = [*before, sys.executable, "-m", "xdpkit.cli.main", *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False, **options)


def report(done):
    """The JSON of a run that went well."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.root
@pytest.mark.parametrize("engine", ["kernel", "reference"])
def test_both_engines_count_verdicts_per_rule(files, engine):
    out = report(xdpkit("replay", "rules.py", "day.pcap", "--engine", engine, "--json", cwd=files))
    assert out["engine"] == engine
    assert {r["name"]: r["packets"] for r in out["rules"]} == {"dns": 100, "bad-net": 50, "default": 50}
    assert out["packets"] == 200
    assert sum(r["bytes"] for r in out["rules"]) == sum(map(len, FRAMES_OF_CAPTURE))


def test_without_privilege_the_reference_judges_unless_the_kernel_is_asked_for(files):
    before = ("setpriv", "--bounding-set=-all")
    assert report(xdpkit("replay", "rules.py", "day.pcap", "--json", cwd=files, before=before))["engine"] == "reference"
    done = xdpkit("replay", "rules.py", "day.pcap", "--engine", "kernel", cwd=files, before=before)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "CAP_BPF" in done.stderr


@pytest.mark.parametrize("form", ["pcapng", "pcap.gz", "pcapng.zst"])
def test_every_form_of_capture_is_read(files, form):
    path, plain = files / f"other.{form}", files / "plain"
    writer = PcapNgWriter if "pcapng" in form else PcapWriter
    with writer(str(plain)) as out:
        for data in FRAMES_OF_CAPTURE:
            out.write(Ether(data))
    data = plain.read_bytes()
    compress = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress}.get(form.rpartition(".")[2], bytes)
    path.write_bytes(compress(data))
    assert [p.data for p in read_captures([path])] == FRAMES_OF_CAPTURE


def test_a_capture_that_xdpkit_wrote_is_read_with_its_nanoseconds(files):
    (first, *_) = read_captures([files / "day.pcap"])
    assert (first.number, first.time_ns) == (1, 1_700_000_000_123_456_789)
    report(xdpkit("replay", "rules.py", "day.pcap", "-w", "out.pcapng", "--json", cwd=files))
    again = list(read_captures([files / "out.pcapng"]))
    kept = [(p.time_ns, p.data) for p in read_captures([files / "day.pcap"]) if p.number % 4 != 3]
    assert [(p.time_ns, p.data) for p in again] == kept


@pytest.mark.root
def test_w_writes_what_is_not_dropped_and_tcpdump_reads_it(files):
    out = report(xdpkit("replay", "rules.py", "day.pcap", "-w", "out.pcapng", "--json", cwd=files))
    assert out["written"] == 150
    read = subprocess.run(
        ["tcpdump", "-nr", "out.pcapng", "not", "src", "net", "192.0.2.0/24"],
        cwd=files, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert len(read.stdout.splitlines()) == 150


def test_verdict_chooses_what_is_written(files):
    out = report(xdpkit("replay", "rules.py", "day.pcap", "-w", "out.pcapng", "--verdict", "drop", "--json", cwd=files))
    assert out["written"] == 50
    assert [d for d, _ in RawPcapReader(str(files / "out.pcapng"))] == FRAMES_OF_CAPTURE[2::4]


@pytest.mark.slow
def test_against_lists_every_difference_with_examples(files):
    out = report(xdpkit("replay", "other.py", "day.pcap", "--against", "rules.py", "--json", cwd=files))
    (difference,) = out["differences"]
    lost = [n for n in range(2, 200, 4) if n % 256 >= 128]
    assert difference["packets"] == len(lost)
    assert (difference["other_action"], difference["action"]) == ("DROP", "PASS")
    assert [e["number"] - 1 for e in difference["examples"]] == lost[:3]
    assert bytes.fromhex(difference["examples"][0]["hex"]) == FRAMES_OF_CAPTURE[lost[0]]
    text = xdpkit("replay", "other.py", "day.pcap", "--against", "rules.py", cwd=files).stdout
    assert f"{len(lost)} packets: DROP -> PASS" in text
    assert "rules.py:5" in text
    assert f"day.pcap #{lost[0] + 1}: 192.0.2." in text
    assert "no difference" in xdpkit("replay", "rules.py", "day.pcap", "--against", "rules.py", cwd=files).stdout


def test_a_capture_that_was_cut_off_is_counted_as_far_as_it_goes_and_is_an_error(files):
    whole = (files / "day.pcap").read_bytes()
    (files / "cut.pcap").write_bytes(whole[:-7])
    done = xdpkit("replay", "rules.py", "cut.pcap", "--json", cwd=files)
    assert json.loads(done.stdout)["packets"] == 199
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "cut.pcap" in done.stderr


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (["rules.py", "rules.py"], 1, "rules.py: not readable as a capture"),
        (["rules.py", "none.pcap"], 2, "none.pcap"),
        (["day.pcap", "day.pcap"], 1, "day.pcap"),
        (["rules.py", "day.pcap", "--engine", "magic"], 2, "auto, kernel, reference"),
        (["rules.py", "day.pcap", "--verdict", "LATER"], 2, "one of CONTINUE, DROP"),
        (["rules.py", "day.pcap", "-w", "/no/such/dir/x"], 1, "/no/such/dir/x: No such file"),
        (["rules.py", "day.pcap", "-w", "-", "--json"], 2, "standard output"),
        (["rules.py", "day.pcap", "-w", "./day.pcap"], 2, "that is a capture to read; write to another file"),
        (["rules.py", "/dev/null"], 1, "/dev/null: not readable as a capture: it is empty"),
        (["rules.py", "/proc/self/mem"], 1, "/proc/self/mem: Input/output error"),
        (["rules.py", "."], 2, "is a directory"),
        (["rules.py"], 2, "CAPTURE"),
        (["rules.py", "day.pcap", "--nope"], 2, "--nope"),
        (["/dev/null", "day.pcap"], 1, "declares 0 pipelines"),
        (["syntax.py", "day.pcap"], 1, "syntax.py:2: '(' was never closed"),
        (["filter.py", "day.pcap"], 1, "filter.py:3: pcap('tcp port ('): can't parse filter expression"),
    ],
)
def test_bad_input_is_one_clear_error(files, args, status, words):
    before = (files / "day.pcap").read_bytes()
    (files / "syntax.py").write_text("from xdpkit import *\npipe = Pipeline(")
    (files / "filter.py").write_text(
        "from xdpkit import *\npipe = Pipeline('p')\npipe.rule(pcap('tcp port ('), DROP)\n"
    )
    done = xdpkit("replay", *args, cwd=files)
    assert done.returncode == status, done.stderr
    assert words in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr
    assert status == 2 or done.stderr.count("\n") == 1
    assert (files / "day.pcap").read_bytes() == before


@pytest.mark.root
def test_names_of_files_may_be_any_bytes(files):
    """Not UTF-8, and where a name must be, as in pcapng and in debug information, a replacement stands for it."""
    odd, rules, out = "day\udcff.pcap", "rules\udcff.py", "out\udcff.pcapng"
    (files / odd).write_bytes((files / "day.pcap").read_bytes()[:-7])
    (files / rules).write_text(RULES)
    done = xdpkit("replay", rules, odd, "-w", out, "--against", "other.py", cwd=files, errors="surrogateescape")
    assert done.returncode == 1
    assert done.stderr == "xdpkit: day\\xff.pcap: not readable as a capture: it is cut short in packet 200\n"
    assert "149 packets written to out\\xff.pcapng" in done.stdout
    assert len(list(read_captures([files / out]))) == 149
    for command in (["show", rules], ["build", rules, "-o", "rules.xdp"], ["replay", "rules.xdp", "day.pcap"]):
        assert xdpkit(*command, cwd=files).returncode == 0


def test_another_link_type_is_skipped_by_name_and_the_rest_is_judged(files):
    raw = pcap([((1, 2), b"E" + bytes(30))] * 3, linktype=101)
    (files / "raw.pcap").write_bytes(raw)
    (files / "broken.pcap").write_bytes((files / "day.pcap").read_bytes()[:-7])
    for order in (["raw.pcap", "broken.pcap", "day.pcap"], ["day.pcap", "broken.pcap", "raw.pcap"]):
        done = xdpkit("replay", "rules.py", *order, "--json", cwd=files)
        assert done.returncode == 1
        out = json.loads(done.stdout)
        assert out["packets"] == 200 + 199
        lines = done.stderr.splitlines()
        assert sorted(lines) == sorted(f"xdpkit: {line}" for line in out["skipped"])
        assert "raw.pcap: 3 packets of link type 101 skipped: only Ethernet" in done.stderr
        assert "broken.pcap: not readable as a capture: it is cut short in packet 200" in done.stderr


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress], ids=["plain", "gzip", "zstd"])
def test_a_capture_is_read_from_a_pipe(files, name, pack):
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as cat:
        command = [sys.executable, "-m", "xdpkit.cli.main", "replay", "rules.py", name, "--json"]
        done = subprocess.Popen(command, cwd=files, stdin=cat.stdout, stdout=subprocess.PIPE, text=True)
        assert cat.stdin is not None
        cat.stdin.write(pack((files / "day.pcap").read_bytes()))
        cat.stdin.close()
        out, _ = done.communicate(timeout=60)
    assert done.returncode == 0
    assert json.loads(out)["packets"] == 200


@pytest.mark.root  # tcpdump gives up root, and can't where it has no privileges
def test_an_empty_result_has_the_form_of_a_full_one(files):
    done = xdpkit("replay", "rules.py", "day.pcap", "-w", "none.pcapng", "--verdict", "TX", cwd=files)
    assert done.returncode == 0
    assert "0 packets written" in done.stdout
    read = subprocess.run(["tcpdump", "-nr", "none.pcapng"], cwd=files, capture_output=True, text=True, check=False)
    assert (read.returncode, read.stdout) == (0, "")


@pytest.mark.root
def test_what_is_kept_ends_with_a_whole_packet_on_a_full_disk(files):
    small = files / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "none", small], check=True)
    try:
        done = xdpkit("replay", "rules.py", "day.pcap", "-w", "small/out.pcapng", cwd=files)
        assert done.returncode == 1
        assert "small/out.pcapng: No space left on device" in done.stderr
        kept = len(list(read_captures([small / "out.pcapng"])))
        assert 0 < kept < 149
        assert f"{kept} packets written" in done.stdout
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_verdict_alone_filters_the_listing(files):
    lines = xdpkit("replay", "rules.py", "day.pcap", "--verdict", "drop", cwd=files).stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["rule", "bad-net", "all"]


def test_a_small_file_that_unpacks_to_records_without_end_is_refused(files, monkeypatch):
    monkeypatch.setattr("xdpkit.files.unpack.ALWAYS_BYTES", 1 << 20)
    bomb = pcap([]) + bytes(16) * (1 << 18)
    (files / "bomb.pcap.gz").write_bytes(gzip.compress(bomb, 9))
    (files / "bomb.pcap.zst").write_bytes(zstandard.ZstdCompressor().compress(bomb))
    for name in ("bomb.pcap.gz", "bomb.pcap.zst"):
        with pytest.raises(OSError, match="unpacks to more than 200 times its size"):
            for _ in read_captures([files / name]):
                pass


def packet(data: bytes, number: int = 1) -> CapturedPacket:
    return CapturedPacket("", number, 0, data, len(data))


@pytest.mark.root
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(pipelines())
def test_the_engines_agree_on_any_pipeline(pipe):
    rng = Random(7)
    packets = [packet(make_frame(rng, min_size=0)) for _ in range(200)]
    kernel, reference = (replay(packets, Built(pipe, {}), engine=e).packets for e in ("kernel", "reference"))
    assert kernel == reference


# ---- built ahead


REMEMBERS = """
from xdpkit import COUNT, DROP, PASS, Pipeline, ip, limit, sample, tcp, udp
pipe = Pipeline("remembers", default=PASS)
bad = pipe.set("bad", ip.src, source="bad.txt")
seen = pipe.set("seen", ip.src, intervals=False, timeouts=True)
pipe.rule(udp, COUNT, name="udp")
pipe.rule(bad, DROP, name="bad")
pipe.rule(udp & ~limit("100/second", burst=10), DROP, name="over")
pipe.rule(seen, PASS, name="again")
pipe.rule(tcp & sample(4), seen.add(timeout=0.5), name="learn")
"""


@pytest.mark.root
@pytest.mark.parametrize("engine", ["kernel", "reference", "auto"])
def test_what_rules_remember_is_replayed_by_the_captures_own_clock(files, engine):
    """200 packets in 2 seconds, half of them UDP: no more than 50 a second come, and a burst of 10 ends none of them;
    the members of a file, those that packets add, and what they are for are the same with both engines."""
    (files / "remembers.py").write_text(REMEMBERS)
    (files / "bad.txt").write_text("# from a list\n192.0.2.0/25\n")
    records = [((1_700_000_000 + n // 100, n % 100 * 10_000_000), data) for n, data in enumerate(FRAMES_OF_CAPTURE)]
    (files / "slow.pcap").write_bytes(pcap(records))
    (files / "burst.pcap").write_bytes(pcap([((1_700_000_000, 0), data) for data in FRAMES_OF_CAPTURE]))
    slow, burst = (
        {
            r["name"]: r["packets"]
            for r in report(xdpkit("replay", "remembers.py", f, "--engine", engine, "--json", cwd=files))["rules"]
        }
        for f in ("slow.pcap", "burst.pcap")
    )
    assert (slow["udp"], slow["bad"], slow["over"], slow["again"] > 0) == (100, 32, 0, True)
    assert (burst["udp"], burst["over"]) == (100, 90)
    again = report(xdpkit("replay", "remembers.py", "slow.pcap", "--engine", "reference", "--json", cwd=files))
    assert slow == {r["name"]: r["packets"] for r in again["rules"]}


@pytest.mark.root
def test_the_kernel_refuses_to_skip_what_rules_would_remember(files):
    (files / "remembers.py").write_text(REMEMBERS)
    (files / "bad.txt").write_text("")
    (files / "long.pcap").write_bytes(pcap([((0, 0), bytes(9000))]))
    done = xdpkit("replay", "remembers.py", "long.pcap", "--engine", "kernel", cwd=files)
    assert (done.returncode, "use --engine reference" in done.stderr) == (1, True)
    assert xdpkit("replay", "remembers.py", "long.pcap", cwd=files).returncode == 0


@pytest.mark.slow
def test_a_built_file_runs_without_llvmlite(files):
    assert xdpkit("build", "rules.py", "-o", "rules.xdp", cwd=files).returncode == 0
    block = "import sys; sys.modules['llvmlite'] = None; from xdpkit.cli.main import main; main()"
    for command in (["replay", "rules.xdp", "day.pcap", "--json"], ["show", "rules.xdp", "--rules"]):
        done = subprocess.run(
            [sys.executable, "-c", block, *command], cwd=files, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [sys.executable, "-c", block, "show", "rules.py"], cwd=files, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "llvmlite" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.root
def test_a_built_file_means_what_the_pipeline_means(files):
    xdpkit("build", "rules.py", "-o", "rules.xdp", cwd=files)
    for engine in ("kernel", "reference"):
        ours, theirs = (
            report(xdpkit("replay", source, "day.pcap", "--engine", engine, "--json", cwd=files))
            for source in ("rules.py", "rules.xdp")
        )
        assert ours["rules"] == theirs["rules"]


@pytest.mark.root
def test_a_built_file_keeps_every_kind_of_condition(files):
    (files / "kinds.py").write_text(KINDS)
    assert xdpkit("build", "kinds.py", "-o", "kinds.xdp", cwd=files).returncode == 0
    for engine in ("kernel", "reference"):
        ours, theirs = (
            report(xdpkit("replay", source, "day.pcap", "--engine", engine, "--json", cwd=files))
            for source in ("kinds.py", "kinds.xdp")
        )
        assert ours["rules"] == theirs["rules"]
        assert ours["rules"][0]["packets"] == 50


@pytest.mark.parametrize(
    ("rule", "loops"),
    [
        ('limit("10/second"), DROP', True),
        ('udp, log("5/minute")', True),
        ('pcap("ip6 protochain 17"), DROP', True),
        ('pcap("ip6 proto 17"), DROP', False),
        ("sample(10), COUNT, DROP", False),
    ],
)
def test_a_built_file_says_what_its_loops_need(files, rule: str, loops: bool):
    (files / "loops.py").write_text(f"from xdpkit import *\npipe = Pipeline('loops')\npipe.rule({rule})\n")
    write(build(load_file(files / "loops.py")), files / "loops.xdp")
    pipe = read(files / "loops.xdp").pipeline
    assert all(("Linux 5.17: bpf_loop" in needs(pipe, hook)) is loops for hook in HOOKS)


def test_what_the_loops_of_a_shadow_need_is_said_too():
    shadow = Pipeline("shadow")
    shadow.rule(limit("10/second"), DROP)
    assert "Linux 5.17: bpf_loop" in needs(Pipeline("live").with_shadow(shadow), "xdp")


@pytest.mark.slow
def test_building_twice_gives_the_same_file(files):
    for name in ("one", "two"):
        xdpkit("build", "rules.py", "-o", name, cwd=files)
    assert (files / "one").read_bytes() == (files / "two").read_bytes()


@pytest.mark.root
def test_a_damaged_built_file_is_refused_as_that_or_means_the_same(files):
    write(build(load_file(files / "rules.py")), files / "rules.xdp")
    data = (files / "rules.xdp").read_bytes()
    digest, refused = read(files / "rules.xdp").pipeline.digest(), 0
    for at in range(0, len(data), max(1, len(data) // 300)):
        broken = bytearray(data)
        broken[at] ^= 0xFF
        (files / "broken.xdp").write_bytes(broken)
        try:
            assert read(files / "broken.xdp").pipeline.digest() == digest
        except PipelineError as error:
            refused += "broken.xdp" in str(error)
    assert refused > 200
    done = xdpkit("show", "broken.xdp", cwd=files)
    assert (done.returncode, done.stderr.count("\n")) in ((0, 0), (1, 1))


SIDES = """
from xdpkit import *
pipe = Pipeline("sides", default=PASS)
pipe.rule(dev.name == "eth7", DROP, name="eth7")
pipe.rule(dev.inside, DROP, name="inside")
"""


@pytest.mark.root
@pytest.mark.parametrize("engine", ["kernel", "reference"])
def test_the_interfaces_of_a_capture_are_the_devices_of_its_packets(tmp_path, engine):
    (tmp_path / "sides.py").write_text(SIDES)
    names = ("eth7", "lan", "wan")
    blocks = pcapng.section("test") + b"".join(map(pcapng.interface, names))
    blocks += b"".join(pcapng.packet(n % 3, n, frame(n), len(frame(n))) for n in range(9))
    (tmp_path / "day.pcapng").write_bytes(blocks)
    common = ("replay", "sides.py", "day.pcapng", "--engine", engine, "--json")
    done = xdpkit(*common, "--inside", "lan", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {r["name"]: r["packets"] for r in json.loads(done.stdout)["rules"]} == {"eth7": 3, "inside": 3, "default": 3}
    refused = xdpkit(*common, cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "--inside NAME" in refused.stderr


DIRECTIONS = """
from xdpkit import *
pipe = Pipeline("directions", default=PASS)
pipe.rule(pcap("outbound and ifname lan"), PASS, name="out of lan")
pipe.rule(pcap("outbound"), PASS, name="out")
pipe.rule(pcap("ifname lan"), PASS, name="into lan")
"""


@pytest.mark.root
@pytest.mark.parametrize("engine", ["kernel", "reference"])
def test_a_pcapng_file_says_the_direction_of_its_packets(tmp_path, engine):
    (tmp_path / "directions.py").write_text(DIRECTIONS)
    blocks = pcapng.section("test") + pcapng.interface("lan") + pcapng.interface("wan")
    for n, outbound in enumerate((None, False, True, True, False, None, True)):
        blocks += pcapng.packet(n % 2, n, frame(n), len(frame(n)), outbound=outbound)
    (tmp_path / "day.pcapng").write_bytes(blocks)
    common = ("replay", "directions.py", "--engine", engine, "--json", "-w", "out.pcapng")
    done = xdpkit(*common, "day.pcapng", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    counts = {r["name"]: r["packets"] for r in json.loads(done.stdout)["rules"]}
    assert counts == {"out of lan": 2, "out": 1, "into lan": 2, "default": 2}
    kept = list(read_captures([tmp_path / "out.pcapng"]))
    assert [p.outbound for p in kept] == [False, False, True, True, False, False, True]


def test_options_of_a_packet_that_cannot_be_are_no_damage(tmp_path):
    data = frame(1)
    for options in (b"\x02", b"\x02\0\xff\xff\2\0\0\0", b"\0\0\0\0\2\0\4\0\2\0\0\0", b"\x02\0\3\0\2\0\0\0"):
        head = struct.pack("=IIIII", 0, 0, 1, len(data), len(data))
        body = head + data + bytes(-len(data) % 4) + options + bytes(-len(options) % 4)
        block = struct.pack("=II", 6, len(body) + 12) + body + struct.pack("=I", len(body) + 12)
        (tmp_path / "odd.pcapng").write_bytes(pcapng.section("test") + pcapng.interface("lan") + block)
        (packet,) = read_captures([tmp_path / "odd.pcapng"])
        assert (packet.data, packet.outbound) == (data, False)


TRACKING = """
from xdpkit import DROP, PASS, Pipeline, ct, udp
pipe = Pipeline("tracks", default=DROP)
pipe.track(capacity=1, timeouts={"udp": 2})
pipe.rule(ct.established, PASS, name="known")
pipe.rule(ct.new & (udp.dport == 53), PASS, name="dns")
"""


@pytest.mark.root
@pytest.mark.parametrize("engine", ["kernel", "reference"])
def test_connections_last_by_the_clock_of_the_capture(tmp_path, engine):
    """A query and its answer every ten seconds, each from another host: the table has room for one, and room again."""

    def pair(n):
        ask = IP(src=f"10.0.0.{n + 1}", dst="10.9.9.9") / UDP(sport=4000, dport=53)
        answer = IP(src="10.9.9.9", dst=f"10.0.0.{n + 1}") / UDP(sport=53, dport=4000)
        return [((1_700_000_000 + 10 * n, at), bytes(Ether() / above)) for at, above in ((0, ask), (1000, answer))]

    (tmp_path / "rules.py").write_text(TRACKING)
    late = [((1_700_000_100, 0), pair(0)[1][1])]
    (tmp_path / "day.pcap").write_bytes(pcap([record for n in range(5) for record in pair(n)] + late))
    out = report(xdpkit("replay", "rules.py", "day.pcap", "--engine", engine, "--json", cwd=tmp_path))
    found = {r["name"]: r["packets"] for r in out["rules"]}
    assert found == {"known": 5, "dns": 5, "flow table full": 0, "default": 1}


def test_where_no_terminal_is_a_long_replay_says_how_far_it_is(tmp_path, monkeypatch, capsys):
    """Here the capture is a pipe that ends only when that was said."""
    said, pipe = threading.Event(), tmp_path / "slow.pcap"
    os.mkfifo(pipe)

    def notice(text):
        print(text, file=sys.stderr)
        if "1 packet so far" in text:
            said.set()

    def write_slowly():
        with open(pipe, "wb", buffering=0) as out:
            out.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
            out.write(struct.pack("<IIII", 0, 0, 60, 60) + bytes(60))
            assert said.wait(20)

    monkeypatch.setattr(replaying, "NOTICE_SECONDS", 0.01)
    monkeypatch.setattr(replaying, "notice", notice)
    rules = tmp_path / "all.py"
    rules.write_text("from xdpkit import Pipeline\npipe = Pipeline('all')\n")
    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write_slowly)
        replaying.replay_captures(rules, [pipe], None, "reference", "", "", as_json=True)
        writer.result(20)
    assert "read, 1 packet so far" in capsys.readouterr().err
