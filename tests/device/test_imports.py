"""pyroute2 is imported in parts, and whole for whoever asks for the rest."""

import subprocess
import sys

import pytest
from pyroute2 import IPRoute
from pyroute2.netlink import NETLINK_ROUTE
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from xdpkit.device import netdev
from xdpkit.device.netlink import NetlinkError, ask, ask_family
from xdpkit.lab import Lab

RTM_GETLINK, NLM_F_DUMP = 18, 0x300


def printed(source: str) -> list[str]:
    """The lines that a Python process of its own prints."""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_questions_about_devices_import_neither_asyncio_nor_the_databases_of_pyroute2():
    source = "import sys; from xdpkit.device import netdev; netdev.device('lo'); print(*sys.modules, sep='\\n')"
    modules = set(printed(source))
    assert "pyroute2.netlink" in modules
    assert not modules & {"asyncio", "pyroute2.ndb", "pyroute2.iproute", "numpy"}


@pytest.mark.parametrize("order", ["import pyroute2, xdpkit.device.netdev", "import xdpkit.device.netdev, pyroute2"])
def test_pyroute2_is_whole_for_whoever_imports_it(order):
    names = "pyroute2.NDB.__name__, pyroute2.ethtool.Ethtool.__name__, hasattr(pyroute2, 'nothing')"
    assert printed(f"{order}; print({names})") == ["NDB Ethtool False"]
    assert printed(f"{order}; from pyroute2 import IPRoute, config; print(IPRoute.__name__)") == ["IPRoute"]


def test_questions_are_answered_as_pyroute2_answers_them():
    with Lab() as lab:
        here = lab.namespace()
        for number in range(12):  # more devices than fit into one answer
            lab.veth(here, here, names=(f"a{number}", f"b{number}"))
        with here, IPRoute() as ip:
            names = [link.get_attr("IFLA_IFNAME") for link in ip.get_links()]
            found = ask(ifinfmsg(), RTM_GETLINK, protocol=NETLINK_ROUTE, flags=NLM_F_DUMP)
            assert [link.get_attr("IFLA_IFNAME") for link in found] == names
            for link in ip.get_links():
                assert netdev.stats(link["index"]).keys() == link.get_attr("IFLA_STATS64").keys()


def test_what_the_kernel_refuses_is_an_error_and_a_family_that_is_missing_none():
    request = ifinfmsg()
    request["index"] = 1 << 30
    with pytest.raises(NetlinkError, match="No such device"):
        ask(request, RTM_GETLINK, protocol=NETLINK_ROUTE)
    assert ask_family("nothing-here", netdev._DevGet(), 1, {"NETDEV_A_DEV_IFINDEX": 1}) is None
