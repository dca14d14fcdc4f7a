"""Sets in the kernel: what is in them, changes that are whole, sharing, pinning, and the command."""

import errno
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from setspecs import SPECS, make_spec, members_of
from strategies import again, examples

from xdpkit import DROP, PASS, Redirect, ip, ip6, src, tcp
from xdpkit.cli import main as cli
from xdpkit.kernel.bpfmap import HASH, NO_PREALLOC, VALUE, VALUE_BYTES, Map
from xdpkit.kernel.core import check, ffi, lib
from xdpkit.language.errors import PipelineError
from xdpkit.sets.live import Change, LiveSet
from xdpkit.sets.pins import FOLDER, Pin, pinned_names

pytestmark = pytest.mark.root

HERE = "sets/test_liveset.py"
NETS = ["192.0.2.0/24", "198.51.100.7"]


def listed(live):
    return [m.member for m in live.members()]


def inner_map(live):
    """The map of the members, as a program finds it."""
    with Map(os.dup(live.fd)) as outer:
        number = outer.get(bytes(4))
        assert number is not None
        return Map.by_id(int.from_bytes(number, sys.byteorder))


def add_as_a_packet_does(live, key, *, seconds):
    """What SET_add() of bpf/set.bpf.c writes: no mark."""
    value = np.zeros(1, VALUE)
    value["expires_ns"] = time.monotonic_ns() + round(seconds * 1e9)
    with inner_map(live) as inner:
        bits = (8 * len(key)).to_bytes(4, sys.byteorder) if live.spec.intervals else b""
        inner.put(bits + key, value.tobytes())


def until_over():
    """The clock has gone on by more than the time-outs of a microsecond that are in these tests."""
    start = time.monotonic_ns()
    while time.monotonic_ns() < start + 600:
        pass


@pytest.fixture
def name():
    """A name of its own for a pinned set, which is gone after the test."""
    name = f"t_{uuid4().hex[:12]}"
    yield name
    if name in pinned_names():
        with Pin(name) as pin:
            pin.remove()


@pytest.fixture(autouse=True)
def _no_descriptor_is_left():
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert len(set(os.listdir("/proc/self/fd"))) <= len(before)


def test_a_set_holds_the_members_it_is_declared_with_and_those_of_its_file(tmp_path):
    (tmp_path / "more.txt").write_text("203.0.113.0/24\n")
    with LiveSet(make_spec("s", ip.src, members=NETS, source="more.txt"), folder=tmp_path) as live:
        assert listed(live) == ["192.0.2.0/24", "198.51.100.7", "203.0.113.0/24"]
        assert (len(live), live.used, live.capacity) == (3, 3, 65_536)


@given(data=st.data())
@examples(80)
def test_the_kernel_finds_what_a_search_through_all_entries_finds(data):
    spec = data.draw(st.sampled_from(SPECS))
    members = data.draw(st.lists(members_of(spec), max_size=10))
    asked = data.draw(st.lists(members_of(spec), min_size=1, max_size=10))
    entries = [e for m in members for e in spec.entries(m)]
    with LiveSet(spec) as live:
        live.update(members)
        for member in asked:
            inside = all(
                any(e.bits <= a.bits and _head(e.key, e.bits) == _head(a.key, e.bits) for e in entries)
                for a in spec.entries(member)
            )
            assert (member in live) == inside, again(
                f"{HERE}::test_the_kernel_finds_what_a_search_through_all_entries_finds"
            )
        assert len(live) == len({(e.key, e.bits) for e in entries})


def _head(key, bits):
    return int.from_bytes(key) >> 8 * len(key) - bits


@given(data=st.data())
@examples(50)
def test_sync_comes_to_the_same_as_replace_by_the_fewest_changes(data):
    spec = data.draw(st.sampled_from(SPECS))
    old, new = (data.draw(st.lists(members_of(spec), max_size=8)) for _ in range(2))
    before, after = ({(e.key, e.bits) for m in members for e in spec.entries(m)} for members in (old, new))
    with LiveSet(spec) as live, LiveSet(spec) as other:
        live.replace(old)
        other.replace(new)
        change = live.sync(new)
        assert change == Change(added=len(after - before), removed=len(before - after), kept=len(after & before)), (
            again(f"{HERE}::test_sync_comes_to_the_same_as_replace_by_the_fewest_changes")
        )
        assert listed(live) == listed(other)
        assert live.sync(new) == Change(kept=len(after))


