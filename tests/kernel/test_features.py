"""Kernel features: probes, what is said where one is missing, and the marker of tests that need one."""

from dataclasses import replace
from pathlib import Path

import pytest

from xdpkit import DROP, NotSupported, Pipeline, attach, udp
from xdpkit.doctor import doctor
from xdpkit.kernel import features
from xdpkit.kernel.features import FEATURES, has, kernel_version

pytest_plugins = ["pytester"]
CONFTEST = Path(__file__).parents[1].joinpath("conftest.py").read_text()


@pytest.fixture
def no_tcx(monkeypatch):
    """A kernel without tcx, as far as anyone asks."""
    monkeypatch.setitem(FEATURES, "tcx", replace(FEATURES["tcx"], probe=lambda: False))
    has.cache_clear()
    yield
    has.cache_clear()


@pytest.mark.parametrize("name", FEATURES)
def test_the_probe_finds_what_the_version_of_this_kernel_promises(name):
    assert kernel_version() >= FEATURES[name].since
    assert has(name)


def test_a_probe_that_is_refused_finds_nothing(monkeypatch):
    def refused():
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setitem(FEATURES, "refused", replace(FEATURES["tcx"], probe=refused))
    assert not has("refused")


def test_tc_without_tcx_is_refused_before_anything_is_loaded(veth_pair, no_tcx):
    left, _ = veth_pair
    pipe = Pipeline("drop")
    pipe.rule(udp.dport == 53, DROP, name="dns")
    with left.namespace, pytest.raises(NotSupported, match=r"tc_ingress on left: tcx, Linux 6\.6 or later; this is"):
        attach(pipe, left.name, mode="tc_ingress")


def test_the_doctor_names_what_is_missing(no_tcx):
    missing = {f.topic: (f.status, f.text, f.advice) for f in doctor.examine() if f.topic in FEATURES}
    assert missing == {"tcx": ("note", "missing in this kernel; it is for the TC modes", "Linux 6.6 or newer has it")}


NEEDING = """
import pytest

@pytest.mark.needs("tcx")
def test_something():
    pass
"""


@pytest.mark.parametrize(
    ("version", "outcome"), [("(6, 18)", {"errors": 1}), ("(6, 6)", {"errors": 1}), ("(6, 5)", {"skipped": 1})]
)
def test_a_test_is_skipped_only_on_a_kernel_that_is_older_than_what_it_needs(pytester, version, outcome):
    pytester.makeconftest(f"{CONFTEST}\nhas = lambda name: False\nkernel_version = lambda: {version}\n")
    pytester.makepyfile(NEEDING)
    counts = pytester.runpytest("-p", "no:cacheprovider").parseoutcomes()
    assert {k: n for k, n in counts.items() if k in ("passed", "failed", "skipped", "errors")} == outcome


def test_a_test_runs_where_what_it_needs_is_there_whatever_the_version(pytester):
    pytester.makeconftest(f"{CONFTEST}\nhas = lambda name: True\nkernel_version = lambda: (6, 1)\n")
    pytester.makepyfile(NEEDING)
    pytester.runpytest("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_require_names_what_was_asked_for(no_tcx):
    with pytest.raises(NotSupported, match=r"^counting at TC: tcx, Linux 6\.6 or later; this is Linux \d"):
        features.require("tcx", "counting at TC")
    features.require("ring buffer", "copies")
