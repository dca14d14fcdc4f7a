"""What rules do besides giving a verdict: copies, events, marks, packets to another device."""

from __future__ import annotations

import struct
from itertools import islice

import pytest
from blocks import capture
from traffic import frames, number, until

from xdpkit import DROP, PASS, REDIRECT, TX, Forward, Mark, Mirror, Pipeline, attach, ip, log, udp
from xdpkit.lab import Lab

pytestmark = pytest.mark.root

modes = pytest.mark.parametrize("mode", ["native", "generic", "tc_ingress"])


def counts(link) -> dict[str, int]:
    return {rule.name: rule.packets for rule in link.ledger().rules}


def copied(copies, count):
    """(number, bytes kept, mark, verdict, wire length) of ``count`` copies."""
    got = []
    for batch in copies.batches(timeout=5):
        for i, frame in enumerate(batch.frames):
            row = (len(frame), int(batch.marks[i]), int(batch.verdicts[i]), int(batch.wire_lengths[i]))
            got.append((number(frame), *row))
        if len(got) >= count:
            return got
    raise AssertionError(f"{len(got)} of {count} copies came")


@modes
def test_copies_tell_what_became_of_packets_that_went_on(make_veth, mode):
    left, right = make_veth()
    pipe = Pipeline("tap")
    pipe.rule(udp, Mirror(80), name="all")
    pipe.rule(udp.dport == 80, Mirror(), Mark(7), DROP, name="web")
    pipe.rule(udp.dport == 53, Mark(0xFFFFFFFF), PASS, name="dns")
    with right.namespace, right.capture() as stack, attach(pipe, right.name, mode=mode) as link:
        with link.copies() as copies:
            left.send(frames(left, right, [1, 2], size=300) + frames(left, right, [3], size=300, dport=80))
            left.send(frames(left, right, [4], size=300, dport=1))
            got = copied(copies, 4)
        stack.wait(3)
    assert got == [(1, 80, 0xFFFFFFFF, 2, 300), (2, 80, 0xFFFFFFFF, 2, 300), (3, 300, 7, 1, 300), (4, 80, 0, 2, 300)]
    assert counts(link) == {"all": 4, "web": 1, "dns": 2, "default": 1}
    assert (link.ledger().mirrored, link.ledger().mirror_full, link.ledger().seen) == (4, 0, 4)


@modes
def test_nothing_is_copied_while_nobody_reads(make_veth, mode):
    left, right = make_veth()
    pipe = Pipeline("tap")
    pipe.rule(udp, Mirror(60), DROP, name="all")
    with right.namespace, attach(pipe, right.name, mode=mode) as link:
        left.send(frames(left, right, range(10)))
        until(lambda: link.ledger().seen == 10, "10 packets")
        with link.copies() as copies:
            left.send(frames(left, right, [99]))
            assert [row[0] for row in copied(copies, 1)] == [99]
    assert counts(link) == {"all": 11, "default": 0}
    assert link.ledger().mirrored == 1


@pytest.mark.parametrize(("mode", "verdicts"), [("native", (2, [1, 2, 3])), ("tc_ingress", (1, [2, 0, 7]))])
def test_a_file_of_copies_has_each_packets_own_verdict(make_veth, tmp_path, mode, verdicts):
    """pcapng epb_verdict: 2 and the XDP action, 1 and the TC action."""
    left, right = make_veth()
    pipe = Pipeline("tap")
    pipe.rule(udp, Mirror(64), name="all")
    pipe.rule(udp.dport == 1, DROP, name="one")
    pipe.rule(udp.dport == 3, TX, name="three")
    with right.namespace, attach(pipe, right.name, mode=mode) as link:
        with link.copies() as copies, copies.write(tmp_path / "tap.pcapng"):
            for port in (1, 2, 3):
                left.send(frames(left, right, [port], dport=port))
            until(lambda: link.ledger().mirrored == 3, "3 copies")
    interfaces, packets, statistics = capture((tmp_path / "tap.pcapng").read_bytes())
    kind, numbers = verdicts
    assert [p["verdict"] for p in packets] == [struct.pack("<BQ", kind, n) for n in numbers]
    assert [(i["filter"]) for i in interfaces] == ["all: udp"]
    assert [(s["delivered"], s["os_dropped"]) for s in statistics] == [(3, 0)]


def test_copies_that_find_no_room_are_counted_and_the_packets_go_on(make_veth):
    left, right = make_veth()
    pipe = Pipeline("tap")
    pipe.rule(udp, Mirror(), name="all")
    pipe.rule(udp, DROP, name="end")
    with right.namespace, attach(pipe, right.name, mode="native") as link:
        room = 2048 * 2048 // (32 + 96 + 8)
        with link.copies(), left.generator(frames(left, right, [0])) as generator:
            generator.send(2 * room)
            generator.settle()
            ledger = link.ledger()
    assert (ledger.seen, ledger.mirrored + ledger.mirror_full) == (2 * room, 2 * room)
    assert ledger.mirror_full > 0
    assert next(r.failed for r in ledger.rules if r.name == "all") == ledger.mirror_full
    assert next(r.packets for r in ledger.rules if r.name == "end") == 2 * room
    assert "LOST" in str(ledger)


