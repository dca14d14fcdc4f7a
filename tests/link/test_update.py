"""Another ruleset on a live device: nothing lost, nothing judged by a mixture, counters and sets go on by name."""

from __future__ import annotations

import itertools
import os
import threading
from contextlib import ExitStack

import pytest
from traffic import frames, last, number, until

from xdpkit import (
    COUNT,
    DROP,
    PASS,
    REDIRECT,
    Forward,
    Mark,
    Mirror,
    Pipeline,
    PipelineError,
    attach,
    compile_pipeline,
    ip,
    limit,
    tcp,
    udp,
)
from xdpkit.compiler.built import Built
from xdpkit.lab.template import udp_frame

HOOKS = {"native": "xdp", "generic": "xdp", "tc_ingress": "tc"}
modes = pytest.mark.parametrize("mode", HOOKS)


def built(pipe: Pipeline, hook: str = "xdp") -> Built:
    return Built(pipe, {hook: compile_pipeline(pipe, hook)})


def counts(link) -> dict[str, int]:
    return {rule.name: rule.packets for rule in link.ledger().rules}


def test_redirected_packets_all_arrive_through_many_updates(make_veth):
    """Sequence numbers without a gap, while rulesets of different shape take turns."""
    left, right = make_veth()
    one, two = Pipeline("one"), Pipeline("two")
    one.rule(udp.dport == 53, REDIRECT, name="dns")
    two.rule(tcp.dport == 80, DROP, name="web")
    two.rule(ip.src.within("198.51.100.0/24") & (udp.dport == 53), REDIRECT, name="dns")
    rulesets = [built(two), built(one)]
    got: list[int] = []
    with right.namespace, attach(rulesets[1], right.name, mode="native") as link, link.sockets() as sockets:

        def read() -> None:
            for batch in sockets.batches(timeout=5):
                numbers = [number(frame) for frame in batch.frames]
                got.extend(numbers)
                if numbers[-1] == 0xFFFFFFFF:
                    return

        reader = threading.Thread(target=read)
        reader.start()
        for turn in range(100):
            sender = threading.Thread(target=left.send, args=(frames(left, right, range(turn * 50, turn * 50 + 50)),))
            sender.start()
            link.update(rulesets[turn % 2])
            sender.join()
        left.send(last(left, right))
        reader.join()
    ledger = link.ledger()
    assert got[:-1] == list(range(5000))
    assert ledger.problems() == ()
    assert (ledger.updates, ledger.seen, ledger.redirected, ledger.no_socket) == (100, 5001, 5001, 0)
    assert {r.name: r.packets for r in ledger.rules} == {"dns": 5001, "default": 0}


@modes
def test_no_packet_meets_half_of_one_ruleset_and_half_of_another(make_veth, mode):
    """Each ruleset marks, and later drops or passes; copies tell both of the same packet."""
    left, right = make_veth()
    even, odd = Pipeline("even"), Pipeline("odd")
    for pipe, mark, action in ((even, 2, DROP), (odd, 1, PASS)):
        pipe.rule(udp, Mark(mark), name=f"mark-{pipe.name}")
        pipe.rule(udp, Mirror(60), name="copy")
        pipe.rule(udp, action, name=f"end-{pipe.name}")
    rulesets, seen = [built(even, HOOKS[mode]), built(odd, HOOKS[mode])], set[tuple[int, int]]()
    template = udp_frame(src_mac=left.mac, dst_mac=right.mac).frame
    with ExitStack() as stack:
        stack.enter_context(right.namespace)
        generator = stack.enter_context(left.generator([template]))
        link = stack.enter_context(attach(rulesets[0], right.name, mode=mode))
        copies = stack.enter_context(link.copies())
        generator.start()

        def read() -> None:
            for batch in copies.batches(timeout=5):
                seen.update(zip(batch.marks.tolist(), batch.verdicts.tolist(), strict=True))
                if stopped.is_set():
                    return

        stopped, reader = threading.Event(), threading.Thread(target=read)
        reader.start()
        for turn in range(1, 61):
            link.update(rulesets[turn % 2])
        generator.stop()
        generator.settle()
        stopped.set()
        reader.join()
        ledger = link.ledger()
        assert seen == {(2, 1), (1, 2)}
        assert ledger.seen == generator.sent - generator.dropped
        names = {"mark-even", "end-even", "mark-odd", "end-odd"}
        total = link._tally  # the rules of the other ruleset are not shown
        found = {c.rule.name: total.with_(c).packets for c in link.program.counts() if c.rule.name in names}
        assert found["mark-even"] == found["end-even"] > 0
        assert ledger.gone_rules == ledger.seen - found["end-even"] > 0


