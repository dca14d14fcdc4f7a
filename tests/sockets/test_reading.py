"""Readers: stopped from other threads, in event loops, one for each queue."""

import asyncio
import errno
import select
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from traffic import frames, number, until

from xdpkit import PASS, REDIRECT, Mirror, NotSupported, Pipeline, Redirect, attach, udp
from xdpkit.compiler.built import build
from xdpkit.device.netlink import iproute


def dns():
    pipe = Pipeline("dns", default=PASS)
    pipe.rule(udp.dport == 53, REDIRECT, name="dns")
    return pipe


def mirrored():
    pipe = Pipeline("mirrored", default=PASS)
    pipe.rule(udp.dport == 53, Mirror(), name="dns")
    return pipe


DNS, MIRRORED = build(dns()), build(mirrored())
SOURCES = ("native", "generic", "af_packet", pytest.param("tc_ingress", marks=pytest.mark.needs("tcx")), "mirrored")
WAITING = ("7 ", "271 ")  # poll, ppoll in /proc/PID/task/TID/syscall


@contextmanager
def open_sockets(port, source, **options):
    """(link, sockets) of a mode, or the copies that a rule mirrors."""
    with port.namespace, ExitStack() as stack:
        if source == "mirrored":
            link = stack.enter_context(attach(MIRRORED, port.name))
            yield link, stack.enter_context(link.copies())
        else:
            link = stack.enter_context(attach(DNS, port.name, mode=source, **options))
            yield link, stack.enter_context(link.sockets())


class Reader(threading.Thread):
    """Collects the numbers of all packets until its batches end."""

    def __init__(self, sockets, **options):
        super().__init__()
        self.sockets, self.options, self.got, self.error = sockets, options, [], None
        self.start()

    def run(self):
        try:
            for batch in self.sockets.batches(**self.options):
                self.got += [number(frame) for frame in batch.frames]
        except BaseException as error:
            self.error = error

    def waits(self):
        """In poll()."""
        return Path(f"/proc/self/task/{self.native_id}/syscall").read_text().startswith(WAITING)

    def ended(self):
        """Its error, once it has ended."""
        self.join(5)
        assert not self.is_alive(), "it reads on"
        return self.error


# ---- stop ----


@pytest.mark.parametrize("source", SOURCES)
def test_a_reader_that_waits_for_ever_ends_without_an_error_when_it_is_stopped(make_veth, source):
    left, right = make_veth()
    with open_sockets(right, source) as (link, sockets):
        reader = Reader(sockets)
        left.send(frames(left, right, range(10)))
        until(lambda: len(reader.got) == 10, "the packets")
        until(reader.waits, "poll()")
        sockets.stop()
        assert reader.ended() is None
        sockets.stop()
        assert sockets.stopped
    assert sorted(reader.got) == list(range(10))
    assert link.ledger().problems() == ()


def test_a_reader_is_woken_by_stop_and_not_by_the_end_of_its_slice(make_veth, monkeypatch):
    _, right = make_veth()
    monkeypatch.setattr("xdpkit.sockets.xsk.MOST_MS", 60_000)
    monkeypatch.setattr("xdpkit.sockets.reader.MOST_MS", 60_000)
    monkeypatch.setattr("xdpkit.sockets.reader.slices", lambda timeout: iter([60_000]))
    with open_sockets(right, "native") as (_, sockets):
        reader = Reader(sockets)
        until(reader.waits, "poll()")
        sockets.stop()
        assert reader.ended() is None


def test_a_stopped_reader_ends_after_the_batch_that_it_is_at_and_the_rest_waits_in_the_ring(make_veth):
    left, right = make_veth()
    with open_sockets(right, "native") as (link, sockets):
        left.send(frames(left, right, range(10)))
        until(lambda: link.ledger().waiting == 10, "the packets")
        for batch in sockets.batches(limit=4):
            sockets.stop()
            assert [number(frame) for frame in batch.frames] == [0, 1, 2, 3]
        assert list(sockets.batches()) == []
        ledger = link.ledger()
        assert (ledger.read, ledger.waiting) == (4, 6)


def test_stop_reaches_the_readers_of_groups(make_veth):
    _, right = make_veth()
    pipe = Pipeline("groups")
    pipe.rule(udp.dport == 53, Redirect(group="names"), name="dns")
    with right.namespace, attach(pipe, right.name) as link, link.sockets() as sockets:
        reader = Reader(sockets.group("names"))
        until(reader.waits, "poll()")
        sockets.stop()
        assert reader.ended() is None


def test_stop_closes_no_descriptor_of_others(make_veth):
    _, right = make_veth()
    with open_sockets(right, "native") as (_, sockets):
        pass
    sockets.stop()  # the sockets are closed
    sockets.close()


# ---- event loops ----


@pytest.mark.parametrize("source", SOURCES)
def test_the_descriptor_is_readable_when_packets_are_there(make_veth, source):
    left, right = make_veth()
    with open_sockets(right, source) as (_, sockets):
        poll = select.poll()
        poll.register(sockets, select.POLLIN)
        assert sockets.receive() is None
        for turn in range(3):
            assert poll.poll(0) == []
            left.send(frames(left, right, range(5)))
            got: list[int] = []
            while len(got) < 5:
                assert poll.poll(5000), f"turn {turn}: not readable"
                while (batch := sockets.receive(2)) is not None:
                    with batch:
                        got += [number(frame) for frame in batch.frames]
            assert got == list(range(5))
        sockets.stop()
        assert poll.poll(5000)
    with pytest.raises(ValueError, match="the sockets are closed"):
        sockets.fileno()