def test_the_longest_prefix_is_the_member_though_its_time_be_over():
    with LiveSet(make_spec("s", ip.src, timeouts=True)) as live:
        live.update(["10.0.0.0/8"])
        live.update(["10.1.0.0/16"], timeout=1e-6)
        until_over()
        assert "10.2.0.1" in live
        assert "10.1.0.1" not in live
        assert live.sweep() == 1
        assert "10.1.0.1" in live


def test_a_member_in_a_trie_is_told_from_one_that_merely_covers_it():
    with LiveSet(make_spec("s", ip.src, members=["10.0.0.0/8"])) as live:
        assert live.update(remove=["10.1.0.0/16"]) == Change()
        assert live.update(["10.1.0.0/16"]) == Change(added=1)
        assert live.update(["10.1.0.0/16"]) == Change(kept=1)
        assert live.update(remove=["10.0.0.0/8"]) == Change(removed=1)
        assert listed(live) == ["10.1.0.0/16"]


def test_a_member_whose_time_is_over_is_none_and_its_room_is_used_when_the_set_is_full():
    for spec in (
        make_spec("s", ip.src, timeouts=True, capacity=2),
        make_spec("s", tcp.dport, timeouts=True, capacity=2),
    ):
        one, two, three = ("10.0.0.1", "10.0.0.2", "10.0.0.3") if spec.intervals else ("1", "2", "3")
        with LiveSet(spec) as live:
            live.update([one, two], timeout=1e-6)
            until_over()
            assert (len(live), live.used, listed(live)) == (0, 2, [])
            assert live.update([three, one]) == Change(added=2)
            assert listed(live) == [one, three]


def test_a_time_out_counts_from_when_it_was_written_last():
    with LiveSet(make_spec("s", tcp.dport, timeouts=True)) as live:
        live.update(["80", "443"], timeout=600)
        assert all(599 < m.timeout <= 600 for m in live.members())
        assert live.update(["80"], timeout=5) == Change(changed=1)
        assert live.update(["443"]) == Change(changed=1)
        assert [(m.member, m.timeout > 0) for m in live.members()] == [("80", True), ("443", False)]
        np.testing.assert_array_less(live.entries().timeout, 5.01)


def test_sync_leaves_members_that_end_by_themselves_and_those_that_packets_added():
    spec = make_spec("s", ip.src, timeouts=True, members=["192.0.2.1", "192.0.2.2"])
    with LiveSet(spec) as live:
        live.update(["192.0.2.3"], timeout=60)
        add_as_a_packet_does(live, bytes([192, 0, 2, 4]), seconds=60)
        assert [m.by_packet for m in live.members()] == [False, False, False, True]
        assert live.sync(["192.0.2.1"]) == Change(removed=1, kept=3)
        assert listed(live) == ["192.0.2.1", "192.0.2.3", "192.0.2.4"]
        assert live.sync(["192.0.2.4"]) == Change(removed=1, changed=1, kept=1)
        assert live.sync(["192.0.2.1"], everything=True) == Change(added=1, removed=2)
        assert listed(live) == ["192.0.2.1"]


def test_replace_switches_to_a_new_map_and_the_one_that_programs_hold_stays():
    with LiveSet(make_spec("s", ip.src, members=NETS)) as live:
        fd, before = live.fd, inner_map(live)
        assert live.replace(["203.0.113.1"]) == 1
        with before, inner_map(live) as after:
            assert before.info.id != after.info.id
            assert len(before.read()[0]) == 2
        assert (live.fd, listed(live)) == (fd, ["203.0.113.1"])
        assert live.flush() == 1
        assert len(live) == 0


@pytest.mark.parametrize("spec", [make_spec("s", ip.src, capacity=3), make_spec("s", tcp.dport, capacity=3)])
def test_a_change_that_does_not_fit_is_no_change(spec):
    old, new = (["10.0.0.1", "10.0.0.2"], ["10.0.0.0", "10.0.0.1", "10.0.0.3", "10.0.0.4"])
    if not spec.intervals:
        old, new = (["1", "2"], ["0", "1", "3", "4"])
    with LiveSet(spec) as live:
        live.update(old)
        with pytest.raises(OSError, match=r"set 's': the set is full at .*: it has room for 3 entries: .*capacity="):
            live.update(new)
        for change in (live.replace, live.sync):
            with pytest.raises(PipelineError, match=r"set 's': 4 members, declared with capacity=3"):
                change(new)
        assert listed(live) == old
        assert live.update(new[:3], remove=old) == Change(added=2, removed=1, kept=1)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        (["192.0.2.1", "192.0.2.300"], "set 's': ip.src compares with an IPv4 address"),
        (["192.0.2.1", "2001:db8::1"], "set 's': ip.src compares with an IPv4 address"),
        ([("192.0.2.1", 80)], "set 's': a member is ip.src"),
        (5, "set 's': members is a list or a file, not 5"),
        (io.StringIO("192.0.2.1\nx\n"), "members:2: set 's': ip.src compares with an IPv4 address"),
    ],
)
def test_a_member_that_is_none_changes_nothing(members, said):
    with LiveSet(make_spec("s", ip.src, members=NETS)) as live:
        with pytest.raises(PipelineError) as caught:
            live.update(members)
        assert said in str(caught.value)
        with pytest.raises(PipelineError):
            live.update(["192.0.2.9"], timeout=5)  # of a set that has no time-outs
        assert listed(live) == NETS


