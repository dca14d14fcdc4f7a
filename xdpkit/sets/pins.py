"""Pinned sets: each has a folder in the bpffs, ``/sys/fs/bpf/xdpkit/sets/NAME``.

In the folder, ``members`` is the outer map that programs use, and ``kind`` is an array of one value, the kind of the
declaration as JSON (it cannot be a file name, because bpffs takes no dots in names, and fields have them).  Processes
lock the folder itself (flock(2)).  Only :meth:`Pin.remove` removes anything.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from ..kernel.bpfmap import ARRAY, Map, mount_bpffs
from ..language.actions import Action, Verdict
from ..language.errors import PipelineError, Where
from ..language.fields import field_named
from ..language.sets import SetSpec

__all__ = ["FOLDER", "Pin", "Written", "none_is_pinned", "pinned_names", "pinned_spec", "private_bpffs"]

BPFFS = "/sys/fs/bpf"
FOLDER = Path(BPFFS, "xdpkit/sets")


@dataclass(frozen=True, slots=True)
class Written(Action):
    """An action of a pinned verdict map, known only by its name; the program that uses the map knows what it does."""

    verdict: Verdict = Verdict.PASS
    text: str = ""

    def __str__(self) -> str:
        return self.text


class Pin:
    """The folder of one pinned set.  Holds a descriptor of it: close it, or use it as a context manager."""

    def __init__(self, name: str):
        """Mount the bpffs and make the folder, unless they are there.  OSError where one of them fails."""
        self.path = FOLDER / name
        self._fd = -1
        mount_bpffs(BPFFS)
        while self._fd < 0:
            self.path.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # another process removed it at this moment
                self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def stands(self) -> bool:
        """Whether the folder is still the one at its path; another process may have removed it meanwhile."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._fd))
        except FileNotFoundError:
            return False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Context manager: holds the lock of the folder against other processes and threads.  Two Pin objects of one
        set must not nest it in one thread."""
        # flock(2) locks between open file descriptions, so each call opens a new one
        fd = os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def open(self, spec: SetSpec) -> Map | None:
        """The pinned outer map; None if there is none yet.  PipelineError if the pinned set is of another kind."""
        if not (self.path / "members").exists():
            return None
        there = pinned_spec(spec.name)
        if there.kind != spec.kind:
            said = f"set {spec.name!r} is pinned as [{there.kind}] and declared here as [{spec.kind}]"
            hint = f"declare it the same, name it otherwise, or remove it: xdpkit set delete {spec.name}"
            raise PipelineError(f"{said}: {hint}", spec.where)
        return Map.open(str(self.path / "members"))

    def keep(self, spec: SetSpec, outer: Map) -> None:
        """Pin a new set.  The kind is pinned first, so that a folder with ``members`` is complete."""
        words = {
            "fields": [f.name for f in spec.fields],
            "intervals": spec.intervals,
            "timeouts": spec.timeouts,
            "actions": [str(a) for a in spec.actions],
        }
        value = json.dumps(words).encode()
        (self.path / "kind").unlink(missing_ok=True)
        with Map.create(ARRAY, "set_kind", 4, len(value), 1) as kind:
            kind.put(bytes(4), value)
            kind.pin(str(self.path / "kind"))
        outer.pin(str(self.path / "members"))

    def remove(self) -> None:
        """Remove the pin; the kernel removes the set with its last user."""
        for name in ("members", "kind"):
            (self.path / name).unlink(missing_ok=True)
        with suppress(OSError):  # another process removes it at the same time
            self.path.rmdir()

    def close(self) -> None:
        """Close the descriptor; the pin stays.  Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Pin:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def private_bpffs() -> str:
    """A warning where /sys/fs/bpf is private to this process, else empty.  In a mount namespace of its own
    (mount_namespaces(7)), as ``ip netns exec`` makes one, /sys/fs/bpf is another bpffs than that of the parent
    processes, so no other process sees the pins that are made here."""
    first = os.getppid()
    for pid in _ancestors():
        try:
            os.stat(f"/proc/{pid}/root/")
        except OSError:
            break  # this process may not look into that one; in a container that includes process 1
        first = pid
    try:
        if os.stat(BPFFS).st_dev == os.stat(f"/proc/{first}/root{BPFFS}").st_dev:
            return ""
    except OSError:
        return ""
    return (
        f"{BPFFS} is private to this process's mount namespace: the machine's pinned sets are out of reach here, and "
        "those pinned here are out of reach elsewhere (ip netns exec does that; nsenter --net=/run/netns/NAME does not)"
    )


def _ancestors() -> Iterator[int]:
    """The parent process, its parent, and so on (proc_pid_stat(5); the name in parentheses may hold any character)."""
    pid = os.getppid()
    while pid > 0:
        yield pid
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return


def pinned_names() -> list[str]:
    """The names of the pinned sets.  OSError: EACCES for users who may not read the bpffs."""
    try:
        return sorted(name for name in os.listdir(FOLDER) if (FOLDER / name / "members").exists())
    except FileNotFoundError:
        return []


def none_is_pinned() -> str:
    """The message where no set is pinned."""
    private = private_bpffs()
    return f"none is pinned; {private}" if private else "none is pinned"


def pinned_spec(name: str) -> SetSpec:
    """The part of a pinned set's declaration that is needed to read and write members.  OSError if there is no such
    set."""
    names = pinned_names()
    if name not in names:
        known = f"there is {', '.join(names)}" if names else none_is_pinned()
        raise OSError(errno.ENOENT, f"no pinned set {name!r}: {known}")
    path = FOLDER / name
    with Map.open(str(path / "kind")) as map:
        words = json.loads(map.get(bytes(4)) or b"{}")
    with Map.open(str(path / "members")) as outer, Map.by_id(int.from_bytes(outer.get(bytes(4)) or b"", "little")) as m:
        capacity = m.info.capacity
    return SetSpec(
        name,
        tuple(field_named(f) for f in words["fields"]),
        Where(str(path), 0),
        capacity=capacity,
        intervals=words["intervals"],
        timeouts=words["timeouts"],
        pinned=True,
        actions=tuple(Written(text=a) for a in words["actions"]),
    )
