"""What this kernel can do for xdpkit: probes, and packets that really went through.  Run in a guest by kernels.py,
which puts tests/ and tests/zerocopy/ on PYTHONPATH.

Writes /out/survey.json: {row: true | false}; the reason of each false is printed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from traffic import frames, take
from wire import ready, wire

from xdpkit import PASS, REDIRECT, NotSupported, Pipeline, VerifierError, attach, pcap, udp
from xdpkit.compiler.built import Built, build
from xdpkit.kernel.features import FEATURES, has
from xdpkit.lab import Lab
from xdpkit.sockets.options import Bind, Mode

LOOPING = "ip6 protochain 17"  # libpcap compiles it to a loop


def pipeline(condition: object) -> Built:
    """One REDIRECT rule."""
    pipe = Pipeline("survey", default=PASS)
    pipe.rule(condition, REDIRECT, name="taken")
    return build(pipe)


PIPELINE = pipeline(udp.dport == 53)


def veth(mode: Mode, bind: Bind = "auto") -> None:
    """Ten packets through a veth pair, in this mode and no other."""
    with Lab.pair() as (left, right):
        sent = frames(left, right, range(10))
        with right.namespace, attach(PIPELINE, right.name, mode=mode, bind=bind) as link:
            if mode == "tc_egress":
                return
            with link.sockets() as sockets:
                left.send(sent)
                assert take(sockets, 10) == sent


def loads(condition: object) -> None:
    """The program passes this kernel's verifier."""
    with Lab.pair() as (left, _), left.namespace, attach(pipeline(condition), left.name, mode="native"):
        pass


def zerocopy(driver: str) -> None:
    """Ten packets into a NIC."""
    with wire(driver) as (near, far):
        sent = frames(far, near, range(10))
        with attach(PIPELINE, near.name, mode="native", bind="zerocopy") as link, link.sockets() as sockets:
            assert all(x.zerocopy for x in sockets.xsks)
            ready(near, far)
            far.send(sent)
            assert take(sockets, 10) == sent


def generator() -> None:
    """A thousand live frames to a program that counts them."""
    with Lab.pair() as (left, right), right.namespace, attach(PIPELINE, right.name, mode="native") as link:
        with left.generator(frames(left, right, [0])) as source:
            source.send(1000)
            source.settle()
        assert link.ledger().seen == 1000, f"{link.ledger().seen} of 1000 frames seen"


ROWS: dict[str, Callable[[], None]] = {
    "native XDP, AF_XDP copy (veth)": lambda: veth("native", "copy"),
    "generic XDP, AF_XDP copy (veth)": lambda: veth("generic", "copy"),
    "AF_PACKET": lambda: veth("af_packet"),
    "TC ingress": lambda: veth("tc_ingress"),
    "TC egress": lambda: veth("tc_egress"),
    "tcpdump strings that loop": lambda: loads(pcap(LOOPING)),
    "generator": generator,
    "zero-copy on igb": lambda: zerocopy("igb"),
    "zero-copy on virtio-net": lambda: zerocopy("virtio_net"),
}


def works(name: str, run: Callable[[], None]) -> bool:
    """Whether it did; anything but a clear refusal ends the survey with its traceback."""
    try:
        run()
    except (NotSupported, VerifierError, OSError) as error:
        print(f"{name}: {error}", flush=True)
        return False
    return True


def main() -> None:
    """Survey, and leave the answers in /out."""
    rows = {name: has(name) for name in FEATURES}
    rows |= {name: works(name, run) for name, run in ROWS.items()}
    Path("/out/survey.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
