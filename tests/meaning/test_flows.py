"""What connections mean, in examples: the reference evaluator on small conversations."""

from __future__ import annotations

from connections import ACK, FIN, HOSTS4, HOSTS6, RST, SYN, link, network, segment

from xdpkit import DROP, PASS, Pipeline, ct
from xdpkit.meaning.evaluate import State, run

CLIENT, SERVER = HOSTS4[0], HOSTS4[1]
SECOND = 1_000_000_000


class Talk:
    """Packets between a client and a server, to rules that let go whatever is not invalid."""

    def __init__(self, **options: object):
        pipe = Pipeline("talk", default=DROP)
        pipe.track(**options)  # type: ignore[arg-type]
        for name in ("new", "established", "related"):
            pipe.rule(getattr(ct, name), PASS, name=name)
        pipe.rule(ct.invalid, DROP, name="invalid")
        self.pipe, self.state = pipe, State(pipe)
        self.state.now_ns = 1 << 40

    def frame(self, frame: bytes) -> str:
        return run(self.pipe, frame, self.state).rule.name

    def tcp(
        self, flags: int, seq: int, ack: int = 0, *, back: bool = False, window: int = 1000, data: bytes = b""
    ) -> str:
        ends, ports = ((SERVER, CLIENT), (80, 4000)) if back else ((CLIENT, SERVER), (4000, 80))
        body = segment(*ports, seq, ack, flags, window, data)
        return self.frame(link(4, ()) + network(*ends, 6, body))

    def open(self) -> Talk:
        """The handshake: the client sends from 101 on, the server from 501 on."""
        found = [self.tcp(SYN, 100), self.tcp(SYN | ACK, 500, 101, back=True), self.tcp(ACK, 101, 501)]
        assert found == ["new", "established", "established"]
        return self

    def udp(self, *, back: bool = False, host: bytes = CLIENT) -> str:
        ends = (SERVER, host) if back else (host, SERVER)
        ports = b"\0\x35\x10\0" if back else b"\x10\0\0\x35"
        return self.frame(link(4, ()) + network(*ends, 17, ports + b"\0\x08\0\0"))


def test_a_connection_is_new_until_it_is_answered_and_then_established():
    talk = Talk().open()
    assert talk.tcp(ACK, 101, 501, data=b"GET /") == "established"
    assert talk.tcp(ACK, 501, 106, back=True, data=b"200") == "established"


def test_packets_that_belong_to_no_connection_are_invalid():
    for flags in (ACK, SYN | ACK, FIN | ACK, RST, FIN, 0, SYN | FIN, SYN | RST):
        assert Talk().tcp(flags, 100, 5) == "invalid", flags


def test_a_packet_in_the_middle_is_new_where_the_declaration_is_loose_but_a_reset_is_not():
    assert Talk(loose=True).tcp(ACK, 100, 5) == "new"
    assert Talk(loose=True).tcp(RST, 100, 5) == "invalid"


def test_data_acknowledgments_and_resets_outside_the_window_are_invalid():
    talk = Talk().open()
    assert talk.tcp(ACK, 101 + 5000, 501, data=b"x") == "invalid"
    assert talk.tcp(ACK, 101, 501 + 1) == "invalid", "acknowledges what was never sent"
    assert talk.tcp(RST, 501 + 5000, back=True) == "invalid"
    assert talk.tcp(ACK, 101, 501, data=b"x") == "established"


def test_the_last_packet_of_a_handshake_must_acknowledge_the_answer_exactly():
    talk = Talk()
    assert [talk.tcp(SYN, 100), talk.tcp(SYN | ACK, 500, 101, back=True)] == ["new", "established"]
    assert talk.tcp(ACK, 101, 499) == "invalid"
    assert talk.tcp(ACK, 101, 501) == "established"


def test_an_answer_to_a_syn_must_acknowledge_it():
    talk = Talk()
    assert talk.tcp(SYN, 100) == "new"
    assert talk.tcp(SYN | ACK, 500, 999, back=True) == "invalid"
    assert talk.tcp(RST | ACK, 0, 999, back=True) == "invalid"
    assert talk.tcp(RST | ACK, 0, 101, back=True) == "established"