def test_rules_count_on_under_their_names(make_veth):
    left, right = make_veth()
    one, two = Pipeline("one"), Pipeline("two")
    one.rule(udp.dport == 53, COUNT, name="asked")
    one.rule(udp.dport == 53, DROP, name="dns")
    two.rule(udp.dport == 80, DROP, name="web")
    two.rule(udp.dport == 53, PASS, name="dns")
    with right.namespace, right.capture() as passed, attach(one, right.name) as link:
        left.send(frames(left, right, range(30)))
        until(lambda: link.ledger().seen == 30, "30 packets seen")
        link.update(two)
        left.send(frames(left, right, range(12)) + frames(left, right, range(5), dport=80))
        passed.wait(12)
        until(lambda: link.ledger().seen == 47, "47 packets seen")
    assert counts(link) == {"web": 5, "dns": 42, "default": 0}
    assert link.ledger().gone_rules == 0
    assert link.pipeline is two


def test_packets_of_rules_that_are_gone_stay_in_the_sums(make_veth):
    left, right = make_veth()
    one, two = Pipeline("one"), Pipeline("two")
    one.rule(udp.dport == 53, DROP, name="dns")
    with right.namespace, attach(one, right.name) as link:
        left.send(frames(left, right, range(30)))
        until(lambda: link.ledger().seen == 30, "30 packets seen")
        link.update(two)
        ledger = link.ledger()
    assert (ledger.seen, ledger.gone_rules, counts(link)) == (30, 30, {"default": 0})
    assert "rules of before" in str(ledger)


def sets_of(*members: str, capacity: int = 100, field=ip.src, rule: str = "blocked") -> Pipeline:
    pipe = Pipeline("sets")
    blocked = pipe.set("blocked", field, members=members, capacity=capacity)
    pipe.rule(blocked, DROP, name=rule)
    return pipe


def test_members_stay_but_for_what_is_declared_differently(veth_pair):
    _, right = veth_pair
    with right.namespace, attach(sets_of("192.0.2.1", "192.0.2.2"), right.name) as link:
        blocked = link.sets["blocked"]
        blocked.update(add=["198.51.100.0/24"], remove=["192.0.2.2"])
        link.update(sets_of("192.0.2.1", "192.0.2.2", rule="same members"))
        assert [m.member for m in blocked.members()] == ["192.0.2.1", "198.51.100.0/24"]
        link.update(sets_of("192.0.2.2", "192.0.2.3", capacity=200))
        assert [m.member for m in blocked.members()] == ["192.0.2.3", "198.51.100.0/24"]  # .2 is declared as before
        assert blocked.capacity == 200
        assert link.sets["blocked"] is blocked


def test_a_set_that_users_hold_acts_on_the_ruleset_that_runs(make_veth):
    left, right = make_veth()
    with right.namespace, right.capture() as passed, attach(sets_of(), right.name) as link:
        blocked = link.sets["blocked"]
        link.update(sets_of("192.0.2.77"))
        blocked.update(add=["198.51.100.1"])
        left.send(frames(left, right, range(10)))
        until(lambda: counts(link)["blocked"] == 10, "10 packets blocked")
        blocked.replace([])
        left.send(frames(left, right, range(10)))
        passed.wait(10)
    assert counts(link) == {"blocked": 10, "default": 10}


def test_what_packets_added_stays_through_an_update(make_veth):
    left, right = make_veth()

    def greylist(rule: str, *declared: str) -> Pipeline:
        pipe = Pipeline("greylist")
        seen = pipe.set("seen", ip.src, intervals=False, timeouts=True, members=declared)
        pipe.rule(seen, PASS, name="known")
        pipe.rule(udp, seen.add(timeout=60), DROP, name=rule)
        return pipe

    with right.namespace, attach(greylist("first"), right.name) as link:
        left.send(frames(left, right, range(3)))
        until(lambda: link.ledger().seen == 3, "3 packets")
        link.update(greylist("later", "203.0.113.1"))
        left.send(frames(left, right, range(4)))
        until(lambda: link.ledger().seen == 7, "7 packets")
        (mine, theirs) = link.sets["seen"].members()
    assert counts(link) == {"known": 6, "later": 0, "default": 0}
    assert (mine.member, mine.by_packet, theirs.member, theirs.by_packet) == (
        "198.51.100.1", True, "203.0.113.1", False,
    )  # fmt: skip
    assert 0 < mine.timeout <= 60


def test_an_update_gives_a_limit_no_new_burst(make_veth):
    left, right = make_veth()

    def limited(rule: str) -> Pipeline:
        pipe = Pipeline("limited")
        pipe.rule(udp & limit("1/hour", burst=4), PASS, name="within")
        pipe.rule(udp, DROP, name=rule)
        return pipe

    with right.namespace, attach(limited("over"), right.name) as link:
        for turn in range(5):
            left.send(frames(left, right, range(3)))
            until(lambda turn=turn: link.ledger().seen == 3 * turn + 3, "3 packets more")
            link.update(limited(f"over-{turn}"))
    assert counts(link)["within"] == 4