def test_a_name_of_no_file_hints_at_how_a_single_member_is_written():
    with LiveSet(make_spec("s", ip.src)) as live:
        with pytest.raises(FileNotFoundError, match=r"a member alone is written \['192\.0\.2\.1'\]"):
            live.update("192.0.2.1")


def test_a_verdict_map_holds_an_action_with_each_member():
    spec = make_spec("v", tcp.dport, actions=(DROP, PASS, Redirect(otherwise=DROP)), members={22: PASS, 23: DROP})
    with LiveSet(spec) as live:
        assert [(m.member, m.action) for m in live.members()] == [("22", PASS), ("23", DROP)]
        assert live.update({23: PASS, 80: Redirect(otherwise=DROP), 22: PASS}) == Change(added=1, changed=1, kept=1)
        assert live.update(remove=[22]) == Change(removed=1)
        assert [str(m.action) for m in live.members()] == ["PASS", "REDIRECT else DROP"]
        with pytest.raises(PipelineError, match=r"members are \{key: action\}, not 80"):
            live.update([80])


def test_a_value_is_laid_out_as_the_data_plane_reads_it():
    spec = make_spec("v", ip6.dst, actions=(DROP, PASS), timeouts=True)
    with LiveSet(spec) as live:
        live.update({"2001:db8::/32": PASS}, timeout=100)
        with inner_map(live) as inner:
            keys, values = inner.read()
    assert keys[0].tobytes() == (32).to_bytes(4, sys.byteorder) + bytes.fromhex("20010db8") + bytes(12)
    assert 99e9 < int(values["expires_ns"][0]) - time.monotonic_ns() <= 100e9
    assert (values["action"][0], values["mark"][0]) == (1, 33)


def test_a_pinned_set_outlives_its_process_and_is_unpinned_only_when_asked(name):
    spec = make_spec(name, ip.src, pinned=True, members=NETS)
    with LiveSet(spec) as live:
        live.update(["203.0.113.1"])
    with LiveSet(make_spec(name, ip.src, pinned=True)) as again_open:
        assert listed(again_open) == [*NETS, "203.0.113.1"]
        again_open.unpin()
        assert name not in pinned_names()
        assert len(again_open) == 3
    assert not (FOLDER / name).exists()


def test_a_pinned_set_with_a_source_comes_to_what_it_says_when_it_is_opened(name, tmp_path):
    spec = make_spec(name, ip.src, pinned=True, source="s.txt")
    for text in ("192.0.2.1\n192.0.2.2\n", "192.0.2.2\n192.0.2.3\n"):
        (tmp_path / "s.txt").write_text(text)
        with LiveSet(spec, folder=tmp_path) as live:
            assert listed(live) == text.split()


def test_a_pinned_set_grows_when_it_is_declared_larger_and_never_shrinks(name):
    with LiveSet(make_spec(name, ip.src, pinned=True, members=NETS, capacity=2)) as small:
        with LiveSet(make_spec(name, ip.src, pinned=True, capacity=5)) as large:
            assert large.update(["10.0.0.1", "10.0.0.2"]) == Change(added=2)
            assert (small.capacity, len(small)) == (5, 4)
        with LiveSet(make_spec(name, ip.src, pinned=True, capacity=3)) as live:
            assert live.capacity == 5


@pytest.mark.parametrize(
    "other",
    [
        {"fields": (ip.dst,)},
        {"fields": (ip.src, tcp.dport)},
        {"intervals": False},
        {"timeouts": True},
        {"actions": (DROP,)},
    ],
)
def test_two_declarations_of_a_pinned_set_that_disagree_are_refused(name, other):
    options = {"fields": (ip.src,), "pinned": True} | other
    theirs = make_spec(name, *options.pop("fields"), **options)
    with LiveSet(make_spec(name, ip.src, pinned=True)):
        with pytest.raises(PipelineError) as caught:
            LiveSet(theirs)
    text = str(caught.value)
    assert f"set '{name}' is pinned as [ip.src intervals] and declared here as [{theirs.kind}]" in text
    assert f"xdpkit set delete {name}" in text


