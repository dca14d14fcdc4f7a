"""Conditions on the device where a packet is judged, and their meaning in the reference."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from xdpkit import DROP, PASS, Pipeline, PipelineError, dev, udp
from xdpkit.compiler.built import build, read, write
from xdpkit.meaning.evaluate import evaluate

FRAME = bytes(60)


@pytest.mark.parametrize(
    ("condition", "text"),
    [
        (dev.name == "eth1", "dev.name == 'eth1'"),
        (dev.name != "eth1", "~(dev.name == 'eth1')"),
        (dev.name.isin(["eth1", "eth2"]), "dev.name.isin(['eth1', 'eth2'])"),
        (dev.inside & udp, "dev.inside & udp"),
        (~dev.outside, "~dev.outside"),
        ((dev.name == "eth1") | dev.inside, "(dev.name == 'eth1') | dev.inside"),
    ],
)
def test_a_condition_on_a_device_reads_as_it_was_written(condition, text):
    assert str(condition) == text


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: dev.name == "", "name of a device"),
        (lambda: dev.name == 7, "name of a device"),
        (lambda: dev.name == "a-name-of-16-byte", "at most 15 bytes"),
        (lambda: dev.name == "eth*", "write each name"),
        (lambda: dev.name.isin([]), "never match"),
        (lambda: dev.name.isin("eth1"), "list of names"),
        (lambda: dev.name < "eth1", "by == and !="),
        (lambda: dev.name & udp, "is no condition"),
        (lambda: dev.left, "it has name, inside, outside"),
    ],
)
def test_what_cannot_be_a_device_is_refused_where_it_is_written(wrong, words):
    with pytest.raises(PipelineError, match=words) as caught:
        wrong()
    assert str(caught.value).startswith(__file__)


def test_more_names_than_a_program_can_hold_are_refused():
    pipe = Pipeline("many")
    pipe.rule(dev.name.isin([f"eth{n}" for n in range(64)]), DROP)
    with pytest.raises(PipelineError, match="more than 64 names"):
        pipe.rule(dev.name == "eth64", DROP)


def test_the_reference_knows_the_names_of_the_device():
    pipe = Pipeline("devices", default=PASS)
    pipe.rule(dev.name == "eth1", DROP, name="eth1")
    pipe.rule(dev.inside, DROP, name="inside")
    assert evaluate(pipe, FRAME, devices={"eth1"}).name == "eth1"
    assert evaluate(pipe, FRAME, devices={"eth0", "/inside"}).name == "inside"
    assert evaluate(pipe, FRAME).name == "default"


def test_a_built_file_keeps_the_devices(tmp_path):
    pipe = Pipeline("devices", default=PASS)
    pipe.rule(dev.name.isin(["eth1", "eth2"]) & dev.inside, DROP, name="both")
    write(build(pipe), tmp_path / "devices.xdp")
    again = read(tmp_path / "devices.xdp").pipeline
    assert again.devices == pipe.devices == ("eth1", "eth2", "/inside")


NAMES = ("eth1", "eth2", "eth3", "/inside", "/outside")
CONDITIONS = st.recursive(
    st.sampled_from(
        [dev.name == "eth1", dev.name != "eth2", dev.name.isin(["eth1", "eth3"]), dev.inside, dev.outside]
    ),
    lambda some: some.map(lambda c: ~c) | st.tuples(some, some).map(lambda p: p[0] & p[1]) | st.tuples(some, some).map(
        lambda p: p[0] | p[1]),
    max_leaves=4,
)  # fmt: skip


@pytest.mark.root
@pytest.mark.parametrize("hook", ["xdp", "xdp_frags", "tc"])
@examples(40)
@given(conditions=st.lists(CONDITIONS, min_size=1, max_size=6))
def test_every_engine_judges_by_the_device_as_the_reference_does(hook, conditions):
    from xdpkit.compiler import compile_pipeline
    from xdpkit.kernel.program import Program

    pipe = Pipeline("devices", default=PASS)
    for condition in conditions:
        pipe.rule(condition, DROP)
    with Program(compile_pipeline(pipe, hook), explain=True) as program:
        for names in ({"eth1", "/inside"}, {"eth2", "/outside"}, {"eth4"}, ()):
            assert program.judge(FRAME, devices=names)[0].name == evaluate(pipe, FRAME, devices=names).name
