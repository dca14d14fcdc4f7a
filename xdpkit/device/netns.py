"""Anonymous network namespaces: only a file descriptor holds them, so the kernel removes them when their owner ends.

Nothing is mounted under /var/run/netns. When the last descriptor is closed and the last process inside has ended, by
any signal, the kernel removes the namespace with its veth pairs. setns(2) and unshare(2) act on one thread: the other
threads of the process stay where they are; threads and processes that are started inside begin inside.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .netlink import iproute, outside_loop

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_OWN = "/proc/thread-self/ns/net"
_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """A new network namespace with `lo` up and, unless `ipv6`, no IPv6 (it would send on its own account).

    `with namespace:` moves the calling thread inside and back; it nests. `fd` is the descriptor that keeps
    the namespace. Needs CAP_SYS_ADMIN: PermissionError says so.
    """

    def __init__(self, name: str = "", *, ipv6: bool = False) -> None:
        self.name = name
        self.fd = _elsewhere(_new)
        self._back = threading.local()
        self._children: list[subprocess.Popen[Any]] = []
        try:
            with self:
                if not ipv6:
                    _disable_ipv6()
                outside_loop(_raise_lo)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Namespace:
        if self.fd < 0:
            raise OSError(errno.EBADF, f"namespace {self.name!r} is closed")
        back = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _call("setns", self.fd, _CLONE_NEWNET)
        except OSError:
            os.close(back)
            raise
        self._back.__dict__.setdefault("stack", []).append(back)
        return self

    def __exit__(self, *_: object) -> None:
        back = self._back.stack.pop()
        try:
            _call("setns", back, _CLONE_NEWNET)
        finally:
            os.close(back)

    def __repr__(self) -> str:
        return f"<Namespace {self.name!r} {'closed' if self.fd < 0 else self.path}>"

    @property
    def path(self) -> str:
        """For a person: `nsenter --net=PATH ip addr` works while this process lives."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def popen(self, args: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a command inside. `close()` kills it, and so does the kernel when the thread that started it
        ends (setpriv --pdeathsig, from util-linux): it cannot outlive a killed process."""
        with self:
            child = subprocess.Popen(_mortal(args), **options)
        self._children.append(child)
        return child

    def run(self, args: Sequence[str], *, check: bool = True, **options: Any) -> subprocess.CompletedProcess[Any]:
        """`subprocess.run` inside; unless `check=False`, a failure raises subprocess.CalledProcessError."""
        with self:
            return subprocess.run(_mortal(args), check=check, **options)

    def close(self) -> None:
        """Kill what `popen` started and let go of the namespace; again is harmless."""
        for child in self._children:
            child.kill()
            child.wait()
        self._children.clear()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _new() -> int:
    _call("unshare", _CLONE_NEWNET)
    return os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)


def _elsewhere(call: Callable[[], T]) -> T:
    """Run `call` in a new thread, so that a change of namespace affects no other code."""
    got: list[T] = []
    failed: list[BaseException] = []

    def body() -> None:
        try:
            got.append(call())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return got[0]


def _call(function: str, *args: int) -> None:
    if getattr(_libc, function)(*args) == 0:
        return
    code = ctypes.get_errno()
    if code == errno.EPERM:
        raise PermissionError(code, f"{function} of a network namespace needs CAP_SYS_ADMIN: run as root")
    raise OSError(code, f"{function} of a network namespace: {os.strerror(code)}")


def _disable_ipv6() -> None:
    """Turn IPv6 off in this thread's namespace: /proc/sys/net shows that one. A kernel without IPv6 has no such
    file."""
    for scope in ("all", "default"):
        knob = Path("/proc/sys/net/ipv6/conf", scope, "disable_ipv6")
        if knob.exists():
            knob.write_text("1")


def _raise_lo() -> None:
    with iproute("raise lo") as ip:
        ip.link("set", index=socket.if_nametoindex("lo"), state="up")


def _mortal(args: Sequence[str]) -> list[str]:
    if shutil.which(args[0]) is None:
        raise FileNotFoundError(errno.ENOENT, f"no command {args[0]!r}: install it or correct PATH", args[0])
    return ["setpriv", "--pdeathsig", "KILL", "--", *args]