@pytest.mark.parametrize("source", SOURCES)
def test_async_for_reads_batches_until_it_is_stopped(make_veth, source):
    left, right = make_veth()

    async def read(sockets):
        got = []
        async for batch in sockets:
            got += [number(frame) for frame in batch.frames]
            if len(got) == 20:
                sockets.stop()
        return got

    async def main(sockets):
        reader = asyncio.create_task(read(sockets))
        for start in (0, 10):
            await asyncio.sleep(0)
            left.send(frames(left, right, range(start, start + 10)))
        return await asyncio.wait_for(reader, 10)

    with open_sockets(right, source) as (link, sockets):
        assert asyncio.run(main(sockets)) == list(range(20))
    assert link.ledger().problems() == ()


def test_another_thread_stops_an_event_loop_that_waits(make_veth):
    _, right = make_veth()

    async def read(sockets):
        stopper = asyncio.get_running_loop().run_in_executor(None, sockets.stop)
        async for _ in sockets:
            raise AssertionError("no packet was sent")
        await stopper

    with open_sockets(right, "native") as (_, sockets):
        asyncio.run(asyncio.wait_for(read(sockets), 5))


def test_an_async_reader_ends_after_a_silent_timeout(make_veth):
    left, right = make_veth()

    async def read(sockets):
        return [len(batch) async for batch in sockets.batches_async(timeout=0.05, limit=7)]

    with open_sockets(right, "native") as (link, sockets):
        left.send(frames(left, right, range(20)))
        until(lambda: link.ledger().waiting == 20, "the packets")
        assert asyncio.run(read(sockets)) == [7, 7, 6]


def test_a_cancelled_reader_loses_no_packet_and_another_one_goes_on(make_veth):
    left, right = make_veth()
    got: list[int] = []

    async def read(sockets):
        async for batch in sockets.batches_async(limit=1):
            got.extend(number(frame) for frame in batch.frames)
            await asyncio.sleep(0)  # where it may be cancelled

    async def main(sockets, link):
        for start in range(0, 100, 10):
            task = asyncio.create_task(read(sockets))
            left.send(frames(left, right, range(start, start + 10)))
            for _ in range(start // 10):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.sleep(0)
        async for batch in sockets.batches_async(timeout=0.1):
            got.extend(number(frame) for frame in batch.frames)

    with open_sockets(right, "native") as (link, sockets):
        asyncio.run(main(sockets, link))
        assert got == list(range(100))
        assert {k: n for k, n in sockets.xsks[0].frames().items() if k in ("held", "rx") and n} == {}
    assert (link.ledger().read, link.ledger().problems()) == (100, ())


def test_the_event_loop_does_not_wake_for_packets_while_a_reader_is_at_work_on_a_batch(make_veth):
    left, right = make_veth()

    async def main(sockets, link):
        async for _ in sockets.batches_async():
            left.send(frames(left, right, range(5)))
            until(lambda: link.ledger().waiting == 5, "packets that wait")
            return vars(asyncio.get_running_loop())["_selector"].select(0)

    with open_sockets(right, "native") as (link, sockets):
        left.send(frames(left, right, range(5)))
        assert asyncio.run(main(sockets, link)) == []


@pytest.mark.parametrize("source", ["native", "af_packet"])
def test_an_async_reader_says_that_its_device_is_gone(make_veth, source):
    left, right = make_veth()

    def remove():
        with left.namespace, iproute("delete") as ip:
            ip.link("del", index=left.index)

    async def main(sockets):
        task = asyncio.create_task(anext(sockets.batches_async()))
        await asyncio.sleep(0)
        await asyncio.to_thread(remove)
        await asyncio.wait_for(task, 10)

    with open_sockets(right, source) as (_, sockets):
        with pytest.raises(OSError, match=r"right: (waiting for packets.*gone|the device was deleted)") as caught:
            asyncio.run(main(sockets))
        assert caught.value.errno == errno.ENODEV


# ---- a reader for each queue ----


def test_each_queue_is_read_in_a_thread_of_its_own(make_veth):
    left, right = make_veth(queues=2)
    with open_sockets(right, "native") as (link, sockets):
        readers = [Reader(sockets, queue=queue) for queue in (0, 1)]
        for start in range(0, 4000, 100):
            for queue in (0, 1):
                left.send(frames(left, right, range(start, start + 100)), queue=queue)
        until(lambda: all(len(reader.got) == 4000 for reader in readers), "the packets")
        sockets.stop()
        assert [reader.ended() for reader in readers] == [None, None]
        assert [reader.got for reader in readers] == [list(range(4000))] * 2
        assert link.ledger().read == 8000
    assert link.ledger().problems() == ()


def test_a_queue_without_a_socket_is_named(make_veth):
    _, right = make_veth(queues=2)
    with open_sockets(right, "native", queues=[1]) as (_, sockets):
        with pytest.raises(ValueError, match="queue 0 has no socket: right has them on"):
            sockets.batches(queue=0)
    with open_sockets(right, "af_packet") as (_, sockets):
        with pytest.raises(NotSupported, match="reading one queue in mode af_packet"):
            sockets.batches(queue=0)
