"""Links that outlive their process: rules, members, buckets and counters go on whoever comes and goes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest
from traffic import detach_by_force, frames, take, until

from xdpkit import (
    DROP,
    PASS,
    REDIRECT,
    Forward,
    Mirror,
    Pipeline,
    attach,
    ip,
    limit,
    open_link,
    pinned_links,
    udp,
)
from xdpkit.device import netdev
from xdpkit.link.pin import PINS, RECORDS, LinkPin

MODES = pytest.mark.parametrize("mode", ["native", "generic", "tc_ingress"])


@pytest.fixture
def name():
    """A name for a pin, which is taken away at the end."""
    chosen = f"test-{os.getpid()}"
    yield chosen
    for path in (PINS / chosen, RECORDS / chosen):
        subprocess.run(["rm", "-rf", str(path)], check=True)


def firewall(port: int = 53, *, members=("198.51.100.9",), source: str | None = None) -> Pipeline:
    pipe = Pipeline("edge")
    banned = pipe.set("banned", ip.src, capacity=1000, members=members, source=source, timeouts=True)
    pipe.rule(banned, DROP, name="banned")
    pipe.rule(udp.dport == port, DROP, name="closed")
    return pipe


def counts(link) -> dict[str, int]:
    return {rule.name: rule.packets for rule in link.ledger().rules if rule.packets}


def programs(port) -> int:
    with port.namespace:
        return len(netdev.xdp_holders(netdev.device(port.name).index))


CHILD = """
import sys
from xdpkit import DROP, Pipeline, attach, ip, udp
pipe = Pipeline("edge")
banned = pipe.set("banned", ip.src, capacity=1000, members=["198.51.100.9"], timeouts=True)
pipe.rule(banned, DROP, name="banned")
pipe.rule(udp.dport == 53, DROP, name="closed")
link = attach(pipe, sys.argv[1], mode=sys.argv[2], pin=sys.argv[3])
link.sets["banned"].update(["198.51.100.1"])
print("ready", flush=True)
sys.stdin.read()
"""


@MODES
def test_a_killed_process_leaves_its_rules_in_force(make_veth, name, mode):
    left, right = make_veth()
    child = right.namespace.popen(
        [sys.executable, "-c", CHILD, right.name, mode, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "ready\n"
    left.send(frames(left, right, range(5), source="198.51.100.7"))
    with right.namespace:
        with open_link(name) as link:
            until(lambda: counts(link) == {"closed": 5}, "five packets counted")
            with pytest.raises(OSError, match=rf"belongs to process {child.pid}"):
                link.update(firewall())
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdin.close(), child.stdout.close()
        left.send(frames(left, right, range(3)))
        with open_link(name) as link:
            until(lambda: counts(link) == {"closed": 5, "banned": 3}, "three more")
            assert [m.member for m in link.sets["banned"].members()] == ["198.51.100.1", "198.51.100.9"]
            link.sets["banned"].update(remove=["198.51.100.1"])
            link.update(firewall(54))
            left.send(frames(left, right, range(4)) + frames(left, right, range(2), dport=54))
            until(lambda: link.ledger().seen == 14, "six more")
            assert counts(link) == {"closed": 7, "banned": 3, "default": 4}
            link.detach()
    assert name not in pinned_links()
    assert not (RECORDS / name).exists()


def test_attach_takes_over_what_is_pinned(make_veth, name):
    left, right = make_veth()
    pipe = firewall()
    pipe.rule(limit("2/minute") & (udp.dport == 80), PASS, name="few")
    with right.namespace:
        with attach(pipe, right.name, pin=name) as link:
            assert link.pinned == name
            assert name in pinned_links()
            left.send(frames(left, right, range(10), dport=80))
            until(lambda: link.ledger().seen == 10, "all of them")
            before = counts(link)
        assert not link.ledger().final
        assert before["few"] < 10
        other = firewall(54)
        other.rule(limit("2/minute") & (udp.dport == 80), PASS, name="few")
        with attach(other, right.name, pin=name) as link:
            assert counts(link) == before
            left.send(frames(left, right, range(10), dport=80))
            until(lambda: link.ledger().seen == 20, "all of them")
            assert counts(link)["few"] == before["few"]  # the bucket is still empty
            assert link.ledger().updates == 1
            link.detach()
        assert link.ledger().final
        assert not link.ledger().problems()


def test_redirected_packets_of_earlier_processes_are_in_the_ledger(make_veth, name):
    left, right = make_veth()
    pipe = Pipeline("edge")
    pipe.rule(udp.dport == 53, Mirror(64), REDIRECT, name="dns")
    with right.namespace:
        with attach(pipe, right.name, pin=name) as link, link.sockets() as sockets:
            left.send(frames(left, right, range(7)))
            assert len(take(sockets, 7)) == 7
        with open_link(name) as link:
            with pytest.raises(ValueError, match="another process"):
                link.copies()
            assert link.ledger().earlier == 7
            assert not link.ledger().problems()
        with attach(pipe, right.name, pin=name) as link:
            with link.sockets() as sockets:
                left.send(frames(left, right, range(3)))
                until(lambda: link.ledger().waiting == 3, "three more")
                (batch,) = [len(b) for b in sockets.batches(timeout=0.1)]
                assert batch == 3
            link.detach()
        assert link.ledger().redirected == 10
        assert not link.ledger().problems()


def test_forwarded_packets_are_counted_on(make_veth, lab, name):
    middle = lab.namespace("middle")
    left, inside = lab.veth(lab.namespace("left"), middle)
    outside, _ = lab.veth(middle, lab.namespace("right"))
    pipe = Pipeline("edge", default=Forward(outside.name))
    with middle:
        with attach(pipe, inside.name, mode="native", pin=name) as link:
            left.send(frames(left, inside, range(5)))
            until(lambda: link.ledger().forwarding.sent == 5, "five")
        left.send(frames(left, inside, range(4)))
        with attach(pipe, inside.name, pin=name) as link:
            left.send(frames(left, inside, range(3)))
            until(lambda: link.ledger().forwarding.sent == 12, "twelve")
            link.detach()
        assert not link.ledger().problems()


def test_a_source_that_changed_is_read_at_the_next_update(make_veth, name, tmp_path):
    _, right = make_veth()
    (tmp_path / "banned.txt").write_text("198.51.100.1\n")

    def declared() -> Pipeline:
        return firewall(members=(), source=str(tmp_path / "banned.txt"))

    with right.namespace:
        with attach(declared(), right.name, pin=name):
            pass
        (tmp_path / "banned.txt").write_text("198.51.100.2\n")
        with open_link(name) as link:
            assert [m.member for m in link.sets["banned"].members()] == ["198.51.100.1"]
        with attach(declared(), right.name, pin=name) as link:
            assert [m.member for m in link.sets["banned"].members()] == ["198.51.100.2"]
            link.detach()


def test_members_that_processes_add_at_the_same_time_are_all_there(make_veth, name):
    """Two open links change one set while the rules, and with them the set's map, are exchanged."""
    _, right = make_veth()
    errors: list[BaseException] = []

    def add(number: int) -> None:
        try:
            with right.namespace, open_link(name) as link:
                for n in range(50):
                    link.sets["banned"].update([f"203.0.{number}.{n}"])
        except BaseException as error:
            errors.append(error)

    with right.namespace, attach(firewall(), right.name, pin=name) as link:
        threads = [threading.Thread(target=add, args=(n,)) for n in (1, 2)]
        for thread in threads:
            thread.start()
        turn = 0
        while any(t.is_alive() for t in threads):
            turn += 1
            link.update(firewall(members=(f"198.51.100.{turn % 200}",)))
        for thread in threads:
            thread.join()
        assert not errors
        found = {m.member for m in link.sets["banned"].members()}
        assert {f"203.0.{number}.{n}" for number in (1, 2) for n in range(50)} <= found
        link.detach()


