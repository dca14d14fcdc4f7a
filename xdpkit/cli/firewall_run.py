"""What ``xdpkit firewall run``, ``sync``, ``metrics`` and ``install`` do."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path

from ..compiler.built import load
from ..files.output import write_whole
from ..firewall.feeds import Feeds
from ..firewall.metrics import Firewalls, render, serve
from ..firewall.service import Service, write_events
from ..firewall.top import Watch
from ..firewall.unit import unit
from ..firewall.usage import look
from ..language.errors import NotSupported, PipelineError
from ..link.link import Link, open_link
from ..link.pin import pinned_links
from ..terminal import notice, print_line
from .failure import fail
from .firewall_commands import Guarded, names_of, only_name, refuse_wrong_usage
from .signals import signals

__all__ = ["install_unit", "run_service", "show_metrics", "show_top", "show_unused", "sync_feeds"]


def run_service(rules: Path, guarded: Guarded, mode: str, metrics: str, log: str) -> None:
    """Until a signal ends it, or the rules are no longer on their device (OSError); the rules stay in force."""
    built = load(rules)
    with ExitStack() as stack:
        stop = stack.enter_context(signals(hangup_reloads=True))
        out = sys.stdout if log == "-" else stack.enter_context(open(log, "a"))
        with refuse_wrong_usage():
            applied = guarded.apply(built, mode)
        stack.callback(applied.close)
        link, name = applied.link, applied.name
        service = Service(link, name, lambda: load(rules), notice)
        if metrics:
            with refuse_wrong_usage():
                stack.callback(serve(Firewalls(lambda: [(name, link)], service.feeds), metrics))
        stack.enter_context(write_events(link, out))
        service.start()
        notice(f"{link.pipeline.name} is in force on {applied.place}: {link.attachment}")
        while not stop.wait(service.turn()):
            if stop.reload_wanted():
                service.reload()
    notice(f"{link.pipeline.name} stays in force on {applied.place}: 'xdpkit firewall detach {name}' takes it off")


def sync_feeds(name: str, only: str, force: bool) -> None:
    """Look at the feeds now; exit with 1 where one is refused."""
    failed, seen = False, 0
    for each in names_of(name):
        with open_link(each) as link:
            for report in Feeds(link).refresh(only=only, force=force):
                for line in report.summary:
                    notice(line)
                (notice if report.problem else print_line)(f"{each}: {report}")
                failed, seen = failed or bool(report.problem), seen + 1
    if not seen:
        what = f"set {only!r} with a feed" if only else "set with a feed"
        raise OSError(errno.ENOENT, f"no firewall has a {what}: pipe.set(..., feed=Feed('https://...')) declares one")
    sys.exit(1 if failed else 0)


def show_metrics(name: str, listen: str) -> None:
    """Print once, or serve until a signal ends it."""

    def links() -> Iterator[tuple[str, Link]]:
        for each in [name] if name else pinned_links(here=True):
            with suppress(OSError) if listen else ExitStack(), open_link(each) as link:
                yield each, link

    firewalls = Firewalls(links)
    if not listen:
        sys.stdout.write(render(firewalls))
        return
    with signals() as stop, refuse_wrong_usage():
        end = serve(firewalls, listen)
        notice(f"metrics at http://{listen}/metrics")
        while not stop.wait(60):
            pass
        end()


def install_unit(rules: Path, guarded: Guarded, metrics: str, folder: Path) -> None:
    """Write the unit, and say how to start it."""
    load(rules)  # what is wrong with the rules is said now, and not at boot
    command = [_command(), "firewall", "run", str(rules.absolute()), *guarded.words]
    name = guarded.name or f"{guarded.inside}-{guarded.outside}"
    devices = [guarded.device] if guarded.device else [guarded.inside, guarded.outside]
    path = folder / f"xdpkit-firewall-{name}.service"
    if not folder.is_dir():
        raise OSError(errno.ENOENT, f"{folder}: no such folder: --folder says where systemd looks for units")
    write_whole(path, unit([*command, *(["--metrics", metrics] if metrics else [])], name, devices))
    print_line(
        f"{path} is written; start it now and at boot: systemctl daemon-reload && systemctl enable --now {path.name}"
    )


def _command() -> str:
    beside = Path(sys.executable).with_name("xdpkit")
    if beside.exists():
        return str(beside)
    raise PipelineError(f"no xdpkit command beside {sys.executable}: install the package where systemd finds it")


def show_top(name: str, seconds: float) -> None:
    """The live screen until q; NotSupported where textual is not installed, or there is no terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise NotSupported("firewall top", "it needs a terminal; 'xdpkit firewall status --json' is for scripts")
    try:
        from .top import Top
    except ImportError:
        raise NotSupported("firewall top", "textual: pip install 'xdpkit[firewall]'") from None
    only = only_name(name)
    watch = Watch(lambda: open_link(only))
    try:
        screen = Top(watch, seconds)
        screen.run()
    finally:
        watch.close()
    if screen.failure is not None:
        fail(screen.failure)


def show_unused(name: str, days: float, as_json: bool) -> None:
    """Print the rules that took no packet for so many days."""
    for each in names_of(name):
        with open_link(each) as link:
            uses = [use for use in look(each, link.ledger()) if use.idle_seconds() >= days * 86400]
        if as_json:
            rows = [{"rule": use.name, "packets": use.packets, "since": use.since} for use in uses]
            print_line(json.dumps({"name": each, "unused": rows}))
            continue
        wide = max((len(use.name) for use in uses), default=0)
        for use in uses:
            since = datetime.fromtimestamp(use.since).strftime("%Y-%m-%d %H:%M")
            last = f"{use.packets:,} packets, none" if use.packets else "no packet"
            print_line(f"{each}: {use.name:<{wide}}  {last} since {since}")
        if not uses:
            print_line(f"{each}: no rule is unused for {days:g} days, as far as somebody looked")
