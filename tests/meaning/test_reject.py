"""REJECT: what is answered, byte for byte in every engine, and what real clients make of it."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, note
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet as ScapyPacket
from scapy.packet import Raw
from strategies import again, examples, make_frame, truncations
from traffic import until

from xdpkit import DROP, REJECT, Pipeline, PipelineError, Reject, attach, compile_pipeline, tcp, udp
from xdpkit.compiler.built import build, read, write
from xdpkit.kernel.core import check, ffi, lib
from xdpkit.kernel.program import Program
from xdpkit.lab import Port
from xdpkit.language.actions import ANSWERS
from xdpkit.meaning.evaluate import State, run

A, B = "02:00:00:00:00:0a", "02:00:00:00:00:0b"
ETHER = Ether(src=A, dst=B)
FOUR, SIX = IP(src="192.0.2.1", dst="198.51.100.1", tos=0xB9), IPv6(src="2001:db8::1", dst="2001:db8::2")
SYN = TCP(sport=1000, dport=22, seq=77, flags="S", options=[("MSS", 1460)])
XDP_TX = 3
#: No test sends this many packets in a second.
FAST = "10M/second"


def answer(packet: ScapyPacket | bytes, action: Reject = REJECT, rejects: str = FAST) -> Any:
    """The bytes of the answer; None where there is none."""
    pipe = Pipeline("reject", default=action, rejects=rejects)
    return run(pipe, bytes(packet), State(pipe)).reply


def rebuilt(frame: bytes) -> bytes:
    """The same packet with checksums and lengths that scapy computes."""
    made = Ether(frame)
    for layer, names in ((IP, ("chksum", "len")), (IPv6, ("plen",)), (TCP, ("chksum",)), (ICMP, ("chksum",)),
                         (ICMPv6DestUnreach, ("cksum",))):  # fmt: skip
        if layer in made:
            for name in names:
                delattr(made[layer], name)
    return bytes(made)


RST = Reject("tcp-rst")


@pytest.mark.parametrize("net", [FOUR, SIX, IP(src="192.0.2.1", dst="192.0.2.2", options=[IPOption_NOP()] * 4)])
@pytest.mark.parametrize("link", [ETHER, ETHER / Dot1Q(vlan=5), ETHER / Dot1AD(vlan=5) / Dot1Q(vlan=6)])
def test_a_syn_is_reset(link, net):
    reply = answer(link / net / SYN, RST)
    assert reply is not None
    got = Ether(reply)
    assert (got.src, got.dst) == (B, A)
    kind = IP if IP in got else IPv6
    assert (got[kind].src, got[kind].dst) == (net.dst, net.src)
    assert (got[TCP].sport, got[TCP].dport, got[TCP].flags, got[TCP].seq, got[TCP].ack) == (22, 1000, "RA", 0, 78)
    assert rebuilt(reply) == reply
    assert reply[12 : len(link)] == bytes(link / net)[12 : len(link)]


def test_a_segment_is_reset_with_the_number_that_its_sender_expects():
    data = ETHER / FOUR / TCP(sport=1, dport=2, seq=5, ack=9, flags="PA") / b"hello"
    got = Ether(answer(data, RST))[TCP]
    assert (got.flags, got.seq, got.ack) == ("R", 9, 0)
    got = Ether(answer(ETHER / FOUR / TCP(seq=0xFFFFFFFE, flags="SF") / b"abc", RST))[TCP]
    assert (got.flags, got.seq, got.ack) == ("RA", 0, 3)  # 3 bytes, SYN and FIN: the number wraps
    padded = bytes(ETHER / FOUR / TCP(seq=5, flags="F")) + bytes(6)
    assert Ether(answer(padded, RST))[TCP].ack == 6  # padding is no data


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("size", [0, 100, 1400])
def test_other_packets_get_a_message_that_quotes_them(name: str, size: int):
    four, six = ETHER / FOUR / UDP() / Raw(bytes(size)), ETHER / SIX / UDP() / Raw(bytes(size))
    action = Reject(name)
    reply = answer(four, action)
    got = Ether(reply)
    assert (got[IP].src, got[IP].dst, got[IP].ttl, got[IP].tos) == ("198.51.100.1", "192.0.2.1", 64, 0xD8)
    assert (got[ICMP].type, got[ICMP].code) == (3, action.code4)
    assert bytes(got[ICMP])[8:] == bytes(four)[14 : 14 + 548]
    assert len(reply) - 14 <= 576
    reply = answer(six, action)
    got = Ether(reply)
    assert (got[ICMPv6DestUnreach].type, got[ICMPv6DestUnreach].code) == (1, action.code6)
    assert reply[14 + 40 + 8 :] == bytes(six)[14 : 14 + 1232]
    assert len(reply) - 14 <= 1280


def test_checksums_of_messages_are_right():
    for packet in (ETHER / FOUR / UDP() / b"odd", ETHER / SIX / UDP() / b"odd", ETHER / FOUR / SYN):
        reply = answer(packet)
        assert reply is not None
        assert rebuilt(reply) == reply


UNANSWERED = {
    "a reset": ETHER / FOUR / TCP(flags="RA"),
    "an ICMP error": ETHER / FOUR / ICMP(type=3) / FOUR,
    "an ICMPv6 error": ETHER / SIX / ICMPv6DestUnreach() / SIX,
    "an ICMPv6 redirect": ETHER / SIX / Raw(b"\x89" + bytes(39)),
    "a later fragment": ETHER / IP(src="192.0.2.1", dst="192.0.2.2", frag=3, proto=17) / b"12345678",
    "a later fragment of IPv6": ETHER / SIX / IPv6ExtHdrFragment(offset=3, nh=17) / b"12345678",
    "a broadcast": Ether(src=A, dst="ff:ff:ff:ff:ff:ff") / FOUR / UDP(),
    "an Ethernet multicast": Ether(src=A, dst="01:00:5e:00:00:01") / FOUR / UDP(),
    "a multicast address": ETHER / IP(src="192.0.2.1", dst="224.0.0.1") / UDP(),
    "an IPv6 multicast address": ETHER / IPv6(src="2001:db8::1", dst="ff02::1") / UDP(),
    "from nowhere": ETHER / IP(src="0.0.0.0", dst="192.0.2.2") / UDP(),
    "from itself": ETHER / IP(src="127.0.0.1", dst="192.0.2.2") / UDP(),
    "from a broadcast address": ETHER / IP(src="255.255.255.255", dst="192.0.2.2") / UDP(),
    "from the unspecified address": ETHER / IPv6(src="::", dst="2001:db8::2") / ICMPv6ND_NS(),
    "no IP": ETHER / ARP(),
    "a chain without end": ETHER / SIX / (IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt()
                                          / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt()
                                          / IPv6ExtHdrDestOpt() / UDP()),
}  # fmt: skip
UNANSWERED["an ICMPv6 redirect"][IPv6].nh = 58


@pytest.mark.parametrize("what", UNANSWERED)
def test_there_is_no_answer_to(what: str):
    assert answer(UNANSWERED[what]) is answer(UNANSWERED[what], RST) is None


def test_queries_and_first_fragments_are_answered():
    first = IP(src="192.0.2.1", dst="192.0.2.2", flags="MF") / UDP()
    for packet in (ETHER / FOUR / ICMP(), ETHER / SIX / ICMPv6EchoRequest(), ETHER / first):
        assert answer(packet) is not None


def test_answers_are_limited_and_what_is_over_is_dropped():
    pipe = Pipeline("reject", default=REJECT, rejects="10/second")
    state = State(pipe)
    assert [run(pipe, bytes(ETHER / FOUR / UDP()), state).reply is not None for _ in range(7)] == [True] * 5 + [
        False
    ] * 2
    state.now_ns += 10**8
    assert run(pipe, bytes(ETHER / FOUR / UDP()), state).reply is not None


def test_what_reject_does_not_know_is_refused(tmp_path):
    with pytest.raises(PipelineError, match="REJECT answers with one of tcp-rst, icmp-port-unreachable"):
        Reject("politely")
    with pytest.raises(PipelineError, match="rejects='1 mbytes/second': how many answers, not bytes"):
        Pipeline("p", rejects="1 mbytes/second")
    pipe = Pipeline("p", default=Reject("tcp-rst"), rejects="7/second")
    write(build(pipe), tmp_path / "p.xdp")
    again_ = read(tmp_path / "p.xdp").pipeline
    assert (again_.default, again_.rejects, again_.digest()) == (pipe.default, pipe.rejects, pipe.digest())
    assert str(pipe.default) == "REJECT with tcp-rst"
    assert str(REJECT) == "REJECT"


def sent_back(program: Program, frame: bytes) -> tuple[int, bytes]:
    """What the program returns and makes of the packet."""
    out, size = ffi.new("uint8_t[]", 4096), ffi.new("uint32_t *", 4096)
    verdict, ns = ffi.new("uint32_t *"), ffi.new("uint32_t *")
    check(lib.xk_test_run(program.fd, frame, len(frame), 1, out, size, verdict, ns))
    return verdict[0], bytes(out[0 : size[0]])


@pytest.mark.root
@pytest.mark.parametrize("hook", ["xdp", "xdp_frags"])
@examples(20)
@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(ANSWERS)))
def test_the_kernel_answers_byte_for_byte_what_the_reference_answers(hook: str, seed: int, name: str):
    note(again("meaning/test_reject.py"))
    rng = Random(seed)
    frames = [make_frame(rng) for _ in range(150)]
    frames += [bytes(p) for p in UNANSWERED.values()]
    frames += [bytes(ETHER / net / above / Raw(rng.randbytes(rng.choice((0, 1, 7, 500, 1000, 1400)))))
               for net in (FOUR, SIX) for above in (SYN, TCP(flags="A"), UDP(), ICMP())]  # fmt: skip
    frames += truncations(bytes(ETHER / SIX / SYN))
    action = Reject(name)
    pipe = Pipeline("reject", default=action, rejects=FAST)
    with Program(compile_pipeline(pipe, hook)) as program:
        unanswered = 0
        for frame in frames:
            verdict, got = sent_back(program, frame)
            wanted = answer(frame, action)
            assert verdict == (DROP.verdict if wanted is None else XDP_TX), frame.hex()
            if wanted is None:
                unanswered += 1
            else:
                assert got.hex() == wanted.hex(), frame.hex()
        (count,) = program.counts()
        assert (count.packets, count.no_socket) == (len(frames), unanswered)


@contextmanager
def woken(port: Port) -> Iterator[None]:
    """A veth end takes what XDP_TX sends it only when something wakes it; an XDP program there makes TX do so."""
    with port.namespace:
        link = attach(Pipeline("all"), port.name, mode="native")
    with link:
        yield


def refused(address: str, port: int, kind: int) -> int:
    """The error that a client of ``address`` gets: of connect(), or of the second send() over UDP."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, kind) as sock:
        sock.settimeout(5)
        try:
            sock.connect((address, port))
            sock.send(b"x")
            sock.recv(1)
        except OSError as error:
            return error.errno or 0
    return 0


