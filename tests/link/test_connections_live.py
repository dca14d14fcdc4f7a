"""Connections of real clients and servers through a link: TCP, UDP, ping, IPv6, fragments, VLANs; updates."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Dot1Q, Ether
from tcx import EGRESS, tcx_programs
from traffic import until

from xdpkit import DROP, PASS, Pipeline, PipelineError, arp, attach, ct, icmp, icmp6, tcp, udp
from xdpkit.kernel.flowmaps import FLOW

pytestmark = [pytest.mark.root, pytest.mark.needs("tcx")]

SERVER, CLIENT = "10.0.0.2", "10.0.0.1"


def firewall(**options: object) -> Pipeline:
    """What operators write: what is known goes on, some may open, ARP and neighbour discovery pass."""
    pipe = Pipeline("firewall", default=DROP)
    pipe.track(**options)  # type: ignore[arg-type]
    pipe.rule(ct.established | ct.related, PASS, name="known")
    pipe.rule(ct.invalid, DROP, name="invalid")
    pipe.rule(arp, PASS, name="arp")
    pipe.rule(icmp6 & ~ct.new, PASS, name="nd")
    pipe.rule(ct.new & (tcp.dport == 8080), PASS, name="web")
    pipe.rule(ct.new & (udp.dport == 5353), PASS, name="dns")
    pipe.rule(ct.new & (icmp.type == 8), PASS, name="ping")
    return pipe


@pytest.fixture
def ports(make_veth):
    """The client's port and the server's; links are on the server's."""
    return make_veth(addresses=(f"{CLIENT}/24", f"{SERVER}/24"))