WRITER = """
import sys
from xdpkit.sets.live import LiveSet
from xdpkit.sets.pins import pinned_spec
name, start = sys.argv[1], int(sys.argv[2])
with LiveSet(pinned_spec(name)) as live:
    print("ready", flush=True)
    sys.stdin.readline()
    for port in range(start, start + 60):
        if sys.argv[3] == "replace":
            with live.locked():
                live.replace([*(m.member for m in live.members()), port])
        else:
            live.update([port])
"""


@pytest.mark.parametrize("how", ["update", "replace"])
def test_processes_that_change_a_pinned_set_at_once_lose_no_member(name, how):
    with LiveSet(make_spec(name, tcp.dport, pinned=True)) as live:
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, name, str(start), way],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for start, way in ((1000, "update"), (2000, how))
        ]  # fmt: skip
        for p in processes:
            assert p.stdout is not None
            assert p.stdout.readline() == "ready\n"
        for p in processes:
            assert p.stdin is not None
            p.stdin.write("\n")
            p.stdin.flush()
        for p in processes:
            with p:
                assert p.stdin is not None
                p.stdin.close()
                assert p.wait(60) == 0
        assert sorted(map(int, listed(live))) == [*range(1000, 1060), *range(2000, 2060)]


def test_a_set_may_be_closed_twice_and_leaves_no_map(name):
    live = LiveSet(make_spec("s", ip.src, members=NETS))
    with inner_map(live) as inner:
        number = inner.info.id
    live.close()
    live.close()
    deadline = time.monotonic() + 10
    while True:  # the kernel lets go of it after a grace period
        try:
            Map.by_id(number).close()
        except OSError:
            break
        assert time.monotonic() < deadline


def test_a_closed_set_says_so():
    live = LiveSet(make_spec("s", ip.src))
    live.close()
    with pytest.raises(OSError, match="set 's' is closed"):
        live.update(["192.0.2.1"])


def test_maps_of_a_type_that_has_no_batches_are_written_and_read_one_by_one():
    devmap_hash = 25
    fd = check(lib.xk_map_create(devmap_hash, b"t", 4, 4, 8, 0, -1))
    with Map(fd):
        keys, loopback = np.arange(8, dtype=np.uint32), np.full(8, socket.if_nametoindex("lo"), np.uint32)
        pointer = [ffi.cast("uint8_t *", ffi.from_buffer(a)) for a in (keys, loopback)]
        done = ffi.new("uint32_t *")
        check(lib.xk_map_update_many(fd, 4, 4, *pointer, 8, done))
        assert done[0] == 8
        found, cursor, room = [], ffi.new("struct xk_map_cursor *"), ffi.new("uint8_t[]", 12)
        while not cursor.end:
            n = check(lib.xk_map_read(fd, 4, 4, cursor, room, ffi.new("uint8_t[]", 12), 3))
            found += [int.from_bytes(bytes(room)[4 * i : 4 * i + 4], sys.byteorder) for i in range(n)]
        assert cursor.single
        assert sorted(found) == list(range(8))
        assert lib.xk_map_update_many(fd, 4, 4, *pointer, 8, done) == 0
        assert (check(lib.xk_map_delete_many(fd, 4, pointer[0], 8, done)), done[0]) == (0, 8)


def test_an_error_in_the_middle_says_how_many_elements_were_written():
    with Map.create(HASH, "t", 4, VALUE_BYTES, 5, flags=NO_PREALLOC) as small:
        keys = np.arange(8, dtype=np.uint32).view(np.uint8).reshape(-1, 4)
        assert small.write(keys, np.zeros(8, VALUE)) == (5, errno.E2BIG)
        assert len(small.read()[0]) == 5


def test_a_set_that_takes_more_than_one_batch_is_read_and_swept_whole():
    count = 200_000
    hosts = np.arange(count, dtype=">u4")
    for intervals in (True, False):
        spec = make_spec("s", ip.src, intervals=intervals, timeouts=True, capacity=count)
        text = "\n".join(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in hosts.tolist())
        with LiveSet(spec) as live:
            assert live.update(io.StringIO(text), timeout=1e-6).added == count
            until_over()
            assert (live.used, len(live), live.sweep(), live.used) == (count, 0, count, 0)


