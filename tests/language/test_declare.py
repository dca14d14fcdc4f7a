"""What cannot mean anything is refused where it is written, in words that say what to write instead."""

from __future__ import annotations

import re
from functools import reduce
from ipaddress import IPv4Address, IPv6Address, ip_network
from operator import and_, or_

import pytest

from xdpkit.language.actions import DROP, PASS, REDIRECT, TX, Action, Redirect
from xdpkit.language.errors import PipelineError, Where
from xdpkit.language.expr import And, Expr, Not, Or
from xdpkit.language.headers import eth, ip, ip6, pkt, tcp, udp
from xdpkit.language.pipeline import Pipeline, load_file

PRELUDE = """\
from ipaddress import *
from xdpkit.language.actions import *
from xdpkit.language.expr import *
from xdpkit.language.headers import *
from xdpkit.language.pipeline import *
pipe = Pipeline("p")
"""
LINE = PRELUDE.count("\n") + 1


def refusal(source: str) -> PipelineError:
    """The error of ``source``, run as user.py behind PRELUDE."""
    with pytest.raises(PipelineError) as caught:
        exec(compile(PRELUDE + source, "user.py", "exec"), {"__name__": "__main__"})
    return caught.value


REFUSED = [
    # values
    ('udp.dport == "dns"', "udp.dport compares with a whole number, not 'dns'"),
    ("udp.dport == 53.0", "udp.dport compares with a whole number, not 53.0"),
    ("udp.dport == True", "udp.dport compares with a whole number, not True"),
    ("udp.dport == None", "udp.dport compares with a whole number, not None"),
    ("udp.dport == udp.sport", "udp.dport compares with a whole number, not udp.sport"),
    ("udp.dport == 65536", "udp.dport is 16 bits wide: 65536 can never match"),
    ("udp.dport != -1", "udp.dport is 16 bits wide: -1 can never match"),
    ("vlan.id == 4096", "vlan.id is 12 bits wide: 4096 can never match"),
    ("udp.dport < 0", "udp.dport < 0 can never match"),
    ("udp.dport > 65535", "udp.dport > 65535 can never match"),
    ('ip.src == "192.0.2.256"', "ip.src compares with an IPv4 address such as '192.0.2.1', not '192.0.2.256'"),
    ('ip.src == "2001:db8::1"', "ip.src compares with an IPv4 address such as '192.0.2.1', not '2001:db8::1'"),
    (
        'ip.src == IPv6Address("::1")',
        "ip.src compares with an IPv4 address such as '192.0.2.1', not IPv6Address('::1')",
    ),
    ('ip6.src == "192.0.2.1"', "ip6.src compares with an IPv6 address such as '2001:db8::1', not '192.0.2.1'"),
    ('eth.dst == "02:00:00:00:01"', "eth.dst compares with a MAC address such as '02:00:00:00:00:01', not"),
    ('udp.dport == IPv4Address("192.0.2.1")', "udp.dport compares with a whole number, not IPv4Address('192.0.2.1')"),
    # ranges, lists, prefixes
    ("udp.dport.between(2, 1)", "udp.dport.between(2, 1) is empty: the lower bound goes first"),
    ("udp.dport.between(1, 65536)", "udp.dport is 16 bits wide: 65536 can never match"),
    ("udp.dport.isin([])", "udp.dport.isin([]) can never match"),
    ("udp.dport.isin([53, 'x'])", "udp.dport compares with a whole number, not 'x'"),
    ("udp.dport.isin(53)", "udp.dport.isin wants a list of values, not 53"),
    ('udp.dport.isin("53")', "udp.dport.isin wants a list of values, not '53'"),
    ("ip.src.within()", "ip.src.within() can never match"),
    ('ip.src.within("192.0.2.1/24")', "'192.0.2.1/24' is no prefix for ip.src: did you mean 192.0.2.0/24?"),
    ('ip6.src.within("2001:db8::1/32")', "'2001:db8::1/32' is no prefix for ip6.src: did you mean 2001:db8::/32?"),
    ('ip.src.within("2001:db8::/32")', "'2001:db8::/32' is no prefix for ip.src: ip is IPv4, ip6 is IPv6"),
    ('ip6.src.within(ip_network("192.0.2.0/24"))', "'192.0.2.0/24' is no prefix for ip6.src: ip is IPv4, ip6 is IPv6"),
    ('ip.src.within("192.0.2.0/33")', "'192.0.2.0/33' is no prefix for ip.src"),
    ('ip.src.within("192.0.2.9-192.0.2.1")', "the range 192.0.2.9-192.0.2.1 is empty: the lower bound goes first"),
    ('ip.src.within("192.0.2.1-x")', "ip.src compares with an IPv4 address such as '192.0.2.1', not 'x'"),
    ('udp.dport.within("1/2")', "udp.dport is no address: use .between(low, high) or .isin([...])"),
    # Python's own operators
    ("(udp.dport == 53) and (ip.ttl > 1)", "write & | ~ for and, or, not"),
    ("not (udp.dport == 53)", "write & | ~ for and, or, not"),
    ("tcp and (ip.ttl > 1)", "write & | ~ for and, or, not"),
    ("ip.ttl or (ip.ttl > 1)", "write & | ~ for and, or, not"),
    ("1 < ip.ttl < 64", "field.between(low, high) for a range"),
    ("ip.ttl in (1, 2)", "write & | ~ for and, or, not"),
    ("udp.dport == 53 & ip.ttl > 1", "ip.ttl is no condition: compare it with something, in brackets beside & and |"),
    ("udp.dport == 53 | tcp", "| joins conditions, not 53: comparisons need brackets, as in (udp.dport == 53) |"),
    ("udp.dport == 53 & (ip.ttl > 1)", "& joins conditions, not 53: comparisons need brackets"),
    ("(udp.dport == 53) & 1", "& joins conditions, not 1: comparisons need brackets"),
    ("(udp.dport == 53) | ip.ttl", "ip.ttl"),
    ("tcp | True", "| joins conditions, not True"),
    ("~ip.ttl", "ip.ttl is no condition"),
    # headers and names
    ("udp == 53", "udp is a header: compare one of its fields, sport, dport"),
    ("udp < 53", "udp is a header: compare one of its fields, sport, dport"),
    ("udp.port == 53", "udp has no field 'port'; it has sport, dport"),
    # rules
    ("pipe.rule(udp.dport, DROP)", "udp.dport is no condition: compare it with something"),
    ("pipe.rule(True, DROP)", "True is no condition"),
    ("pipe.rule(udp, 'DROP')", "'DROP' is no action (PASS, DROP, TX, REDIRECT, Forward(device)) and no step"),
    ("pipe.rule(udp, Redirect)", "is no action (PASS, DROP, TX, REDIRECT, Forward(device)) and no step"),
    ("pipe.rule(udp, DROP, name='')", "rule name '': a printable string is wanted"),
    ("pipe.rule(udp, DROP, name='a\\nb')", "a printable string is wanted"),
    ("pipe.rule(udp, DROP, name=5)", "rule name 5: a printable string is wanted"),
    ("pipe.rule(udp, DROP, name='default')", "rule name 'default' is taken: counters are known by name"),
    ("Redirect(otherwise=TX)", "REDIRECT falls back to PASS or DROP, not TX"),
    # pipelines
    ("Pipeline('')", "pipeline name ''"),
    ("Pipeline('a b')", "pipeline name 'a b': letters, digits, '_', '.', '-', at most 63"),
    ("Pipeline('a' * 64)", "at most 63"),
    ("Pipeline(None)", "pipeline name None"),
    ("Pipeline('p', default='DROP')", "'DROP' is no action: PASS, DROP, REJECT, TX, REDIRECT or Forward(device)"),
]


