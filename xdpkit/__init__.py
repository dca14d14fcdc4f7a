"""xdpkit: declare a packet filter pipeline in Python, run it at XDP, drain what it redirects without copying.

>>> from xdpkit import Pipeline, PASS, DROP, REDIRECT, attach, ip, udp
>>> pipe = Pipeline("dns", default=PASS)
>>> rule = pipe.rule(udp.dport == 53, REDIRECT, name="dns")
>>> with attach(pipe, "eth1") as link, link.sockets() as sockets:  # doctest: +SKIP
...     for batch in sockets.batches(timeout=1.0):
...         print(batch.queue, batch.lengths.sum())
"""

from .actions import DROP, PASS, REDIRECT, TX, Action, Redirect, Verdict
from .attach import Link, attach
from .batch import Batch
from .check import Finding, PipelineWarning
from .compiler import Compiled, compile_pipeline
from .errors import FrameError, NotSupported, PipelineError, VerifierError, Where
from .forward import Forwarder, forward
from .got import Got
from .headers import (
    ah,
    arp,
    dstopts,
    eth,
    frag,
    geneve,
    gre,
    gtpu,
    hopopts,
    icmp,
    icmp6,
    inner,
    ip,
    ip6,
    meta,
    mpls,
    payload,
    pkt,
    routing,
    sctp,
    tcp,
    udp,
    vlan,
    vlan2,
    vxlan,
)
from .ledger import Ledger
from .options import SocketOptions
from .pcap import pcap
from .pipeline import Pipeline, Rule, load_file
from .program import Program

__all__ = [
    "DROP",
    "PASS",
    "REDIRECT",
    "TX",
    "Action",
    "Batch",
    "Compiled",
    "Finding",
    "Forwarder",
    "FrameError",
    "Got",
    "Ledger",
    "Link",
    "NotSupported",
    "Pipeline",
    "PipelineError",
    "PipelineWarning",
    "Program",
    "Redirect",
    "Rule",
    "SocketOptions",
    "Verdict",
    "VerifierError",
    "Where",
    "ah",
    "arp",
    "attach",
    "compile_pipeline",
    "dstopts",
    "eth",
    "forward",
    "frag",
    "geneve",
    "gre",
    "gtpu",
    "hopopts",
    "icmp",
    "icmp6",
    "inner",
    "ip",
    "ip6",
    "load_file",
    "meta",
    "mpls",
    "payload",
    "pcap",
    "pkt",
    "routing",
    "sctp",
    "tcp",
    "udp",
    "vlan",
    "vlan2",
    "vxlan",
]
