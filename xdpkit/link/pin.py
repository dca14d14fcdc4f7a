"""Links that outlive their process: where the pin of one is, and what another process must know to go on with it.

The bpf_link is pinned in the bpffs, at ``/sys/fs/bpf/xdpkit/links/NAME/link``.  It keeps its program, and the program
its maps: rules, sets, buckets and counters go on whoever comes and goes.  What the kernel does not keep is in
``/run/xdpkit/links/NAME``: ``record`` (the device, the attachment, the ids of program and maps, what earlier programs
counted) and the pipelines themselves, as built files without programs.  Both places are empty after a restart of the
machine, as the devices are.

An update writes ``next`` before the programs are exchanged and ``record`` afterwards, and whichever of the two names
the program that the link has is the one that counts: a process may be killed at any moment.  The counters of the
program before are pinned meanwhile, so that they are not lost either.

Processes take turns by flock(2): ``owner`` is held as long as a process holds the link to change its rules and read its
packets, ``sets`` for each change of a set's members.
"""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..compiler import built as files
from ..compiler.built import Built
from ..files.output import write_whole
from ..kernel.attachment import Attachment
from ..kernel.bpfmap import Map, mount_bpffs
from ..kernel.core import check, ffi, lib
from ..kernel.loaded import read_completed, read_counts
from ..language.errors import PipelineError
from ..sets.columns import Columns
from .presence import namespace_id
from .ruleset import Ruleset
from .tally import RuleTotal, Tally, Totals

__all__ = ["LinkPin", "Record", "Turns", "link_program", "pinned_links"]

BPFFS = "/sys/fs/bpf"
PINS = Path(BPFFS, "xdpkit/links")
RECORDS = Path("/run/xdpkit/links")
FORMAT = 1
_COLUMNS = ("keys", "bits", "action", "timeout")