REFUSED = [
    (sets_of("192.0.2.1", field=ip.dst), PipelineError, "set 'blocked' is ip.src intervals on the device, and ip.dst"),
    (sets_of(*(f"192.0.2.{n}" for n in range(5)), capacity=5), OSError, "the set is full"),
]


@pytest.mark.parametrize(("pipe", "error", "words"), REFUSED, ids=["another kind", "too many"])
def test_a_refused_update_changes_nothing(make_veth, pipe, error, words):
    left, right = make_veth()
    with right.namespace, attach(sets_of("198.51.100.1", capacity=5), right.name) as link:
        program = link.program.info()["id"]
        link.sets["blocked"].update(add=["198.51.100.3", "198.51.100.4"])
        with pytest.raises(error, match=words):
            link.update(pipe)
        left.send(frames(left, right, range(10)))
        until(lambda: counts(link)["blocked"] == 10, "10 packets blocked")
        assert link.program.info()["id"] == program
        assert len(link.sets["blocked"]) == 3
    assert link.ledger().updates == 0


def both_or_neither(left, turns, change) -> tuple[int, int, int]:
    """Packets of A and B take turns while ``change(live, turn)`` changes a set: how often the rule changed from one
    packet to the next, packets that arrived, and as many as the ledger says must."""
    right = left.peer
    pipe = Pipeline("both")
    pipe.rule(pipe.set("both", ip.src, intervals=False), REDIRECT, name="in")
    pipe.rule(udp, REDIRECT, name="out")
    frame = udp_frame(src_mac=left.mac, dst_mac=right.mac).frame
    states: list[int] = []
    with ExitStack() as stack:
        stack.enter_context(right.namespace)
        sources = {"flow_offset": 28, "flow_base": 1, "flows": 2}  # the low half of ip.src
        generator = stack.enter_context(left.generator([frame], **sources))
        link = stack.enter_context(attach(pipe, right.name, mode="native", timestamps=True))
        sockets = stack.enter_context(link.sockets())

        def read() -> None:
            for batch in sockets.batches(timeout=1):
                states.extend(batch.rules.tolist())

        reader = threading.Thread(target=read)
        reader.start()
        generator.start(rate_pps=50_000)
        for turn in range(turns):
            change(link.sets["both"], turn)
        generator.stop()
        generator.settle()
        reader.join()
        ledger = link.ledger()
    assert ledger.seen == generator.sent - generator.dropped
    assert {r.name: r.packets for r in ledger.rules}["default"] == 0
    return sum(a != b for a, b in itertools.pairwise(states)), len(states), ledger.seen - ledger.lost


def test_no_packet_meets_half_of_a_set_that_is_replaced(make_veth):
    """A half would show: of A and B, which take turns, one would be in it and the other not."""
    left, _ = make_veth()
    flips, arrived, expected = both_or_neither(
        left, 60, lambda live, turn: live.replace([] if turn % 2 else ["198.18.0.1", "198.18.0.2"])
    )
    assert arrived == expected > 0
    assert 0 < flips <= 60


def test_a_half_of_a_set_would_be_seen(make_veth):
    """The same look at a set that is changed member by member finds what the test above must not."""
    left, _ = make_veth()

    def change(live, turn: int) -> None:
        one, other = (["198.18.0.1"], ["198.18.0.2"])
        live.replace(one if turn % 2 else other)

    flips, arrived, expected = both_or_neither(left, 60, change)
    assert arrived == expected
    assert flips > 60


def test_sets_that_change_while_packets_pass_lose_none_and_count_each(make_veth):
    """update, replace and sync by turns, of a set that the packets are not in and one that they are."""
    left, right = make_veth()
    pipe = Pipeline("sets")
    nets = pipe.set("nets", ip.src, capacity=1000, members=["198.18.0.0/15"])
    pipe.rule(udp, COUNT, name="all")
    pipe.rule(nets, DROP, name="in")
    frame = udp_frame(src_mac=left.mac, dst_mac=right.mac).frame
    others = [f"10.0.{n}.0/24" for n in range(200)]
    with right.namespace, left.generator([frame]) as generator, attach(pipe, right.name, mode="native") as link:
        live = link.sets["nets"]
        generator.start()
        for turn in range(20):
            live.update(add=others[turn : turn + 50], remove=others[turn + 50 : turn + 90])
            live.replace(["198.18.0.0/16", *others[turn:]])
            live.sync(["198.18.0.0/15", *others[: turn * 5]])
        generator.stop()
        generator.settle()
        assert counts(link) == {"all": link.ledger().seen, "in": link.ledger().seen, "default": 0}
        assert link.ledger().seen == generator.sent - generator.dropped > 0


