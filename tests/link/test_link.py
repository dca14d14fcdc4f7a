"""A pipeline on a device: what arrives, what was got, and that nothing stays behind."""

import errno
import importlib
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from functools import cache

import pytest
from scapy.layers.l2 import Ether
from traffic import drain, frames, last, number, take, until

from xdpkit import (
    DROP,
    PASS,
    REDIRECT,
    TX,
    NotSupported,
    Pipeline,
    Redirect,
    SocketOptions,
    attach,
    compile_pipeline,
    tcp,
    udp,
)
from xdpkit.compiler.built import Built
from xdpkit.device import netdev
from xdpkit.device.netlink import iproute

attaching = importlib.import_module("xdpkit.link.attach")  # `xdpkit.attach` is the function
XDP_MODES = ("native", "generic")
EVERY_MODE = ("native", "generic", "af_packet")


@cache
def dns(action=REDIRECT, *, default=PASS):
    """One rule, compiled once for all tests."""
    pipe = Pipeline("dns", default=default)
    pipe.rule(udp.dport == 53, action, name="dns")
    return Built(pipe, {"xdp": compile_pipeline(pipe, "xdp")})


def held(port):
    with port.namespace:
        return netdev.xdp_holders(port.index)


def counts(link):
    return {r.name: (r.packets, r.no_socket) for r in link.ledger().rules}


def set_link(port, **options):
    with port.namespace, iproute(f"change {port.name}") as ip:
        ip.link("set", index=port.index, **options)


# ---- what arrives ----


@pytest.mark.parametrize("queues", [1, 2, 4])
def test_exactly_the_matching_packets_arrive_whole_and_in_order_per_queue(make_veth, queues):
    left, right = make_veth(queues=queues)
    sent, beside = {}, []
    with right.namespace, right.capture() as stack, attach(dns(), right.name, mode="native") as link:
        with link.sockets() as sockets:
            for queue in range(queues):
                mine = range(queue * 1000, queue * 1000 + 700 + queue)
                sent[queue] = frames(left, right, mine, size=64 + 100 * queue)
                others = frames(left, right, mine, dport=80)
                beside += others
                mixed = [frame for pair in zip(sent[queue], others, strict=True) for frame in pair]
                left.send(mixed + last(left, right), queue=queue)
            assert drain(sockets, range(queues)) == sent
        passed = sum(map(len, sent.values()))
        stack.wait(passed)
    assert sorted(stack) == sorted(beside)
    assert link.ledger().problems() == ()
    assert counts(link) == {"dns": (passed + queues, 0), "default": (passed, 0)}
    assert held(right) == ()


@pytest.mark.parametrize("mode", ["generic", "af_packet"])
def test_the_other_modes_deliver_the_same_packets(make_veth, mode):
    left, right = make_veth()
    sent = frames(left, right, range(500), size=900)
    with right.namespace, right.capture() as stack, attach(dns(), right.name, mode=mode) as link:
        with link.sockets() as sockets:
            left.send(sent + frames(left, right, range(20), dport=80) + last(left, right))
            assert drain(sockets, [0]) == {0: sent}
        # AF_PACKET takes nothing from the stack
        stack.wait(521 if mode == "af_packet" else 20)
    assert len(stack) == (521 if mode == "af_packet" else 20)
    assert link.ledger().problems() == ()
    assert counts(link) == {"dns": (501, 0), "default": (20, 0)}


@pytest.mark.parametrize("mode", XDP_MODES)
def test_dropped_packets_vanish_and_are_counted(make_veth, mode):
    left, right = make_veth()
    with right.namespace, right.capture() as stack, attach(dns(DROP), right.name, mode=mode) as link:
        left.send(frames(left, right, range(300)) + frames(left, right, [7], dport=80))
        stack.wait(1)  # sent last, so the others would be here
    assert [number(f) for f in stack] == [7]
    assert counts(link) == {"dns": (300, 0), "default": (1, 0)}
    assert held(right) == ()


