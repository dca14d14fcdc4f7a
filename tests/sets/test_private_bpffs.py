"""Pinned sets in a mount namespace of its own, as `ip netns exec` makes one: nobody else can reach them."""

import os

import pytest
from commands import process, xdpkit

from xdpkit.sets.pins import FOLDER, private_bpffs

#: What `ip netns exec` does to /sys (netns_switch() in iproute2).
_REMOUNT = 'umount -l /sys && mount -t sysfs sysfs /sys && exec "$@"'
AS_IP_NETNS_EXEC = ("unshare", "--mount", "--propagation", "slave", "sh", "-c", _REMOUNT, "sh")
#: A mount namespace that still has the machine's /sys/fs/bpf, as systemd makes them for services.
AS_A_SERVICE = ("unshare", "--mount", "--propagation", "slave")

pytestmark = pytest.mark.root


@pytest.fixture
def pipeline(tmp_path):
    name = f"private_{os.getpid()}"
    path = tmp_path / "pinned.py"
    path.write_text(
        "from xdpkit import DROP, Pipeline, ip\n"
        "pipe = Pipeline('pinned')\n"
        f"blocked = pipe.set('{name}', ip.src, pinned=True)\n"
        "pipe.rule(blocked, DROP)\n"
    )
    yield path
    assert not (FOLDER / name).exists()  # nothing of it reached the machine's bpffs


def test_a_run_with_a_pinned_set_warns_that_its_mount_namespace_is_private(veth_pair, pipeline):
    _, right = veth_pair
    done = process(right, "run", pipeline, "-i", "right", "--duration", "0.1", before=AS_IP_NETNS_EXEC)
    assert (done.returncode, "warning: /sys/fs/bpf is private" in done.stderr) == (0, True), done.stderr
    assert "nsenter --net=/run/netns/NAME" in done.stderr


@pytest.mark.parametrize("args", [["set", "list"], ["set", "show", "blocked"]])
def test_that_none_is_pinned_there_comes_with_the_reason(veth_pair, args):
    done = process(veth_pair[1], *args, before=AS_IP_NETNS_EXEC)
    assert "none is pinned; /sys/fs/bpf is private" in done.stderr
    assert done.returncode == (0 if args[1] == "list" else 1)


def test_a_mount_namespace_that_shares_the_bpffs_is_not_taken_for_private(veth_pair):
    done = process(veth_pair[1], "set", "list", before=AS_A_SERVICE)
    assert (done.returncode, "private" in done.stderr) == (0, False)


def test_on_the_machine_itself_nothing_is_said(veth_pair):
    assert private_bpffs() == ""
    assert "private" not in xdpkit(veth_pair[1], "set", "list").stderr