def test_a_device_to_forward_to_that_is_not_there_is_refused_by_name(veth_pair):
    _, right = veth_pair
    pipe = Pipeline("forward")
    pipe.rule(udp, Forward("nowhere"))
    with right.namespace, attach(Pipeline("old"), right.name) as link:
        with pytest.raises(OSError, match="nowhere"):
            link.update(pipe)
        with pytest.raises(OSError, match="nowhere"):
            attach(pipe, right.name, mode="generic")


def test_many_updates_leave_nothing_open(veth_pair):
    _, right = veth_pair
    rulesets = [built(sets_of("192.0.2.1")), built(sets_of("192.0.2.2"))]
    with right.namespace, attach(rulesets[0], right.name) as link:
        link.update(rulesets[1])
        before = len(os.listdir("/proc/self/fd"))
        for turn in range(30):
            link.update(rulesets[turn % 2])
        assert len(os.listdir("/proc/self/fd")) == before
    assert link.ledger().updates == 31


def test_an_af_packet_link_takes_another_filter(make_veth):
    left, right = make_veth()
    one, two = Pipeline("one"), Pipeline("two")
    one.rule(udp.dport == 53, REDIRECT, name="dns")
    two.rule(udp.dport == 80, REDIRECT, name="web")
    with right.namespace, attach(one, right.name, mode="af_packet") as link, link.sockets() as sockets:
        left.send(frames(left, right, range(20)))
        until(lambda: link.ledger().seen == 20, "20 packets")
        link.update(two)
        left.send(frames(left, right, range(20, 30)) + frames(left, right, range(100, 107), dport=80))
        got = [number(frame) for batch in sockets.batches(timeout=1) for frame in batch.frames]
    assert got == [*range(20), *range(100, 107)]
    assert link.ledger().problems() == ()


def test_a_closed_link_takes_no_update(veth_pair):
    _, right = veth_pair
    with right.namespace:
        link = attach(Pipeline("old"), right.name)
        link.close()
        with pytest.raises(ValueError, match="closed"):
            link.update(Pipeline("new"))


def test_a_shadow_is_tried_beside_the_live_rules_and_then_takes_over(make_veth):
    left, right = make_veth()
    live, new = sets_of(), sets_of(rule="bad")
    new.rule(udp.dport == 80, DROP, name="web")
    with right.namespace, right.capture() as passed, attach(live, right.name, shadow=new) as link:
        left.send(frames(left, right, range(7)) + frames(left, right, range(5), dport=80))
        passed.wait(12)
        until(lambda: link.ledger().seen == 12, "12 packets")
        shadow = link.ledger().shadow
        assert shadow is not None
        assert {r.name: r.packets for r in shadow.rules} == {"bad": 0, "web": 5, "default": 7}
        assert (shadow.differences, shadow.differing) == ((("PASS", "DROP", 5),), 5)
        link.sets["blocked"].update(add=["198.51.100.1"])  # one set for both
        left.send(frames(left, right, range(3)))
        until(lambda: link.ledger().seen == 15, "15 packets")
        later = link.ledger().shadow
        assert later is not None
        assert later.differing == 5
        link.update(new)
        assert link.ledger().shadow is None
        left.send(frames(left, right, range(4), dport=80))
        until(lambda: link.ledger().seen == 19, "19 packets")
    assert counts(link) == {"bad": 4, "web": 0, "default": 12}
    assert link.ledger().gone_rules == 3


def test_a_shadow_of_its_own_acts_on_nothing(make_veth):
    left, right = make_veth()
    pipe = sets_of("198.51.100.0/24")
    with right.namespace, right.capture() as passed, attach(pipe.shadow(), right.name) as link:
        left.send(frames(left, right, range(7)))
        passed.wait(7)
    assert counts(link) == {"blocked": 7, "default": 0}
    assert link.ledger().rules[0].action == "would DROP"


def test_sets_of_one_name_and_two_kinds_are_refused(veth_pair):
    _, right = veth_pair
    with (
        right.namespace,
        pytest.raises(PipelineError, match=r"set .blocked. is ip\.src intervals in .sets., and ip\.dst"),
    ):
        attach(sets_of(), right.name, shadow=sets_of(field=ip.dst))


def test_rules_that_mark_for_sockets_want_a_link_that_carries_marks(make_veth):
    left, right = make_veth()
    plain, marks = Pipeline("plain"), Pipeline("marks")
    for pipe in (plain, marks):
        pipe.rule(udp, *([Mark(9)] if pipe is marks else []), REDIRECT, name="all")
    with right.namespace, attach(plain, right.name) as link, pytest.raises(ValueError, match="timestamps=True"):
        link.update(marks)
    with right.namespace, attach(plain, right.name, timestamps=True) as link, link.sockets() as sockets:
        link.update(marks)
        left.send(frames(left, right, [1]))
        assert next(sockets.batches(timeout=5)).marks.tolist() == [9]
