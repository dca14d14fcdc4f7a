"""Connections through the first stateful ruleset, reloads, restarts and SIGKILL: none is reset, no packet is lost."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import threading
from contextlib import ExitStack

import pytest
from commands import XDPKIT, xdpkit
from traffic import until

from xdpkit import pinned_links

RULES = """
from xdpkit import DROP, PASS, Pipeline, arp, ct, icmp6, tcp
pipe = Pipeline("{name}", default=DROP)
pipe.track(capacity=10_000)
pipe.rule(arp.present | icmp6.present, PASS, name="neighbours")
pipe.rule(ct.established | ct.related, PASS, name="established")
pipe.rule(ct.new & (tcp.dport == 7), PASS, name="echo")
"""
CONNECTIONS = 100


class Echo:
    """A server that sends back what it gets, in the namespace of a port; and connections to it from another."""

    def __init__(self, server_port, address: str):
        with server_port.namespace:
            self._listener = socket.create_server((address, 7), backlog=CONNECTIONS)
        self._address = address
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            thread.start()

    @staticmethod
    def _serve(connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(4096):
                connection.sendall(data)

    def connect(self, client_port) -> socket.socket:
        with client_port.namespace:
            return socket.create_connection((self._address, 7), timeout=20)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def talk(connection: socket.socket, number: int) -> bool:
    """Whether the connection carries a number there and back."""
    connection.sendall(struct.pack("!I", number))
    return connection.recv(4, socket.MSG_WAITALL) == struct.pack("!I", number)


@pytest.fixture
def host(make_veth, tmp_path, monkeypatch):
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    client, server = make_veth(addresses=("192.0.2.1/24", "192.0.2.2/24"))
    name, file = f"connections-{os.getpid()}", tmp_path / "rules.py"
    file.write_text(RULES.format(name="first"))
    yield client, server, name, file
    if name in pinned_links():
        assert xdpkit(server, "firewall", "detach", name).returncode == 0


def test_open_connections_live_through_everything(host):
    client, server, name, file = host
    echo = Echo(server, "192.0.2.2")
    where = [str(file), "-i", server.name, "--name", name]
    with ExitStack() as stack:
        stack.callback(echo.close)
        connections = [stack.enter_context(echo.connect(client)) for _ in range(CONNECTIONS)]
        assert all(talk(c, n) for n, c in enumerate(connections))

        done = xdpkit(server, "firewall", "apply", *where)  # the first stateful ruleset
        assert done.returncode == 0, done.stderr
        assert all(talk(c, n) for n, c in enumerate(connections))

        file.write_text(RULES.format(name="second"))
        assert xdpkit(server, "firewall", "apply", *where).returncode == 0  # a reload
        assert all(talk(c, n) for n, c in enumerate(connections))

        child = server.namespace.popen(
            [XDPKIT, "firewall", "run", *where], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        stack.callback(child.communicate)
        assert "is in force" in child.stderr.readline()
        assert all(talk(c, n) for n, c in enumerate(connections))
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert all(talk(c, n) for n, c in enumerate(connections))
        assert xdpkit(server, "firewall", "apply", *where).returncode == 0  # started again
        assert all(talk(c, n) for n, c in enumerate(connections))

        shown = xdpkit(server, "firewall", "flows", name, "--port", "7", "--protocol", "tcp", "--json").stdout
        flows = [json.loads(line) for line in shown.splitlines()]
        assert len(flows) == CONNECTIONS
        assert {flow["state"] for flow in flows} == {"established"}
        assert {flow["source"] for flow in flows} == {"192.0.2.1"}
        with pytest.raises(OSError):  # noqa: PT011 - refused by the rules: a time-out
            with client.namespace:
                socket.create_connection(("192.0.2.2", 9), timeout=1)
        forgotten = xdpkit(server, "firewall", "flows", name, "--port", "7", "--flush").stdout
        assert forgotten == f"{CONNECTIONS} connections forgotten\n"


def test_what_is_asked_of_flows_is_checked(host):
    client, server, name, file = host
    assert xdpkit(server, "firewall", "apply", file, "-i", server.name, "--name", name).returncode == 0
    for wrong in (["--host", "x"], ["--protocol", "tcpp"], ["--state", "open wide"], ["--flush", "--sources"]):
        assert xdpkit(server, "firewall", "flows", name, *wrong).returncode == 2, wrong
    echo = Echo(server, "192.0.2.2")
    with echo.connect(client) as connection:
        assert talk(connection, 1)
        until(lambda: "192.0.2.1" in xdpkit(server, "firewall", "flows", name).stdout, "the flow")
        assert xdpkit(server, "firewall", "flows", name, "--sources").stdout.split() == ["1", "192.0.2.1"]
    echo.close()
    file.write_text("from xdpkit import Pipeline\npipe = Pipeline('stateless')\n")
    assert xdpkit(server, "firewall", "apply", file, "-i", server.name, "--name", name).returncode == 0
    done = xdpkit(server, "firewall", "flows", name)
    assert done.returncode == 1
    assert "tracks no connections" in done.stderr
