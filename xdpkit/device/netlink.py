"""The ground under every netlink question: pyroute2 with our errors, and away from a running asyncio loop."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from pyroute2 import IPRoute
from pyroute2.ethtool.ioctl import EthtoolError, NoSuchDevice
from pyroute2.netlink.exceptions import NetlinkError

__all__ = ["NetlinkError", "iproute", "oserror", "outside_loop"]

T = TypeVar("T")


def outside_loop(call: Callable[[], T]) -> T:
    """Run `call`, which uses pyroute2, also where an asyncio loop is running (Jupyter, an async application).

    pyroute2 0.9 drives a loop of its own, and a thread can run only one. There the call runs in a fresh
    thread: a thread inherits the network namespace of the one that started it.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return call()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


@contextmanager
def oserror(doing: str) -> Iterator[None]:
    """Turn pyroute2's exceptions, and an OSError that only has its number, into one that says what failed."""
    try:
        yield
    except NetlinkError as error:
        raise OSError(error.code, f"{doing}: {os.strerror(error.code)}") from error
    except EthtoolError as error:
        code = errno.ENODEV if isinstance(error, NoSuchDevice) else errno.EOPNOTSUPP
        raise OSError(code, f"{doing}: {os.strerror(code)}") from error
    except OSError as error:
        if error.errno is None or error.strerror != os.strerror(error.errno):
            raise
        raise OSError(error.errno, f"{doing}: {error.strerror}") from error


@contextmanager
def iproute(doing: str) -> Iterator[Any]:
    """An IPRoute in this thread's namespace, with its errors as OSError; to be used in `outside_loop`."""
    with oserror(doing), IPRoute() as ip:
        yield ip
