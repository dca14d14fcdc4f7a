"""xdpkit: declare a packet filter pipeline in Python, run it at XDP, drain what it redirects without copying.

>>> from xdpkit import Pipeline, PASS, DROP, REDIRECT, attach, ip, udp
>>> pipe = Pipeline("dns", default=PASS)
>>> rule = pipe.rule(udp.dport == 53, REDIRECT, name="dns")
>>> with attach(pipe, "eth1") as link, link.sockets() as sockets:  # doctest: +SKIP
...     for batch in sockets.batches(timeout=1.0):
...         print(batch.queue, batch.lengths.sum())
"""

from .compiler import Compiled, compile_pipeline
from .kernel.got import Got
from .kernel.program import Program
from .language.actions import COUNT, DROP, PASS, REDIRECT, TX, Action, Forward, Mark, Mirror, Redirect, Step, Verdict
from .language.check import Finding, PipelineWarning
from .language.errors import FrameError, NotSupported, PipelineError, VerifierError, Where, XdpkitError
from .language.headers import (
    ah,
    arp,
    dst,
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
    src,
    tcp,
    udp,
    vlan,
    vlan2,
    vxlan,
)
from .language.limits import limit, log, sample
from .language.metadata import Metadata
from .language.pcap import pcap
from .language.pipeline import Pipeline, load_file
from .language.rule import Rule
from .language.sets import Set
from .link.attach import Link, attach
from .link.forward import Forwarder, forward
from .link.ledger import Ledger
from .sockets.batch import Batch
from .sockets.options import SocketOptions

__all__ = [
    "COUNT",
    "DROP",
    "PASS",
    "REDIRECT",
    "TX",
    "Action",
    "Batch",
    "Compiled",
    "Finding",
    "Forward",
    "Forwarder",
    "FrameError",
    "Got",
    "Ledger",
    "Link",
    "Mark",
    "Metadata",
    "Mirror",
    "NotSupported",
    "Pipeline",
    "PipelineError",
    "PipelineWarning",
    "Program",
    "Redirect",
    "Rule",
    "Set",
    "SocketOptions",
    "Step",
    "Verdict",
    "VerifierError",
    "Where",
    "XdpkitError",
    "ah",
    "arp",
    "attach",
    "compile_pipeline",
    "dst",
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
    "limit",
    "load_file",
    "log",
    "meta",
    "mpls",
    "payload",
    "pcap",
    "pkt",
    "routing",
    "sample",
    "sctp",
    "src",
    "tcp",
    "udp",
    "vlan",
    "vlan2",
    "vxlan",
]
