"""A bridge: one ruleset on two devices, what it shares, and what becomes of it."""

import pytest
from traffic import frames, until

from xdpkit import DROP, PASS, Pipeline, bridge, dev, limit, src, udp


@pytest.fixture
def wire(lab):
    """`wire(**options of lab.veth)`: (left, a, b, right): left's peer is a, right's is b; a and b in one namespace."""

    def make(**options):
        middle = lab.namespace("middle")
        left, a = lab.veth(lab.namespace("left"), middle, names=("left", "a"), **options)
        b, right = lab.veth(middle, lab.namespace("right"), names=("b", "right"), **options)
        return left, a, b, right

    return make


def rules():
    pipe = Pipeline("wire", default=PASS)
    pipe.rule(udp.dport == 9, DROP, name="discard")
    return pipe


MODES = ["native", "generic", "tc_ingress"]


def counts(ledger):
    return {rule.name: rule.packets for rule in ledger.rules}


@pytest.mark.parametrize("mode", MODES)
def test_what_passes_is_the_same_byte_for_byte_and_what_is_dropped_never_arrives(wire, mode):
    left, a, _, right = wire()
    there = frames(left, right, range(100), size=300)
    back = frames(right, left, range(100), size=1500)
    with left.capture() as at_left, right.capture() as at_right:
        with a.namespace, bridge(rules(), inside="a", outside="b", mode=mode) as joined:
            for n in range(0, 100, 10):
                left.send(frames(left, right, range(10), dport=9) + there[n : n + 10])
                right.send(back[n : n + 10] + frames(right, left, range(10), dport=9))
                at_right.wait(n + 10, timeout=20)
                at_left.wait(n + 10, timeout=20)
            assert counts(joined.inside.ledger()) == counts(joined.outside.ledger()) == {"discard": 100, "default": 100}
    assert list(at_right) == there
    assert list(at_left) == back
    ledger = joined.ledger()
    assert (ledger.final, ledger.seen, ledger.forwarded, ledger.problems()) == (True, 400, 200, ())
    assert counts(ledger) == {"discard": 200, "default": 200}
    if mode == "native":
        assert (ledger.sent_on, ledger.unreported) == (200, 0)


@pytest.mark.parametrize("mode", MODES)
def test_the_sides_are_told_apart(wire, mode):
    left, a, _, right = wire()
    pipe = Pipeline("sides", default=DROP)
    pipe.rule(dev.inside, PASS, name="out")
    pipe.rule(dev.outside & (udp.dport == 53), PASS, name="in")
    with left.capture() as at_left, right.capture() as at_right:
        with a.namespace, bridge(pipe, inside="a", outside="b", mode=mode):
            left.send(frames(left, right, range(5), dport=80))
            right.send(frames(right, left, range(5), dport=80) + frames(right, left, range(7), dport=53))
            at_right.wait(5, timeout=20)
            at_left.wait(7, timeout=20)
    assert (len(at_right), len(at_left)) == (5, 7)


def test_both_sides_share_sets_and_limits(wire):
    left, a, _, right = wire()
    pipe = Pipeline("shared", default=PASS)
    seen = pipe.set("seen", src, intervals=False, timeouts=True)
    pipe.rule(dev.inside & (udp.dport == 1), seen.add(timeout=60), name="learn")
    pipe.rule(dev.outside & seen, DROP, name="known")
    pipe.rule((udp.dport == 2) & ~limit("1/day", burst=10), DROP, name="over")
    with a.namespace, bridge(pipe, inside="a", outside="b") as joined:
        left.send(frames(left, right, [1], dport=1))
        until(lambda: counts(joined.ledger())["learn"] == 1, "the inside has learnt")
        right.send(frames(right, left, [1]))  # of the same source
        until(lambda: counts(joined.ledger())["known"] == 1, "the outside knows")
        assert len(joined.sets["seen"]) == 1
        joined.sets["seen"].replace([])
        left.send(frames(left, right, range(8), dport=2))
        right.send(frames(right, left, range(8), dport=2))
        until(lambda: counts(joined.ledger())["over"] == 6, "ten of both together pass")


def test_an_update_changes_both_sides_or_none(wire):
    left, a, _, right = wire()
    with a.namespace, bridge(rules(), inside="a", outside="b") as joined:
        left.send(frames(left, right, range(3), dport=9))
        until(lambda: counts(joined.ledger())["discard"] == 3, "three are dropped")
        new = rules()
        new.rule(udp.dport == 10, DROP, name="ten")
        joined.update(new)
        for port, other in ((left, right), (right, left)):
            port.send(frames(port, other, range(2), dport=10) + frames(port, other, range(2), dport=9))
        until(lambda: counts(joined.ledger()) == {"discard": 7, "ten": 4, "default": 0}, "both have the new rules")
        with pytest.raises(ValueError, match="one side of a bridge"):
            joined.inside.update(new)
        before = joined.inside.program.info()["id"], joined.outside.program.info()["id"]
        other = rules()
        other.rule(udp.dport == 11, DROP, name="eleven")
        joined.outside._swap = refuse
        with pytest.raises(OSError, match="refused"):
            joined.update(other)
        assert (joined.inside.program.info()["id"], joined.outside.program.info()["id"]) == before
        assert joined.lost is None
        left.send(frames(left, right, range(2), dport=11) + frames(left, right, range(2), dport=10))
        until(lambda: counts(joined.ledger()) == {"discard": 7, "ten": 6, "default": 2}, "both have the old rules")


def refuse(_):
    raise OSError(5, "refused")
