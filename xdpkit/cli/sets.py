"""``xdpkit set``: pinned sets from the shell, while programs use them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..language.errors import PipelineError
from ..terminal import notice, print_line, visible

if TYPE_CHECKING:
    from ..language.sets import SetSpec
    from ..sets.columns import Columns, Source
    from ..sets.live import Change, LiveMember, LiveSet

sets = typer.Typer(
    name="set",
    help="List, show and change pinned sets (pipe.set(..., pinned=True)) while programs look packets up in them.",
    epilog="Example: xdpkit set add blocked 192.0.2.7 --timeout 1h",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A pinned set: see xdpkit set list.", show_default=False)]
Members = Annotated[
    list[str] | None, typer.Argument(metavar="[MEMBER]...", help='As in "192.0.2.0/24" or "192.0.2.1 . 443".')
]
File = Annotated[
    str, typer.Argument(metavar="FILE", help="A list, ipset save, CSV, JSON or nft -j; - for standard input.")
]
FromFile = Annotated[str, typer.Option("--file", "-f", metavar="FILE", help="Members from a file; - for stdin.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Lenient = Annotated[
    bool,
    typer.Option("--lenient", help="A list as others publish it: skip what is no address, and say what was skipped."),
]
AllowEmpty = Annotated[
    bool, typer.Option("--allow-empty", help="Take a file without members, which removes all there are.")
]


def _seconds(value: str) -> float:
    from ..sets.files import seconds

    try:
        return seconds(value)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


@sets.command("list")
def list_sets(as_json: AsJson = False) -> None:
    """Every pinned set, how full it is, and its kind.

    Example: xdpkit set list
    """
    from ..sets.pins import none_is_pinned, pinned_names, pinned_spec

    rows: list[dict[str, Any]] = []
    for name in pinned_names():
        with _open(pinned_spec(name)) as live:
            rows.append({"name": name, "members": len(live), "capacity": live.capacity, "kind": live.spec.kind})
    if as_json:
        print_line(json.dumps(rows))
        return
    if not rows:
        notice(none_is_pinned())
    wide = max([len("name"), *(len(r["name"]) for r in rows)])
    if rows:
        print_line(f"{'name':<{wide}}  {'members':>12}  {'capacity':>12}  kind")
    for r in rows:
        print_line(f"{r['name']:<{wide}}  {r['members']:>12,}  {r['capacity']:>12,}  {r['kind']}")


@sets.command()
def show(name: Name, as_json: AsJson = False) -> None:
    """Print the members, one a line.

    With the time they have left and their action; replace and sync read this again.

    Example: xdpkit set show blocked > blocked.txt
    """
    from ..sets.pins import pinned_spec

    with _open(pinned_spec(name)) as live:
        members, spec, capacity = live.members(), live.spec, live.capacity
    if as_json:
        listed = [{**asdict(m), "action": str(m.action) if m.action else None} for m in members]
        print_line(json.dumps({"name": name, "kind": spec.kind, "capacity": capacity, "members": listed}))
        return
    print_line(f"# {name}: {spec.kind}; {len(members):,} of {capacity:,}")
    sys.stdout.writelines(f"{visible(_line(m))}\n" for m in members)


def _line(m: LiveMember) -> str:
    timeout = f" timeout {m.timeout:.3f}s" if m.timeout else ""
    return m.member + timeout + (f" : {m.action}" if m.action else "") + (" # by a packet" if m.by_packet else "")


@sets.command()
def add(
    name: Name,
    members: Members = None,
    file: FromFile = "",
    timeout: Annotated[str, typer.Option("--timeout", metavar="T", help="Seconds, or as 1h30m; 0: for ever.")] = "0",
    action: Annotated[str, typer.Option("--action", metavar="A", help="In a verdict map: what to do with it.")] = "",
    as_json: AsJson = False,
) -> None:
    """Add members: all of them or none.

    Those that are there get the time-out and the action anew.

    Example: xdpkit set add blocked 192.0.2.7 198.51.100.0/24 --timeout 1h
    """
    from ..sets.files import action_named
    from ..sets.pins import pinned_spec

    spec, limit = pinned_spec(name), _seconds(timeout)
    source = _source(members, file)
    if action and not file:
        action_named(spec, action)
        source = dict.fromkeys(members or (), action)
    elif action:
        raise typer.BadParameter("--action goes with members, a file has its own")
    elif spec.actions and not file:
        raise typer.BadParameter(f"--action is wanted: {name} is a verdict map of {', '.join(map(str, spec.actions))}")
    _change(spec, as_json, lambda live: live.update(source, timeout=limit))


@sets.command()
def remove(name: Name, members: Members = None, file: FromFile = "", as_json: AsJson = False) -> None:
    """Remove members.

    One that is not there is no error, and not counted.

    Example: xdpkit set remove blocked 192.0.2.7
    """
    from ..sets.pins import pinned_spec

    source = _source(members, file)
    _change(pinned_spec(name), as_json, lambda live: live.update(remove=source))


@sets.command("test")
def test_member(name: Name, member: Annotated[str, typer.Argument(metavar="MEMBER")]) -> None:
    """Ask whether packets with these values match.

    Exit status 0 if so, 1 if not.

    Example: xdpkit set test blocked 192.0.2.7 && echo blocked
    """
    from ..sets.pins import pinned_spec

    with _open(pinned_spec(name)) as live:
        there = member in live
    print_line(f"{member} is {'' if there else 'not '}in set {name}")
    sys.exit(not there)


@sets.command("replace")
def replace_all(
    name: Name, file: File, lenient: Lenient = False, allow_empty: AllowEmpty = False, as_json: AsJson = False
) -> None:
    """Make a file's members all there is, at once.

    No look-up sees a mixture of old and new.

    Example: ipset save blocked | xdpkit set replace blocked -
    """
    from ..sets.pins import pinned_spec

    with _open(pinned_spec(name)) as live:
        count = live.replace(_listed(live.spec, file, lenient=lenient, allow_empty=allow_empty))
    print_line(json.dumps({"entries": count}) if as_json else f"{name}: {count:,} entries")


@sets.command()
def sync(
    name: Name,
    file: File,
    everything: Annotated[
        bool, typer.Option("--everything", help="Also remove members with a time-out and those that packets added.")
    ] = False,
    lenient: Lenient = False,
    allow_empty: AllowEmpty = False,
    as_json: AsJson = False,
) -> None:
    """Come to what a file says by the fewest changes.

    Members with a time-out and those that packets added end by themselves, and stay.

    Example: xdpkit set sync blocked feed.csv --lenient
    """
    from ..sets.pins import pinned_spec

    spec = pinned_spec(name)

    def do(live: LiveSet) -> Change:
        return live.sync(_listed(spec, file, lenient=lenient, allow_empty=allow_empty), everything=everything)

    _change(spec, as_json, do)


@sets.command()
def flush(name: Name, as_json: AsJson = False) -> None:
    """Remove every member, at once.

    Example: xdpkit set flush blocked
    """
    from ..sets.pins import pinned_spec

    with _open(pinned_spec(name)) as live:
        count = live.flush()
    print_line(json.dumps({"removed": count}) if as_json else f"{name}: {count:,} removed")


@sets.command()
def sweep(name: Name, as_json: AsJson = False) -> None:
    """Free the room of members whose time is over.

    They match no packet as it is.

    Example: xdpkit set sweep blocked
    """
    from ..sets.pins import pinned_spec

    with _open(pinned_spec(name)) as live:
        count = live.sweep()
    print_line(json.dumps({"swept": count}) if as_json else f"{name}: {count:,} swept")


@sets.command()
def delete(name: Name) -> None:
    """Unpin a set.

    It goes with the last program that uses it.

    Example: xdpkit set delete blocked
    """
    from ..sets.pins import Pin, pinned_names, pinned_spec

    if name not in pinned_names():
        pinned_spec(name)  # raises
    with Pin(name) as pin, pin.locked():
        pin.remove()


def _listed(spec: SetSpec, file: str, *, lenient: bool, allow_empty: bool) -> Columns:
    """The members of a file, which must have some unless it is said that it may be empty: a feed that comes back empty
    must not open what it closed."""
    from ..sets.columns import read
    from ..sets.feeds import read_feed
    from ..sets.files import content

    name = "standard input" if file == "-" else file
    if lenient:
        if len(spec.fields) > 1 or spec.actions or spec.fields[0].kind not in ("ipv4", "ipv6", "ip"):
            raise PipelineError(f"--lenient reads lists of addresses, and set {spec.name!r} holds {spec.kind}")
        with ExitStack() as stack:
            opened = sys.stdin.buffer if file == "-" else stack.enter_context(open(file, "rb"))
            feed = read_feed(content(opened, name), name)
        for line in feed.summary():
            notice(line)
        listed = read(spec, feed.of(spec.fields[0].kind))
    else:
        listed = read(spec, _source(None, file))
    if not len(listed) and not allow_empty:
        raise PipelineError(f"{name} holds no members, and would empty set {spec.name!r}: --allow-empty if it is meant")
    return listed


def _source(members: list[str] | None, file: str) -> Source:
    if bool(members) == bool(file):
        raise typer.BadParameter("members are wanted, or a file" if not file else "members or a file, not both")
    return members or (sys.stdin.buffer if file == "-" else file)


@contextmanager
def _open(spec: SetSpec) -> Iterator[LiveSet]:
    """The set; errors of members without a place in Python, for the user has none."""
    from ..sets.files import plain
    from ..sets.live import LiveSet

    try:
        with LiveSet(spec) as live:
            yield live
    except PipelineError as error:
        raise PipelineError(plain(error)) from None


def _change(spec: SetSpec, as_json: bool, do: Callable[[LiveSet], Change]) -> None:
    with _open(spec) as live:
        change = do(live)
    print_line(json.dumps(asdict(change)) if as_json else f"{spec.name}: {change}")
