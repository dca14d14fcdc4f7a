"""One thread at a time uses a socket: another one gets an error, and no packet is lost or read twice."""

import os
import threading
import time

import numpy as np
import pytest
from traffic import frames, number, until

from xdpkit import REDIRECT, Pipeline, SocketOptions, ThreadError, attach, udp

DNS = Pipeline("dns")
DNS.rule(udp.dport == 53, REDIRECT, name="dns")

#: Seconds of traffic for the readers that disturb each other.
SECONDS = float(os.environ.get("XDPKIT_THREADS_SECONDS", "2"))


@pytest.mark.parametrize("mode", ["native", "af_packet", "tc_ingress"])
def test_four_threads_that_read_one_link_leave_every_packet_to_one_of_them(make_veth, mode):
    left, right = make_veth()
    refused, read, sent, over = [], [], 0, threading.Event()

    def reader(sockets):
        while not over.is_set():
            try:
                for batch in sockets.batches(timeout=0.2):
                    read.append([number(frame) for frame in batch.frames])
            except ThreadError as error:
                refused.append(str(error))
                time.sleep(0.001)  # let the one that reads go on

    with right.namespace, attach(DNS, right.name, mode=mode) as link, link.sockets() as sockets:
        threads = [threading.Thread(target=reader, args=(sockets,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            left.send(frames(left, right, range(sent, sent + 500)))
            sent += 500
            until(lambda wanted=sent: sum(map(len, read)) >= wanted, f"{sent} packets")
        over.set()
        for thread in threads:
            thread.join()
    got = np.sort(np.concatenate([np.array(b) for b in read]))
    assert (got == np.arange(sent)).all()
    assert refused
    assert "one thread at a time" in refused[0]
    assert link.ledger().problems() == ()


def test_a_thread_that_sends_while_another_reads_gets_an_error_and_sends_nothing(make_veth):
    left, right = make_veth()
    options = SocketOptions(tx=True)
    with right.namespace, attach(DNS, right.name, options=options) as link, link.sockets() as sockets:
        left.send(frames(left, right, range(3)))
        batches = sockets.batches(timeout=5)
        next(batches)
        errors = []

        def other():
            for call in (lambda: sockets.send([b"\0" * 60]), sockets.complete, lambda: next(sockets.batches())):
                try:
                    call()
                except ThreadError as error:
                    errors.append(str(error))

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert len(errors) == 3
        assert all("reads batches" in e for e in errors)
        assert sockets.stats().transmitted == 0
        batches.close()
        sent = []
        thread = threading.Thread(target=lambda: sent.append(sockets.send([b"\0" * 60])))
        thread.start()
        thread.join()
        assert sent == [1]


def test_queues_are_read_in_threads_of_their_own(make_veth):
    left, right = make_veth(queues=2)
    got: dict[int, list[int]] = {0: [], 1: []}
    with right.namespace, attach(DNS, right.name, mode="native") as link, link.sockets() as sockets:

        def reader(queue):
            for batch in sockets.batches(queue=queue, timeout=5):
                got[queue] += [number(frame) for frame in batch.frames]
                if len(got[queue]) == 100:
                    return

        threads = [threading.Thread(target=reader, args=(queue,)) for queue in got]
        for thread in threads:
            thread.start()
        for queue in got:
            left.send(frames(left, right, range(100)), queue=queue)
        for thread in threads:
            thread.join()
    assert got == {0: list(range(100)), 1: list(range(100))}


def test_batches_of_a_thread_that_has_ended_are_no_obstacle_to_the_next_one(make_veth):
    left, right = make_veth()
    with right.namespace, attach(DNS, right.name) as link, link.sockets() as sockets:
        left.send(frames(left, right, range(3)))
        kept = [sockets.batches(timeout=5)]
        thread = threading.Thread(target=lambda: next(kept[0]))
        thread.start()
        thread.join()
        kept.pop().close()
        left.send(frames(left, right, range(3, 6)))
        batches = sockets.batches(timeout=5)
        assert [number(f) for f in next(batches).frames] == [3, 4, 5]
