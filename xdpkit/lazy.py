"""Packages that are known from the start and run when they are needed.

``import numpy`` takes longer than attaching a pipeline that has no use for it, and ``import pyroute2`` runs all of it
where the modules of messages are enough.
"""

from __future__ import annotations

import sys
import threading
from importlib import import_module
from importlib.util import find_spec, module_from_spec

__all__ = ["put_in_place"]

#: One thread runs a package, the others wait for it.
_running = threading.RLock()


def put_in_place(name: str, *, parts: bool = False) -> None:
    """Make the package ``name`` known to all imports of this process without running its ``__init__``, which is run for
    whoever first asks it for a name.  ``parts``: its modules are imported without that.  A package that somebody has
    imported stays as it is.  ModuleNotFoundError if there is none."""
    if name in sys.modules:
        return
    spec = find_spec(name)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    loader, package = spec.loader, module_from_spec(spec)
    state = "put in place"
    path = package.__path__
    if not parts:  # whoever imports one of its modules asks for it, and with that the package is run
        del package.__path__

    def lookup(wanted: str) -> object:
        nonlocal state
        if parts and not wanted.startswith("__") and find_spec(f"{name}.{wanted}") is not None:
            return import_module(f"{name}.{wanted}")
        with _running:
            if state == "put in place":
                state, package.__path__ = "running", path
                try:
                    loader.exec_module(package)
                except BaseException:
                    state = "put in place"
                    raise
                state = "run"
                if package.__dict__.get("__getattr__") is lookup:
                    del package.__dict__["__getattr__"]
            elif state == "running":  # it asks itself
                raise AttributeError(f"module {name!r} has no attribute {wanted!r} yet", name=wanted, obj=package)
        return getattr(package, wanted)

    package.__dict__["__getattr__"] = lookup  # PEP 562
    sys.modules[name] = package
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, package)
