"""What the library logs, and how its objects show themselves to people."""

import asyncio
import errno
import logging
import subprocess
import sys

import pytest
from traffic import detach_by_force, frames, until

from xdpkit import DROP, PASS, REDIRECT, Pipeline, attach, ip, udp


def dns():
    pipe = Pipeline("dns")
    pipe.rule(udp.dport == 53, REDIRECT, name="dns")
    return pipe


def other():
    pipe = Pipeline("other")
    pipe.rule(udp.dport == 54, DROP, name="drop")
    return pipe


@pytest.fixture
def messages(caplog):
    """(level, message) of what the library has logged."""
    caplog.set_level(logging.INFO, "xdpkit")
    return lambda: [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "xdpkit"]


def test_attaching_changing_and_detaching_are_logged(make_veth, messages):
    left, right = make_veth()
    with right.namespace, attach(dns(), right.name) as link:
        with link.sockets():
            pass
        link.update(other())
        left.send(frames(left, right, range(5)))
        until(lambda: link.ledger().seen == 5, "the packets")
    said = messages()
    assert {level for level, _ in said} == {"INFO"}
    texts = [text for _, text in said]
    assert texts[0].startswith("dns attached to right: native, queue 0, veth")
    assert texts[1].startswith("<Sockets of dns on right: native, copy, queue 0, veth")
    assert texts[1].endswith("open>")
    assert texts[2].endswith("closed>")
    assert texts[3].startswith("other replaces dns on right: compile ")
    assert texts[4] == "other detached from right: 5 packets seen"


@pytest.mark.needs("tcx")
def test_a_fallback_is_a_warning(make_veth, messages, monkeypatch):
    _, right = make_veth()
    module = sys.modules["xdpkit.link.attach"]

    class NoXdp:
        def __getattr__(self, name):
            answers = {"xk_link_xdp": lambda *_: -errno.EOPNOTSUPP, "xk_attach_reason": lambda *_: 0}
            return answers.get(name) or getattr(lib, name)

    lib = module.lib
    monkeypatch.setattr(module, "lib", NoXdp())
    with right.namespace, attach(other(), right.name):
        pass
    warnings = [text for level, text in messages() if level == "WARNING"]
    refused = "(attach {0} XDP to right: Operation not supported)"
    assert warnings == [
        f"other on right is at tc_ingress, not {mode} {refused.format(mode)}" for mode in ("native", "generic")
    ]


def test_a_link_that_is_detached_by_force_is_a_warning(make_veth, messages):
    _, right = make_veth()
    with right.namespace, attach(other(), right.name) as link:
        detach_by_force(right)
        assert link.lost
        assert repr(link) == "<Link other on right: native, lost>"
    warnings = [text for level, text in messages() if level == "WARNING"]
    assert warnings == ["other on right: the pipeline was detached by force, as by 'bpftool link detach'"]


def test_an_async_reader_says_that_its_link_was_detached_by_force(make_veth):
    _, right = make_veth()

    async def read(sockets):
        reader = asyncio.create_task(anext(sockets.batches_async()))
        await asyncio.to_thread(detach_by_force, right)
        await asyncio.wait_for(reader, 10)

    with right.namespace, attach(dns(), right.name) as link, link.sockets() as sockets:
        with pytest.raises(OSError, match="detached by force"):
            asyncio.run(read(sockets))


def test_the_library_is_silent_unless_logging_is_configured():
    code = "from xdpkit.logs import logger; logger.warning('something'); logger.error('else')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_objects_show_what_they_are(make_veth):
    left, right = make_veth()
    pipe = Pipeline("dns", default=PASS)
    blocked = pipe.set("blocked", ip.src, capacity=1000)
    pipe.rule(ip.src.isin(blocked), DROP, name="blocked")
    pipe.rule(udp.dport == 53, REDIRECT, name="dns")
    with right.namespace, attach(pipe, right.name) as link:
        assert repr(link) == "<Link dns on right: native, open>"
        assert repr(link.program) == "<Program dns: xdp, 3 rules, loaded>"
        assert repr(link.sets["blocked"]) == "<LiveSet blocked of ip.src: room for 1000>"
        with link.sockets() as sockets:
            assert repr(sockets) == f"<Sockets of dns on right: {link.attachment}, open>"
            left.send(frames(left, right, range(3)))
            until(lambda: link.ledger().waiting == 3, "the packets")
            reader = sockets.batches(timeout=5)
            assert repr(next(reader)) == "<Batch of 3 packets, queue 0>"
            reader.close()
            with sockets.count() as workers:
                assert repr(workers) == "<Workers on right: packets are counted, 1 running>"
                assert repr(sockets).endswith(", counted by workers>")
            assert repr(workers) == "<Workers on right: packets are counted, ended>"
        assert repr(sockets).endswith(", closed>")
    assert repr(link) == "<Link dns on right: native, closed>"
    assert repr(link.program) == "<Program dns: xdp, 3 rules, closed>"
