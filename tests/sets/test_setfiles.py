"""Files of set members, without a kernel: every format says the same, errors name the line, C agrees with Python."""

import gzip
import io
import json
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from setspecs import INTERVAL_SPECS, SPECS, make_spec, members_of
from strategies import again, examples

from xdpkit import DROP, PASS, ip, ip6, src, tcp, udp
from xdpkit.language.errors import PipelineError
from xdpkit.sets import files as setfiles
from xdpkit.sets.columns import read

HERE = "sets/test_setfiles.py"
BLOCKED = make_spec("blocked", ip.src, timeouts=True)
PAIRS = make_spec("pairs", ip.src, tcp.dport, timeouts=True)
VERDICTS = make_spec("verdicts", ip.src, actions=(DROP, PASS), timeouts=True)


def parsed(spec, text):
    """(member, time-out, action) of each entry of a file's text."""
    data = text if isinstance(text, bytes) else text.encode()
    found = setfiles.entries(spec, setfiles.parse(spec, setfiles.content(io.BytesIO(data), "f"), "f"))
    return [(spec.text(e), e.timeout, str(spec.actions[e.action]) if spec.actions else None) for _, e in found]


def refused(spec, text):
    with pytest.raises(PipelineError) as caught:
        parsed(spec, text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


TWO = [("192.0.2.1", 0, None), ("198.51.100.0/24", 60, None)]
NFT = {
    "nftables": [
        {"metainfo": {"version": "1.0.6"}},
        {
            "set": {
                "family": "inet",
                "name": "b",
                "flags": ["interval", "timeout"],
                "elem": [
                    "192.0.2.1",
                    {"elem": {"val": {"prefix": {"addr": "198.51.100.0", "len": 24}}, "timeout": 600, "expires": 60}},
                ],
            }
        },
    ]
}


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("list", "# mine\n192.0.2.1 ; a comment\n\n198.51.100.0/24 timeout 1m\n"),
        ("list", "192.0.2.1\r\n198.51.100.0 - 198.51.100.255 timeout 60s expires 60s\r\n"),
        ("ipset", 'create b hash:net family inet\nadd b 192.0.2.1\nadd b 198.51.100.0/24 timeout 60 comment "a # b"'),
        ("csv", "address,note,timeout\n192.0.2.1,x,\n198.51.100.0/24,y,60\n"),
        ("csv", "timeout,ip.src\n,192.0.2.1\n60,198.51.100.0/24\n"),
        ("csv", '192.0.2.1,\n"198.51.100.0/24",1m\n'),
        ("json", '["192.0.2.1", {"member": "198.51.100.0/24", "timeout": "1m"}]'),
        ("json", '{"members": [{"member": "192.0.2.1", "timeout": 0}, {"member": "198.51.100.0/24", "timeout": 60}]}'),
        ("nft", json.dumps(NFT)),
    ],
)
def test_every_format_says_the_same(form, text):
    assert parsed(BLOCKED, text) == TWO
    assert setfiles.parse(BLOCKED, text.encode(), "f").format == form


def test_a_file_may_be_compressed_and_may_start_with_a_byte_order_mark():
    plain = b"\xef\xbb\xbf192.0.2.1\n"
    frames = zstandard.compress(plain) + zstandard.compress(b"192.0.2.2\n")
    assert parsed(BLOCKED, plain) == parsed(BLOCKED, gzip.compress(plain)) == TWO[:1]
    assert [m for m, _, _ in parsed(BLOCKED, frames)] == ["192.0.2.1", "192.0.2.2"]


def test_a_member_of_several_fields_is_written_as_each_tool_writes_it():
    nft = {"nftables": [{"set": {"name": "p", "elem": [{"concat": ["192.0.2.1", 443]}]}}]}
    for text in (
        "192.0.2.1 . 443\n",
        "192.0.2.1,443\n",
        "create p hash:ip,port\nadd p 192.0.2.1,tcp:443\n",
        "dport,src\n443,192.0.2.1\n",
        '[["192.0.2.1", 443]]',
        json.dumps(nft),
    ):
        assert parsed(PAIRS, text) == [("192.0.2.1 . 443", 0, None)], text


def test_a_verdict_map_takes_its_actions_by_our_names_and_those_of_nftables():
    nft = {"nftables": [{"map": {"name": "v", "map": "verdict", "elem": [["192.0.2.1", {"drop": None}]]}}]}
    for text in (
        "192.0.2.1 : drop\n",
        "192.0.2.1,DROP\n",
        "address,verdict\n192.0.2.1,deny\n",
        '[{"member": "192.0.2.1", "action": "DROP"}]',
        json.dumps(nft),
    ):
        assert parsed(VERDICTS, text) == [("192.0.2.1", 0, "DROP")], text
    assert parsed(VERDICTS, "192.0.2.1 timeout 5s : accept\n") == [("192.0.2.1", 5, "PASS")]