@pytest.mark.parametrize("mode", XDP_MODES)
def test_transmitted_packets_come_back_with_the_addresses_exchanged(make_veth, mode):
    left, right = make_veth()
    sent = frames(left, right, range(300))
    with left.namespace:
        polled = attach(Pipeline("pass"), left.name)  # veth forgets to wake a peer for XDP_TX that has no XDP program
    with polled, right.namespace, left.capture() as back, right.capture() as stack:
        with attach(dns(TX), right.name, mode=mode) as link:
            left.send(sent)
            back.wait(300)
    assert back == frames(right, left, range(300))
    assert Ether(back[0]).dst == left.mac
    assert stack == []
    assert counts(link)["dns"] == (300, 0)


@pytest.mark.parametrize("mode", XDP_MODES)
@pytest.mark.parametrize(("action", "reaching"), [(REDIRECT, 100), (Redirect(otherwise=DROP), 0)])
def test_redirect_falls_back_as_declared_while_no_socket_is_there(make_veth, mode, action, reaching):
    left, right = make_veth()
    with right.namespace, right.capture() as stack, attach(dns(action), right.name, mode=mode) as link:
        left.send(frames(left, right, range(100)) + frames(left, right, [7], dport=80))
        stack.wait(reaching + 1)
        with link.sockets() as sockets:
            left.send(frames(left, right, range(50)))
            take(sockets, 50)
        left.send(frames(left, right, range(100)) + frames(left, right, [7], dport=80))
        stack.wait(2 * (reaching + 1))
        ledger = link.ledger()
        assert (ledger.no_socket, ledger.redirected, ledger.delivered) == (200, 50, 50)
        assert "no socket" in str(ledger)
    assert len(stack) == 2 * (reaching + 1)
    assert stack[: reaching + 1] == frames(left, right, range(reaching)) + frames(left, right, [7], dport=80)
    assert counts(link)["dns"] == (250, 200)
    assert link.ledger().problems() == ()


def test_a_queue_without_a_socket_falls_back_and_the_others_deliver(make_veth):
    left, right = make_veth(queues=2)
    with right.namespace, right.capture() as stack, attach(dns(), right.name, queues=[1]) as link:
        with link.sockets() as sockets:
            left.send(frames(left, right, range(30)), queue=0)
            left.send(frames(left, right, range(40)) + last(left, right), queue=1)
            assert drain(sockets, [1]) == {1: frames(left, right, range(40))}
            stack.wait(30)
    assert stack == frames(left, right, range(30))
    assert link.ledger().no_socket == 30
    assert "queue 1" in str(link.attachment)


def test_sockets_can_be_opened_again_and_the_ledger_goes_on(make_veth):
    left, right = make_veth()
    with right.namespace, attach(dns(), right.name) as link:
        for round_ in (1, 2, 3):
            with link.sockets() as sockets:
                left.send(frames(left, right, range(100)) + last(left, right))
                assert len(drain(sockets, [0])[0]) == 100
                assert link.ledger().delivered == 101 * round_
    assert link.ledger().delivered == 303
    assert link.ledger().problems() == ()


def test_one_link_opens_its_sockets_once_at_a_time(make_veth):
    _, right = make_veth()
    with right.namespace, attach(dns(), right.name) as link:
        with link.sockets(), pytest.raises(ValueError, match="already open"):
            link.sockets()
    with pytest.raises(ValueError, match="closed"):
        link.sockets()


# ---- want, require, got ----


@pytest.mark.parametrize("mode", ["auto", "native", "want:generic", "generic", "want:af_packet", "af_packet"])
def test_got_says_what_the_kernel_gave_and_never_zero_copy_on_veth(make_veth, mode):
    _, right = make_veth(queues=2)
    with right.namespace, attach(dns(), right.name, mode=mode) as link:
        assert link.attachment.bind is None
        with link.sockets():
            got = link.attachment
        on = {h.mode for h in held(right)}
    wanted = "native" if mode == "auto" else mode.removeprefix("want:")
    assert (got.mode, got.bind, got.queues) == (wanted, "copy", (0, 1))
    assert on == ({wanted} if wanted != "af_packet" else set())
    assert not re.search("(?<!not )zero-?copy", str(got))
    assert ("queues 0-1" in str(got), "veth" in str(got)) == (True, True)
    if wanted == "native":
        assert any(step.startswith("zero-copy (") for step in got.walk)


