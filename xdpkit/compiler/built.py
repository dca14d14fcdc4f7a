"""Pipelines built ahead: one file with the compiled programs and everything needed to run, replay and show them.

The file is a zip archive: ``manifest.json`` (format, name, rules with their conditions, actions and lines, digest,
what each program needs of the kernel), and for each hook an eBPF object and its assembly.  No llvmlite is needed to
load it.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from ..files.output import write_whole
from ..language.actions import Action, Step, Verdict
from ..language.chains import ChainSpec
from ..language.classic import Classic, Instruction, has_loops
from ..language.errors import PipelineError, Where
from ..language.expr import Expr
from ..language.fields import FieldSpec, field_named
from ..language.metadata import kernel_needs
from ..language.pipeline import Pipeline, load_file
from ..language.rule import Rule
from ..language.sets import Entry, Feed, SetSpec
from ..language.tracking import Timeouts, Tracking
from .compile import compile_pipeline
from .compiled import HOOKS, Compiled, TableInfo

__all__ = ["Built", "as_built", "build", "load", "needs", "read", "write"]

FORMAT = 3
#: Most bytes that a built file may unpack to; 65,535 rules in tables take some 20 MiB.
MAX_BYTES = 256 << 20
#: What REJECT needs at XDP.
REJECTS = "Linux 5.18: bpf_xdp_load_bytes"
#: What a program needs of the kernel, by hook.
NEEDS = {
    "xdp": ("Linux 5.9: bpf_link for XDP", "CONFIG_XDP_SOCKETS where rules REDIRECT"),
    "xdp_frags": ("Linux 5.18: XDP with packets of several buffers", "Linux 6.6 and CONFIG_XDP_SOCKETS for REDIRECT"),
    "socket": ("Linux 5.3: bounded loops", "CONFIG_PACKET"),
    "tc": ("Linux 6.6: tcx links",),
}
#: What completing checksums needs of the kernel, at XDP where rules FORWARD or TX.
CHECKSUMS = "Linux 5.18: bpf_xdp_load_bytes"
#: What a program with limits, or with tcpdump strings that loop, needs of the kernel at every hook.
LOOPS = "Linux 5.17: bpf_loop"
#: The exceptions that zipfile, json and the decoder raise on a file that is damaged or of another kind.
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError,
    LookupError, ValueError, TypeError, AttributeError, OverflowError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Built:
    """A pipeline with its compiled programs by hook.  ``folder``: the folder of the files of its sets; None where that
    is the folder of the pipeline's own file."""

    pipeline: Pipeline
    programs: dict[str, Compiled]
    folder: Path | None = None

    def compiled(self, hook: str) -> Compiled:
        """The program for ``hook``; compiled now if it was not built ahead."""
        return self.programs.get(hook) or compile_pipeline(self.pipeline, hook)

    def with_reader_metadata(self, hook: str, names: tuple[str, ...]) -> Built:
        """This pipeline with a program for ``hook`` that writes the metadata ``names`` for readers; the program is
        compiled now unless it is there."""
        found = self.programs.get(hook)
        if found is None or found.reader_metadata != names:
            found = compile_pipeline(self.pipeline, hook, reader_metadata=names)
        return replace(self, programs={**self.programs, hook: found})


def needs(pipeline: Pipeline, hook: str) -> tuple[str, ...]:
    """What the program of ``pipeline`` for ``hook`` needs of the kernel."""
    metadata = pipeline.metadata if hook.startswith("xdp") else {}
    return (
        *NEEDS.get(hook, ()),
        *([LOOPS] if _loops(pipeline) else []),
        *([REJECTS] if "REJECT" in pipeline.verdicts and hook.startswith("xdp") else []),
        *([CHECKSUMS] if hook == "xdp" and not pipeline.verdicts.isdisjoint({"FORWARD", "TX"}) else []),
        *([f"{kernel_needs(metadata)}: {', '.join(metadata)}"] if metadata else []),
    )


