"""tcpdump strings that ask about the device and the direction: inbound, outbound, ifname."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples
from traffic import frames

from xdpkit import DROP, PASS, NotSupported, Pipeline, PipelineError, pcap
from xdpkit.compiler.built import build, read, write
from xdpkit.language.devices import OUTBOUND
from xdpkit.meaning.evaluate import evaluate


class End:
    """An address for frames."""

    mac = "02:00:00:00:00:01"


UDP_FRAME, OTHER = frames(End, End, [1])[0], bytes(12) + b"\x08\x06" + bytes(46)
#: The names that conditions know the device of a packet by, and what it should match.
WHERE = [(), ("eth1",), ("eth2",), (OUTBOUND,), ("eth1", OUTBOUND), ("eth2", "/inside"), ("eth3", OUTBOUND)]


def matches(text, devices, frame=UDP_FRAME, **options):
    pipe = Pipeline("direction", default=PASS)
    pipe.rule(pcap(text, **options), DROP, name="match")
    return evaluate(pipe, frame, devices=devices).name == "match"


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("inbound", [True, True, True, False, False, True, False]),
        ("outbound", [False, False, False, True, True, False, True]),
        ("not inbound", [False, False, False, True, True, False, True]),
        ("udp and outbound", [False, False, False, True, True, False, True]),
        ("tcp and outbound", [False] * 7),
        ("tcp or inbound", [True, True, True, False, False, True, False]),
        ("ifname eth1", [False, True, False, False, True, False, False]),
        ("on eth1 or ifname eth2", [False, True, True, False, True, True, False]),
        ("(ifname eth1)&&outbound", [False, False, False, False, True, False, False]),
        ("not ifname eth1 and udp port 53", [True, False, True, True, False, True, True]),
        ("inbound and ip protochain 17", [True, True, True, False, False, True, False]),
        (
            "ifname eth3 or (ip protochain 17 and ifname eth2 and inbound)",
            [False, False, True, False, False, True, True],
        ),
    ],
)
@pytest.mark.parametrize("optimize", [True, False])
def test_what_a_string_matches_where(text, devices, optimize):
    assert [matches(text, names, optimize=optimize) for names in WHERE] == devices


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("ifindex 3", NotSupported, "ifname NAME"),
        ("ifname eth1 or ifindex 3", NotSupported, "ifname NAME"),
        ("inbound and outbound", PipelineError, "rejects all packets"),
        ("ifname eth1 and ifname eth2", PipelineError, "rejects all packets"),
        ("ifname", PipelineError, "syntax error"),
        ("ifname a-name-that-is-too-long", PipelineError, "ifname compares with the name of a device, of at most 15"),
        ("ifname eth/1", PipelineError, "ifname compares with the name of a device"),
    ],
)
def test_what_can_never_match_or_is_no_name_is_refused(text, error, said):
    with pytest.raises(error, match=said):
        pcap(text)


def test_a_built_file_keeps_what_a_string_asks(tmp_path):
    pipe = Pipeline("direction", default=PASS)
    pipe.rule(pcap("outbound and (ifname eth1 or on eth2)"), DROP)
    write(build(pipe), tmp_path / "direction.xdp")
    again = read(tmp_path / "direction.xdp").pipeline
    assert again.devices == pipe.devices == (OUTBOUND, "eth1", "eth2")
    assert again.rules == pipe.rules


ATOMS = st.sampled_from(
    ["inbound", "outbound", "ifname eth1", "on eth2", "ifname eth3", "udp", "tcp", "port 53", "ip protochain 17"]
)
TEXTS = st.recursive(
    ATOMS,
    lambda some: some.map(lambda t: f"not ({t})") | st.tuples(some, st.sampled_from(["and", "or"]), some).map(
        lambda p: f"({p[0]}) {p[1]} ({p[2]})"),
    max_leaves=5,
)  # fmt: skip


@pytest.mark.root
@pytest.mark.parametrize("hook", ["xdp", "xdp_frags", "tc"])
@examples(40)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4), optimize=st.booleans())
def test_every_engine_judges_by_device_and_direction_as_the_reference_does(hook, texts, optimize):
    from xdpkit.compiler import compile_pipeline
    from xdpkit.kernel.program import Program

    pipe = Pipeline("direction", default=PASS)
    for text in texts:
        try:
            pipe.rule(pcap(text, optimize=optimize), DROP)
        except PipelineError as error:
            assert "rejects all packets" in str(error)  # noqa: PT017
    with Program(compile_pipeline(pipe, hook), explain=True) as program:
        for names in WHERE:
            for frame in (UDP_FRAME, OTHER):
                judged = program.judge(frame, devices=names)[0].name
                assert judged == evaluate(pipe, frame, devices=names).name, (names, frame.hex())