def test_a_reset_ends_a_connection_and_the_ports_can_be_used_again():
    talk = Talk().open()
    assert talk.tcp(RST, 101) == "established"
    talk.state.now_ns += 11 * SECOND
    assert talk.tcp(ACK, 501, 101, back=True) == "invalid"
    talk.open()


def test_a_reset_that_its_receiver_may_not_take_only_shortens_the_life_until_the_next_packet():
    talk = Talk().open()
    assert talk.tcp(RST, 110) == "established", "in the window, but not the very next byte"
    assert talk.tcp(ACK, 101, 501, data=b"x") == "established"
    talk.state.now_ns += 3600 * SECOND
    assert talk.tcp(ACK, 102, 501) == "established"


def test_after_both_have_sent_a_fin_a_syn_opens_anew():
    talk = Talk().open()
    assert talk.tcp(FIN | ACK, 101, 501) == "established"
    assert talk.tcp(FIN | ACK, 501, 102, back=True) == "established"
    assert talk.tcp(ACK, 102, 502) == "established"
    assert talk.tcp(SYN, 9000) == "new"


def test_a_syn_in_a_live_connection_passes_and_changes_nothing():
    talk = Talk().open()
    assert talk.tcp(SYN, 7777) == "established"
    assert talk.tcp(ACK, 501, 101, back=True) == "established", "the challenge ACK (RFC 5961)"
    assert talk.tcp(ACK, 101, 501) == "established"


def test_udp_is_established_by_an_answer_and_lives_longer_once_the_first_speaks_again():
    talk = Talk()
    assert [talk.udp(), talk.udp(), talk.udp(back=True), talk.udp()] == ["new", "new", "established", "established"]
    talk.state.now_ns += 100 * SECOND
    assert talk.udp() == "established"
    talk.state.now_ns += 121 * SECOND
    assert talk.udp() == "new"


def test_a_dropped_packet_changes_nothing():
    pipe = Pipeline("p", default=DROP)
    pipe.track()
    pipe.rule(ct.established, PASS, name="known")
    state = State(pipe)
    syn = link(4, ()) + network(CLIENT, SERVER, 6, segment(4000, 80, 100, 0, SYN, 1000))
    answer = link(4, ()) + network(SERVER, CLIENT, 6, segment(80, 4000, 500, 101, SYN | ACK, 1000))
    assert [run(pipe, frame, state).rule.name for frame in (syn, answer)] == ["default", "default"]


def test_a_full_table_refuses_the_packet_that_would_complete_a_flow():
    talk = Talk(capacity=1)
    assert [talk.udp(), talk.udp(back=True)] == ["new", "established"]
    other = HOSTS4[2]
    assert [talk.udp(host=other), talk.udp(host=other, back=True)] == ["new", "flow table full"]
    talk = Talk(capacity=1, full=PASS)
    assert [talk.udp(), talk.udp(back=True)] == ["new", "established"]
    assert [talk.udp(host=other), talk.udp(host=other, back=True)] == ["new", "established"]
    assert talk.state.flows is not None
    assert talk.state.flows.refused == 1


def test_flows_of_two_vlans_are_two_flows():
    talk = Talk()
    body = b"\x10\0\0\x35\0\x08\0\0"
    assert talk.frame(link(4, (7,)) + network(CLIENT, SERVER, 17, body)) == "new"
    back = network(SERVER, CLIENT, 17, b"\0\x35\x10\0\0\x08\0\0")
    assert [talk.frame(link(4, (8,)) + back), talk.frame(link(4, (7,)) + back)] == ["new", "established"]


def test_an_icmp_error_is_related_to_the_flow_that_it_quotes():
    for hosts, icmp, kinds in ((HOSTS4, 1, b"\3\3"), (HOSTS6, 58, b"\1\4")):
        talk, family = Talk(), 4 if hosts is HOSTS4 else 6
        sent = network(hosts[0], hosts[1], 17, b"\x10\0\0\x35\0\x08\0\0")
        assert talk.frame(link(family, ()) + sent) == "new"
        error = kinds + bytes(6) + sent
        router = hosts[2]
        assert talk.frame(link(family, ()) + network(router, hosts[0], icmp, error)) == "related"
        assert talk.frame(link(family, ()) + network(router, hosts[1], icmp, error)) == "invalid", "not to its sender"
        unsent = kinds + bytes(6) + network(hosts[0], hosts[1], 17, b"\x10\1\0\x35\0\x08\0\0")
        assert talk.frame(link(family, ()) + network(router, hosts[0], icmp, unsent)) == "invalid"