@pytest.mark.parametrize("bind", ["want:zerocopy", "want:copy", "copy"])
def test_a_wanted_bind_mode_gives_way(make_veth, bind):
    _, right = make_veth()
    with right.namespace, attach(dns(), right.name, bind=bind) as link, link.sockets():
        assert link.attachment.bind == "copy"
        assert ("not zero-copy" in str(link.attachment)) == (bind == "want:zerocopy")


@pytest.mark.parametrize("mode", XDP_MODES)
def test_required_zero_copy_that_is_not_there_is_an_error_and_nothing_stays(make_veth, mode):
    _, right = make_veth(queues=2)
    with right.namespace:
        with pytest.raises(NotSupported, match=r"right( queue 0: bind\(AF_XDP\)|: zero-copy: mode native)"):
            with attach(dns(), right.name, mode=mode, bind="zerocopy") as link, link.sockets():
                pytest.fail("zero-copy on veth")
        assert held(right) == ()
        with attach(dns(), right.name) as link, link.sockets():  # no socket stayed either
            assert link.attachment.bind == "copy"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "fast"}, "mode 'fast': auto, native, generic, tc_ingress, af_packet"),
        ({"mode": "need:native"}, "mode 'need:native'"),
        ({"bind": "zero"}, "bind 'zero': auto, zerocopy, copy"),
        ({"queues": [2]}, "queue 2 is out of range: right has 0-1"),
        ({"queues": [0, -1]}, "queue -1 is out of range"),
        ({"queues": []}, "no queue"),
    ],
)
def test_a_choice_that_there_is_not_is_a_value_error_that_names_those_there_are(make_veth, options, words):
    _, right = make_veth(queues=2)
    with right.namespace, pytest.raises(ValueError, match=re.escape(words)):
        attach(dns(), right.name, **options)
    assert held(right) == ()


def test_a_device_that_is_not_there_is_named_beside_those_that_are(make_veth):
    _, right = make_veth()
    words = r"no network device 'eth7'; this namespace has: .*right"
    with right.namespace, pytest.raises(OSError, match=words) as caught:
        attach(dns(), "eth7")
    assert caught.value.errno == errno.ENODEV


@pytest.mark.parametrize("holding", XDP_MODES)
@pytest.mark.parametrize("wanting", ["auto", "native", "generic", "want:generic"])
def test_a_busy_device_names_the_program_that_holds_it(make_veth, holding, wanting):
    _, right = make_veth()
    with right.namespace, attach(dns(), right.name, mode=holding):
        before = held(right)
        with pytest.raises(OSError, match=rf"right is held by {holding} program 'xdpkit' \(id \d+\)") as caught:
            attach(dns(), right.name, mode=wanting)
        assert caught.value.errno in (errno.EBUSY, errno.EEXIST)
        assert held(right) == before
        with attach(dns(), right.name, mode="af_packet") as beside, beside.sockets():
            assert beside.attachment.mode == "af_packet"
    assert held(right) == ()


def no_xdp(monkeypatch):
    """A kernel that has neither XDP nor tcx for any device."""
    real = attaching._attach

    def fake(request, mode, *rest):
        if mode != "af_packet":
            raise OSError(errno.EOPNOTSUPP, f"no {mode} here")
        return real(request, mode, *rest)

    monkeypatch.setattr(attaching, "_attach", fake)


def test_without_xdp_auto_takes_af_packet_and_says_why(make_veth, monkeypatch):
    left, right = make_veth()
    no_xdp(monkeypatch)
    with right.namespace, attach(dns(), right.name) as link, link.sockets() as sockets:
        left.send(frames(left, right, range(10)))
        assert take(sockets, 10) == frames(left, right, range(10))
        assert str(link.attachment).startswith("AF_PACKET (copies")
        assert [step.split()[0] for step in link.attachment.walk] == ["native", "generic", "tc_ingress"]


