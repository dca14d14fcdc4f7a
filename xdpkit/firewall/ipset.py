"""Sets of ``ipset save`` as declarations: each is read, with its members, from the file itself."""

from __future__ import annotations

import re
from itertools import pairwise

from .nft import NftError
from .nft_rules import RESERVED, identifier, literal

__all__ = ["declarations"]

#: What a field of an ipset type is here, by the family.
_FIELDS = {
    "ip": {"inet": "ip.src", "inet6": "ip6.src"},
    "net": {"inet": "ip.src", "inet6": "ip6.src"},
    "port": {"inet": "tcp.dport", "inet6": "tcp.dport"},
    "mac": {"inet": "eth.src", "inet6": "eth.src"},
    "mark": {"inet": "meta.mark", "inet6": "meta.mark"},
}


def declarations(text: str, source: str) -> tuple[list[str], list[str]]:
    """Python lines that declare the sets of ``text``, to be read from the file ``source``; and what is not declared,
    with the reason.  NftError if it is no output of ``ipset save``."""
    lines, refused, taken = [], [], set(RESERVED)
    creates = [words for line in text.splitlines() if (words := line.split())[:1] in (["create"], ["-N"])]
    if not creates or any(len(words) < 3 for words in creates):
        raise NftError("this is no output of ipset save: there is no line `create NAME TYPE`")
    for _, name, kind, *options in creates:
        given = dict(pairwise(options))
        family = given.get("family", "inet")
        method, _, parts = kind.partition(":")
        names = parts.split(",")
        unknown = [part for part in names if part not in _FIELDS]
        if unknown or method not in ("hash", "bitmap") or family not in ("inet", "inet6"):
            refused.append(f"{name}: sets of the type {kind} are not here")
            continue
        fields = [_FIELDS[part][family] for part in names]
        if len(fields) == 3 and fields[0] == fields[2]:
            fields[2] = fields[2].replace("src", "dst")
        if "net" in names[:-1]:
            refused.append(f"{name}: {kind} has prefixes in front; here they stand in the last field only")
            continue
        variable = identifier(name)
        while variable in taken:
            variable += "_"
        taken.add(variable)
        nets = names[-1] == "net"
        more = [] if nets == (len(fields) == 1 and fields[0] in ("ip.src", "ip6.src")) else [f"intervals={nets}"]
        more += [f"capacity={given['maxelem']}"] if re.fullmatch(r"[1-9]\d*", given.get("maxelem", "")) else []
        more += ["timeouts=True"] if "timeout" in given else []
        arguments = ", ".join([literal(name), *fields, *more, f"source={literal(source)}"])
        lines.append(f"{variable} = pipe.set({arguments})")
    return lines, refused
