"""Where pinned sets are: a folder each in the bpffs, ``/sys/fs/bpf/xdpkit/sets/NAME``.

``members`` is the outer map that programs use; ``kind`` an array of one value, the declaration's kind as JSON: bpffs
takes no dots in names, fields have them.  The folder itself is what processes lock (flock(2)).  Nothing is taken away
unless that is asked for: :meth:`Pin.remove`.
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
    """An action of a pinned verdict map by its name alone: what it does, the program that uses the map knows."""

    verdict: Verdict = Verdict.PASS
    text: str = ""

    def __str__(self) -> str:
        return self.text


class Pin:
    """The folder of one pinned set.  Holds a descriptor of it: close it, or use it as a context manager."""

    def __init__(self, name: str):
        """Make the folder if need be, and mount the bpffs.  OSError where that cannot be."""
        self.path = FOLDER / name
        self._fd = -1
        mount_bpffs(BPFFS)
        while self._fd < 0:
            self.path.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # removed by somebody in this moment
                self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def stands(self) -> bool:
        """Whether the folder is (still) the one at its path: it may have been removed meanwhile."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._fd))
        except FileNotFoundError:
            return False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone among processes and threads; not to be nested by different Pin objects of one set."""
        # a descriptor of its own each time: flock(2) holds between open file descriptions
        fd = os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def open(self, spec: SetSpec) -> Map | None:
        """The outer map that is pinned, None if there is none yet; PipelineError if it is of another kind."""
        if not (self.path / "members").exists():
            return None
        there = pinned_spec(spec.name)
        if there.kind != spec.kind:
            said = f"set {spec.name!r} is pinned as [{there.kind}] and declared here as [{spec.kind}]"
            hint = f"declare it the same, name it otherwise, or remove it: xdpkit set delete {spec.name}"
            raise PipelineError(f"{said}: {hint}", spec.where)
        return Map.open(str(self.path / "members"))

    def keep(self, spec: SetSpec, outer: Map) -> None:
        """Pin a new set, its kind first: where ``members`` is, the set is whole."""
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
        """Unpin: the set goes with its last user."""
        for name in ("members", "kind"):
            (self.path / name).unlink(missing_ok=True)
        with suppress(OSError):  # somebody else removes it too
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
    """Empty, or that pins made and found here are nobody else's: /sys/fs/bpf is another one than that of the processes
    above this one, in a mount namespace of its own (mount_namespaces(7)), as ``ip netns exec`` makes one."""
    first = os.getppid()
    for pid in _ancestors():
        try:
            os.stat(f"/proc/{pid}/root/")
        except OSError:
            break  # not ours to look into, process 1 in a container among them
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
    """Parent, its parent, and so on (proc_pid_stat(5): the name in parentheses may hold anything)."""
    pid = os.getppid()
    while pid > 0:
        yield pid
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return


def pinned_names() -> list[str]:
    """The names of the pinned sets.  OSError: EACCES for who may not look."""
    try:
        return sorted(name for name in os.listdir(FOLDER) if (FOLDER / name / "members").exists())
    except FileNotFoundError:
        return []


def none_is_pinned() -> str:
    """What to say where no set is pinned."""
    private = private_bpffs()
    return f"none is pinned; {private}" if private else "none is pinned"


def pinned_spec(name: str) -> SetSpec:
    """The declaration behind a pinned set, as far as its members need it.  OSError if there is none."""
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
