"""Sets that go wrong, as a user meets them: one line that says what to do, exit status 1, and what runs runs on."""

from __future__ import annotations

from uuid import uuid4

import pytest
from commands import fails, held, xdpkit
from traffic import frames, until

from xdpkit import DROP, Pipeline, PipelineError, attach, ip
from xdpkit.sets.live import LiveSet
from xdpkit.sets.pins import Pin, pinned_names, pinned_spec

pytestmark = pytest.mark.root

HEAD = "from xdpkit import DROP, PASS, Pipeline, eth, ip, ip6, limit, tcp, udp\npipe = Pipeline('user')\n"


@pytest.fixture
def name():
    """A name of its own for a pinned set, which is gone after the test."""
    name = f"t_{uuid4().hex[:12]}"
    yield name
    if name in pinned_names():
        with Pin(name) as pin:
            pin.remove()


@pytest.fixture
def typed(tmp_path, veth_pair):
    """``typed(lines, **files)``: what ``xdpkit run`` says to a pipeline of these lines beside these files."""

    def run(lines: str, **files: str | bytes):
        for stem, content in files.items():
            (tmp_path / f"{stem}.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
        (tmp_path / "pipeline.py").write_text(HEAD + lines + "\n")
        return xdpkit(veth_pair[1], "run", tmp_path / "pipeline.py", "-i", "right", "--duration", "0.1", "-q")

    return run


BLOCKED = 'blocked = pipe.set("blocked", ip.src, source="blocked.txt", capacity=3)\npipe.rule(blocked, DROP)'


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("192.0.2.1\n192.0.2.1/24\n", ["blocked.txt:2:", "did you mean 192.0.2.0/24?"]),
        (
            "10.0.0.1\n\n# mine\nexample.com\n",
            ["blocked.txt:4:", "ip.src compares with an IPv4 address", "example.com"],
        ),
        ("2001:db8::1\n", ["blocked.txt:1:", "ip.src compares with an IPv4 address"]),
        (b"\x7fELF\xff\xfe\n", ["blocked.txt:1: this is no text"]),
        ('["192.0.2.1", 5.5]', ["blocked.txt: element 2:"]),
        ("10.0.0.1\n10.0.0.2\n10.0.0.3\n10.0.0.4\n", ["4 members, declared with capacity=3: raise it"]),
        ("10.0.0.1-10.0.0.14\n", ["set 'blocked': 6 members, declared with capacity=3: raise it"]),
    ],
)
def test_a_file_of_members_that_cannot_be_taken_attaches_nothing(typed, veth_pair, content, words):
    fails(typed(BLOCKED, blocked=content), *words)
    assert held(veth_pair[1]) == ()


def test_a_file_of_members_that_is_missing_is_named(typed, veth_pair):
    fails(typed(BLOCKED), "blocked.txt: no such file, and it is the source of set 'blocked'")
    assert held(veth_pair[1]) == ()


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (
            'pipe.set("ports", tcp.dport, members=["192.0.2.1"])',
            ["tcp.dport compares with a whole number", "192.0.2.1"],
        ),
        ('pipe.set("hosts", ip.src, members=[eth.src])', ["set 'hosts'", "ip.src compares with an IPv4 address"]),
        ('pipe.set("hosts", ip.src, members="192.0.2.1")', ["members is a list, not '192.0.2.1'"]),
        ('pipe.set("hosts", "ip.src")', ["'ip.src' is no field of a packet, such as ip.src"]),
        ('pipe.set("hosts")', ["of which field?"]),
        ('s = pipe.set("hosts", ip.src)\npipe.rule(tcp.dport.isin(s), DROP)', ["keyed by ip.src (32 bits, ipv4)"]),
        ('s = pipe.set("hosts", ip.src)\npipe.rule(ip6.src.isin(s), DROP)', ["ip6.src (128 bits, ipv6) does not fit"]),
        ('pipe.set("pairs", ip.src, tcp.dport, members=["192.0.2.1"])', ["a member is ip.src, tcp.dport, not"]),
        ('pipe.set("few", ip.src, capacity=1, members=["10.0.0.1", "10.0.0.2"])', ["2 members, capacity=1"]),
        ('pipe.vmap("v", tcp.dport, members={22: "drop"})', ["members are {key: action}"]),
        ('pipe.set("s", ip.src)\npipe.set("s", ip.dst)', ["set 's' is declared already"]),
        ('pipe.rule(limit("1/second", per="ip.src"), DROP)', ["is no field of a packet, such as ip.src"]),
    ],
)
def test_a_declaration_that_cannot_be_is_an_error_at_its_line(typed, veth_pair, lines, words):
    last = f"pipeline.py:{HEAD.count(chr(10)) + lines.count(chr(10)) + 1}:"
    fails(typed(lines), last, *words)
    assert held(veth_pair[1]) == ()