@contextmanager
def echo_server(port, host: str = SERVER, number: int = 8080) -> Iterator[None]:
    """Sends back what comes, in ``port``'s namespace."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with port.namespace:
        server = socket.create_server((host, number), family=family, backlog=256)

    def serve(connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(1 << 16):
                connection.sendall(data)

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()


def connect(port, host: str = SERVER, number: int = 8080, timeout: float = 5.0) -> socket.socket:
    with port.namespace:
        return socket.create_connection((host, number), timeout=timeout)


def echoes(connection: socket.socket, data: bytes = b"hello") -> bool:
    connection.sendall(data)
    got = b""
    while len(got) < len(data):
        part = connection.recv(1 << 16)
        if not part:
            return False
        got += part
    return got == data


def counts(link) -> dict[str, int]:
    return {rule.name: rule.packets for rule in link.ledger().rules}


@pytest.mark.parametrize("mode", ["native", "generic", "tc_ingress"])
def test_a_server_answers_whom_the_rules_let_in_and_nobody_else(ports, mode):
    client, server = ports
    with echo_server(server), echo_server(server, number=9090), server.namespace:
        with attach(firewall(), server.name, mode=mode) as link:
            with connect(client) as connection:
                assert echoes(connection, b"x" * 300_000)
                (flow,) = link.flows().where(protocol="tcp", half_open=False)
                assert (str(flow.source), str(flow.destination), flow.dport) == (CLIENT, SERVER, 8080)
                assert flow.state == "established"
                assert flow.timeout > 400_000
            with pytest.raises(TimeoutError):
                connect(client, number=9090, timeout=0.5)
        assert counts(link)["invalid"] == 0
        assert not link.ledger().problems()


@pytest.mark.parametrize("mode", ["native", "tc_ingress"])
def test_what_the_host_opens_itself_is_answered(ports, mode):
    """Its packets leave at TC egress; the rules at ingress let nothing in that is new."""
    client, server = ports
    with echo_server(client, host=CLIENT, number=7000), server.namespace:
        with attach(firewall(), server.name, mode=mode) as link:
            with connect(server, host=CLIENT, number=7000) as connection:
                assert echoes(connection, b"y" * 100_000)
            ping = ["ping", "-c", "3", "-i", "0.01", "-W", "2", CLIENT]
            assert subprocess.run(ping, check=False, stdout=subprocess.DEVNULL).returncode == 0
        assert counts(link)["known"] > 3


def test_udp_and_ping_come_in_where_a_rule_says_so_and_fragments_follow_their_first(ports):
    client, server = ports
    with server.namespace:
        listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        listener.bind((SERVER, 5353))
    with client.namespace:
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sender.bind((CLIENT, 4000))
    with listener, sender, server.namespace, attach(firewall(count=True), server.name) as link:
        listener.settimeout(5)
        sender.settimeout(5)
        big = bytes(range(256)) * 20  # four fragments
        sender.sendto(big, (SERVER, 5353))
        data, peer = listener.recvfrom(1 << 16)
        assert data == big
        listener.sendto(big, peer)
        assert sender.recv(1 << 16) == big
        (flow,) = link.flows().where(protocol="udp")
        assert not flow.half_open
        assert flow.packets is not None
        with client.namespace:
            ping = ["ping", "-c", "2", "-i", "0.01", "-s", "3000", "-W", "2", SERVER]
            assert subprocess.run(ping, check=False, stdout=subprocess.DEVNULL).returncode == 0
        assert counts(link)["invalid"] == 0


def test_an_icmp_error_about_a_flow_comes_in_and_one_about_none_does_not(ports):
    client, server = ports
    with server.namespace:
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sender.settimeout(5)
        sender.connect((CLIENT, 9))  # nobody listens: the client answers with port unreachable
    with sender, server.namespace, attach(firewall(), server.name) as link:
        sender.send(b"anyone?")
        with pytest.raises(ConnectionRefusedError):
            sender.recv(100)
        before = counts(link)
        inside = IP(src=SERVER, dst=CLIENT) / UDP(sport=1, dport=2)
        error = Ether(src=client.mac, dst=server.mac) / IP(src=CLIENT, dst=SERVER) / ICMP(type=3, code=3) / inside
        client.send([error])
        until(lambda: counts(link)["invalid"] == before["invalid"] + 1, "the error about nothing to be refused")


def test_ipv6_is_tracked(ports):
    client, server = ports
    for port, number in ((client, 1), (server, 2)):
        with port.namespace:
            Path(f"/proc/sys/net/ipv6/conf/{port.name}/disable_ipv6").write_text("0")
            words = ["addr", "add", f"2001:db8::{number}/64", "dev", port.name, "nodad"]
            subprocess.run(["ip", *words], check=True)
    with echo_server(server, host="2001:db8::2"), server.namespace, attach(firewall(), server.name) as link:
        with connect(client, host="2001:db8::2") as connection:
            assert echoes(connection, b"z" * 50_000)
        assert link.flows().where(host="2001:db8::/64", protocol="tcp").established == 1
        assert counts(link)["invalid"] == 0


@pytest.mark.parametrize("mode", ["native", "tc_ingress"])
def test_a_connection_in_a_vlan_is_one_of_its_own(ports, mode):
    """Frames by hand: the kernel here has no VLAN devices.  At egress the tag is beside the packet, or in its bytes."""
    client, server = ports

    def frame(tag: int, flags: str, *, back: bool = False, **fields: int) -> Ether:
        ends = (SERVER, CLIENT, 8080, 4000) if back else (CLIENT, SERVER, 4000, 8080)
        above = IP(src=ends[0], dst=ends[1]) / TCP(sport=ends[2], dport=ends[3], flags=flags, **fields)  # type: ignore[arg-type]
        return Ether(src=client.mac, dst=server.mac) / Dot1Q(vlan=tag) / above

    with server.namespace, attach(firewall(), server.name, mode=mode) as link:
        client.send([frame(7, "S", seq=100)])
        until(lambda: counts(link)["web"] == 1, "the SYN")
        server.send([frame(7, "SA", back=True, seq=500, ack=101)])
        client.send([frame(8, "A", seq=101, ack=501), frame(7, "A", seq=101, ack=501)])
        until(lambda: counts(link)["known"] == 1 and counts(link)["invalid"] == 1, "one of two")
        (flow,) = link.flows()
        assert (flow.vlan, flow.state, flow.half_open) == ((7,), "established", False)


def test_half_open_and_out_of_window_probes_are_refused(ports):
    client, server = ports
    with echo_server(server), server.namespace, attach(firewall(), server.name) as link:
        with connect(client) as connection:
            assert echoes(connection)
            number = connection.getsockname()[1]

            def probe(flags: str, **fields: int) -> bytes:
                head = Ether(src=client.mac, dst=server.mac) / IP(src=CLIENT, dst=SERVER)
                return bytes(head / TCP(**{"sport": number, "dport": 8080, "flags": flags, **fields}))

            before = counts(link)["invalid"]
            probes = [
                probe("A", sport=1111, seq=5, ack=6), probe("SA", sport=1112), probe("F", sport=1113),
                probe("", sport=1114), probe("FPU", sport=1115), probe("R", seq=12345), probe("RA", seq=1 << 31, ack=7),
                probe("A", seq=99, ack=1 << 30), probe("PA", seq=1 << 30, ack=1),
            ]  # fmt: skip
            client.send(probes)
            until(lambda: counts(link)["invalid"] == before + len(probes), "all probes to be refused")
            assert echoes(connection), "the connection lives on"


def test_open_connections_live_through_the_first_stateful_ruleset_and_reloads(ports):
    client, server = ports
    stateless = Pipeline("firewall", default=PASS)
    with ExitStack() as stack, server.namespace:
        stack.enter_context(echo_server(server))
        stack.enter_context(echo_server(client, host=CLIENT, number=7000))
        into = [stack.enter_context(connect(client)) for _ in range(60)]
        out = [stack.enter_context(connect(server, host=CLIENT, number=7000)) for _ in range(40)]
        assert all(map(echoes, (*into, *out)))
        link = stack.enter_context(attach(stateless, server.name))
        link.update(firewall())
        assert len(link.flows().where(protocol="tcp")) == 100
        assert all(map(echoes, (*into, *out))), "through the first ruleset that tracks"
        for _ in range(5):
            link.update(firewall(timeouts={"udp": 5}))
        assert all(map(echoes, (*into, *out))), "through reloads"
        assert counts(link)["invalid"] == 0
        link.update(stateless)
        with pytest.raises(ValueError, match="tracks no connections"):
            link.flows()


def test_connections_of_sockets_are_known_with_their_direction_from_the_start(ports):
    client, server = ports
    with ExitStack() as stack, server.namespace:
        stack.enter_context(echo_server(server))
        stack.enter_context(echo_server(client, host=CLIENT, number=7000))
        into, out = stack.enter_context(connect(client)), stack.enter_context(connect(server, CLIENT, 7000))
        assert echoes(into)
        assert echoes(out)
        link = stack.enter_context(attach(firewall(), server.name))
        assert {(str(flow.source), flow.dport) for flow in link.flows()} == {(CLIENT, 8080), (SERVER, 7000)}


def test_learning_lets_go_on_what_nobody_knows_and_ends(ports):
    """As on a bridge: the host has no socket for it."""
    client, server = ports

    def middle(number: int) -> Ether:
        head = Ether(src=client.mac, dst=server.mac) / IP(src=CLIENT, dst=SERVER)
        return head / TCP(sport=number, dport=8080, flags="A", seq=5, ack=6)

    with server.namespace, attach(firewall(), server.name, learn=600) as link:
        client.send([middle(1), middle(1)])
        until(lambda: counts(link)["known"] == 2, "both to be taken for established")
        link.learn(0)
        client.send([middle(2), middle(1)])
        until(lambda: counts(link)["invalid"] == 1, "the one that came later to be refused")
        assert counts(link)["known"] == 3
        assert link.ledger().flows is not None
        assert link.ledger().flows.learned == 1  # type: ignore[union-attr]


def test_a_full_table_is_counted_and_names_who_fills_it(ports):
    client, server = ports
    with echo_server(server), server.namespace, attach(firewall(capacity=2), server.name) as link, ExitStack() as stack:
        for _ in range(2):
            assert echoes(stack.enter_context(connect(client)))
        third = stack.enter_context(connect(client))
        third.settimeout(0.3)
        with pytest.raises(TimeoutError):
            echoes(third)
        assert counts(link)["flow table full"] > 0
        ledger = link.ledger()
        assert ledger.flows is not None
        assert ledger.flows.refused == counts(link)["flow table full"]
        assert "found no room" in str(ledger)
        assert [(str(address), n) for address, n in link.flows().where(half_open=False).top_sources()] == [(CLIENT, 2)]
        assert link.flows().fill == 1.0
        assert link.forget(link.flows().where(half_open=False)) == 2
        third.settimeout(10)
        assert third.recv(100) == b"hello", "there is room now, and TCP sends it again"


def test_flows_whose_time_is_over_are_swept(ports):
    client, server = ports
    with server.namespace, attach(firewall(timeouts={"icmp": 0.05}), server.name) as link:
        with client.namespace:
            subprocess.run(["ping", "-c", "1", SERVER], check=True, stdout=subprocess.DEVNULL)
        assert link._tracker is not None
        table = link._tracker.maps.flows
        assert len(table.read(FLOW)[0]) == 1
        until(lambda: not len(table.read(FLOW)[0]), "the sweeper")


def test_the_room_for_connections_is_that_of_the_first_ruleset_and_this_is_said(ports):
    _, server = ports
    with server.namespace, attach(firewall(capacity=10), server.name) as link:
        link.update(firewall(capacity=20))
        assert any("keep their room for 10 flows" in note for note in link.notes)
        with pytest.raises(PipelineError, match="count cannot change"):
            link.update(firewall(count=True))


def test_a_pinned_link_goes_on_tracking_when_its_process_ends(ports):
    client, server = ports
    name = f"track-{server.name}"
    with echo_server(server), echo_server(client, host=CLIENT, number=7000), server.namespace:
        link = attach(firewall(), server.name, pin=name)
        with connect(client) as into, connect(server, host=CLIENT, number=7000) as out:
            assert echoes(into)
            assert echoes(out)
            link.close()
            with connect(server, host=CLIENT, number=7000) as later:
                assert echoes(later), "what leaves is still seen"
            again = attach(firewall(), server.name, pin=name)
            try:
                assert len(again.flows().where(protocol="tcp", half_open=False)) >= 2
                assert echoes(into)
                assert echoes(out)
            finally:
                again.detach()


def test_nothing_stays_on_the_device_when_the_link_is_closed(ports):
    _, server = ports
    with server.namespace:
        with attach(firewall(), server.name):
            assert tcx_programs(server, EGRESS) == 1
        assert tcx_programs(server, EGRESS) == 0