@modes
def test_events_come_at_most_as_often_as_they_may(make_veth, mode):
    left, right = make_veth()
    pipe = Pipeline("logs")
    pipe.rule(udp.dport == 53, log("1/hour", burst=3), DROP, name="dns")
    pipe.rule(udp, log("1/hour", burst=100), name="all")
    with right.namespace, attach(pipe, right.name, mode=mode) as link:
        stream = link.events(timeout=5)
        left.send(frames(left, right, range(10), size=200) + frames(left, right, range(10, 12), dport=80))
        events = list(islice(stream, 5))
        until(lambda: link.ledger().seen == 12, "12 packets")
    named = [(event.rule, number(event.data), len(event.data), event.wire_bytes) for event in events]
    dns, web = [("dns", n, 96, 200) for n in range(3)], [("all", n, 64, 64) for n in (10, 11)]
    assert named == dns + web
    assert counts(link) == {"dns": 10, "all": 2, "default": 2}


def test_what_a_pipeline_does_not_do_is_said(veth_pair):
    _, right = veth_pair
    with right.namespace, attach(Pipeline("plain"), right.name) as link:
        with pytest.raises(ValueError, match="no rule of 'plain' mirrors"):
            link.copies()
        with pytest.raises(ValueError, match="no rule of 'plain' logs"):
            link.events()


def test_tc_gives_the_mark_to_the_stack(make_veth):
    """A rule of nftables behind it counts the packets that have the mark."""
    left, right = make_veth(addresses=("10.0.0.1/24", "10.0.0.2/24"))
    pipe = Pipeline("marks")
    pipe.rule(udp.dport == 53, Mark(5), name="mark")
    rules = "add table t; add chain t c { type filter hook prerouting priority 0; }; add rule t c mark 5 counter"
    with right.namespace, attach(pipe, right.name, mode="tc_ingress") as link:
        right.namespace.run(["nft", rules], check=True)
        left.send(frames(left, right, range(3)) + frames(left, right, range(4), dport=80))
        until(lambda: link.ledger().seen >= 7, "7 packets")
        listed = right.namespace.run(["nft", "list", "table", "t"], check=True, capture_output=True, text=True).stdout
    assert "counter packets 3 " in listed


# ---- FORWARD ----


@pytest.fixture
def chain():
    """(source, in, sink); what leaves by "out", in the namespace of "in", reaches the sink."""
    with Lab() as lab:
        a, middle, b = lab.namespace("a"), lab.namespace("middle"), lab.namespace("b")
        source, inside = lab.veth(a, middle, names=("source", "in"))
        _, sink = lab.veth(middle, b, names=("out", "sink"))
        yield source, inside, sink


@modes
def test_forwarded_packets_leave_by_the_other_device_as_they_are(chain, mode):
    source, inside, sink = chain
    pipe = Pipeline("wire")
    pipe.rule(udp.dport == 53, Forward("out"), name="dns")
    pipe.rule(ip, DROP, name="rest")
    sent = frames(source, sink, range(200), size=120)
    with inside.namespace, inside.capture() as stack, sink.capture() as arrived, attach(pipe, "in", mode=mode) as link:
        source.send([f for pair in zip(sent, frames(source, sink, range(200), dport=9), strict=True) for f in pair])
        assert arrived.wait(200) == sent
    ledger = link.ledger()
    assert counts(link) == {"dns": 200, "rest": 200, "default": 0}
    assert (ledger.forwarded, ledger.problems()) == (200, ())
    if mode != "tc_ingress":  # packet sockets are in front of TC
        assert stack == []
        assert (ledger.sent_on, ledger.dropped_there) == ((200, 0) if mode == "native" else (0, 0))


@pytest.mark.parametrize(("otherwise", "reaching"), [(DROP, 0), (PASS, 20)])
@pytest.mark.parametrize("mode", ["native", "tc_ingress"])
def test_a_device_that_is_gone_makes_forward_fall_back_as_declared(chain, mode, otherwise, reaching):
    source, inside, sink = chain
    pipe = Pipeline("wire")
    pipe.rule(udp, Forward("out", otherwise=otherwise), name="all")
    with inside.namespace, inside.capture() as stack, attach(pipe, "in", mode=mode) as link:
        inside.namespace.run(["ip", "link", "del", "out"], check=True)
        source.send(frames(source, sink, range(20)))
        until(lambda: link.ledger().seen == 20, "20 packets")
        if mode == "native":
            stack.wait(reaching)
    ledger = link.ledger()
    if mode == "native":
        assert len(stack) == reaching
        assert (ledger.forwarded, ledger.totals.no_device) == (0, 20)


def test_packets_that_the_other_device_has_no_room_for_are_told_apart(chain):
    source, inside, sink = chain
    pipe = Pipeline("wire")
    pipe.rule(udp, Forward("out"), name="all")
    with inside.namespace, attach(pipe, "in", mode="native") as link:
        inside.namespace.run(["ip", "link", "set", "out", "down"], check=True)
        source.send(frames(source, sink, range(50)))
        until(lambda: link.ledger().seen == 50, "50 packets")
    ledger = link.ledger()
    assert (
        ledger.forwarded == ledger.sent_on + ledger.dropped_there + ledger.totals.no_device or ledger.problems() == ()
    )


def test_redirect_and_forward_may_stand_side_by_side(chain):
    source, inside, sink = chain
    pipe = Pipeline("both")
    pipe.rule(udp.dport == 53, REDIRECT, name="dns")
    pipe.rule(udp, Forward("out"), name="rest")
    with inside.namespace, sink.capture() as arrived, attach(pipe, "in", mode="native") as link:
        with link.sockets() as sockets:
            source.send(frames(source, sink, range(30)) + frames(source, sink, range(30, 70), dport=9))
            arrived.wait(40)
            got = [number(f) for batch in sockets.batches(timeout=0.5) for f in batch.frames]
    assert (got, [number(f) for f in arrived]) == ([*range(30)], [*range(30, 70)])
    assert link.ledger().problems() == ()
