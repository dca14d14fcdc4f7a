"""Rules that nothing meets: since when, as far as somebody looked."""

from __future__ import annotations

import json
import os

import pytest
from commands import xdpkit
from traffic import frames, until

from xdpkit import DROP, Pipeline, attach, open_link, udp
from xdpkit.firewall import usage


@pytest.fixture
def guarded(make_veth, tmp_path, monkeypatch):
    left, right = make_veth()
    name = f"usage-{os.getpid()}"
    pipe = Pipeline("edge")
    pipe.rule(udp.dport == 80, DROP, name="web")
    pipe.rule(udp.dport == 53, DROP, name="dns")
    with right.namespace:
        attach(pipe, right.name, pin=name).close()
        with open_link(name) as link:
            yield left, right, name, link
            link.detach()


def test_a_rule_is_unused_since_the_look_that_found_its_last_packet(guarded, tmp_path):
    left, right, _, link = guarded

    def since(now: float) -> dict[str, float]:
        return {use.name: use.since for use in usage.look("edge", link.ledger(), folder=tmp_path, now=now)}

    assert since(100) == {"web": 100, "dns": 100, "default": 100}
    left.send(frames(left, right, range(3)))
    until(lambda: link.ledger().seen == 3, "three")
    assert since(200) == {"web": 100, "dns": 200, "default": 100}
    assert since(300) == {"web": 100, "dns": 200, "default": 100}
    (tmp_path / "edge.json").write_text('{"web": 7}')
    assert since(400) == {"web": 400, "dns": 400, "default": 400}  # what is kept is damaged: it begins anew


def test_the_command(guarded):
    _, right, name, _ = guarded
    done = xdpkit(right, "firewall", "unused", name, "--days", "0", "--json")
    assert [row["rule"] for row in json.loads(done.stdout)["unused"]] == ["web", "dns", "default"]
    assert f"{name}: web      no packet since 20" in xdpkit(right, "firewall", "unused", name, "--days", "0").stdout
    assert "no rule is unused for 30 days" in xdpkit(right, "firewall", "unused", name).stdout
    (usage.USAGE / f"{name}.json").unlink()