@pytest.mark.parametrize(("source", "words"), REFUSED, ids=[source for source, _ in REFUSED])
def test_a_mistake_is_refused_at_its_line(source, words):
    error = refusal(source)
    assert error.where == Where("user.py", LINE)
    assert str(error).startswith(f"user.py:{LINE}: ")
    assert words in str(error)


def test_a_mistake_in_a_function_of_the_user_points_into_it():
    error = refusal("def port(n):\n    return udp.dport == n\n\npipe.rule(port(70000), DROP)")
    assert error.where == Where("user.py", LINE + 1)


def test_a_rule_name_is_used_once():
    error = refusal("pipe.rule(udp, DROP, name='x')\npipe.rule(tcp, DROP, name='x')")
    assert error.where == Where("user.py", LINE + 1)
    assert "rule name 'x' is taken" in str(error)


def test_a_refused_rule_leaves_the_pipeline_as_it_was():
    pipe = Pipeline("p")
    pipe.rule(udp, DROP, name="one")
    for bad in (
        lambda: pipe.rule(udp.dport, DROP),
        lambda: pipe.rule(udp, "x"),
        lambda: pipe.rule(udp, DROP, name="one"),
    ):
        with pytest.raises(PipelineError):
            bad()
    assert [rule.name for rule in pipe.rules] == ["one"]
    assert pipe.rule(tcp, DROP).name == "rule-2"