def command(*args):
    """Exit status, standard output and standard error of ``xdpkit set ...``."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["xdpkit", "set", *map(str, args)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
    return caught.value.code or 0, out.getvalue(), err.getvalue()


def test_the_command_changes_and_shows_a_pinned_set(name):
    LiveSet(make_spec(name, ip.src, pinned=True, timeouts=True, capacity=100)).close()
    assert command("add", name, "192.0.2.0/24", "10.0.0.1") == (0, f"{name}: {Change(added=2)}\n", "")
    assert command("add", name, "10.0.0.2", "--timeout", "1h", "--json")[1] == json.dumps(
        {"added": 1, "removed": 0, "changed": 0, "kept": 0}
    ) + "\n"  # fmt: skip
    assert command("remove", name, "10.0.0.1")[:2] == (0, f"{name}: {Change(removed=1)}\n")
    status, out, _ = command("show", name)
    head, one, two = out.splitlines()
    assert (status, head, two) == (0, f"# {name}: ip.src intervals timeouts; 2 of 100", "192.0.2.0/24")
    assert re.fullmatch(r"10\.0\.0\.2 timeout 3599\.\d+s", one)
    shown = json.loads(command("show", name, "--json")[1])
    assert (shown["capacity"], [m["member"] for m in shown["members"]]) == (100, ["10.0.0.2", "192.0.2.0/24"])
    assert command("test", name, "192.0.2.9")[0] == 0
    assert command("test", name, "192.0.3.9")[0] == 1
    rows = json.loads(command("list", "--json")[1])
    assert {"name": name, "members": 2, "capacity": 100, "kind": "ip.src intervals timeouts"} in rows
    assert command("sweep", name)[1] == f"{name}: 0 swept\n"
    assert command("flush", name)[1] == f"{name}: 2 removed\n"
    assert command("delete", name) == (0, "", "")
    assert name not in pinned_names()


def test_what_show_prints_is_read_again_by_replace_and_sync(name, tmp_path):
    LiveSet(make_spec(name, ip.src, pinned=True, actions=(DROP, PASS), members={"10.0.0.0/8": DROP})).close()
    file = tmp_path / "shown"
    for args in (("show", name), ("show", name, "--json")):
        file.write_text(command(*args)[1])
        assert command("sync", name, file) == (0, f"{name}: {Change(kept=1)}\n", "")
        assert command("replace", name, file) == (0, f"{name}: 1 entries\n", "")


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (("show", "no_such_set"), 1, "no pinned set 'no_such_set'"),
        (("delete", "../x"), 1, "no pinned set '../x'"),
        (("add", "NAME", "192.0.2.1/24"), 1, "did you mean 192.0.2.0/24?"),
        (("sync", "NAME", "/nonexistent/list"), 1, "/nonexistent/list: No such file"),
        (("add", "NAME"), 2, "members are wanted"),
        (("add", "NAME", "192.0.2.1", "--timeout", "soon"), 2, "1h30m"),
        (("replace", "NAME"), 2, "FILE"),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(name, args, status, said):
    LiveSet(make_spec(name, ip.src, pinned=True)).close()
    code, _, err = command(*(name if a == "NAME" else a for a in args))
    assert code == status
    assert said in err
    assert "Traceback" not in err
    assert status == 2 or err.count("\n") == 1


UNPRIVILEGED = """
import os
from setspecs import ip, make_spec
from xdpkit.sets.live import LiveSet
os.setuid(65534)
LiveSet(make_spec("s", ip.src))
"""


def test_who_may_not_make_maps_is_told_what_it_needs():
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
    )
    last = done.stderr.splitlines()[-1]
    assert last.startswith("PermissionError")
    assert "needs CAP_BPF: run as root" in last


def test_a_feed_is_synced_leniently_and_what_was_skipped_is_said(name, tmp_path):
    feed = tmp_path / "feed.csv"
    feed.write_text('"seen","dst_ip"\n1,192.0.2.1/24\n2,2001:db8::1\n3,bad.example\n')
    LiveSet(make_spec(name, src, pinned=True)).close()
    status, _, err = command("sync", name, feed, "--lenient")
    assert status == 0
    assert err.splitlines() == [
        f"xdpkit: {feed}: 1 IPv4 and 1 IPv6 members",
        f"xdpkit: {feed}: mended 1 line (2): bits beyond the prefix length are set: the network is taken",
        f"xdpkit: {feed}: skipped 1 line (4): not an address",
    ]
    with LiveSet(make_spec(name, src, pinned=True)) as live:
        assert {m.member for m in live.members()} == {"192.0.2.0/24", "2001:db8::1"}
