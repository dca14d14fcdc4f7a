"""The doctor on this machine and on veth devices that ail in one way each."""

import errno
import json
import os
import pty
import re
import subprocess
import sys
from contextlib import contextmanager, suppress
from dataclasses import replace
from io import StringIO

import pytest
from commands import XDPKIT, fails, process
from pyroute2 import IPRoute
from rich.console import Console

from xdpkit import DROP, Pipeline, Program, attach, compile_pipeline
from xdpkit.device import ethtool, netdev
from xdpkit.doctor import device as doctor_device
from xdpkit.doctor.device import examine_device
from xdpkit.doctor.doctor import Check, as_json, clean, examine, render
from xdpkit.kernel import holders
from xdpkit.kernel.bpfmap import mount_bpffs
from xdpkit.kernel.core import check, lib
from xdpkit.sockets.options import NATIVE_FRAME_BYTES

FLAGS = {"generic": 2, "native": 4}

HOLD_A_LINK = """
import signal, socket, sys
from xdpkit import DROP, Pipeline, attach
with attach(Pipeline("other", default=DROP), sys.argv[1], mode="native"):
    print("ready", flush=True)
    signal.pause()
"""

EXAMINE = """
import sys
from xdpkit.doctor.doctor import examine
from xdpkit.doctor.findings import as_json
print(as_json(examine(*sys.argv[1:])))
"""


def checks(port):
    """Findings about the port by topic (the last one of a topic)."""
    with port.namespace:
        return {finding.topic: finding for finding in examine_device(port.name)}


def by_process(port, *drop):
    """Findings of a process of its own in the port's namespace, started through the command `drop`."""
    run = port.namespace.run([*drop, sys.executable, "-c", EXAMINE, port.name], capture_output=True, text=True)
    assert run.stderr == ""
    return {finding["topic"]: finding for finding in json.loads(run.stdout)}


def set_link(port, **what):
    with port.namespace, IPRoute() as ip:
        ip.link("set", index=port.index, **what)


def loaded():
    return Program(compile_pipeline(Pipeline("mine", default=DROP)))


def attach_for_good(port, mode, program):
    """As `ip link set dev X xdp obj ...` does: the attachment outlives who made it."""
    set_link(port, IFLA_XDP={"attrs": [["IFLA_XDP_FD", program.fd], ["IFLA_XDP_FLAGS", FLAGS[mode]]]})


@contextmanager
def a_link_of_another_process(port):
    owner = port.namespace.popen([sys.executable, "-c", HOLD_A_LINK, port.name], stdout=subprocess.PIPE, text=True)
    with owner.stdout:
        assert owner.stdout.readline() == "ready\n"
        yield owner


def held(port):
    with port.namespace:
        return netdev.xdp_holders(port.index)