def test_rules_without_a_name_are_numbered_by_place():
    pipe = Pipeline("p")
    names = [pipe.rule(udp, DROP, name=name).name for name in (None, "x", None)]
    assert names == ["rule-1", "x", "rule-3"]


# ---- what is accepted, and how it reads ----


def test_values_are_written_in_many_ways():
    for test in (ip.src == "192.0.2.1", ip.src == 0xC0000201, ip.src == IPv4Address("192.0.2.1")):
        assert test.intervals == ((0xC0000201, 0xC0000201),)
    assert (ip6.src == IPv6Address("::1")).intervals == ((1, 1),)
    assert (udp.dport == "0x35").intervals == (udp.dport == 53).intervals
    for mac in ("02:00:00:00:00:0A", "02-00-00-00-00-0a", 0x02000000000A):
        assert (eth.dst == mac).intervals == ((0x02000000000A, 0x02000000000A),)
    assert ip.src.within(ip_network("192.0.2.0/24")).intervals == ((0xC0000200, 0xC00002FF),)
    assert ip.src.within("192.0.2.3-192.0.2.5").intervals == ((0xC0000203, 0xC0000205),)


def test_values_that_touch_are_one_interval():
    assert udp.dport.isin([3, 1, 2, 2, 9]).intervals == ((1, 3), (9, 9))
    assert ip.src.within("10.0.0.0/9", "10.128.0.0/9").intervals == ((0x0A000000, 0x0AFFFFFF),)
    assert (udp.dport != 0).intervals == ((1, 65535),)
    assert (udp.dport != 53).intervals == ((0, 52), (54, 65535))


def test_a_field_may_stand_on_either_side():
    assert (53 == udp.dport).intervals == (udp.dport == 53).intervals  # noqa: SIM300
    assert (53 < udp.dport).intervals == (udp.dport > 53).intervals  # noqa: SIM300


def test_a_header_is_a_condition_beside_other_conditions():
    for condition in (tcp & (ip.ttl > 1), (ip.ttl > 1) & tcp, tcp & ip, ~tcp & ip):
        assert isinstance(condition, And)
        assert len(condition.terms) == 2
    assert isinstance(~tcp, Not)


def test_chains_of_one_operator_are_flat_in_the_order_written():
    a, b, c, d = (udp.dport == port for port in range(4))
    assert ((a | b) | (c | d)).terms == (a, b, c, d)
    assert (a & (b & c) & d).terms == (a, b, c, d)
    mixed = a | b & c
    assert isinstance(mixed, Or)
    assert mixed.terms[0] is a
    assert isinstance(mixed.terms[1], And)
    assert len(reduce(or_, [a] * 5000).terms) == len(reduce(and_, [a] * 5000).terms) == 5000


@pytest.mark.parametrize(
    "text",
    [
        "udp",
        "udp.dport == 53",
        "(udp.dport == 53) & tcp",
        "(tcp & ip) | ip6",
        "~(udp.dport == 53)",
        "~tcp & ~(ip | ip6)",
        "ip.src.within('192.0.2.0/24') | (ip.ttl <= 1)",
        "udp.dport.isin([1, 2]) & udp.sport.between(1, 2)",
    ],
)
def test_a_condition_reads_as_it_was_written(text):
    scope: dict[str, Expr] = {}
    exec(compile(f"{PRELUDE}condition = as_expr({text})", "user.py", "exec"), scope)  # type: ignore[arg-type]
    assert str(scope["condition"]) == text


def test_a_condition_lists_all_that_it_is_made_of():
    a, b, c = (udp.dport == port for port in range(3))
    whole = (a | ~b) & c
    assert [node for node in whole.nodes() if node in (a, b, c)] == [a, b, c]
    assert sum(1 for _ in whole.nodes()) == 6