def test_two_pipelines_that_disagree_on_a_shared_set_are_told_both_kinds_and_the_first_runs_on(typed, make_veth, name):
    """The second is started by the command beside the first, which drops what is in the set."""
    left, right = make_veth()
    pipe = Pipeline("first")
    pipe.rule(pipe.set(name, ip.src, pinned=True, members=["198.51.100.0/24"]), DROP, name="shared")
    with right.namespace, attach(pipe, right.name) as link:
        said = f"set '{name}' is pinned as [ip.src intervals] and declared here as [ip.dst intervals]"
        fails(
            typed(f'pipe.rule(pipe.set("{name}", ip.dst, pinned=True), DROP)'),
            "pipeline.py:3:",
            said,
            "xdpkit set delete",
        )
        left.send(frames(left, right, range(5)))
        until(lambda: link.ledger().seen == 5, "5 packets")
        assert {r.name: r.packets for r in link.ledger().rules} == {"shared": 5, "default": 0}
        assert [m.member for m in link.sets[name].members()] == ["198.51.100.0/24"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("add", "NAME", "10.0.0.1", "10.0.0.2"), ["the set is full", "capacity"]),
        (("replace", "NAME", "MANY"), ["4 members, declared with capacity=3: raise it"]),
        (("sync", "NAME", "MANY"), ["4 members, declared with capacity=3: raise it"]),
        (("add", "NAME", "10.0.0.1 . 80"), ["ip.src compares with an IPv4 address", "10.0.0.1 . 80"]),
        (("add", "NAME", "80-90"), ["ip.src compares with an IPv4 address"]),
        (("add", "NAME", "2001:db8::1"), ["ip.src compares with an IPv4 address"]),
        (("add", "NAME", "10.0.0.1", "--timeout", "5"), ["members have no time-outs"]),
        (("add", "NAME", "10.0.0.1", "--action", "drop"), ["holds no actions"]),
        (("remove", "NAME", "10.0.0.0/33"), ["10.0.0.0/33"]),
        (("replace", "NAME", "BAD"), ["bad.txt:2:", "did you mean 10.0.0.0/8?"]),
        (("replace", "NAME", "NONE"), ["holds no members, and would empty set", "--allow-empty"]),
        (("sync", "NAME", "NONE"), ["holds no members, and would empty set", "--allow-empty"]),
    ],
)
def test_a_change_that_is_refused_leaves_a_live_set_as_it_is(make_veth, name, tmp_path, args, words):
    left, right = make_veth()
    (tmp_path / "many.txt").write_text("10.0.0.1\n10.0.0.2\n10.0.0.3\n10.0.0.4\n")
    (tmp_path / "none.txt").write_text("# nothing today\n")
    (tmp_path / "bad.txt").write_text("10.0.0.1\n10.0.0.1/8\n")
    known = {
        "NAME": name,
        "MANY": str(tmp_path / "many.txt"),
        "BAD": str(tmp_path / "bad.txt"),
        "NONE": str(tmp_path / "none.txt"),
    }
    pipe, members = Pipeline("live"), ["192.0.2.1", "198.51.100.1"]
    pipe.rule(pipe.set(name, ip.src, pinned=True, members=members, capacity=3), DROP, name="shared")
    with right.namespace, attach(pipe, right.name) as link:
        fails(xdpkit(right, "set", *(known.get(a, a) for a in args)), *words)
        assert [m.member for m in link.sets[name].members()] == members
        left.send(frames(left, right, range(5)))
        until(lambda: link.ledger().seen == 5, "5 packets")
        assert link.ledger().rules[0].packets == 5


def test_an_update_whose_pinned_set_is_of_another_kind_leaves_the_old_rules_running(make_veth, name):
    left, right = make_veth()
    with LiveSet(Pipeline("theirs").set(name, ip.dst, pinned=True).spec):
        pipe, new = Pipeline("old"), Pipeline("new")
        pipe.rule(ip, DROP, name="ip")
        new.rule(new.set(name, ip.src, pinned=True), DROP, name="shared")
        with right.namespace, attach(pipe, right.name) as link:
            program = link.program.info()["id"]
            with pytest.raises(PipelineError, match=rf"set '{name}' is pinned as \[ip.dst intervals\]"):
                link.update(new)
            left.send(frames(left, right, range(5)))
            until(lambda: link.ledger().rules[0].packets == 5, "5 packets")
            assert (link.program.info()["id"], link.ledger().updates, dict(link.sets)) == (program, 0, {})
    assert pinned_spec(name).kind == "ip.dst intervals"
