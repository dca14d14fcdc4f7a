"""A pipeline's program in the kernel, whoever loaded it: its counters, its maps and its line info."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..language.actions import Verdict
from ..language.errors import Where
from ..language.pipeline import MATRIX, Pipeline
from ..language.rule import Rule
from .core import check, ffi, lib, text

__all__ = ["RINGS", "LoadedProgram", "PinnedProgram", "RuleCount", "SourceLine", "read_counts"]

#: The rings of bpf/copies.h that a program may have.
RINGS = ("copies", "mirrored", "events")


@dataclass(frozen=True, slots=True)
class RuleCount:
    """Packets and bytes that a rule took, or that passed it, since the program was loaded; ``no_socket`` of them were
    REDIRECT or FORWARD verdicts that fell back because no socket or device was there; ``failed``: steps that could not
    be done because a set or the ring to user space was full."""

    rule: Rule
    packets: int
    bytes: int
    no_socket: int
    failed: int


@dataclass(frozen=True, slots=True)
class SourceLine:
    """``instruction`` (index in the translated program) was compiled from ``where``, which reads ``text``."""

    instruction: int
    where: Where
    text: str


def read_counts(fd: int, rules: Sequence[Rule]) -> tuple[RuleCount, ...]:
    """The counters of ``rules``, summed over CPUs, from the map of a program's counters."""
    words = _words(fd, len(rules))
    return tuple(RuleCount(r, *words[4 * i : 4 * i + 4]) for i, r in enumerate(rules))


def read_completed(fd: int) -> int:
    """The checksums that a program has completed, from the map where it counts them."""
    out = ffi.new("uint64_t[]", 1)
    check(lib.xk_counters(fd, 1, 1, out), "completed")
    return int(out[0])


def _words(fd: int, n: int) -> Any:
    out = ffi.new("uint64_t[]", 4 * n)
    check(lib.xk_counters(fd, n, 4, out), "counters")
    return out


