"""The public names: every type that one of them takes or returns is public too, and all are typed."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
import textwrap
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import xdpkit

ROOT = Path(xdpkit.__file__).parent
PUBLIC = {name: getattr(xdpkit, name) for name in xdpkit.__all__}
CLASSES = {name: thing for name, thing in PUBLIC.items() if inspect.isclass(thing)}
#: What users call to make one; the others they get from a method, and how those are made is internal.
MADE_BY_USERS = {
    "Compiled", "Forward", "Mark", "Mirror", "Pipeline", "Redirect", "SocketOptions", "FrameError", "NotSupported",
    "PipelineError", "VerifierError", "Where",
}  # fmt: skip
#: Names of types of arrays: strings when the program runs, because numpy is imported when it is used.
ARRAYS = ("U8", "U16", "U32", "U64", "I64", "Flags", "Bytes", "Values")


def hints(thing: object) -> dict[str, object]:
    """The annotations of a class or function, as objects."""
    own = sys.modules[thing.__module__]
    others = [module for name, module in sorted(sys.modules.items()) if name.startswith("xdpkit")]
    names = {name: value for module in (typing, *others) for name, value in vars(module).items()}
    names |= PUBLIC | vars(own)  # of two classes of one name, the public one is meant unless a module has its own
    # for type checkers alone: neither scapy nor numpy is imported before it is used
    names |= {"ScapyPacket": object} | dict.fromkeys(ARRAYS, np.ndarray)
    names |= {"Packets": Sequence[bytes] | np.ndarray, "npt": npt}
    return typing.get_type_hints(thing, names, {})


def parts(annotation: object) -> Iterator[object]:
    """The classes that an annotation is made of."""
    if isinstance(annotation, list | tuple):
        for part in annotation:
            yield from parts(part)
    elif typing.get_origin(annotation) is not None:
        yield from parts(typing.get_origin(annotation))
        yield from parts(typing.get_args(annotation))
    elif isinstance(annotation, types.UnionType):
        yield from parts(annotation.__args__)
    else:
        yield annotation


def functions(name: str, thing: type) -> Iterator[tuple[str, object]]:
    """Public methods and properties of a class, and what it is called with where users make it."""
    for member, value in inspect.getmembers(thing):
        if member.startswith("_") and not (member == "__init__" and name in MADE_BY_USERS):
            continue
        if isinstance(value, property):
            yield member, value.fget
        elif inspect.isfunction(value) or inspect.ismethod(value):
            yield member, value


def signatures() -> Iterator[tuple[str, object]]:
    """(place, annotation) of every public name."""
    for name, thing in PUBLIC.items():
        found = {name: thing}
        if inspect.isclass(thing):
            found = {f"{name}.{member}": function for member, function in functions(name, thing)}
            yield from ((f"{name}.{k}", v) for k, v in hints(thing).items() if not k.startswith("_"))
        for place, function in found.items():
            if inspect.isroutine(function) and function.__module__.startswith("xdpkit"):
                yield from ((f"{place}({what})", annotation) for what, annotation in hints(function).items())


def test_every_type_that_a_public_name_takes_or_returns_is_public():
    public = set(map(id, PUBLIC.values()))
    internal = {
        f"{place}: {part.__module__}.{part.__qualname__}"
        for place, annotation in signatures()
        for part in parts(annotation)
        if inspect.isclass(part) and part.__module__.startswith("xdpkit") and id(part) not in public
    }
    assert not internal


@pytest.mark.parametrize("name", sorted(n for n, t in PUBLIC.items() if inspect.isclass(t) or inspect.isfunction(t)))
def test_a_public_name_and_its_members_say_what_they_are(name):
    thing = PUBLIC[name]
    silent = [] if inspect.getdoc(thing) else [name]
    for member, function in functions(name, thing) if inspect.isclass(thing) else ():
        ours = (function.__module__ or "").startswith("xdpkit")
        if ours and member != "__init__" and not inspect.getdoc(getattr(thing, member)):  # its own or inherited
            silent.append(f"{name}.{member}")
    assert not silent


def of_public(symbol: str) -> bool:
    """Whether a symbol, by its whole name, is a public name, or a member of one that is not underscored."""
    homes = {f"{t.__module__}.{t.__qualname__}": n for n, t in CLASSES.items()} | {f"xdpkit.{n}": n for n in PUBLIC}
    path = symbol.split(".")
    for cut in range(len(path), 1, -1):
        home = homes.get(".".join(path[:cut]))
        if home is not None:
            return path[cut:] != ["__init__"] or home in MADE_BY_USERS
    return False


@pytest.mark.slow
def test_the_types_of_every_public_name_are_whole(tmp_path):
    command = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable, "--outputjson"]
    done = subprocess.run(
        [*command, "--verifytypes", "xdpkit", "--ignoreexternal"],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT.parent), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    report = json.loads(done.stdout)["typeCompleteness"]
    assert report["pyTypedPath"] == str(ROOT / "py.typed")
    symbols = [symbol for symbol in report["symbols"] if symbol["isExported"] and of_public(symbol["name"])]
    assert {f"xdpkit.{name}" for name in PUBLIC} <= {symbol["name"] for symbol in symbols}
    vague = {
        symbol["name"]: " ".join(d["message"] for d in symbol["diagnostics"])[:150]
        for symbol in symbols
        if not symbol["isTypeKnown"] or symbol["isTypeAmbiguous"]
    }
    assert not vague, f"{len(vague)} of {len(symbols)}: {json.dumps(vague, indent=1)}"


def own_errors(function: object) -> set[str]:
    """The classes of errors that the body of a function raises itself."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))  # type: ignore[arg-type]
    raised = (node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise))
    calls = (error.func if isinstance(error, ast.Call) else error for error in raised)
    return {call.id for call in calls if isinstance(call, ast.Name) and call.id[0].isupper()}


def described(name: str, thing: object) -> Iterator[tuple[str, object, str]]:
    """A public function, or the public methods of a class, each with the text that must list its errors."""
    if inspect.isfunction(thing):
        yield name, thing, thing.__doc__ or ""
    for member, value in vars(thing).items() if inspect.isclass(thing) else ():
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        made = member in ("__init__", "__post_init__") and name in MADE_BY_USERS
        generated = inspect.isfunction(function) and function.__code__.co_filename == "<string>"  # of a dataclass
        if inspect.isfunction(function) and not generated and (made or not member.startswith("_")):
            yield f"{name}.{member}", function, f"{function.__doc__}{thing.__doc__ if made else ''}"


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_the_docstring_of_a_public_call_names_the_errors_that_it_raises(name):
    #: What Python's own protocols raise (a name that is not there, an index beyond the end), and what cannot happen.
    implied = {"AttributeError", "IndexError", "AssertionError", "NotImplementedError"}
    for label, function, text in described(name, PUBLIC[name]):
        missing = {error for error in own_errors(function) - implied if error not in text}
        assert not missing, f"{label} raises {', '.join(sorted(missing))}, and its docstring does not say so"
