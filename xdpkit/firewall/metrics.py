"""What firewalls count, for Prometheus.

Everything comes from pinned links, so the exporter may be another process than the one that reads feeds and logs, or
the only one.  Counters go on across reloads and restarts of either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..language.errors import NotSupported
from ..link.bridge import Bridge
from ..link.ledger import Ledger
from ..link.link import Link
from .feeds import Feeds

if TYPE_CHECKING:
    from prometheus_client.core import Metric
    from prometheus_client.registry import CollectorRegistry

__all__ = ["METRICS", "Firewalls", "registry", "render"]

#: Name, kind, labels beside ``firewall``, what it means.  The docs have this table.
METRICS = (
    ("xdpkit_up", "gauge", (), "1 while the ruleset is on its device, 0 where it was lost"),
    ("xdpkit_info", "gauge", ("pipeline", "device", "mode"), "1; the labels say what is in force"),
    ("xdpkit_updates", "counter", (), "Rulesets exchanged since the firewall was attached"),
    ("xdpkit_seen_packets", "counter", (), "Packets that met the rules"),
    ("xdpkit_seen_bytes", "counter", (), "Bytes of the packets that met the rules"),
    ("xdpkit_rule_packets", "counter", ("rule", "action"), "Packets that a rule took, or let go on"),
    ("xdpkit_rule_bytes", "counter", ("rule", "action"), "Bytes of the packets that a rule took, or let go on"),
    ("xdpkit_verdict_packets", "counter", ("verdict",), "Packets by the verdict of the rule that took them"),
    ("xdpkit_lost_packets", "counter", ("stage",), "Packets lost on the way to user space or to another device"),
    ("xdpkit_device_dropped_packets", "counter", (), "Packets that the device dropped before they met the rules"),
    ("xdpkit_set_members", "gauge", ("set",), "Entries in a set"),
    ("xdpkit_set_capacity", "gauge", ("set",), "Entries that a set has room for"),
    ("xdpkit_feed_members", "gauge", ("set",), "Members of the list that a feed's set follows"),
    ("xdpkit_feed_failed", "gauge", ("set",), "1 where the last look at the feed was refused or failed"),
    ("xdpkit_feed_good_timestamp_seconds", "gauge", ("set",), "When the last good list was taken, Unix time"),
)
_ACTING_VERDICTS = ("PASS", "DROP", "TX", "REDIRECT", "FORWARD")


class Firewalls:
    """The collector: asks ``links`` for the open links by name each time that Prometheus asks."""

    def __init__(self, links: Callable[[], Iterable[tuple[str, Link | Bridge]]], feeds: Feeds | None = None):
        self._links, self._feeds = links, feeds

    def collect(self) -> Iterator[Metric]:
        """The metrics, as prometheus_client wants them."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}
        families = {name: kinds[kind](name, text, labels=("firewall", *labels)) for name, kind, labels, text in METRICS}
        for name, link in self._links():
            for metric, labels, value in self._samples(link):
                families[metric].add_metric([name, *labels], value)
        yield from families.values()

    def _samples(self, link: Link | Bridge) -> Iterator[tuple[str, tuple[str, ...], float]]:
        lost, ledger = link.lost, link.ledger()
        yield "xdpkit_up", (), float(lost is None)
        yield "xdpkit_info", (ledger.pipeline, ledger.device, ledger.attachment.mode), 1
        yield "xdpkit_updates", (), ledger.updates
        yield "xdpkit_seen_packets", (), ledger.seen
        yield "xdpkit_seen_bytes", (), ledger.seen_bytes
        for rule in ledger.rules:
            yield "xdpkit_rule_packets", (rule.name, rule.action), rule.packets
            yield "xdpkit_rule_bytes", (rule.name, rule.action), rule.bytes
        yield from self._sums(ledger)
        for live in link.sets.values():
            with suppress(OSError):  # exchanged at this moment
                yield "xdpkit_set_members", (live.name,), live.used
                yield "xdpkit_set_capacity", (live.name,), live.capacity
        for name, report in (self._feeds.reports if self._feeds is not None else {}).items():
            yield "xdpkit_feed_members", (name,), report.members
            yield "xdpkit_feed_failed", (name,), float(bool(report.problem))
        for name, when in (self._feeds.good if self._feeds is not None else {}).items():
            yield "xdpkit_feed_good_timestamp_seconds", (name,), when

    @staticmethod
    def _sums(ledger: Ledger) -> Iterator[tuple[str, tuple[str, ...], float]]:
        for verdict in _ACTING_VERDICTS:
            total = sum(r.packets for r in ledger.rules if r.verdict == verdict)
            yield "xdpkit_verdict_packets", (verdict,), total
        stages = (
            ("fill empty", ledger.fill_empty), ("RX ring full", ledger.rx_ring_full),
            ("longer than a frame", ledger.too_long), ("forwarding", ledger.dropped_there),
        )  # fmt: skip
        for stage, n in stages:
            yield "xdpkit_lost_packets", (stage,), n
        yield "xdpkit_device_dropped_packets", (), ledger.device_dropped


def registry(firewalls: Firewalls) -> CollectorRegistry:
    """A registry with the metrics of these firewalls.  NotSupported where prometheus-client is not installed."""
    try:
        from prometheus_client.registry import CollectorRegistry
    except ImportError:
        raise NotSupported("metrics for Prometheus", "prometheus-client: pip install 'xdpkit[firewall]'") from None
    found = CollectorRegistry()
    collector: Any = firewalls
    found.register(collector)
    return found


def render(firewalls: Firewalls) -> str:
    """The metrics in Prometheus's text format.  NotSupported where prometheus-client is not installed."""
    found = registry(firewalls)
    from prometheus_client import generate_latest

    text: bytes = generate_latest(found)
    return text.decode()


def serve(firewalls: Firewalls, listen: str) -> Callable[[], None]:
    """Answer Prometheus at ``listen`` ("127.0.0.1:9464") from a thread; what is returned ends it.  ValueError for what
    is no address, OSError where it cannot listen there."""
    address, _, port = listen.rpartition(":")
    if not address or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{listen!r}: an address and a port, as 127.0.0.1:9464")
    found = registry(firewalls)
    from prometheus_client import start_http_server

    try:
        server, thread = start_http_server(int(port), addr=address.strip("[]"), registry=found)
    except OSError as error:
        raise OSError(error.errno, f"metrics at {listen}: {error.strerror or error}") from None

    def end() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return end
