"""A feature that this kernel lacks is refused with one clear line, and what else works is taken."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from traffic import frames, take

from xdpkit import DROP, PASS, REDIRECT, NotSupported, Pipeline, attach, udp
from xdpkit.kernel.features import FEATURES, has, kernel_version

XDPKIT = str(Path(sys.executable).with_name("xdpkit"))
DNS_FILE = str(Path(__file__).parents[2] / "pipelines" / "dns.py")


def pipeline(action):
    pipe = Pipeline("one", default=PASS)
    pipe.rule(udp.dport == 53, action, name="dns")
    return pipe


@pytest.mark.parametrize("name", FEATURES)
def test_the_probe_agrees_with_the_version_of_the_kernel(name):
    assert has(name) == (kernel_version() >= FEATURES[name].since)


@pytest.mark.lacks("tcx")
@pytest.mark.parametrize("mode", ["tc_ingress", "tc_egress"])
def test_tc_is_refused_before_anything_is_loaded(veth_pair, mode):
    left, _ = veth_pair
    said = f"{mode} on left: tcx, Linux 6.6 or later; this is Linux {os.uname().release}"
    with left.namespace, pytest.raises(NotSupported) as caught:
        attach(pipeline(DROP), left.name, mode=mode)
    assert str(caught.value) == said


@pytest.mark.lacks("tcx")
def test_the_command_refuses_tc_in_one_line(veth_pair):
    left, _ = veth_pair
    command = [XDPKIT, "run", DNS_FILE, "-i", left.name, "--mode", "tc-ingress"]
    done = left.namespace.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"xdpkit: tc_ingress on left: tcx, Linux 6.6 or later; this is Linux {os.uname().release}"
    ]


@pytest.mark.lacks("tcx")
def test_want_tc_takes_xdp_and_says_why(veth_pair):
    left, right = veth_pair
    with right.namespace, attach(pipeline(REDIRECT), right.name, mode="want:tc_ingress") as link:
        with link.sockets() as sockets:
            left.send(frames(left, right, range(10)))
            assert take(sockets, 10) == frames(left, right, range(10))
            assert (link.attachment.mode, link.attachment.bind) == ("native", "copy")
            assert "not tc_ingress (tcx, Linux 6.6 or later" in str(link.attachment)


def test_the_doctor_names_what_is_missing_and_the_linux_that_has_it():
    done = subprocess.run([XDPKIT, "doctor", "--json"], capture_output=True, text=True, check=False)
    found = {finding["topic"]: finding["advice"] for finding in json.loads(done.stdout)}
    missing = {name: f"Linux {feature.version} or newer has it" for name, feature in FEATURES.items() if not has(name)}
    assert {name: found.get(name) for name in FEATURES if name in found} == missing


def test_require_zero_copy_on_veth_is_one_clear_line(veth_pair):
    left, _ = veth_pair
    with left.namespace, attach(pipeline(REDIRECT), left.name, bind="zerocopy") as link:
        with pytest.raises(NotSupported, match=r"left queue 0: .*the driver has no zero-copy for AF_XDP here"):
            link.sockets()