def test_a_pin_whose_device_is_gone_is_said_and_taken_over_anew(make_veth, name):
    left, right = make_veth()
    with right.namespace:
        with attach(firewall(), right.name, pin=name) as link:
            detach_by_force(right)
        with pytest.raises(OSError, match="deleted, or the link detached by force"):
            open_link(name)
        with attach(firewall(), right.name, pin=name) as link:
            left.send(frames(left, right, range(2)))
            until(lambda: link.ledger().seen == 2, "two")
            link.detach()


def test_what_cannot_be_pinned(make_veth, name):
    _, right = make_veth()
    with right.namespace, attach(firewall(), right.name) as link:
        for wrong in ("", "a/b", "..", "a" * 64, "a b"):
            with pytest.raises(ValueError, match="letters, digits"):
                link.pin(wrong)
        link.pin(name)
        with pytest.raises(ValueError, match="pinned already"):
            link.pin(name)
        link.detach()
    with pytest.raises(OSError, match=f"no pinned link '{name}'"):
        open_link(name)


@pytest.mark.parametrize("moment", ["announce", "write"])
def test_a_process_that_ends_in_the_middle_of_an_update_loses_no_count(make_veth, name, moment, monkeypatch):
    left, right = make_veth()
    with right.namespace:
        pid = os.fork()
        if not pid:
            try:
                link = attach(firewall(), right.name, pin=name)
                left.send(frames(left, right, range(5)))
                until(lambda: link.ledger().seen == 5, "five")
                step = getattr(LinkPin, moment)

                def end(pin, *args):
                    if moment == "announce":
                        step(pin, *args)
                    os._exit(7)

                monkeypatch.setattr(LinkPin, moment, end)
                link.update(firewall(54))
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        with open_link(name) as link:
            assert counts(link) == {"closed": 5}
            link.detach()
