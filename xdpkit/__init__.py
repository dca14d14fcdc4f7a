"""xdpkit: declare a packet filter pipeline in Python, run it at XDP, drain what it redirects without copying.

>>> from xdpkit import Pipeline, PASS, DROP, REDIRECT, attach, ip, udp
>>> pipe = Pipeline("dns", default=PASS)
>>> rule = pipe.rule(udp.dport == 53, REDIRECT, name="dns")
>>> with attach(pipe, "eth1") as link, link.sockets() as sockets:  # doctest: +SKIP
...     for batch in sockets.batches(timeout=1.0):
...         print(batch.queue, batch.lengths.sum())
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .compiler import Compiled, TableInfo, compile_pipeline
    from .compiler.built import Built
    from .device.netdev import Device
    from .kernel.attachment import Attachment, Got
    from .kernel.loaded import LoadedProgram, RuleCount, SourceLine
    from .kernel.program import Program
    from .language.actions import (
        COUNT,
        DROP,
        PASS,
        REDIRECT,
        REJECT,
        TX,
        Action,
        Forward,
        Inspect,
        Mark,
        Mirror,
        Redirect,
        Reject,
        Step,
        Verdict,
    )
    from .language.chains import RETURN, ChainSpec, Goto, Jump
    from .language.check import Finding, PipelineWarning
    from .language.counted import Number, numgen, quota
    from .language.devices import OnDevice, dev
    from .language.errors import FrameError, NotSupported, PipelineError, ThreadError, VerifierError, Where, XdpkitError
    from .language.expr import Expr, Keyed
    from .language.fields import FieldSpec
    from .language.headers import (
        Field,
        Header,
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
    from .language.limits import Bucket, Limit, Log, Sample, limit, log, sample
    from .language.metadata import Metadata
    from .language.pcap import pcap
    from .language.pipeline import Chain, Pipeline, load_file
    from .language.rule import Rule
    from .language.sets import Add, Entry, Feed, Member, Set, SetSpec
    from .language.tracking import Timeouts, Tracking, ct
    from .link.attach import Link, attach
    from .link.bridge import Bridge, BridgeMode, Fail, bridge, detach_bridge
    from .link.events import Event
    from .link.flows import Flow, FlowCounts, Flows
    from .link.forward import Forwarder, forward
    from .link.inspect import Decide, Inspected, Inspector
    from .link.ledger import Ledger, LedgerRule, ShadowLedger
    from .link.link import Update, open_link
    from .link.pin import pinned_links
    from .link.tally import Forwarding, Totals
    from .meaning.explain import Explanation, Term, Tried, explain
    from .sets.columns import Columns
    from .sets.live import LiveMember, LiveSet
    from .sets.members import Change
    from .sockets.batch import AnyBatch, Batch, Frames
    from .sockets.copied import CopiedBatch
    from .sockets.header_columns import HeaderColumns
    from .sockets.options import Bind, Mode, SocketOptions, Switch, Wait
    from .sockets.sockets import Copies, Group, Sockets
    from .sockets.workers import Workers, WorkerStats
    from .sockets.xsk import SentTimes, Socket, SocketStats

__all__ = [
    "COUNT",
    "DROP",
    "PASS",
    "REDIRECT",
    "REJECT",
    "RETURN",
    "TX",
    "Action",
    "Add",
    "AnyBatch",
    "Attachment",
    "Batch",
    "Bind",
    "Bridge",
    "BridgeMode",
    "Bucket",
    "Built",
    "Chain",
    "ChainSpec",
    "Change",
    "Columns",
    "Compiled",
    "CopiedBatch",
    "Copies",
    "Decide",
    "Device",
    "Entry",
    "Event",
    "Explanation",
    "Expr",
    "Fail",
    "Feed",
    "Field",
    "FieldSpec",
    "Finding",
    "Flow",
    "FlowCounts",
    "Flows",
    "Forward",
    "Forwarder",
    "Forwarding",
    "FrameError",
    "Frames",
    "Got",
    "Goto",
    "Group",
    "Header",
    "HeaderColumns",
    "Inspect",
    "Inspected",
    "Inspector",
    "Jump",
    "Keyed",
    "Ledger",
    "LedgerRule",
    "Limit",
    "Link",
    "LiveMember",
    "LiveSet",
    "LoadedProgram",
    "Log",
    "Mark",
    "Member",
    "Metadata",
    "Mirror",
    "Mode",
    "NotSupported",
    "Number",
    "OnDevice",
    "Pipeline",
    "PipelineError",
    "PipelineWarning",
    "Program",
    "Redirect",
    "Reject",
    "Rule",
    "RuleCount",
    "Sample",
    "SentTimes",
    "Set",
    "SetSpec",
    "ShadowLedger",
    "Socket",
    "SocketOptions",
    "SocketStats",
    "Sockets",
    "SourceLine",
    "Step",
    "Switch",
    "TableInfo",
    "Term",
    "ThreadError",
    "Timeouts",
    "Totals",
    "Tracking",
    "Tried",
    "Update",
    "Verdict",
    "VerifierError",
    "Wait",
    "Where",
    "WorkerStats",
    "Workers",
    "XdpkitError",
    "ah",
    "arp",
    "attach",
    "bridge",
    "compile_pipeline",
    "ct",
    "detach_bridge",
    "dev",
    "dst",
    "dstopts",
    "eth",
    "explain",
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
    "numgen",
    "open_link",
    "payload",
    "pcap",
    "pinned_links",
    "pkt",
    "quota",
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

#: Where each public name lives.  Its module is imported when the name is first used: a command needs few of them.
_MODULES = {
    "compiler": "Compiled TableInfo compile_pipeline",
    "compiler.built": "Built",
    "device.netdev": "Device",
    "kernel.attachment": "Attachment Got",
    "kernel.loaded": "LoadedProgram RuleCount SourceLine",
    "kernel.program": "Program",
    "language.actions": "COUNT DROP PASS REDIRECT REJECT TX Action Forward Inspect Mark Mirror Redirect Reject Step"
    " Verdict",
    "language.chains": "RETURN ChainSpec Goto Jump",
    "language.check": "Finding PipelineWarning",
    "language.devices": "OnDevice dev",
    "language.errors": "FrameError NotSupported PipelineError ThreadError VerifierError Where XdpkitError",
    "language.expr": "Expr Keyed",
    "language.fields": "FieldSpec",
    "language.headers": "Field Header ah arp dst dstopts eth frag geneve gre gtpu hopopts icmp icmp6 inner ip ip6 meta"
    " mpls payload pkt routing sctp src tcp udp vlan vlan2 vxlan",
    "language.counted": "Number numgen quota",
    "language.limits": "Bucket Limit Log Sample limit log sample",
    "language.metadata": "Metadata",
    "language.pcap": "pcap",
    "language.pipeline": "Chain Pipeline load_file",
    "language.rule": "Rule",
    "language.sets": "Add Entry Feed Member Set SetSpec",
    "language.tracking": "Timeouts Tracking ct",
    "link.attach": "Link attach",
    "link.bridge": "Bridge BridgeMode Fail bridge detach_bridge",
    "link.events": "Event",
    "link.flows": "Flow FlowCounts Flows",
    "link.forward": "Forwarder forward",
    "link.inspect": "Decide Inspected Inspector",
    "link.ledger": "Ledger LedgerRule ShadowLedger",
    "link.link": "Update open_link",
    "link.pin": "pinned_links",
    "link.tally": "Forwarding Totals",
    "meaning.explain": "Explanation Term Tried explain",
    "sets.columns": "Columns",
    "sets.live": "LiveMember LiveSet",
    "sets.members": "Change",
    "sockets.batch": "AnyBatch Batch Frames",
    "sockets.copied": "CopiedBatch",
    "sockets.header_columns": "HeaderColumns",
    "sockets.options": "Bind Mode SocketOptions Switch Wait",
    "sockets.sockets": "Copies Group Sockets",
    "sockets.workers": "Workers WorkerStats",
    "sockets.xsk": "SentTimes Socket SocketStats",
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    """A public name (PEP 562), kept so that it is looked up once."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
