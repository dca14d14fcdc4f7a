"""A pipeline that is no longer on its device says so, whatever took it off; one that is passed by, too."""

import errno
import json
import re

import pytest
from commands import DNS, FIREWALL, start, stop
from pyroute2 import IPRoute
from traffic import detach_by_force, frames, number, take, until

import xdpkit
from xdpkit import DROP, REDIRECT, Pipeline, Program, SocketOptions, attach, compile_pipeline, udp
from xdpkit.device import ethtool
from xdpkit.device.netlink import iproute
from xdpkit.kernel.core import check, lib
from xdpkit.link.presence import SETTLE_SECONDS, UNSEEN_PACKETS, Unseen

LINK_MODES = ("native", "generic", "tc_ingress", "tc_egress")
EVERY_MODE = (*LINK_MODES, "af_packet")


def dns(action=REDIRECT):
    pipe = Pipeline("dns")
    pipe.rule(udp.dport == 53, action, name="dns")
    return pipe


def delete(port, pid=0):
    with port.peer.namespace, iproute("delete") as ip:
        ip.link("del", index=port.peer.index)


def move(port, pid=0):
    with port.namespace, iproute("move") as ip:
        ip.link("set", index=port.index, net_ns_fd=port.peer.namespace.fd)


WAYS = {
    "detached": (detach_by_force, errno.ENOLINK, "right: the pipeline was detached by force"),
    "deleted": (delete, errno.ENODEV, "right: the device was deleted"),
    "moved": (move, errno.ENODEV, "right: .*moved to another network namespace"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", EVERY_MODE)
def test_a_link_says_how_it_lost_its_device(make_veth, mode, way):
    if (mode, way) == ("af_packet", "detached"):
        return  # it has no bpf_link
    _, right = make_veth()
    take_off, number, said = WAYS[way]
    with right.namespace, attach(dns(), right.name, mode=mode) as link:
        assert link.lost is None
        take_off(right)
        assert re.match(said, str(link.lost))
        with pytest.raises(OSError, match=said) as caught:
            link.check()
        assert caught.value.errno == number
        assert link.notes == (link.lost,)
    assert f"NOTE: {link.notes[0]}" in str(link.ledger())
    assert link.ledger().problems() == ()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", ["native", "generic", "tc_ingress", "af_packet"])
def test_a_reader_that_waits_for_ever_is_told_that_the_device_is_lost(make_veth, mode, way):
    if (mode, way) == ("af_packet", "detached"):
        return
    left, right = make_veth()
    with right.namespace, attach(dns(), right.name, mode=mode) as link, link.sockets() as sockets:
        left.send(frames(left, right, range(10)))
        assert len(take(sockets, 10)) == 10
        WAYS[way][0](right)
        with pytest.raises(OSError, match="right"):
            next(sockets.batches())


def test_workers_are_done_when_the_link_was_detached_by_force(make_veth):
    left, right = make_veth()
    with right.namespace, attach(dns(), right.name) as link, link.sockets() as sockets, sockets.count() as workers:
        left.send(frames(left, right, range(10)))
        until(lambda: workers.stats().packets == 10, "the packets")
        assert not workers.done
        detach_by_force(right)
        until(lambda: workers.done, "the workers are done")
        assert "detached by force" in str(link.lost)


@pytest.mark.parametrize("mode", LINK_MODES)
def test_another_program_in_the_place_of_the_pipeline_is_named(make_veth, mode):
    _, right = make_veth()
    hook = "tc" if mode.startswith("tc_") else "xdp"
    with right.namespace, attach(dns(), right.name, mode=mode) as link:
        with Program(compile_pipeline(Pipeline("other", default=DROP), hook)) as other:
            check(lib.xk_link_update(link._fd, other.fd))
            said = rf"right: another program, xdpkit \(id {other.info()['id']}\), was put in the place"
            assert re.match(said, str(link.lost))


def test_an_update_and_a_closed_link_are_no_loss(make_veth):
    _, right = make_veth()
    with right.namespace:
        with attach(dns(), right.name) as link:
            link.update(dns(DROP))
            assert link.lost is None
        assert link.lost is None
        link.check()


def test_from_another_namespace_a_link_is_not_taken_for_lost(make_veth):
    left, right = make_veth()
    with right.namespace, attach(dns(), right.name) as link:
        with left.namespace:
            assert link.lost is None
            link._next_check = 0
            link.check()
            detach_by_force(right)
            assert link.lost == "right: the device is gone"


def test_a_device_that_takes_the_index_of_one_that_moved_is_not_taken_for_it(make_veth):
    _, right = make_veth()
    with right.namespace, attach(dns(), right.name) as link, iproute("make another") as ip:
        move(right)
        ip.link("add", ifname="other", kind="veth", index=right.index, peer="peer")
        link._next_check = 0
        with pytest.raises(OSError, match="right: the device was moved to another network namespace"):
            link.check()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pipeline", [DNS, FIREWALL])
@pytest.mark.parametrize("quiet", [[], ["-q"]])
def test_a_run_that_lost_its_device_says_so_and_ends_with_1(make_veth, pipeline, way, quiet):
    _, right = make_veth()
    child = start(right, pipeline, "--json", *quiet)
    WAYS[way][0](right, child.pid)
    out, err = child.communicate(timeout=30)
    assert (child.returncode, err.count("\n")) == (1, 1), err
    assert re.match(f"xdpkit: {WAYS[way][2]}", err)
    assert json.loads(out)["problems"] == []
    assert re.match(WAYS[way][2], json.loads(out)["notes"][0])


# ---- changes that let packets pass by ----


def more_queues(port, rx):
    with port.namespace:
        ethtool.set_channels(port.name, rx=rx, tx=rx)


@pytest.fixture
def one_of_four(make_veth):
    """A pair that could have four queues, and has one at the right end."""
    left, right = make_veth(queues=4)
    more_queues(left, 1)
    more_queues(right, 1)
    return left, right


def test_queues_that_are_added_to_a_veth_meet_the_pipeline_again_though_nobody_asks(one_of_four):
    """The kernel gives new queues no program; its notice is followed, with no call of check()."""
    left, right = one_of_four
    with right.namespace, right.capture() as stack, attach(dns(DROP), right.name, mode="native") as link:
        left.send(frames(left, right, range(5)))
        more_queues(right, 4)
        more_queues(left, 4)
        until(lambda: link.notes, "the queues are seen")
        left.send(frames(left, right, range(10, 20)), queue=3)
        left.send(frames(left, right, [99], dport=80), queue=3)
        stack.wait(1)
        assert [number(frame) for frame in stack] == [99]
        assert link.notes == (
            "right: 1 receive queues became 4: the pipeline was put on the device again, so that it runs on the new "
            "ones too",
        )
        assert (link.lost, link.ledger().seen) == (None, 16)
    assert link.ledger().problems() == ()


def test_a_reader_learns_which_new_queues_have_no_socket(one_of_four):
    left, right = one_of_four
    with right.namespace, attach(dns(), right.name, mode="native") as link, link.sockets() as sockets:
        more_queues(right, 4)
        more_queues(left, 4)
        until(lambda: (link.check(), link.notes)[1], "the queues are seen")  # type: ignore[func-returns-value]
        assert "queues 1-3 have no socket" in link.notes[0]
        left.send(frames(left, right, range(10)), queue=0)
        assert len(take(sockets, 10)) == 10
        left.send(frames(left, right, range(7)), queue=2)
        until(lambda: link.ledger().no_socket == 7, "they are counted")


def test_a_run_warns_of_new_queues_and_goes_on(one_of_four):
    _, right = one_of_four
    child = start(right, DNS, "--json")
    more_queues(right, 2)
    assert (
        "warning: right: 1 receive queues became 2: the pipeline was put on the device again" in child.stderr.readline()
    )
    status, out, _ = stop(child)
    assert (status, len(json.loads(out)["notes"])) == (0, 1)


def test_an_mtu_that_grows_is_said_with_what_it_means(make_veth):
    _, right = make_veth()
    options = SocketOptions(multi_buffer="off")
    with right.namespace, attach(dns(), right.name, mode="generic", options=options) as link:
        with IPRoute() as ip:
            ip.link("set", index=right.index, mtu=3000)
        link._next_check = 0
        link.check()
        assert link.notes == (
            "right: the MTU was 1500 and is 3000: packets that are longer than a frame are lost: start again",
        )


def test_packets_that_arrive_and_are_never_seen_are_said(make_veth):
    """Another program in front of the pipeline drops everything."""
    left, right = make_veth()
    with right.namespace, attach(dns(DROP), right.name, mode="tc_ingress") as link:
        times = iter((0.0, SETTLE_SECONDS, SETTLE_SECONDS + 1))
        link._unseen = Unseen(clock=lambda: next(times))
        with attach(Pipeline("all", default=DROP), right.name, mode="native"):
            for _ in range(3):
                link._next_check = 0
                link.check()
                left.send(frames(left, right, range(UNSEEN_PACKETS)))
        assert len(link.notes) == 1
        assert "100 packets arrived that the pipeline did not see" in link.notes[0]


def test_a_counter_that_lags_behind_is_no_alarm():
    now = 0.0
    unseen = Unseen(clock=lambda: now)
    assert unseen.look(1000, 0) == 0
    now = SETTLE_SECONDS - 0.1
    assert unseen.look(1000, 1000) == 0
    now = SETTLE_SECONDS
    assert unseen.look(1000, 1000) == 0
    now = 100.0
    assert unseen.look(1000, 1000 + UNSEEN_PACKETS - 1) == 0
    assert unseen.look(1001, 1000 + 5 * UNSEEN_PACKETS) == 0


def test_the_attachment_has_its_own_name_and_the_old_one(make_veth):
    _, right = make_veth()
    with right.namespace, attach(dns(DROP), right.name) as link:
        assert link.attachment is link.attachment
        assert type(link.attachment) is xdpkit.Attachment is xdpkit.Got