@pytest.mark.root
@pytest.mark.parametrize("mode", ["native", "generic", "tc_ingress", "tc_egress"])
def test_real_clients_see_that_they_are_refused(make_veth, mode: str):
    left, right = make_veth(addresses=("10.0.0.1/24", "10.0.0.2/24"))
    for number, port in enumerate((left, right), 1):
        with port.namespace:
            Path(f"/proc/sys/net/ipv6/conf/{port.name}/disable_ipv6").write_text("0")
        port.namespace.run(["ip", "addr", "add", f"fd00::{number}/64", "dev", port.name, "nodad"], check=True)
    pipe = Pipeline("refuse")
    pipe.rule(tcp.dport == 22, Reject("tcp-rst"), name="reset")
    pipe.rule(tcp.dport == 23, REJECT, name="told")
    pipe.rule(tcp.dport == 24, Reject("icmp-host-unreachable"), name="host")
    pipe.rule(udp.dport == 53, REJECT, name="udp")
    client, n = (right, 1) if mode == "tc_egress" else (left, 2)
    with woken(left), right.namespace, attach(pipe, right.name, mode=mode) as link:  # type: ignore[arg-type]
        with client.namespace:
            for address in (f"10.0.0.{n}", f"fd00::{n}"):
                assert refused(address, 22, socket.SOCK_STREAM) == errno.ECONNREFUSED
                assert refused(address, 23, socket.SOCK_STREAM) == errno.ECONNREFUSED
                assert refused(address, 24, socket.SOCK_STREAM) == errno.EHOSTUNREACH
                assert refused(address, 53, socket.SOCK_DGRAM) == errno.ECONNREFUSED
        until(lambda: link.ledger().totals.rejected >= 8, "8 answers")
        ledger = link.ledger()
    assert ledger.totals.unanswered == 0
    assert "rejected" in str(ledger)
    assert ledger.problems() == ()


@pytest.mark.root
def test_the_ledger_counts_what_was_suppressed(make_veth):
    left, right = make_veth()
    pipe = Pipeline("refuse", rejects="1/hour")
    pipe.rule(udp, REJECT, name="udp")
    pipe.rule(tcp, Reject("tcp-rst"), name="tcp")
    with woken(left), right.namespace, attach(pipe, right.name, mode="native") as link, left.capture() as back:
        left.send([bytes(ETHER / FOUR / UDP())] * 8 + [bytes(ETHER / FOUR / TCP(flags="R"))] * 2)
        until(lambda: link.ledger().seen == 10, "10 packets")
        back.wait(5)
        ledger = link.ledger()
    assert (ledger.totals.rejected, ledger.totals.unanswered) == (5, 5)
    assert list(back) == [answer(ETHER / FOUR / UDP())] * 5
    assert [row[:2] for row in ledger.rows() if row[0] in ("rejected", "  suppressed")] == [
        ("rejected", 5), ("  suppressed", 5),
    ]  # fmt: skip