def _loops(pipeline: Pipeline) -> bool:
    """Whether the rules need bpf_loop(): limits do, and tcpdump strings that loop."""
    nodes = (node for rule in pipeline.every_rule for node in rule.nodes())
    return bool(pipeline.limits) or any(isinstance(n, Classic) and has_loops(n.instructions) for n in nodes)


def as_built(pipeline: Pipeline | Compiled | Built, shadow: Pipeline | None = None) -> Built:
    """``pipeline`` as a Built: programs that are compiled already are kept, others are compiled when they are needed.
    With ``shadow`` the programs hold both rulesets, so all of them are compiled again.  TypeError for other objects."""
    for argument in (pipeline, *([] if shadow is None else [shadow])):
        if not isinstance(argument, Pipeline | Compiled | Built):
            file = isinstance(argument, str | os.PathLike)
            advice = f": load_file({os.fspath(argument)!r}) reads the pipeline of a file" if file else ""
            raise TypeError(f"{argument!r} is no Pipeline, Compiled or Built{advice}")
    if shadow is not None:
        base = pipeline if isinstance(pipeline, Pipeline) else pipeline.pipeline
        return Built(base.with_shadow(shadow), {}, pipeline.folder if isinstance(pipeline, Built) else None)
    match pipeline:
        case Built():
            return pipeline
        case Compiled():
            return Built(pipeline.pipeline, {pipeline.hook: pipeline})
    return Built(pipeline, {})


def build(pipeline: Pipeline) -> Built:
    """Compile ``pipeline`` for every hook."""
    hooks = [hook for hook in HOOKS if hook != "socket" or pipeline.tracking is None]
    return Built(pipeline, {hook: compile_pipeline(pipeline, hook, assembly=True) for hook in hooks})


def write(built: Built, path: str | Path) -> None:
    """Write ``built`` to a file, whole or not at all."""
    from importlib.metadata import version

    pipe = built.pipeline
    manifest = {
        "format": FORMAT,
        "xdpkit": version("xdpkit"),
        "name": pipe.name,
        "default": _encode(pipe.default),
        "rejects": pipe.rejects.text,
        "where": _encode(pipe.where),
        "rules": [_encode(rule) for rule in pipe.rules],
        "sets": [_encode(spec) for spec in pipe.sets],
        "chains": [_encode(spec) for spec in pipe.chains],
        "tracking": _encode(pipe.tracking),
        "digest": pipe.digest(),
        "tables": {hook: [asdict(table) for table in compiled.tables] for hook, compiled in built.programs.items()},
        "needs": {hook: needs(pipe, hook) for hook in built.programs},
    }
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        _store(archive, "manifest.json", json.dumps(manifest, indent=1).encode())
        for hook, compiled in built.programs.items():
            _store(archive, f"{hook}.o", compiled.object)
            _store(archive, f"{hook}.s", compiled.assembly.encode())
    write_whole(path, file.getvalue())


def _store(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)  # no clock: the same input, the same file


def read(path: str | Path) -> Built:
    """Read a file that :func:`write` made.  OSError if it cannot be read, PipelineError if it is something else."""
    place = Where(str(path), 0)
    data = Path(path).read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_BYTES:
                said = f"it unpacks to more than {MAX_BYTES >> 20} MiB: no built pipeline is so large"
                raise PipelineError(said, place)
            manifest = json.loads(archive.read("manifest.json"))
            if not isinstance(manifest, dict):
                raise TypeError("its manifest is no object")
            if manifest.get("format") != FORMAT:
                raise PipelineError(
                    f"built in format {manifest.get('format')!r}, this xdpkit reads format {FORMAT}: build it again",
                    place,
                )
            pipe = Pipeline(manifest["name"], default=_decode(manifest["default"]), rejects=manifest["rejects"])
            pipe.declared_at(_expect(Where, _decode(manifest["where"])))
            tables = {hook: tuple(TableInfo(**table) for table in found) for hook, found in manifest["tables"].items()}
            sets = tuple(_expect(SetSpec, _decode(spec)) for spec in _expect(list, manifest["sets"]))
            rules = [_expect(Rule, _decode(rule)) for rule in _expect(list, manifest["rules"])]
            chains = [_expect(ChainSpec, _decode(spec)) for spec in _expect(list, manifest["chains"])]
            tracked = _decode(manifest.get("tracking"))
            pipe.restore(rules, sets, chains, None if tracked is None else _expect(Tracking, tracked))
            programs = {
                hook: Compiled(
                    pipe, hook, archive.read(f"{hook}.o"), "", archive.read(f"{hook}.s").decode(), tables=tables[hook]
                )
                for hook in _expect(dict, manifest["needs"])
            }
            digest = pipe.digest()
    except _DAMAGE as error:
        if isinstance(error, PipelineError) and error.where == place:
            raise
        raise PipelineError(f"no pipeline that 'xdpkit build' wrote ({error})", place) from error
    if digest != manifest.get("digest"):
        raise PipelineError("the rules do not have the digest that was noted when it was built", place)
    return Built(pipe, programs, Path(path).parent)