@pytest.mark.parametrize(
    "pipe", [dns(default=DROP), dns(TX), dns(DROP), dns(PASS)], ids=["redirect+drop", "tx", "drop", "pass"]
)
def test_auto_never_falls_to_af_packet_for_a_pipeline_that_acts(make_veth, monkeypatch, pipe):
    _, right = make_veth()
    no_xdp(monkeypatch)
    for mode in ("auto", "want:native"):
        with right.namespace, pytest.raises(OSError, match="no generic here"):
            attach(pipe, right.name, mode=mode)


def test_af_packet_for_a_pipeline_without_redirect_is_refused(make_veth):
    _, right = make_veth()
    with right.namespace, pytest.raises(ValueError, match="no REDIRECT rule"):
        attach(dns(DROP), right.name, mode="af_packet")


def test_an_mtu_that_no_frame_takes_is_refused_with_the_limit(make_veth):
    _, right = make_veth(mtu=9000)
    with right.namespace:
        with pytest.raises(OSError, match=r"right: MTU 9000 is too large for AF_XDP.*mtu 3818' or less") as caught:
            attach(dns(), right.name, options=SocketOptions(multi_buffer="off"))
        assert caught.value.errno == errno.EMSGSIZE
        with attach(dns(), right.name, mode="af_packet") as link:
            assert link.attachment.mode == "af_packet"
    assert held(right) == ()


def test_an_mtu_that_does_not_fit_the_chosen_frames_is_refused_with_their_limit(make_veth):
    _, right = make_veth(mtu=1900)
    with right.namespace, pytest.raises(OSError, match=r"MTU 1900 is too large.*mtu 1770' or less"):
        attach(dns(), right.name, options=SocketOptions(chunk_size=2048, multi_buffer="off"))


def test_an_mtu_that_native_xdp_refuses_is_said_in_the_kernels_words(make_veth):
    left, right = make_veth(mtu=9000)
    single = SocketOptions(multi_buffer="off")
    with right.namespace:
        with pytest.raises(OSError, match=r"attach native XDP to right: .*MTU.*lower both"):
            attach(dns(DROP), right.name, mode="native", options=single)
        with right.capture() as stack, attach(dns(DROP), right.name, options=single) as link:
            assert link.attachment.mode == "generic"
            assert "native (" in link.attachment.walk[0]
            left.send(frames(left, right, [1], size=8000) + frames(left, right, [2], size=8000, dport=80))
            stack.wait(1)
    assert [number(f) for f in stack] == [2]


# ---- nothing stays ----


@pytest.mark.parametrize("mode", XDP_MODES)
def test_an_exception_detaches(make_veth, mode):
    _, right = make_veth()

    def fails():
        with attach(dns(), right.name, mode=mode) as link, link.sockets():
            assert [h.mode for h in held(right)] == [mode]
            raise KeyError

    with right.namespace, pytest.raises(KeyError):
        fails()
    assert held(right) == ()


def test_closing_twice_is_harmless_and_the_ledger_stays(make_veth):
    left, right = make_veth()
    with right.namespace:
        link = attach(dns(), right.name)
        sockets = link.sockets()
        left.send(frames(left, right, range(5)))
        assert len(take(sockets, 5)) == 5
        link.close()
        ledger = link.ledger()
        link.close()
        sockets.close()
    assert link.ledger() is ledger
    assert (ledger.delivered, ledger.final, ledger.problems()) == (5, True, ())
    assert held(right) == ()


def test_an_attachment_whose_link_cannot_be_made_is_taken_back(make_veth, monkeypatch):
    _, right = make_veth()

    def fails(link):
        raise OSError(errno.ENOBUFS, "no room for the answer")

    with right.namespace:
        monkeypatch.setattr(attaching.Link, "_device_dropped", fails)
        with pytest.raises(OSError, match="no room"):
            attach(dns(), right.name, mode="native")
        monkeypatch.undo()
        assert held(right) == ()