def test_the_digest_is_that_of_the_meaning():
    def declare(port: int = 53, action: Action = DROP, default: Action = PASS, name: str | None = None) -> str:
        pipe = Pipeline("p", default=default)
        pipe.rule(udp.dport == port, action, name=name)
        return pipe.digest()

    changed = [declare(54), declare(action=TX), declare(default=DROP), declare(name="x"), declare(action=REDIRECT)]
    changed.append(declare(action=Redirect(otherwise=DROP)))
    assert declare() == declare()
    assert len({declare(), *changed}) == 1 + len(changed)


# ---- files ----


def load(tmp_path, source):
    path = tmp_path / "rules.py"
    path.write_text(source)
    return path, lambda: load_file(path)


def test_a_file_gives_the_pipeline_it_declares(tmp_path):
    path, run = load(tmp_path, PRELUDE + "pipe.rule(udp, DROP)\n")
    pipe = run()
    assert pipe.name == "p"
    assert pipe.rules[0].where == Where(str(path), LINE)


def test_the_pipeline_called_pipe_is_the_one_to_use(tmp_path):
    assert load(tmp_path, PRELUDE + "other = Pipeline('o')\n")[1]().name == "p"
    assert load(tmp_path, PRELUDE + "alias, pipe = pipe, None\n")[1]().name == "p"


@pytest.mark.parametrize(
    ("source", "line", "words"),
    [
        ("x = 1\ny = (\n", 2, "was never closed"),
        ("x = 1\n\nraise KeyError('k')\n", 3, "KeyError: 'k'"),
        ("def f():\n    return 1 / 0\n\nf()\n", 2, "ZeroDivisionError: division by zero"),
        ("import no_such_module\n", 1, "ModuleNotFoundError"),
        (PRELUDE + "pipe.rule(udp.dport == 70000, DROP)\n", LINE, "16 bits wide"),
        ("x = 1\n", 1, "declares 0 pipelines: call the one to use 'pipe'"),
        (
            PRELUDE.replace("pipe =", "a =") + "b = Pipeline('b')\n",
            1,
            "declares 2 pipelines: call the one to use 'pipe'",
        ),
    ],
)
def test_a_file_that_cannot_be_used_says_where_and_why(tmp_path, source, line, words):
    path, run = load(tmp_path, source)
    with pytest.raises(PipelineError, match=re.escape(words)) as caught:
        run()
    assert caught.value.where == Where(str(path), line)
    assert str(caught.value).startswith(f"{path}:{line}: ")


def test_a_file_given_by_a_relative_path_is_named_in_full(tmp_path, monkeypatch):
    path, _ = load(tmp_path, PRELUDE + "pipe.rule(udp, DROP)\n")
    monkeypatch.chdir(tmp_path)
    assert load_file("rules.py").rules[0].where == Where(str(path), LINE)


def test_a_missing_file_is_an_oserror_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no-such\.py"):
        load_file(tmp_path / "no-such.py")


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "rules.py"
    for content in (b"\xff\xfe\0", b"x = 1\0"):
        path.write_bytes(content)
        with pytest.raises(PipelineError):
            load_file(path)


def test_the_frame_itself_is_a_condition_that_always_holds():
    pipe = Pipeline("p")
    assert str(pipe.rule(pkt, DROP)) == "any -> DROP"


@pytest.mark.parametrize("name", ["", "a b", "-a", "1a", "a" * 64, "ä", None, 7])
def test_names_of_pipelines_and_chains_are_of_one_form(name):
    with pytest.raises(PipelineError, match=r"letters, digits, '_', '\.', '-', at most 63"):
        Pipeline(name)
    with pytest.raises(PipelineError, match=r"letters, digits, '_', '\.', '-', at most 63"):
        Pipeline("p").chain(name)


@pytest.mark.parametrize("name", ["", "a b", "a-b", "a.b", "1a", "a" * 33, "ä"])
def test_names_of_sets_are_those_of_a_map_and_a_file(name):
    with pytest.raises(PipelineError, match="letters, digits and '_', at most 32"):
        Pipeline("p").set(name, ip.src)


@pytest.mark.parametrize("name", ["", "a\nb", "\x1b[31m", 7])
def test_names_of_rules_are_printable_text(name):
    with pytest.raises(PipelineError, match="a printable string is wanted"):
        Pipeline("p").rule(udp, DROP, name=name)
