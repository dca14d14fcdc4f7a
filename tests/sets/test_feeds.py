"""Feeds as they are published: what is taken, what is mended and what is skipped, and that each is said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xdpkit import PipelineError
from xdpkit.sets.feeds import read_feed


def members(text: str | bytes) -> tuple[list[str], list[str]]:
    feed = read_feed(text if isinstance(text, bytes) else text.encode(), "feed")
    return feed.ipv4, feed.ipv6


@pytest.mark.parametrize(
    ("text", "ipv4", "ipv6"),
    [
        ("192.0.2.1\n2001:db8::1\n192.0.2.0/24\n", ["192.0.2.1", "192.0.2.0/24"], ["2001:db8::1"]),
        ("# a\n; b\n// c\n192.0.2.1 # d\n192.0.2.2;e\n192.0.2.3 // f\n", ["192.0.2.1", "192.0.2.2", "192.0.2.3"], []),
        ("192.0.2.0/24 ; SBL1\n", ["192.0.2.0/24"], []),
        ("Start\tEnd\tNetmask\n192.0.2.0\t192.0.2.255\t24\tx\n", ["192.0.2.0-192.0.2.255"], []),
        ('"first_seen_utc","dst_ip","dst_port"\n"2026-01-01 00:00:00","192.0.2.1","443"\n', ["192.0.2.1"], []),
        ('# "first_seen","src_ip","dst_ip"\n"x","192.0.2.9","192.0.2.1"\n', ["192.0.2.1"], []),
        ("dst_port,date,what\n443,2026-01-01,192.0.2.1\n80,2026-01-02,192.0.2.2\n", ["192.0.2.1", "192.0.2.2"], []),
        ("192.0.2.1,443\n192.0.2.2,80\n", ["192.0.2.1", "192.0.2.2"], []),
        ("192.0.2.1,0.99\n2001:db8::/32,0.5\n", ["192.0.2.1"], ["2001:db8::/32"]),
        ("some:list:192.0.2.0-192.0.2.255\n", ["192.0.2.0-192.0.2.255"], []),
        ("2001:db8::1 - 2001:db8::5\n", [], ["2001:db8::1-2001:db8::5"]),
        ("192.0.2.0/255.255.255.0\n", ["192.0.2.0/24"], []),
        ("192.0.2.1:443\n[2001:db8::1]:443\n", ["192.0.2.1"], ["2001:db8::1"]),
        ("127.0.0.1 localhost\n192.0.2.7 bad.example\n", ["192.0.2.7"], []),
        ('{"cidr":"192.0.2.0/24","sblid":"SBL1"}\n{"type":"metadata"}\n', ["192.0.2.0/24"], []),
        ('{"prefixes":[{"ip_prefix":"192.0.2.0/24","region":"x"}]}', ["192.0.2.0/24"], []),
        ("192.0.2.1\r\n192.0.2.1\r\n", ["192.0.2.1"], []),
        ("192.0.2.1\n192.0.2.2".encode("utf-16"), ["192.0.2.1", "192.0.2.2"], []),
        ("192.0.2.1\n".encode("utf-16-le"), ["192.0.2.1"], []),
        ("\ufeff192.0.2.1\n\u200b192.0.2.2\xa0\n", ["192.0.2.1", "192.0.2.2"], []),
        ("192.0.2.1 # caf\xe9\n".encode("latin-1"), ["192.0.2.1"], []),
        ("", [], []),
    ],
)  # fmt: skip
def test_a_feed_is_read_as_it_is_published(text, ipv4, ipv6):
    assert members(text) == (ipv4, ipv6)


def test_what_is_changed_and_what_is_left_out_is_said_with_the_first_lines():
    lines = ["192.0.2.1/24", "198.51.100.7/24", "fe80::1%eth0", "bad.example", "010.0.0.1", "0.0.0.0/0", "nonsense"]
    feed = read_feed("\n".join([*lines, *["x"] * 5]).encode(), "feed")
    assert feed.ipv4 == ["192.0.2.0/24", "198.51.100.0/24"]
    assert feed.summary() == [
        "feed: 2 IPv4 and 0 IPv6 members",
        "feed: mended 2 lines (1, 2): bits beyond the prefix length are set: the network is taken",
        "feed: skipped 1 line (3): an address with a zone means one interface of one machine",
        "feed: skipped 7 lines (4, 7, 8, ...): not an address",
        "feed: skipped 1 line (5): zeros in front of a number: some read them as octal",
        "feed: skipped 1 line (6): it is the whole address space",
    ]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"<!DOCTYPE html>\n<html><title>503 Service Unavailable</title>", "an HTML page .'503 Service Unavailable'."),
        (b"  <html><body>moved", "an HTML page"),
        (b"ad.example\nx.example\n", "no line holds an address; line 1: not an address"),
        (b"\x1f\x8b\x08\x00\x00\x00", "not text|no line holds"),
        (b"\xff\xfe1", "damaged"),
    ],
)
def test_what_is_no_list_is_refused_as_what_it_is(data, words):
    with pytest.raises(PipelineError, match=words):
        read_feed(data, "feed")


@given(st.binary(max_size=200) | st.text(st.sampled_from('0123456789./:-,;#"{}[] \n\tabcdef%'), max_size=200))
def test_any_bytes_are_read_or_refused_in_one_line(data):
    try:
        feed = read_feed(data if isinstance(data, bytes) else data.encode(), "feed")
    except PipelineError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert all("\n" not in line for line in feed.summary())
