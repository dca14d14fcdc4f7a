"""The dashboard, asked of a real Prometheus that reads a real firewall: every query of it has an answer."""

from __future__ import annotations

import json
import os
import re
import socket
import urllib.error
import urllib.parse
import urllib.request

import pytest
from commands import XDPKIT, xdpkit
from traffic import frames, until

from xdpkit import pinned_links
from xdpkit.firewall.metrics import METRICS

RULES = """
from xdpkit import DROP, Feed, Pipeline, src, udp
pipe = Pipeline("edge")
pipe.rule(pipe.set("listed", src, feed=Feed("list.txt")), DROP, name="listed")
pipe.rule(udp.dport == 53, DROP, name="closed")
"""
CONFIG = """
global: {{scrape_interval: 100ms, scrape_timeout: 100ms}}
scrape_configs: [{{job_name: xdpkit, static_configs: [{{targets: ["127.0.0.1:{port}"]}}]}}]
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


@pytest.fixture
def prometheus(make_veth, tmp_path):
    """(a port that sends, a function that asks Prometheus): a firewall with metrics on the other port, and a
    Prometheus that reads them."""
    left, right = make_veth()
    name, (metrics, port) = f"grafana-{os.getpid()}", (free_port(), free_port())
    (tmp_path / "rules.py").write_text(RULES)
    (tmp_path / "list.txt").write_text("198.51.100.9\n")
    (tmp_path / "prometheus.yml").write_text(CONFIG.format(port=metrics))
    log = (tmp_path / "log").open("w")
    firewall = right.namespace.popen(
        [XDPKIT, "firewall", "run", tmp_path / "rules.py", "-i", right.name, "--name", name, "--metrics",
         f"127.0.0.1:{metrics}"], stdout=log, stderr=log,
    )  # fmt: skip
    server = right.namespace.popen(
        ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
         f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log,
    )  # fmt: skip

    def ask(query: str) -> list:
        try:
            with right.namespace, urllib.request.urlopen(
                f"http://127.0.0.1:{port}/api/v1/query?query={urllib.parse.quote(query)}", timeout=10
            ) as answer:  # fmt: skip
                return json.load(answer)["data"]["result"]
        except (urllib.error.URLError, ConnectionError):
            return []

    yield left, right, ask
    for child in (server, firewall):
        child.terminate()
        child.wait(30)
    log.close()
    if name in pinned_links():
        assert xdpkit(right, "firewall", "detach", name).returncode == 0


def test_every_query_of_the_dashboard_has_an_answer(prometheus):
    left, right, ask = prometheus
    dashboard = json.loads(xdpkit(right, "firewall", "metrics", "--grafana").stdout)
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    until(lambda: ask("xdpkit_up == 1"), "Prometheus has read the firewall", timeout=60)
    left.send(frames(left, right, range(30)))
    until(lambda: ask("sum(xdpkit_rule_packets_total{rule='closed'}) == 30"), "the packets are there", timeout=30)
    for query in queries:
        written = query.replace("$firewall", ".*").replace("$__rate_interval", "1m").replace("$__range", "1h")
        until(lambda written=written: ask(written), f"an answer to {written}", timeout=30)
    known = {name for name, *_ in METRICS} | {f"{name}_total" for name, *_ in METRICS}
    used = {name for query in queries for name in re.findall(r"xdpkit_\w+", query)}
    assert used <= known