def test_a_link_detaches_also_when_its_capture_file_cannot_be_finished(make_veth):
    left, right = make_veth()
    with right.namespace:
        link = attach(dns(), right.name)
        reader, writer = os.pipe()
        workers = link.sockets().write(os.fdopen(writer, "wb"))
        os.close(reader)
        left.send(frames(left, right, range(5)))
        until(lambda: workers.stats().packets == 5, "five packets")
        with pytest.raises(BrokenPipeError):
            link.close()
        ledger = link.ledger()
        assert (ledger.delivered, ledger.written, ledger.refused, ledger.problems()) == (5, 0, 5, ())
        with attach(dns(), right.name) as again, again.sockets():
            pass


def test_a_link_is_used_in_the_namespace_it_was_made_in(make_veth):
    left, right = make_veth()
    with right.namespace:
        link = attach(dns(), right.name)
    with left.namespace, pytest.raises(OSError, match="another network namespace"):
        link.sockets()
    with left.namespace:
        link.close()
    assert held(right) == ()


@pytest.mark.parametrize("drain_with", ["batches", "count", "nobody"])
def test_teardown_under_traffic_keeps_every_packet(make_veth, drain_with):
    left, right = make_veth(queues=2)
    stop, sent = threading.Event(), [0]

    def flood():
        while not stop.is_set():
            sent[0] += left.send(some)

    some = frames(left, right, range(200))
    sender = threading.Thread(target=flood)
    with right.namespace:
        sender.start()
        try:
            ledgers = []
            for _ in range(5):
                with attach(dns(), right.name, mode="native") as link:
                    with link.sockets() as sockets:
                        if drain_with == "count":
                            with sockets.count() as workers:
                                until(lambda: workers.stats().packets > 500, "traffic")
                        elif drain_with == "batches":
                            take(sockets, 500)
                        else:
                            until(lambda: link.ledger().seen > 500, "traffic")
                ledgers.append(link.ledger())
                assert held(right) == ()
        finally:
            stop.set()
            sender.join()
    assert [ledger.problems() for ledger in ledgers] == [()] * 5
    assert all(ledger.seen > 500 and ledger.in_flight == 0 for ledger in ledgers)
    assert all(ledger.no_socket + ledger.lost + ledger.waiting + ledger.delivered == ledger.seen for ledger in ledgers)


@pytest.mark.parametrize("mode", EVERY_MODE)
@pytest.mark.parametrize("drain_with", ["batches", "count"])
def test_a_device_that_goes_away_while_attached_ends_in_a_clear_error(make_veth, mode, drain_with):
    left, right = make_veth(queues=2)
    with right.namespace, attach(dns(), right.name, mode=mode) as link:
        with link.sockets() as sockets:
            left.send(frames(left, right, range(10)))
            if drain_with == "count":
                with sockets.count() as workers:
                    until(lambda: workers.stats().packets == 10, "the packets")
                    with left.namespace, iproute("delete") as ip:
                        ip.link("del", index=left.index)
            else:
                assert len(take(sockets, 10)) == 10
                with left.namespace, iproute("delete") as ip:
                    ip.link("del", index=left.index)
                with pytest.raises(
                    OSError, match=r"right: (waiting for packets.*gone|the device was deleted)"
                ) as caught:
                    next(sockets.batches())  # no timeout: it would wait for ever
                assert caught.value.errno == errno.ENODEV
    ledger = link.ledger()
    assert (ledger.seen, ledger.delivered, ledger.problems()) == (10, 10, ())


def test_a_device_that_goes_down_and_up_again_goes_on_delivering(make_veth):
    left, right = make_veth()
    with right.namespace, attach(dns(), right.name, mode="native") as link, link.sockets() as sockets:
        left.send(frames(left, right, range(10)))
        assert len(take(sockets, 10)) == 10
        set_link(right, state="down")
        assert list(sockets.batches(timeout=0.01)) == []
        set_link(right, state="up")
        until(lambda: right.device.carrier and left.device.carrier, "carrier")
        left.send(frames(left, right, range(10, 20)))
        assert [number(f) for f in take(sockets, 10)] == list(range(10, 20))


