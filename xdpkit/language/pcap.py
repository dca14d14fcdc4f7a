"""tcpdump strings as conditions: ``pcap("tcp dst port 443 and net 10/8")``.

libpcap's own compiler reads the string, so the language is exactly that of pcap-filter(7) as the installed libpcap
knows it, names of hosts, services and protocols included (they are looked up once, when the rule is declared).  The
classic BPF program that comes out is kept in a :class:`~xdpkit.language.classic.Classic` node; the compiler translates
it.

libpcap is opened when the first string is compiled, by cffi in ABI mode: nothing is linked, and nothing but these
conditions needs it.
"""

from __future__ import annotations

import ctypes.util
import ipaddress
import re
import threading
from functools import cache
from typing import Any

from .classic import ABS, INTERFACE, LD, PACKET_TYPE, Classic, Instruction
from .devices import device_name
from .errors import NotSupported, PipelineError
from .expr import Expr, here

__all__ = ["pcap"]

_CDEF = """
typedef struct pcap pcap_t;
struct bpf_insn { unsigned short code; unsigned char jt, jf; unsigned int k; };
struct bpf_program { unsigned int bf_len; struct bpf_insn *bf_insns; };
pcap_t *pcap_open_dead(int linktype, int snaplen);
void pcap_close(pcap_t *p);
int pcap_compile(pcap_t *p, struct bpf_program *program, const char *text, int optimize, unsigned int netmask);
void pcap_freecode(struct bpf_program *program);
char *pcap_geterr(pcap_t *p);
const char *pcap_lib_version(void);
"""
DLT_EN10MB = 1
#: tcpdump's own: what a filter that matches returns.
SNAPLEN = 262_144
#: Loads from here ask Linux about the socket buffer, not the packet: SKF_AD_OFF .. SKF_AD_MAX (linux/filter.h).
_ANCILLARY = range(0xFFFF_F000, 0xFFFF_F040)
#: ``ifname NAME``, also written ``on NAME``: libpcap knows it for the logs of pf(4) only.
_IFNAME = re.compile(r"(?<![\w.\\-])(?:ifname|on)\s+(?!\()([^\s()!&|]+)")
_IFINDEX = re.compile(r"(?<![\w.\\-])ifindex\b")
#: "net 10/8": libpcap's grammar knows "net 10" and "net 10.0/8", but takes a plain number before the slash for a syntax
#: error.  Such a string is tried once more with the second octet written.
_ONE_OCTET = re.compile(r"\bnet\s+(\d{1,3})/(\d{1,2})\b")
#: Before version 1.8 pcap_compile() has global state.
_lock = threading.Lock()


@cache
def _libpcap() -> tuple[Any, Any]:
    """cffi's FFI object and the library."""
    from cffi import FFI

    ffi = FFI()
    ffi.cdef(_CDEF)
    for name in ("libpcap.so.0.8", "libpcap.so.1", ctypes.util.find_library("pcap")):
        try:
            if name:
                return ffi, ffi.dlopen(name)
        except OSError:
            continue
    raise NotSupported("tcpdump strings", "libpcap: apt-get install libpcap0.8")


def version() -> str:
    """The libpcap that compiles the strings, in its own words."""
    ffi, lib = _libpcap()
    return str(ffi.string(lib.pcap_lib_version()).decode())


def pcap(text: str, *, netmask: str | None = None, optimize: bool = True) -> Expr:
    """The packet matches the tcpdump string ``text`` (pcap-filter(7), Ethernet); the empty string matches all.

    ``netmask`` ("255.255.255.0") is the network's, for ``ip broadcast``; without it that means 255.255.255.255 and
    0.0.0.0, as it does to tcpdump when it reads a file.  ``net 10/8`` is taken for ``net 10.0/8``.
    ``optimize=False`` leaves out libpcap's optimizer, and with it the finding that a filter can never match; LLVM
    optimizes what remains.

    ``inbound`` and ``outbound`` say whether the packet arrives at the host or leaves it: packets leave at TC egress,
    and arrive at all other hooks.  ``ifname NAME`` is the name of the device where the packet is judged, as
    ``dev.name`` is.

    Raises PipelineError with libpcap's words for a string that it cannot parse or that can never match, and
    NotSupported without libpcap, and for ``ifindex``.
    """
    where = here()
    if not isinstance(text, str) or "\0" in text:
        raise PipelineError(f"pcap() takes a tcpdump string such as 'tcp dst port 443', not {text!r}", where)
    try:
        mask = int(ipaddress.IPv4Address(netmask)) if netmask is not None else 0
    except ValueError:
        raise PipelineError(f"netmask={netmask!r}: an IPv4 mask such as '255.255.255.0' is wanted", where) from None
    interfaces = tuple(dict.fromkeys(device_name(name, "ifname") for name in _IFNAME.findall(text)))
    numbered = _IFNAME.sub(lambda found: f"ifindex {1 + interfaces.index(found[1])}", text)
    try:
        try:
            program = compile_text(numbered, mask=mask, optimize=optimize)
        except ValueError:
            written_out = _ONE_OCTET.sub(r"net \1.0/\2", numbered)
            if written_out == numbered:
                raise
            program = compile_text(written_out, mask=mask, optimize=optimize)
    except ValueError as error:
        raise PipelineError(f"pcap({text!r}): {error}", where) from None
    ancillary = {ins.k for ins in program if ins.operation == LD and ins.mode == ABS and ins.k in _ANCILLARY}
    if not ancillary <= {PACKET_TYPE, INTERFACE} or (INTERFACE in ancillary and _IFINDEX.search(text)):
        said = "a field of the kernel's socket buffer (ifindex): a pipeline knows devices by their names: ifname NAME"
        raise NotSupported(f"{where}: pcap({text!r})", said)
    return Classic(text, program, interfaces if INTERFACE in ancillary else (), PACKET_TYPE in ancillary, where=where)


def compile_text(text: str, *, mask: int = 0, optimize: bool = True) -> tuple[Instruction, ...]:
    """The classic BPF program of ``text``; ValueError with libpcap's words if there is none."""
    ffi, lib = _libpcap()
    with _lock:
        handle = lib.pcap_open_dead(DLT_EN10MB, SNAPLEN)
        if handle == ffi.NULL:
            raise MemoryError("pcap_open_dead")
        try:
            program = ffi.new("struct bpf_program *")
            if lib.pcap_compile(handle, program, text.encode(), int(optimize), mask) != 0:
                raise ValueError(ffi.string(lib.pcap_geterr(handle)).decode(errors="replace"))
            try:
                return tuple(Instruction(i.code, i.jt, i.jf, i.k) for i in program.bf_insns[0 : program.bf_len])
            finally:
                lib.pcap_freecode(program)
        finally:
            lib.pcap_close(handle)