@pytest.mark.parametrize(
    ("spec", "text", "said"),
    [
        (BLOCKED, "192.0.2.1\n\n192.0.2.300\n", "f:3: set 'blocked': ip.src compares with an IPv4 address"),
        (BLOCKED, "192.0.2.1/24\n", "f:1: set 'blocked': '192.0.2.1/24' is no prefix for ip.src: did you mean"),
        (BLOCKED, "192.0.2.9-192.0.2.1\n", "f:1: set 'blocked': the range 192.0.2.9-192.0.2.1 is empty"),
        (BLOCKED, "192.0.2.1 timeout soon\n", "f:1: a time-out is seconds or as 1h30m, not 'soon'"),
        (BLOCKED, "192.0.2.1 timeout 99999999999\n", "f:1: a time-out is 0 to 315360000 seconds"),
        (BLOCKED, "192.0.2.1 : DROP\n", "f:1: set 'blocked' holds no actions: 'DROP'"),
        (VERDICTS, "192.0.2.1 : TX\n", "f:1: verdict map 'verdicts' holds actions DROP, PASS: 'TX' is not among"),
        (VERDICTS, "192.0.2.1\n", "f:1: verdict map 'verdicts' holds actions DROP, PASS: '192.0.2.1' has none"),
        (make_spec("s", ip.src), "192.0.2.1 timeout 5\n", "f:1: set 's': members have no time-outs"),
        (BLOCKED, "add b 192.0.2.1\nadd b 192.0.2.1 nomatch\n", "f:2: nomatch"),
        (BLOCKED, "add a 192.0.2.1\nadd b 192.0.2.2\n", "f: it holds sets a, b, none is 'blocked'"),
        (BLOCKED, "add b 192.0.2.1\nnonsense\n", "f:2: in ipset save a line is create or add, not 'nonsense'"),
        (PAIRS, "add p 192.0.2.1,udp:53\n", "f:1: set 'pairs': tcp.dport compares with a whole number, not 'udp:53'"),
        (PAIRS, "src,port\n192.0.2.1,1\n", "f:1: no column for ip.src, tcp.dport (or 'member') among src, port"),
        (PAIRS, "src,dport,timeout\n192.0.2.1\n", "f:2: set 'pairs': a member is ip.src, tcp.dport, not '192.0.2.1'"),
        (PAIRS, "timeout,dport,src\n5,443\n", "f:2: 2 columns, and a member is ip.src, tcp.dport"),
        (BLOCKED, '"192.0.2.1,5', "f:1: no CSV"),
        (BLOCKED, '["192.0.2.1",\n}', "f:2: no JSON"),
        (BLOCKED, '["192.0.2.1", 5.5]', "f: element 2: set 'blocked': ip.src compares with an IPv4 address"),
        (BLOCKED, '["192.0.2.1", {"timeout": 5}]', "f: element 2: a member, or"),
        (BLOCKED, '{"a": 1}', "f: a list of members is wanted"),
        (BLOCKED, '{"nftables": []}', "f: one set is wanted, it holds 0"),
        (BLOCKED, b"192.0.2.1\n\xff\xfe\n", "f:2: this is no text"),
        (BLOCKED, b"\x1f\x8b\x08oops", "f: cannot be unpacked"),
        (BLOCKED, b"\x28\xb5\x2f\xfdoops", "f: cannot be unpacked"),
    ],
)
def test_an_error_names_the_line_and_what_is_wrong_with_it(spec, text, said):
    assert refused(spec, text).startswith(said)


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_a_small_file_that_unpacks_to_very_much_is_refused(compress):
    assert "unpacks to more than 200 times its size" in refused(BLOCKED, compress(b"\n" * (64 << 20)))


def test_a_line_of_blanks_of_any_kind_is_no_member():
    assert parsed(BLOCKED, "192.0.2.1\n\xa0\n\x1f\n") == TWO[:1]


def test_of_several_sets_in_one_file_the_one_of_the_same_name_is_read():
    assert parsed(BLOCKED, "add other 192.0.2.2\nadd blocked 192.0.2.1\n") == TWO[:1]


def test_of_equal_members_the_last_counts_and_prefixes_that_overlap_stay():
    text = "10.0.0.0/8\n10.1.0.0/16\n10.1.0.0/16 timeout 9\n10.0.0.0/8 timeout 5\n10.0.0.0/8\n"
    columns = read(BLOCKED, io.StringIO(text))
    assert [(BLOCKED.text(columns.entry(i)), columns.entry(i).timeout) for i in range(len(columns))] == [
        ("10.0.0.0/8", 0),
        ("10.1.0.0/16", 9),
    ]


@pytest.mark.parametrize(
    ("text", "value"), [("60", 60), ("1.5", 1.5), ("1d2h3m4s", 93784), ("500ms", 0.5), ("2w", 1209600)]
)
def test_a_time_out_is_written_as_ipset_or_nftables_writes_it(text, value):
    assert setfiles.seconds(text) == value


