"""The ledger as JSON: each value once, and null for what there is not."""

import json

from traffic import frames

from xdpkit import DROP, PASS, Pipeline, attach, udp


def test_every_value_of_the_ledger_is_there_once_and_null_stands_for_none(veth_pair):
    left, right = veth_pair
    pipe, beside = Pipeline("live", default=PASS), Pipeline("new", default=PASS)
    for each in (pipe, beside):
        each.rule(udp.dport == 53, DROP, name="dns")
    with right.namespace, attach(pipe, right.name, shadow=beside) as link:
        left.send(frames(left, right, range(3)))
    ledger = link.ledger()
    found = json.loads(ledger.json())
    assert (found["seen"], found["seen_bytes"], found["lost"], found["problems"]) == (3, ledger.seen_bytes, 0, [])
    assert not found.keys() & {"totals", "sent_on", "dropped_there"}
    assert not found.keys() & found["attachment"].keys()
    assert found["forwarding"]["dropped"] == 0
    assert (found["sink"], found["flows"]) == (None, None)
    assert [rule["chain"] for rule in (*found["rules"], *found["shadow"]["rules"])] == [None] * 4
