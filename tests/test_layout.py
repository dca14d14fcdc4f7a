"""Who may import whom: the rooms of the house, from the ground up, and no circle between modules."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import xdpkit

ROOT = Path(xdpkit.__file__).parent
#: The rooms, from the ground up: a module imports from its own room and from those on lower floors.
FLOORS = (
    {"lazy", "terminal"},
    {"logs", "language", "device", "files"},
    {"meaning", "compiler"},
    {"kernel"},
    {"sets", "sockets", "lab"},
    {"link", "doctor"},
    {"replay", "bench"},
    {"firewall"},
    {"cli"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


def imports(module: str) -> Iterator[tuple[str, int]]:
    """(module of xdpkit, line) for each import in ``module``, also those in functions and under TYPE_CHECKING."""
    path = MODULES[module]
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            base = [part for part in base if part]
            for name in (".".join([*base, alias.name]) for alias in node.names):
                yield (name if name in MODULES else ".".join(base)), node.lineno


def room(module: str) -> str:
    return module.split(".", maxsplit=1)[0]


@pytest.mark.parametrize("module", [m for m in MODULES if m not in ("__init__", "__main__", "_core")])
def test_a_module_imports_only_from_its_room_and_from_lower_floors(module: str):
    here = room(module)
    up = [
        f"line {line}: {target}"
        for target, line in imports(module)
        if target and target != "_core" and room(target) != here and FLOOR[room(target)] >= FLOOR[here]
    ]
    assert not up, f"{MODULES[module]} is in room {here!r}, on floor {FLOOR[here]}"


#: A pipeline as users write one.
PIPELINES = {"cli.demo_pipeline"}


@pytest.mark.parametrize("module", [m for m in MODULES if m not in PIPELINES])
def test_modules_import_each_other_by_relative_names_alone(module: str):
    """The tests here read only those, so an absolute import could go up a floor, or close a circle, unseen."""
    absolute = [
        f"line {node.lineno}"
        for node in ast.walk(ast.parse(MODULES[module].read_text()))
        if (isinstance(node, ast.Import) and any(room(alias.name) == "xdpkit" for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and not node.level and room(node.module or "") == "xdpkit")
    ]
    assert not absolute, f"{MODULES[module]} imports xdpkit by its absolute name"


def test_no_modules_import_each_other_in_a_circle():
    """Between rooms and inside them, also by imports in functions."""
    left = {module: {t for t, _ in imports(module) if t in MODULES and t != module} for module in MODULES}
    while free := [
        m for m, targets in left.items() if not targets & left.keys() or m not in set().union(*left.values())
    ]:
        for module in free:
            del left[module]
    assert not left, f"in circles: {', '.join(sorted(left))}"


def test_every_room_says_what_lives_there():
    for path in ROOT.glob("*/__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path} says nothing"


def test_every_public_name_is_found_in_its_module():
    """What type checkers are shown, what ``__all__`` lists and what is imported when it is used are the same names."""
    tree = ast.parse((ROOT / "__init__.py").read_text())
    shown = {
        alias.name: node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }  # fmt: skip
    assert shown == xdpkit._HOMES, "the imports and _MODULES in xdpkit/__init__.py"
    assert sorted(shown) == sorted(xdpkit.__all__)
    assert all(getattr(xdpkit, name) is not None for name in xdpkit.__all__)
