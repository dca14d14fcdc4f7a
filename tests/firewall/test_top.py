"""`xdpkit firewall top` in a terminal: rates, sorting, idle rules; and what it says where there is no terminal."""

from __future__ import annotations

import os

import pytest
from commands import XDPKIT, xdpkit
from tmux import Pane
from traffic import frames, until

from xdpkit import DROP, PASS, Pipeline, attach, open_link, src, udp
from xdpkit.firewall.top import Watch


@pytest.fixture
def guarded(make_veth):
    """(a port that sends, a port with a firewall, its name)."""
    left, right = make_veth()
    name = f"top-{os.getpid()}"
    pipe = Pipeline("edge")
    pipe.rule(pipe.set("bans", src, capacity=100, members=["192.0.2.9"]), DROP, name="banned[/x]")
    pipe.rule(udp.dport == 80, PASS, name="web")
    pipe.rule(udp.dport == 53, DROP, name="dns")
    with right.namespace:
        attach(pipe, right.name, pin=name).close()
    yield left, right, name
    with right.namespace, open_link(name) as link:
        link.detach()


@pytest.mark.parametrize("columns", [80, 120])
def test_the_screen(guarded, columns):
    left, right, name = guarded
    with Pane(right, f"{XDPKIT} firewall top {name} --every 0.2", columns=columns, lines=24) as pane:
        pane.wait_for("sorted as declared")
        left.send(frames(left, right, range(40)))
        shown = pane.wait_for(r"dns\s+DROP\s+40")
        assert "edge on right: native" in shown
        assert "set bans: 1 of 100 (1%)" in shown
        assert shown.index("banned[/x]") < shown.index("web") < shown.index("dns")
        assert all(len(line) <= columns for line in shown.splitlines())
        pane.type("s", "s")
        shown = pane.wait_for("sorted as packets")
        assert shown.index("dns") < shown.index("banned[/x]")
        pane.type("i")
        shown = pane.wait_for("only rules that have taken nothing")
        assert "dns" not in pane.screen()
        pane.type("q")
        pane.wait_for("exit status 0")


def test_rates_are_since_the_look_before(guarded):
    left, right, name = guarded
    with right.namespace:
        watch = Watch(lambda: open_link(name))
        watch.look()
        left.send(frames(left, right, range(100), size=100))
        screens = []

        def packets() -> int:
            screens.append(watch.look("packets"))
            return screens[-1].rules[0].packets

        until(lambda: packets() == 100, "all packets")
        assert screens[-1].rules[0].name == "dns"
        assert sum(screen.seen_per_second > 0 for screen in screens) >= 1
        with open_link(name) as link:  # another process exchanges the rules
            link.update(Pipeline("other"))
        assert watch.look().title.startswith("other on right")
        watch.close()


def test_without_a_terminal_it_says_what_to_use(guarded):
    _, right, name = guarded
    done = xdpkit(right, "firewall", "top", name)
    assert done.returncode == 1
    assert "needs a terminal; 'xdpkit firewall status --json'" in done.stderr