@given(data=st.data())
@examples(200)
def test_members_become_entries_become_text_become_the_same_entries(data):
    spec = data.draw(st.sampled_from(SPECS))
    members = data.draw(st.lists(members_of(spec), min_size=1, max_size=8))
    entries = [e for m in members for e in spec.entries(m)]
    text = "\n".join(map(spec.text, entries))
    back = [e for _, e in setfiles.entries(spec, setfiles.parse(spec, text.encode(), "f"))]
    assert back == entries, again(f"{HERE}::test_members_become_entries_become_text_become_the_same_entries")


ODD = st.sampled_from(
    ["", "x", "1", "01", "-1", "0x10", "0", "65535", "65536", "1-2", "2-1", "5-", "-", "1.2.3.4", "1.2.3.4/32", "::1",
     "1.2.3.4/0", "0.0.0.0/0", "1.2.3.04", "1.2.3", "1.2.3.4.5", "256.1.1.1", "10.0.0.0/255.0.0.0", "10.0.0.0/08",
     "1.2.3.4-1.2.3.9", "1.2.3.4 - 1.2.3.9", "0.0.0.0-255.255.255.255", "fe80::1%1", "::/0", "::ffff:1.2.3.4",
     "2001:db8::/32", "2001:db8::1/32", "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2001:DB8::5-2001:db8::9",
     "1::2::3", ":", "1:2:3:4:5:6:7:8", "1.2.3.4 timeout 5", "1.2.3.4 x", "\u0661", "1_0", "4294967296", "1.2.3.4 #c",
     "::ffff:10.0.0.0/104", "::1.2.3.4", "::ffff:1.2.3.4-::ffff:1.2.3.9", "1.2.3.4-::5", "::5-1.2.3.4", "1.2.3.4/33",
     "0.0.0.0-::ffff:255.255.255.255", "::ffff:0:0/95", "1.2.3.4/128"]
)  # fmt: skip
FAST = (
    make_spec("four", ip.src),
    make_spec("exact", ip.src, intervals=False),
    make_spec("six", ip6.src),
    make_spec("ports", udp.dport, intervals=True),
    make_spec("port", udp.dport),
    make_spec("proto", ip.dscp, intervals=True),
    make_spec("either", src),
    make_spec("either_host", src, intervals=False),
)


@given(spec=st.sampled_from(FAST), lines=st.lists(ODD, max_size=6), end=st.sampled_from(["\n", "\r\n", " \n"]))
@examples(1500)
def test_the_parser_in_c_takes_and_refuses_what_the_one_in_python_does(spec, lines, end):
    text = end.join(lines).encode()
    if setfiles.sniff(spec, text) != "list":
        return
    fast: Any = None
    slow: Any = None
    try:
        fast = read(spec, io.BytesIO(text))
    except PipelineError as error:
        fast = str(error)
    try:
        found = setfiles.entries(spec, setfiles.parse(spec, text, "members"))
        slow = sorted({(e.key, e.bits) for _, e in found})
    except PipelineError as error:
        slow = str(error)
    if not isinstance(fast, str):
        fast = [(e.key, e.bits) for e in map(fast.entry, range(len(fast)))]
    assert fast == slow, again(f"{HERE}::test_the_parser_in_c_takes_and_refuses_what_the_one_in_python_does")


@pytest.mark.slow
@given(data=st.data())
@examples(100)
def test_a_file_of_many_members_is_read_as_its_members_one_by_one(data):
    spec = data.draw(st.sampled_from([s for s in INTERVAL_SPECS if len(s.fields) == 1]))
    members = data.draw(st.lists(members_of(spec), min_size=65, max_size=80))
    whole = read(spec, members)
    single = {(e.key, e.bits) for m in members for e in spec.entries(m)}
    assert [(e.key, e.bits) for e in map(whole.entry, range(len(whole)))] == sorted(single)


def test_an_error_quotes_no_more_than_a_line_of_a_file():
    with pytest.raises(PipelineError) as caught:
        parsed(BLOCKED, "x" * 100_000)
    assert len(str(caught.value)) <= 700
    assert "characters ..." in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "text", "words"),
    [
        (
            BLOCKED,
            "host,seen\n192.0.2.1,5\n",
            "f:1: none of the titles host, seen is known: call the",
        ),
        (BLOCKED, "192.0.2.1,443\n", "f:1: what is '443' in a file without titles.*443s.*member,timeout"),
        (make_spec("six", ip6.src), "fe80::1%eth0\n", "f:1: .*zone means one interface"),
        (make_spec("either", src), "fe80::1%eth0\n", "f:1: .*zone means one interface"),
    ],
)
def test_what_could_be_meant_in_two_ways_is_refused(spec, text, words):
    with pytest.raises(PipelineError, match=words):
        parsed(spec, text)
