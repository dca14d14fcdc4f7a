"""Which frames zero-copy gets, and where it is not taken; the packets themselves are in tests/zerocopy."""

from dataclasses import replace

import pytest

from xdpkit import DROP, TX, NotSupported, Pipeline, SocketOptions, udp
from xdpkit.device import netdev
from xdpkit.sockets.zerocopy import chunk_for_zerocopy


def chunk(driver, *, mtu=1500, action=DROP, **options):
    pipe = Pipeline("one")
    pipe.rule(udp.dport == 7, action, name="seven")
    return chunk_for_zerocopy(replace(netdev.device("lo"), driver=driver, mtu=mtu), pipe, SocketOptions(**options))


@pytest.mark.parametrize("driver", ["igb", "igc", "ice", "virtio_net"])
@pytest.mark.parametrize(("mtu", "size"), [(500, 2048), (1002, 2048), (1003, 4096), (1500, 4096), (3050, 4096)])
def test_a_frame_holds_the_mtu_also_where_the_nic_counts_in_kib(driver, mtu, size):
    assert chunk(driver, mtu=mtu) == size


def test_a_chunk_size_that_was_asked_for_is_kept_where_it_does():
    assert chunk("ice", chunk_size=2048) == 2048
    assert chunk("igb", chunk_size=4096) == 4096
    assert chunk("igb", chunk_size=2048, mtu=1000) == 2048


@pytest.mark.parametrize("driver", ["igb", "igc"])
def test_frames_in_which_the_nic_would_cut_packets_are_refused(driver):
    with pytest.raises(NotSupported, match=f"chunk_size 4096, because {driver} cuts packets after 1024 bytes"):
        chunk(driver, chunk_size=2048)
    with pytest.raises(NotSupported, match="an MTU of 3050 or less, because"):
        chunk(driver, mtu=3051)
    assert chunk("ice", mtu=3051) == 4096


def test_headroom_takes_its_part():
    assert (chunk("igb", mtu=1002, headroom=768), chunk("igb", mtu=1002, headroom=769)) == (2048, 4096)
    with pytest.raises(NotSupported, match="cuts packets after 2048 bytes"):
        chunk("igb", mtu=2500, headroom=800)


def test_virtio_net_gets_no_zero_copy_for_a_pipeline_that_transmits():
    with pytest.raises(NotSupported, match="zero-copy on lo: a pipeline without TX, because virtio_net drops"):
        chunk("virtio_net", action=TX)
    assert chunk("igb", action=TX) == 4096
