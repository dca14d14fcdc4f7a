"""Facts about network devices and namespaces, read and set through netlink and ethtool (pyroute2): names, queues, MTU,
features, NAPI, which CPU a queue belongs to.  It imports nothing of xdpkit.

``import pyroute2`` imports all of it (its databases, Plan 9, asyncio), four times what a command that attaches a
pipeline imports itself.  The modules of messages and of the ethtool ioctl need nothing of that, so the packages above
them are put in place here without running them.  Whoever asks such a package for a name gets it: then it is run.
"""

from __future__ import annotations

import sys
import threading
from importlib import import_module
from importlib.util import find_spec, module_from_spec

_running = threading.RLock()


def _put_in_place(name: str) -> None:
    """Make the package known without running its ``__init__``, unless somebody has imported it."""
    if name in sys.modules:
        return
    spec = find_spec(name)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    loader, package = spec.loader, module_from_spec(spec)

    def lookup(wanted: str) -> object:
        if not wanted.startswith("__") and find_spec(f"{name}.{wanted}") is not None:
            return import_module(f"{name}.{wanted}")
        with _running:
            if package.__dict__.pop("__getattr__", None):
                loader.exec_module(package)
        return getattr(package, wanted)

    package.__dict__["__getattr__"] = lookup  # PEP 562
    sys.modules[name] = package
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, package)


_put_in_place("pyroute2")
_put_in_place("pyroute2.ethtool")