def test_an_echo_reply_needs_its_request():
    for hosts, icmp, ask, answer in ((HOSTS4, 1, 8, 0), (HOSTS6, 58, 128, 129)):
        talk, family = Talk(), 4 if hosts is HOSTS4 else 6
        ask_body, answer_body = (bytes((kind, 0, 0, 0, 0, 9, 0, 1)) for kind in (ask, answer))
        reply = link(family, ()) + network(hosts[1], hosts[0], icmp, answer_body)
        assert talk.frame(reply) == "invalid"
        assert talk.frame(link(family, ()) + network(hosts[0], hosts[1], icmp, ask_body)) == "new"
        assert talk.frame(reply) == "established"
        assert talk.frame(link(family, ()) + network(hosts[1], hosts[0], icmp, ask_body)) == "new", "the other asks"


def test_later_fragments_go_where_the_first_went():
    for hosts in (HOSTS4, HOSTS6):
        talk, family = Talk(), 4 if hosts is HOSTS4 else 6
        first, later = (
            link(family, ()) + network(hosts[0], hosts[1], 17, b"\x10\0\0\x35\0\x40\0\0", piece=piece)
            for piece in ((77, 0, 1), (77, 1, 0))
        )
        assert [talk.frame(later), talk.frame(first), talk.frame(later)] == ["invalid", "new", "established"]
        talk.state.now_ns += 31 * SECOND
        assert talk.frame(later) == "invalid"


def test_what_is_not_tracked_is_in_no_state():
    arp = bytes.fromhex("ffffffffffff0200000000010806000108000604000102000000000a000001000000000000" + "0a000002")
    solicit = link(6, ()) + network(HOSTS6[0], HOSTS6[1], 58, bytes((135, 0)) + bytes(22))
    assert [Talk().frame(arp), Talk().frame(solicit)] == ["default", "default"]


def test_learning_takes_what_goes_on_for_established():
    talk = Talk()
    assert talk.state.flows is not None
    talk.state.flows.learn_until_ns = talk.state.now_ns + SECOND
    assert talk.tcp(ACK, 5000, 9000, data=b"x") == "established"
    assert talk.udp(back=True) == "established"
    assert talk.tcp(SYN, 1, back=True) == "established", "a SYN changes nothing in it"
    talk.state.now_ns += 2 * SECOND
    assert talk.tcp(ACK, 9000, 5001, back=True) == "established"
    assert talk.tcp(ACK, 5001, 9000) == "established"
    assert talk.udp() == "established"


def test_a_priority_tag_is_no_vlan_and_a_mapped_address_no_address_of_ipv6():
    talk = Talk()
    body = b"\x10\0\0\x35\0\x08\0\0"
    back = network(SERVER, CLIENT, 17, b"\0\x35\x10\0\0\x08\0\0")
    assert talk.frame(link(4, (0,)) + network(CLIENT, SERVER, 17, body)) == "new"
    assert talk.frame(link(4, ()) + back) == "established"
    mapped = [bytes(10) + b"\xff\xff" + host for host in (CLIENT, SERVER)]
    assert talk.frame(link(6, ()) + network(mapped[0], mapped[1], 17, body)) == "invalid"


def test_the_end_of_a_life_is_written_when_a_part_of_it_has_passed():
    """Packets that come close together do not write: a flow may be forgotten a 64th of its life too early."""
    talk = Talk(timeouts={"udp": 64})
    talk.udp()
    talk.state.now_ns += SECOND // 2
    talk.udp()
    talk.state.now_ns += 64 * SECOND - SECOND // 2
    assert talk.udp(back=True) == "new", "no answer to what was forgotten"