PIPELINE = """
from xdpkit import DROP, PASS, Pipeline, REDIRECT, Redirect, udp
pipe = Pipeline("taken", default=DROP)
pipe.rule(udp.dport == 53, REDIRECT, name="dns")
"""


def test_kill_9_in_mid_traffic_leaves_no_program_and_starting_again_works(make_veth, tmp_path):
    left, right = make_veth(queues=2)
    file, capture = tmp_path / "taken.py", tmp_path / "out.pcapng"
    file.write_text(PIPELINE)
    command = [sys.executable, "-m", "xdpkit.cli.main", "run", str(file), "-i", right.name, "-w", str(capture)]
    stop = threading.Event()
    some = frames(left, right, range(100)) + frames(left, right, range(100), dport=80)

    def flood():
        while not stop.is_set():
            left.send(some)

    sender = threading.Thread(target=flood)
    sender.start()
    try:
        for _ in range(2):
            child = right.namespace.popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            ready = child.stderr.readline()
            assert ready.startswith("xdpkit: taken on right: native, copy"), ready + child.stderr.read()
            assert [h.mode for h in held(right)] == ["native"]
            until(lambda: capture.stat().st_size > 10_000, "captured packets")
            child.send_signal(signal.SIGKILL)
            assert child.wait() == -signal.SIGKILL
            until(lambda: held(right) == (), "the program is gone", timeout=2)
            with right.capture() as stack:
                stack.wait(300)
            assert {Ether(f)["UDP"].dport for f in stack} == {53, 80}  # both reach the stack again
    finally:
        stop.set()
        sender.join()


def test_ledger_and_got_are_values(make_veth):
    _, right = make_veth()
    with right.namespace, attach(dns(), right.name) as link:
        first, second = link.ledger(), link.ledger()
    assert replace(first, seconds=0) == replace(second, seconds=0)
    assert first.seconds < second.seconds
    assert {r.name for r in first.rules} == {"dns", "default"}


def test_a_pipeline_without_redirect_has_no_socket_rows(make_veth):
    _, right = make_veth()
    pipe = Pipeline("count")
    pipe.rule(tcp.present, DROP, name="tcp")
    with right.namespace, attach(pipe, right.name) as link:
        assert [row[0].strip() for row in link.ledger().rows()] == ["seen", "tcp", "default"]


def test_what_a_device_drops_and_misses_before_the_program_is_told_beside_the_sums(make_veth, monkeypatch):
    """As a network card counts: from attach on, each by itself, and in no sum."""
    left, right = make_veth()
    counts = {"rx_dropped": 100, "rx_missed_errors": 1000}
    monkeypatch.setattr(netdev, "stats", lambda index: dict(counts))
    found = replace(right.device, driver="ixgbe")
    monkeypatch.setattr(netdev, "device", lambda name: found)
    with right.namespace, attach(dns(), right.name, bind="copy") as link, link.sockets() as sockets:
        left.send(frames(left, right, range(3)))
        assert len(take(sockets, 3)) == 3
        assert (link.ledger().device_dropped, link.ledger().device_missed) == (0, 0)
        assert "device" not in "".join(stage for stage, _, _ in link.ledger().rows())
        counts |= {"rx_dropped": 107, "rx_missed_errors": 1020}
    ledger = link.ledger()
    assert (ledger.device_dropped, ledger.device_missed, ledger.lost, ledger.problems()) == (7, 20, 0, ())
    assert (ledger.seen, ledger.delivered) == (3, 3)
    assert [(stage, n) for stage, n, _ in ledger.rows()][-2:] == [("device dropped", 7), ("device missed", 20)]
    assert (ledger.as_dict()["device_dropped"], ledger.as_dict()["device_missed"]) == (7, 20)