class LoadedProgram:
    """A program that is in the kernel: its counters, line info and test runs.  A subclass says how the program and its
    maps are found."""

    def __init__(self, pipeline: Pipeline, hook: str, *, queues: int = 1, spread: int = 1):
        self.pipeline: Pipeline = pipeline
        self.hook: str = hook
        self.queues: int = max(1, queues)
        self.spread: int = spread
        self.explains: bool = False
        self._rules = pipeline.every_rule
        self._devices = pipeline.devices
        self._timed = pipeline.is_timed or bool(self._devices)

    @property
    def fd(self) -> int:
        """File descriptor of the program, owned by this object."""
        raise NotImplementedError

    @property
    def handle(self) -> Any:
        """The loaded object (struct xk_program), owned by this one.  ValueError if another process has loaded it."""
        raise ValueError(f"{self.pipeline.name}: another process loaded this program, so its packets are not read here")

    def map_fd(self, name: str) -> int:
        """File descriptor of a map, owned by this object.  OSError if the program has no such map."""
        raise NotImplementedError

    def has_map(self, name: str) -> bool:
        """Whether the program has a map of that name."""
        raise NotImplementedError

    def maps(self) -> dict[str, int]:
        """File descriptors, owned by this object, of all maps of the program by their names."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the program and its maps; idempotent."""
        raise NotImplementedError

    @property
    def is_xdp(self) -> bool:
        """Whether it is a program for XDP, with or without packets of several buffers."""
        return self.hook in ("xdp", "xdp_frags")

    @property
    def frags(self) -> bool:
        """Whether it takes packets of several buffers."""
        return self.hook == "xdp_frags"

    def rings(self) -> dict[str, int]:
        """The maps through which copies of packets go to user space."""
        names = [ring + part for ring in RINGS for part in ("", "_reader", "_count")]
        return {name: self.map_fd(name) for name in names if self.has_map(name)}

    def counts(self) -> tuple[RuleCount, ...]:
        """The counters of every rule and, as the last, of the default, summed over CPUs."""
        return self._counted(len(self.pipeline.outcomes))

    def shadow_counts(self) -> tuple[tuple[RuleCount, ...], dict[tuple[Verdict, Verdict], int]]:
        """The counters of the shadow's rules, and the number of packets for each pair of verdicts: the one that the
        live rules gave, and the one that the shadow would have given."""
        first, words = len(self.pipeline.outcomes), self._words(len(self._rules) + MATRIX)
        pairs = {
            (mine, theirs): int(words[4 * (len(self._rules) + 8 * mine + theirs)])
            for mine in Verdict
            for theirs in Verdict
        }
        return self._counted(len(self._rules))[first:], {pair: n for pair, n in pairs.items() if n}

    def completed(self) -> int:
        """TCP and UDP checksums that the program has completed, which senders had left to their device."""
        return read_completed(self.map_fd("completed")) if self.is_xdp and self.has_map("completed") else 0

    def _counted(self, n: int) -> tuple[RuleCount, ...]:
        return read_counts(self.map_fd("counters"), self._rules[:n])

    def _words(self, n: int) -> Any:
        return _words(self.map_fd("counters"), n)

    def lines(self) -> tuple[SourceLine, ...]:
        """The line info that the kernel keeps: which source line each instruction came from."""
        room = 65536
        out = ffi.new("struct xk_line[]", room)
        n = check(lib.xk_program_lines(self.fd, out, room), "line info")
        return tuple(SourceLine(o.instruction, Where(text(o.file), o.line), text(o.text)) for o in out[0:n])

    def info(self) -> dict[str, int]:
        """The kernel's ``bpf_prog_info``: id, xlated_bytes, jited_bytes, verified_instructions."""
        out = ffi.new("struct xk_program_info *")
        check(lib.xk_program_info(self.fd, out), "program info")
        return {name: getattr(out, name) for name in ("id", "xlated_bytes", "jited_bytes", "verified_instructions")}

    def test_run(self, packet: bytes, *, repeat: int = 1) -> tuple[int, int]:
        """BPF_PROG_TEST_RUN on a copy of ``packet`` (14 bytes at least): what the program returned (an XDP verdict, or
        the bytes a socket filter keeps) and the mean run time in ns."""
        verdict, ns = ffi.new("uint32_t *"), ffi.new("uint32_t *")
        check(
            lib.xk_test_run(self.fd, packet, len(packet), repeat, ffi.NULL, ffi.NULL, verdict, ns),
            f"test run on {len(packet)} bytes",
        )
        return verdict[0], ns[0]

    def judge(
        self, packet: bytes, *, now_ns: int = 0, random: int = 0, devices: Collection[str] = ()
    ) -> tuple[Rule, Verdict]:
        """Which rule takes ``packet``, and the verdict it declares: by a test run, which a program that ``explains``
        answers itself, with the clock, the random bits and the names of the device of the call; else it is read off the
        counters around the run."""
        if self.explains:
            if self._timed:
                found = sum(1 << n for n, name in enumerate(self._devices) if name in devices)
                values = ffi.new("uint64_t[3]", [now_ns, random, found])
                check(lib.xk_map_update(self.map_fd("test_input"), ffi.new("uint32_t *"), values, 0), "clock")
            rule = self._rules[self.test_run(packet)[0] >> 16]
            return rule, rule.action.verdict
        before = self.counts()
        self.test_run(packet)
        (hit,) = [
            b.rule for a, b in zip(before, self.counts(), strict=True) if a.packets != b.packets and not a.rule.goes_on
        ]
        return hit, hit.action.verdict


class PinnedProgram(LoadedProgram):
    """The program behind a pinned bpf_link, which another process has loaded, and may be still there."""

    def __init__(self, pipeline: Pipeline, hook: str, prog_id: int, map_ids: Mapping[str, int], *, queues: int = 1,
                 spread: int = 1):  # fmt: skip
        """Open program and maps by their ids.  OSError: ENOENT for a program that is gone, EPERM without
        CAP_SYS_ADMIN."""
        super().__init__(pipeline, hook, queues=queues, spread=spread)
        self._fd = check(lib.xk_program_by_id(prog_id), f"program {prog_id}")
        self._maps: dict[str, int] = {}
        try:
            for name, number in map_ids.items():
                with suppress(FileNotFoundError):  # the program does not use it, so it went with its process
                    self._maps[name] = check(lib.xk_map_by_id(number), f"map {name}")
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        state = "closed" if self._fd < 0 else "pinned"
        return f"<PinnedProgram {self.pipeline.name}: {self.hook}, {len(self._rules)} rules, {state}>"

    @property
    def fd(self) -> int:
        """File descriptor of the program, owned by this object."""
        return self._fd

    def map_fd(self, name: str) -> int:
        """File descriptor of a map, owned by this object.  KeyError if the program has no such map."""
        return self._maps[name]

    def has_map(self, name: str) -> bool:
        """Whether the program has a map of that name."""
        return name in self._maps

    def maps(self) -> dict[str, int]:
        """File descriptors, owned by this object, of all maps of the program by their names."""
        return dict(self._maps)

    def close(self) -> None:
        """Close the descriptors; program and maps stay as long as the pin does.  Idempotent."""
        while self._maps:
            with suppress(OSError):
                os.close(self._maps.popitem()[1])
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
