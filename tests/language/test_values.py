"""Rules and conditions as values: a repr for people, equal where they say the same, also after pickling."""

from __future__ import annotations

import copy
import pickle

import pytest

from xdpkit import DROP, PASS, RETURN, Mark, Pipeline, PipelineError, ip, limit, log, pcap, sample, src, tcp, udp


def rules():
    pipe = Pipeline("values", default=PASS)
    banned = pipe.set("banned", src, timeouts=True, members=["192.0.2.1"])
    pipe.rule(tcp.dport == 80, DROP, name="web")
    pipe.rule(banned, DROP, name="banned")
    pipe.rule(pcap("tcp dst port 443") & ~(ip.ttl < 2), DROP, name="string")
    pipe.rule(udp & ~limit("10/second", per=src), log("1/second"), banned.add(timeout=5), Mark(3), DROP, name="limit")
    pipe.rule(sample(10) | ip.src.within("10.0.0.0/8"), DROP, name="sample")
    web = pipe.chain("web")
    pipe.rule(tcp, Mark(1), web.jump, name="jump")
    pipe.rule(udp, web.goto, name="goto")
    web.rule(tcp.syn, RETURN, name="syn")
    return pipe.rules


def test_a_repr_is_one_line_that_a_person_reads():
    web, *_ = rules()
    assert repr(web) == "Rule('web', tcp.dport == 80 -> DROP)"
    assert repr(web.expr) == "<Test tcp.dport == 80>"
    assert repr(udp & (ip.ttl < 2)) == "<And udp & (ip.ttl < 2)>"


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.name)
@pytest.mark.parametrize("again", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_rule_is_equal_to_itself_after_pickling(rule, again):
    other = again(rule)
    assert other == rule
    assert hash(other) == hash(rule)
    assert other.expr == rule.expr
    assert repr(other) == repr(rule)


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        (lambda: tcp.dport == "ssh", "not 'ssh': write 22$"),
        (lambda: udp.sport == "no such service", "not 'no such service'$"),
        (lambda: ip.proto == "tcp", r"not 'tcp': write 6, or the header alone, as in pipe.rule\(tcp, DROP\)$"),
        (lambda: tcp.dport in (22, 80), r"field.isin\(\[a, b\]\) for in"),
    ],
)
def test_an_error_names_what_to_write(condition, words):
    with pytest.raises(PipelineError, match=words):
        condition()


def test_conditions_are_equal_where_they_say_the_same_wherever_they_stand():
    one = tcp.dport == 80
    two = tcp.dport == 80
    assert one == two
    assert hash(one) == hash(two)
    assert (tcp.dport == 81) != one
    assert (one & udp) != (one | udp)