def test_this_machine_can_do_it_all():
    findings = examine()
    assert [f for f in findings if f.status != "ok"] == []
    topics = {f.topic for f in findings}
    assert topics >= {"kernel", "compiler", "eBPF", "JIT", "AF_XDP", "BTF", "llvmlite", "bitcode", "libbpf", "memlock"}
    assert topics >= {"CAP_BPF", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_ADMIN"}


def test_without_privilege_it_says_what_is_missing_for_which_step(veth_pair):
    found = by_process(veth_pair[0], "setpriv", "--bounding-set", "-all", "--inh-caps", "-all")
    problems = {topic for topic, finding in found.items() if finding["status"] == "problem"}
    assert problems == {"eBPF", "AF_XDP", "CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN", "CAP_NET_RAW"}
    assert found["CAP_NET_RAW"]["text"].startswith("not held, needed to open AF_XDP and AF_PACKET sockets")
    assert "run as root" in found["CAP_NET_RAW"]["advice"]
    assert found["AF_XDP"]["text"] == "a socket may not be opened: it needs CAP_NET_RAW"
    assert (found["MTU native"]["status"], found["link"]["status"]) == ("ok", "ok")


@pytest.mark.parametrize("caps", ["+bpf,+perfmon", "+sys_admin"])
def test_the_capabilities_it_asks_for_are_enough(veth_pair, caps):
    drop = ["setpriv", "--bounding-set", f"-all,+net_admin,+net_raw,{caps}", "--inh-caps", "-all"]
    found = by_process(veth_pair[0], *drop)
    assert [topic for topic, finding in found.items() if finding["status"] == "problem"] == []
    assert found["eBPF"]["status"] == "ok"


@pytest.mark.parametrize("missing", ["bpf", "perfmon", "net_admin"])
def test_each_capability_for_loading_is_needed(veth_pair, missing):
    caps = ",".join(f"+{name}" for name in ("bpf", "perfmon", "net_admin", "net_raw") if name != missing)
    found = by_process(veth_pair[0], "setpriv", "--bounding-set", f"-all,{caps}", "--inh-caps", "-all")
    problems = {topic for topic, finding in found.items() if finding["status"] == "problem"}
    assert problems == {"eBPF", f"CAP_{missing.upper()}"}
    assert found["eBPF"]["advice"].startswith("run as root, or give the capability")


def test_without_cap_sys_admin_a_holder_is_told_by_its_id(veth_pair):
    left, _ = veth_pair
    with loaded() as program:
        attach_for_good(left, "native", program)
        number = program.info()["id"]
    found = by_process(left, "setpriv", "--bounding-set", "-all", "--inh-caps", "-all")
    assert found["holder"]["text"].startswith(f"native program (id {number}) is attached")


def test_the_memory_limit_matters_without_cap_ipc_lock(veth_pair):
    limit = ["prlimit", "--memlock=65536:65536"]
    found = by_process(veth_pair[0], *limit, "setpriv", "--bounding-set", "-ipc_lock", "--inh-caps", "-all")
    assert found["memlock"]["status"] == "note"
    assert "64 KiB (RLIMIT_MEMLOCK)" in found["memlock"]["text"]
    assert found["CAP_BPF"]["status"] == "ok"


def test_a_missing_device_is_a_finding_that_names_the_others(veth_pair):
    with veth_pair[0].namespace:
        last = examine("eth9")[-1]
    assert last.status == "problem"
    assert last.text == "no network device 'eth9'; this namespace has: left, lo"
    assert last.advice


def test_a_healthy_veth_has_no_problem(make_veth):
    found = checks(make_veth(queues=2)[0])
    assert [f for f in found.values() if f.status == "problem"] == []
    assert found["queues"] == Check("queues", "ok", "2 receive, 2 transmit, at most 2 receive")
    assert found["XDP"].text == "native; features: basic, ndo-xmit, ndo-xmit-sg, redirect, rx-sg"
    assert found["holder"].text == "no XDP program is attached"
    assert found["zero-copy"].status == "note"
    assert "forward" not in found


def test_a_single_queue_is_noted_with_the_way_to_more(make_veth):
    left, _ = make_veth(queues=4)
    with left.namespace:
        ethtool.set_channels("left", rx=1, tx=1)
    assert checks(left)["queues"].status == "note"
    assert checks(left)["queues"].advice == "ethtool -L left combined 4 (or rx N tx N)"


def test_a_device_that_is_down_or_without_carrier_is_a_problem(veth_pair):
    left, right = veth_pair
    set_link(right, state="down")
    assert checks(left)["link"].text == "no carrier"
    assert checks(right)["link"] == Check("link", "problem", "the device is down", "ip link set dev right up")


def test_promiscuous_mode_is_seen(veth_pair):
    left, _ = veth_pair
    assert checks(left)["promiscuity"].status == "note"
    with left.namespace, netdev.promiscuous(left.index):
        assert checks(left)["promiscuity"].status == "ok"


@pytest.mark.parametrize("mtu", [3506, 3507, 9000])
def test_an_mtu_that_needs_packets_of_several_buffers_is_no_problem_where_there_are_some(make_veth, mtu):
    left, right = make_veth()
    set_link(right, mtu=mtu)
    assert checks(left)["MTU native"].status == "ok"
    with loaded() as program, left.namespace:
        result = lib.xk_link_xdp(program.fd, left.index, FLAGS["native"])
        assert result >= 0 if mtu <= NATIVE_FRAME_BYTES - 14 else result == -errno.ERANGE
        if result >= 0:
            os.close(result)


@pytest.mark.parametrize(("mtu", "said"), [(3818, "of at most 3818"), (3819, "packets take several")])
def test_an_mtu_beyond_a_frame_of_umem_is_said(make_veth, mtu, said):
    left, _ = make_veth(mtu=mtu)
    assert said in checks(left)["MTU AF_XDP"].text
    assert checks(left)["MTU generic"].status == "ok"


def test_busy_polling_needs_a_driver_that_tells(veth_pair):
    assert "do not tell which NAPI" in checks(veth_pair[0])["busy poll"].text


def test_a_device_on_top_of_another_leads_to_it(veth_pair):
    left, _ = veth_pair
    with left.namespace, IPRoute() as ip:
        ip.link("add", ifname="top", kind="macvlan", link=left.index)
        found = {finding.topic: finding for finding in examine_device("top")}
    assert found["stack"].advice == "attach to left"
    assert "mode generic or auto" in found["XDP"].advice


def test_a_veth_without_napi_cannot_be_redirected_to(make_veth):
    left, _ = make_veth(napi=False)
    assert checks(left)["forward"].advice == "turn GRO on at both ends (ethtool -K left gro on)"


def test_merging_by_the_device_is_a_problem(veth_pair, monkeypatch):
    monkeypatch.setattr(ethtool, "feature", lambda name, feature: feature == "rx-lro")
    found = checks(veth_pair[0])
    assert (found["merging"].status, found["merging"].advice) == ("problem", "ethtool -K left rx-lro off")
    assert "VLAN" not in found


def test_zero_copy_is_told_where_the_driver_has_it(veth_pair, monkeypatch):
    device = replace(veth_pair[0].device, xdp_features=frozenset({"basic", "xsk-zerocopy"}), xdp_zc_max_segs=5)
    monkeypatch.setattr(doctor_device.netdev, "device", lambda _: device)
    found = checks(veth_pair[0])
    assert found["zero-copy"].text == "the driver has AF_XDP zero-copy, packets of up to 5 buffers"
    assert found["redirect"].status == "problem"
    assert (found["TX metadata"].status, found["TX metadata"].advice[:17]) == ("note", "bind copy or auto")
    able = replace(device, xsk_features=frozenset({"tx-timestamp"}))
    monkeypatch.setattr(doctor_device.netdev, "device", lambda _: able)
    assert checks(veth_pair[0])["TX metadata"].text == "the driver offers tx-timestamp in zero-copy"


def test_an_old_kernel_that_tells_no_features_is_noted(veth_pair, monkeypatch):
    device = replace(veth_pair[0].device, xdp_features=None)
    monkeypatch.setattr(doctor_device.netdev, "device", lambda _: device)
    assert checks(veth_pair[0])["XDP"].text == "the kernel does not tell what the driver can (before 6.3)"


def test_a_link_of_another_process_is_named(veth_pair):
    left, _ = veth_pair
    with a_link_of_another_process(left) as owner:
        (holder,) = held(left)
        finding = checks(left)["holder"]
    assert finding.status == "problem"
    assert f"(id {holder.prog_id}) is held by a bpf_link of process {owner.pid} (" in finding.text
    assert finding.advice == f"stop process {owner.pid}"


def test_a_program_that_nobody_holds_is_named_with_the_way_to_detach_it(veth_pair):
    left, _ = veth_pair
    with loaded() as program:
        attach_for_good(left, "native", program)
        number = program.info()["id"]
    finding = checks(left)["holder"]
    text = f"native program 'xdpkit' (id {number}) is attached without a process, as by 'ip link set' or xdp-loader"
    assert (finding.status, finding.text) == ("problem", text)
    assert finding.advice == "if nobody wants it: xdpkit doctor left --clean (or ip link set dev left xdpdrv off)"


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_clean_detaches_what_was_left(veth_pair, mode):
    left, _ = veth_pair
    with loaded() as program:
        attach_for_good(left, mode, program)
        number = program.info()["id"]
    with left.namespace:
        with pytest.raises(OSError, match=r"may be wanted: .* xdpkit doctor left --clean --force") as caught:
            clean("left")
        assert (caught.value.errno, len(held(left))) == (errno.ECANCELED, 1)
        assert clean("left", force=True) == [f"left: {mode} program 'xdpkit' (id {number}) detached"]
        assert clean("left") == []
    assert held(left) == ()


def test_clean_spares_a_program_that_a_process_still_holds(veth_pair):
    left, _ = veth_pair
    with loaded() as program:
        attach_for_good(left, "native", program)
        said = rf"is held by process {os.getpid()} \(.*\): stop it"
        with left.namespace, pytest.raises(OSError, match=said) as caught:
            clean("left", force=True)
    assert caught.value.errno == errno.EBUSY
    assert len(held(left)) == 1


def test_clean_refuses_a_link_and_says_whose_it_is(veth_pair):
    left, _ = veth_pair
    with a_link_of_another_process(left) as owner:
        with left.namespace, pytest.raises(OSError, match=f"held by a bpf_link of process {owner.pid} "):
            clean("left")
        assert len(held(left)) == 1


def test_clean_refuses_a_link_whose_holder_cannot_be_seen(veth_pair, monkeypatch):
    """As one of another PID namespace."""
    left, _ = veth_pair
    monkeypatch.setattr(holders, "owners", lambda prog_id: ())
    with loaded() as program, left.namespace:
        link = check(lib.xk_link_xdp(program.fd, left.index, FLAGS["native"]))
        with pytest.raises(OSError, match="attached by a bpf_link whose holder or pin cannot be seen from here"):
            clean("left", force=True)
        assert len(held(left)) == 1
        os.close(link)


@pytest.fixture
def pin():
    """A path in the bpffs that is free, and removed again."""
    mount_bpffs("/sys/fs/bpf")
    path = f"/sys/fs/bpf/xdpkit-test-{os.getpid()}"
    yield path
    with suppress(FileNotFoundError):
        os.unlink(path)


@pytest.mark.parametrize("what", ["program", "link"])
def test_clean_refuses_what_is_pinned_and_names_the_pin(veth_pair, pin, what):
    """A firewall that was meant to outlive who loaded it: `xdp-filter load`, `bpftool prog load ... pinned`."""
    left, _ = veth_pair
    with loaded() as program, left.namespace:
        if what == "link":
            link = check(lib.xk_link_xdp(program.fd, left.index, FLAGS["native"]))
            subprocess.run(["bpftool", "link", "pin", "id", link_id(link), pin], check=True)
            os.close(link)
        else:
            attach_for_good(left, "native", program)
            subprocess.run(["bpftool", "prog", "pin", "id", str(program.info()["id"]), pin], check=True)
        number = program.info()["id"]
    with left.namespace:
        said = rf"left: native program 'xdpkit' \(id {number}\) is pinned at {pin}: unload it with the tool"
        for force in (False, True):
            with pytest.raises(OSError, match=said) as caught:
                clean("left", force=force)
            assert caught.value.errno == errno.EBUSY
        with pytest.raises(OSError, match=f"left is held by native program 'xdpkit' .*, pinned at {pin}: unload it"):
            attach(Pipeline("next"), "left")
    assert f"pinned at {pin}" in checks(left)["holder"].text
    assert "--clean" not in checks(left)["holder"].advice
    assert len(held(left)) == 1


def link_id(fd):
    with open(f"/proc/self/fdinfo/{fd}") as file:
        found = re.search(r"link_id:\s*(\d+)", file.read())
        assert found
        return found[1]


def test_attaching_beside_a_program_without_a_process_says_that_it_has_none(veth_pair):
    left, _ = veth_pair
    with loaded() as program:
        attach_for_good(left, "native", program)
    said = (
        "attached without a process, as by 'ip link set' or xdp-loader: if nobody wants it: xdpkit doctor left --clean"
    )
    with left.namespace, pytest.raises(OSError, match=said):
        attach(Pipeline("next"), "left")


@pytest.mark.parametrize(("answer", "status", "left_over"), [("y\n", 0, 0), ("n\n", 1, 1)])
def test_on_a_terminal_clean_asks_before_it_takes_off_what_nobody_holds(veth_pair, answer, status, left_over):
    left, _ = veth_pair
    with loaded() as program:
        attach_for_good(left, "native", program)
    ours, theirs = pty.openpty()
    child = left.namespace.popen([XDPKIT, "doctor", "left", "--clean"], stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.write(ours, answer.encode())
    assert child.wait(30) == status
    said = os.read(ours, 4096).decode()
    assert "attached without a process" in said
    assert "Take it off? [y/N]" in said
    assert len(held(left)) == left_over
    os.close(ours)


def test_without_a_terminal_clean_wants_force(veth_pair):
    left, _ = veth_pair
    with loaded() as program:
        attach_for_good(left, "native", program)
    done = fails(process(left, "doctor", "left", "--clean"), "without a process", "--clean --force")
    assert len(held(left)) == 1
    done = process(left, "doctor", "left", "--clean", "--force")
    assert (done.returncode, done.stderr, held(left)) == (0, "", ())


def test_clean_of_a_missing_device_names_the_others(veth_pair):
    with veth_pair[0].namespace, pytest.raises(OSError, match="this namespace has: left, lo"):
        clean("eth9")


def test_every_problem_comes_with_advice(make_veth):
    left, right = make_veth(mtu=9000, napi=False)
    set_link(right, state="down")
    with loaded() as program:
        attach_for_good(left, "generic", program)
    problems = [finding for port in (left, right) for finding in checks(port).values() if finding.status == "problem"]
    assert {finding.topic for finding in problems} == {"link", "holder"}
    assert all(finding.advice for finding in problems)


def test_findings_are_printed_with_their_advice_below():
    console = Console(file=StringIO(), width=60, color_system=None)
    render([Check("MTU", "problem", "too [large]", "lower it"), Check("link", "ok", "up")], console)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert lines == ["problem  MTU   too [large]", "               -> lower it", "ok       link  up"]


def test_findings_are_a_list_in_json():
    expected = [{"topic": "MTU", "status": "problem", "text": "large", "advice": "lower it"}]
    assert json.loads(as_json([Check("MTU", "problem", "large", "lower it")])) == expected