T = TypeVar("T")


def _expect(kind: type[T], value: object) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"a {kind.__name__} is wanted where {type(value).__name__} is")
    return value


def load(path: str | Path) -> Built:
    """A pipeline from a Python file, compiled when a program is needed, or from a built file.  The content of the file
    decides which it is.  Raises OSError and PipelineError, as :func:`read` and :func:`load_file` do."""
    if zipfile.is_zipfile(path):
        return read(path)
    return Built(load_file(path), {})


# ---- values as JSON: {"kind": class name, ...fields}; nothing but the classes below is ever made from a file


def _kinds() -> dict[str, type]:
    classes = (Action, ChainSpec, Entry, Feed, Instruction, Rule, SetSpec, Timeouts, Tracking, Where)
    found: dict[str, type] = {c.__name__: c for c in classes}
    waiting: list[type] = [Action, Expr, Step]
    while waiting:
        below: list[type] = waiting.pop().__subclasses__()
        found |= {kind.__name__: kind for kind in below}
        waiting += below
    return found


def _encode(value: object) -> Any:
    if isinstance(value, FieldSpec):
        return {"kind": "field", "name": value.name}
    if isinstance(value, Verdict):
        return {"kind": "verdict", "name": value.name}
    if isinstance(value, Instruction):
        return {"kind": "Instruction"} | value._asdict()
    if isinstance(value, tuple):
        return [_encode(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, bytes):
        return {"kind": "bytes", "hex": value.hex()}
    if type(value).__name__ in _kinds():
        return {"kind": type(value).__name__} | {f.name: _encode(getattr(value, f.name)) for f in fields(value)}  # type: ignore[arg-type]
    raise TypeError(f"{type(value).__name__} has no form in a built file")


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decode(v) for v in value)
    if not isinstance(value, dict):
        return value
    kind = value["kind"]
    if kind == "field":
        return field_named(value["name"])
    if kind == "verdict":
        return Verdict[value["name"]]
    if kind == "bytes":
        return bytes.fromhex(value["hex"])
    made = _kinds()[kind](**{k: _decode(v) for k, v in value.items() if k != "kind"})
    _check_types(made)
    return made


def _check_types(made: object) -> None:
    """TypeError where a field of ``made`` holds something else than its class declares."""
    kinds: Any = type(made)
    for name, kind in _types(kinds).items():
        if not _fits(getattr(made, name), kind):
            raise TypeError(f"{name!r} of {type(made).__name__} cannot be {type(getattr(made, name)).__name__}")


@cache
def _types(kind: Any) -> dict[str, Any]:
    """The fields of a class of values, with the types that they are declared as."""
    names = {f.name for f in fields(kind)} if is_dataclass(kind) else set(getattr(kind, "__match_args__", ()))
    return {name: hint for name, hint in get_type_hints(kind).items() if name in names}


def _fits(value: object, kind: Any) -> bool:
    """May a field that is declared as ``kind`` hold ``value``?"""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(arguments) == 2 and arguments[1] is ...:
            return all(_fits(item, arguments[0]) for item in value)
        return len(value) == len(arguments) and all(map(_fits, value, arguments))
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return kind is Any or isinstance(value, type(None) if kind is None else kind)
