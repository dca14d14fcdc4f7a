"""Sets that follow published lists: what is no good list changes nothing, and the last good copy stays."""

from __future__ import annotations

import gzip
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest
from commands import xdpkit

from xdpkit import DROP, Feed, Pipeline, PipelineError, attach, ip, ip6, src, tcp
from xdpkit.compiler import built
from xdpkit.firewall.feeds import Feeds, fetch

pytestmark = pytest.mark.root


@pytest.fixture
def server():
    """A web server whose pages the test sets: {path: (status, bytes)}; `seen` are the headers it got."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.headers)
            status, body = pages.get(self.path, (404, b"no"))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    class Web(ThreadingHTTPServer):
        pages: ClassVar[dict] = {}
        seen: ClassVar[list] = []
        url = ""

    pages: dict[str, Any] = {}
    seen: list[Any] = []
    web = Web(("127.0.0.1", 0), Answer)
    Web.pages, Web.seen, Web.url = pages, seen, f"http://127.0.0.1:{web.server_port}"
    thread = threading.Thread(target=web.serve_forever)
    thread.start()
    yield web
    web.shutdown()
    web.server_close()
    thread.join()


def following(feed: Feed, *fields, members=()) -> Pipeline:
    pipe = Pipeline("edge")
    listed = pipe.set("listed", *(fields or (src,)), feed=feed, capacity=1000, members=members)
    pipe.rule(listed, DROP, name="listed")
    return pipe


def attached(pipe: Pipeline, port):
    """The pipeline on the port; the test, and the server it asks, are in the namespace of the machine."""
    with port.namespace:
        return attach(pipe, port.name)


def members(link) -> set[str]:
    return {m.member for m in link.sets["listed"].members()}


def test_a_set_follows_its_feed_by_the_fewest_changes(veth_pair, server, tmp_path):
    feed = Feed(f"{server.url}/list", every=60, least=2)
    server.pages["/list"] = 200, b"# mixed\n192.0.2.1\n198.51.100.0/24\n2001:db8::/32\n192.0.2.77/24 ; host bits\nx y\n"
    with attached(following(feed, members=["203.0.113.9"]), veth_pair[1]) as link:
        feeds = Feeds(link, copies=tmp_path)
        assert feeds.seconds_left() == 0
        (report,) = feeds.refresh()
        assert not report.problem
        assert report.members == 4
        assert any("skipped 1 line (6)" in line for line in report.summary)
        assert members(link) == {"203.0.113.9", "192.0.2.1", "198.51.100.0/24", "192.0.2.0/24", "2001:db8::/32"}
        assert not feeds.refresh(due=True)
        server.pages["/list"] = 200, gzip.compress(b"192.0.2.1\n198.51.100.0/24\n203.0.113.77\n")
        (report,) = feeds.refresh()
        assert report.change is not None
        assert (report.change.added, report.change.removed) == (1, 2)
        assert members(link) == {"203.0.113.9", "192.0.2.1", "198.51.100.0/24", "203.0.113.77"}


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        ((500, b"oops"), "the server says 500 Internal Server Error; the last good copy stays, 8 members"),
        ((200, b"<html><title>Sorry</title>"), "this is an HTML page ('Sorry'), not a list"),
        ((200, b"192.0.2.1\n192.0.2.2\n192.0.2.3\n"), "has 3 members, less than half of the 8 before"),
        ((200, b"192.0.2.1\n"), "has 1 members, and 2 at least are wanted"),
        ((200, b""), "has 0 members, and 2 at least are wanted"),
        ((200, b"\x1f\x8bgarbage"), "cannot be unpacked"),
        ((200, b"\0\1\2" * 100), "this is not text"),
    ],
    ids=["500", "html", "half", "few", "empty", "damaged", "binary"],
)
def test_a_list_that_is_no_good_changes_nothing(veth_pair, server, tmp_path, page, problem):
    feed = Feed(f"{server.url}/list", least=2)
    server.pages["/list"] = 200, b"".join(b"192.0.2.%d\n" % n for n in range(8))
    with attached(following(feed), veth_pair[1]) as link:
        feeds = Feeds(link, copies=tmp_path)
        feeds.refresh()
        before = members(link)
        server.pages["/list"] = page
        (report,) = feeds.refresh()
        assert problem in str(report)
        assert members(link) == before
        if b"192.0.2.1\n192" in page[1]:
            (report,) = feeds.refresh(force=True)
            assert not report.problem
            assert len(members(link)) == 3


def test_the_last_good_copy_fills_the_set_when_the_source_is_gone(veth_pair, server, tmp_path):
    feed = Feed(f"{server.url}/list")
    server.pages["/list"] = 200, b"192.0.2.1\n2001:db8::1\n"
    with attached(following(feed, ip.src), veth_pair[1]) as link:
        (report,) = Feeds(link, copies=tmp_path).refresh()
        assert report.members == 1  # a set of IPv4 addresses takes those
    server.shutdown()
    server.server_close()
    with attached(following(feed, ip.src), veth_pair[1]) as link:
        feeds = Feeds(link, copies=tmp_path)
        (report,) = feeds.load()
        assert "1 members from the last good copy of" in str(report)
        assert members(link) == {"192.0.2.1"}
        (report,) = feeds.refresh()
        assert "Connection refused; the last good copy stays" in str(report)
        assert members(link) == {"192.0.2.1"}


def test_the_decisions_of_crowdsec(veth_pair, server, tmp_path, monkeypatch):
    feed = Feed(f"crowdsec:{server.url}")
    decisions = [
        {"scope": "Ip", "type": "ban", "value": "192.0.2.1", "duration": "3h"},
        {"scope": "Range", "type": "ban", "value": "2001:db8::/48", "duration": "3h"},
        {"scope": "Ip", "type": "captcha", "value": "192.0.2.2", "duration": "3h"},
        {"scope": "Country", "type": "ban", "value": "XX", "duration": "3h"},
    ]
    server.pages["/v1/decisions/stream?startup=true"] = 200, json.dumps({"new": decisions, "deleted": None}).encode()
    with attached(following(feed), veth_pair[1]) as link:
        monkeypatch.delenv("XDPKIT_CROWDSEC_KEY", raising=False)
        (report,) = Feeds(link, copies=tmp_path).refresh()
        assert "XDPKIT_CROWDSEC_KEY is not set" in report.problem
        monkeypatch.setenv("XDPKIT_CROWDSEC_KEY", "secret")
        (report,) = Feeds(link, copies=tmp_path).refresh()
        assert not report.problem
        assert members(link) == {"192.0.2.1", "2001:db8::/48"}
        assert server.seen[-1]["X-Api-Key"] == "secret"
        server.pages["/v1/decisions/stream?startup=true"] = 200, b"[]"
        (report,) = Feeds(link, copies=tmp_path).refresh()
        assert "this is no list of decisions" in report.problem


def test_feeds_are_declared_with_a_set_of_addresses():
    pipe = Pipeline("edge")
    for make in (
        lambda: Feed(""), lambda: Feed("/list", every=0), lambda: Feed("/list", least=-1),
        lambda: pipe.set("a", tcp.dport, feed=Feed("/list")), lambda: pipe.set("a", src, feed="/list"),  # type: ignore[arg-type]
        lambda: pipe.set("a", src, feed=Feed("/list"), source="other"),
        lambda: pipe.set("a", src, tcp.dport, feed=Feed("/l")),
    ):  # fmt: skip
        with pytest.raises(PipelineError):
            make()


def test_a_built_file_keeps_the_feed(tmp_path):
    pipe = following(Feed("https://example.net/list", every=60, least=5), ip6.src)
    built.write(built.Built(pipe, {}), tmp_path / "built")
    assert built.read(tmp_path / "built").pipeline.sets[0].feed == Feed("https://example.net/list", every=60, least=5)


def test_a_file_is_found_beside_the_rules(tmp_path):
    (tmp_path / "list.txt").write_text("192.0.2.1\n")
    assert fetch(Feed("list.txt"), tmp_path) == fetch(Feed(f"file://{tmp_path}/list.txt")) == b"192.0.2.1\n"
    with pytest.raises(FileNotFoundError):
        fetch(Feed("none.txt"), tmp_path)


def test_rules_that_are_applied_have_the_members_of_their_feeds(veth_pair, tmp_path, monkeypatch):
    """Without a process, and where the feed is gone the next time."""
    monkeypatch.setattr("xdpkit.firewall.feeds.Feeds.__init__.__kwdefaults__", {"copies": tmp_path / "copies"})
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    rules, name = tmp_path / "rules.py", f"applied-{os.getpid()}"
    rules.write_text(
        "from xdpkit import DROP, Feed, Pipeline, src\npipe = Pipeline('edge')\n"
        "pipe.rule(pipe.set('listed', src, feed=Feed('list.txt')), DROP, name='listed')\n"
    )
    (tmp_path / "list.txt").write_text("192.0.2.1\n2001:db8::1\n")
    command = ["firewall", "apply", rules, "-i", veth_pair[1].name, "--name", name]
    for gone in (False, True):
        if gone:
            (tmp_path / "list.txt").unlink()
        done = xdpkit(veth_pair[1], *command)
        assert done.returncode == 0, done.stderr
        assert ("warning: listed:" in done.stderr) == gone
        listed = xdpkit(veth_pair[1], "firewall", "bans", "--name", name, "--set", "listed").stdout.split()
        assert set(listed) == {"192.0.2.1", "2001:db8::1"}
        assert xdpkit(veth_pair[1], "firewall", "detach", name).returncode == 0