@dataclass(frozen=True, slots=True)
class Record:
    """What a process that opens a pinned link must know.  ``maps``: ids by name; ``sets``: ids of the outer maps by the
    names of the sets; ``start``: CLOCK_MONOTONIC, seconds; ``device_dropped``: the device's counters at that time;
    ``namespace``: inode number of the network namespace; ``tally``: what earlier programs have counted; ``redirects``:
    the id of the map where forwarded packets are counted; ``shadow``: the pipeline has one."""

    name: str
    device: str
    ifindex: int
    namespace: int
    attachment: Attachment
    hook: str
    queues: int
    spread: int
    prog_id: int
    maps: dict[str, int]
    sets: dict[str, int]
    folder: str
    start: float
    device_dropped: tuple[int, int]
    updates: int
    tally: Tally
    redirects: int | None = None
    shadow: bool = False

    def encode(self) -> str:
        """As JSON."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        counted = {name: asdict(total) for name, total in self.tally.rules.items()}
        fields["attachment"] = asdict(self.attachment)
        fields["tally"] = {
            "totals": asdict(self.tally.totals), "rules": counted, "completed": self.tally.completed,
        }  # fmt: skip
        return json.dumps({"format": FORMAT, **fields})

    @classmethod
    def decode(cls, words: str) -> Record:
        """Read it again.  ValueError for what is none."""
        try:
            fields: dict[str, Any] = json.loads(words)
            if fields.pop("format") != FORMAT:
                raise ValueError("it is of another version of xdpkit")
            got: dict[str, Any] = {
                key: tuple(v) if isinstance(v, list) else v for key, v in fields["attachment"].items()
            }
            tally = Tally()
            tally.totals, tally.completed = Totals(**fields["tally"]["totals"]), fields["tally"]["completed"]
            tally.rules = {name: RuleTotal(**total) for name, total in fields["tally"]["rules"].items()}
            dropped, missed = fields["device_dropped"]
            return cls(**{**fields, "attachment": Attachment(**got), "tally": tally,
                          "device_dropped": (dropped, missed)})  # fmt: skip
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"it is damaged ({error})") from error


class LinkPin:
    """The pin of one link: its place in the bpffs and its records."""

    def __init__(self, name: str):
        """ValueError for a name that is no file's name."""
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}", name):
            raise ValueError(f"pin {name!r}: letters, digits, '_' and '-', at most 63")
        self.name = name
        self.pins, self.records = PINS / name, RECORDS / name
        self._owner = -1

    # Whether it is there, and whose it is.

    @property
    def exists(self) -> bool:
        """Whether a link is pinned under the name.  OSError: EACCES for who may not look."""
        try:
            os.stat(self.pins / "link")
        except FileNotFoundError:
            return False
        return True

    @property
    def is_here(self) -> bool:
        """Whether the link was made in the calling thread's network namespace, as far as its record can be read."""
        with suppress(OSError):
            return self._record("record").namespace == namespace_id()
        return True

    def own(self) -> None:
        """Be the one process that may exchange the rules and read packets, until :meth:`disown`.  OSError: EBUSY names
        the process that is."""
        if self._owner >= 0:
            return
        self.records.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.records / "owner", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.pwrite(fd, str(os.getpid()).encode(), 0)
        except BlockingIOError:
            pid = os.pread(fd, 20, 0).decode(errors="replace")
            os.close(fd)
            raise OSError(errno.EBUSY, f"pinned link {self.name!r} belongs to process {pid}: end it first") from None
        except BaseException:
            os.close(fd)
            raise
        self._owner = fd

    def disown(self) -> None:
        """Let another process be the owner; idempotent."""
        if self._owner >= 0:
            os.close(self._owner)
            self._owner = -1

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Alone among processes, to change members of sets."""
        fd = os.open(self.records / "sets", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    # Pin, and what goes with it.

    def pin(self, link_fd: int, record: Record, ruleset: Ruleset) -> None:
        """Pin a link that has just been attached.  OSError where that cannot be; then nothing is pinned."""
        mount_bpffs(BPFFS)
        try:
            self.pins.mkdir(parents=True, exist_ok=True)
            self.write(record, ruleset)
            check(lib.xk_map_pin(link_fd, str(self.pins / "link").encode()), str(self.pins / "link"))
        except BaseException:
            self.remove()
            raise

    def write(self, record: Record, ruleset: Ruleset) -> None:
        """Write the record of the program that runs, with its pipeline and its shadow's."""
        self._write_files(record, ruleset)
        write_whole(self.records / "record", record.encode())
        for old in self.records.glob("[0-9]*.*"):
            if not old.name.startswith(f"{record.prog_id}."):
                old.unlink(missing_ok=True)
        (self.records / "next").unlink(missing_ok=True)
        (self.pins / "counters").unlink(missing_ok=True)

    def announce(self, record: Record, ruleset: Ruleset, counters_fd: int) -> None:
        """Write the record of a program that will be exchanged for the one that runs, whose counters are pinned."""
        self._write_files(record, ruleset)
        place = self.pins / "counters"
        place.unlink(missing_ok=True)
        check(lib.xk_map_pin(counters_fd, str(place).encode()), str(place))
        write_whole(self.records / "next", record.encode())

    def withdraw(self) -> None:
        """The program that was announced does not come."""
        (self.records / "next").unlink(missing_ok=True)
        (self.pins / "counters").unlink(missing_ok=True)

    def _write_files(self, record: Record, ruleset: Ruleset) -> None:
        self.records.mkdir(parents=True, exist_ok=True)
        pipe = ruleset.pipeline
        files.write(Built(pipe, {}), self._file(record, "pipeline"))
        if pipe.shadowed is not None:
            files.write(Built(pipe.shadowed, {}), self._file(record, "shadow"))
        sources = ruleset.sources
        if sources:
            file = io.BytesIO()
            columns = {f"{part}.{name}": getattr(c, part) for name, c in sources.items() for part in _COLUMNS}
            np.savez(file, allow_pickle=False, **columns)
            write_whole(self._file(record, "sources"), file.getvalue())

    def _file(self, record: Record, kind: str) -> Path:
        return self.records / f"{record.prog_id}.{kind}"

    def remove(self) -> None:
        """Take away the pin and its records; the link goes with the last descriptor of it."""
        for path in (self.pins, self.records):
            shutil.rmtree(path, ignore_errors=True)

    # Opening it again.

    def open_link(self) -> int:
        """A descriptor of the bpf_link.  OSError: ENOENT names the links that there are."""
        if not self.exists:
            names = pinned_links()
            known = f"there is {', '.join(names)}" if names else "none is pinned"
            raise OSError(errno.ENOENT, f"no pinned link {self.name!r}: {known}")
        return check(lib.xk_map_open(str(self.pins / "link").encode()), str(self.pins / "link"))

    def read(self, prog_id: int) -> tuple[Record, Built]:
        """The record and the pipeline of the program that the link has.  OSError: ENOENT where there is none."""
        for name in ("record", "next"):
            with suppress(FileNotFoundError):
                record = self._record(name)
                if record.prog_id == prog_id:
                    if name == "next":
                        record = replace(record, tally=self._interrupted(record.tally))
                    return record, self._pipelines(record)
        raise OSError(
            errno.ENOENT,
            f"pinned link {self.name!r}: {self.records} says nothing of its program {prog_id}, which another tool has "
            f"put there: 'xdpkit firewall detach' or 'rm {self.pins}/link' takes it off",
        )

    def _record(self, name: str) -> Record:
        try:
            return Record.decode((self.records / name).read_text())
        except ValueError as error:
            raise OSError(
                errno.EINVAL, f"{self.records / name}: {error}: detach the link and attach it again"
            ) from None

    def map_ids(self) -> dict[str, int]:
        """The outer maps of the sets as the last record says."""
        with suppress(OSError):
            return self._record("record").sets
        return {}

    def _pipelines(self, record: Record) -> Built:
        try:
            built = files.read(self._file(record, "pipeline"))
            if record.shadow:
                built.pipeline.shadowed = files.read(self._file(record, "shadow")).pipeline
        except PipelineError as error:
            raise OSError(errno.EINVAL, f"pinned link {self.name!r}: {error}") from None
        return replace(built, folder=Path(record.folder))

    def sources(self, record: Record) -> dict[str, Columns]:
        """What the files of members held when they were read, by the names of their sets."""
        found: dict[str, dict[str, Any]] = {}
        with suppress(FileNotFoundError), np.load(self._file(record, "sources"), allow_pickle=False) as archive:
            for key in archive.files:
                part, _, name = key.partition(".")
                found.setdefault(name, {})[part] = archive[key]
        return {name: Columns(**parts) for name, parts in found.items()}

    def _interrupted(self, tally: Tally) -> Tally:
        """The tally of an update whose process ended before it had read the old program's last counts."""
        with suppress(OSError), ExitStack() as stack:
            old = self._record("record")
            pipe = self._pipelines(old).pipeline
            counters = stack.enter_context(Map.open(str(self.pins / "counters")))
            completed = 0
            with suppress(FileNotFoundError):  # no rule forwards
                completed = read_completed(stack.enter_context(Map.open(str(self.pins / "completed"))).fd)
            tally.keep(read_counts(counters.fd, pipe.outcomes), completed)
        return tally


class Turns:
    """How processes take turns with the sets of a pinned link."""

    def __init__(self, pin: LinkPin):
        self._pin = pin
        self.locked: Callable[[], Any] = pin.turn

    def map_id(self, name: str) -> int | None:
        """The outer map of the set of that name as of now; None if it is not known."""
        return self._pin.map_ids().get(name)


def pinned_links(*, here: bool = False) -> list[str]:
    """The names of the pinned links; with ``here``, of those in the calling thread's network namespace.  OSError:
    EACCES for who may not look."""
    try:
        names = sorted(name for name in os.listdir(PINS) if (PINS / name / "link").exists())
    except FileNotFoundError:
        return []
    return [name for name in names if LinkPin(name).is_here] if here else names


def link_program(link_fd: int) -> tuple[int, int]:
    """Index of the device that a bpf_link is on (0: none any more), and the id of its program."""
    index, prog_id = ffi.new("uint32_t *"), ffi.new("uint32_t *")
    check(lib.xk_link_info(link_fd, index, prog_id), "link")
    return int(index[0]), int(prog_id[0])
