"""What ``xdpkit firewall flows`` does."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import typer

from ..link.flows import Flow, Flows
from ..link.link import Link, open_link
from ..terminal import counted, notice, print_line
from .firewall_commands import only_name, refuse_wrong_usage

__all__ = ["FlowFilter", "show_flows"]


@dataclass(frozen=True, slots=True)
class FlowFilter:
    """Which connections are meant; what is empty, 0 or false asks for nothing."""

    host: str
    port: int
    protocol: str
    state: str
    half_open: bool

    @property
    def is_any(self) -> bool:
        """It asks for nothing."""
        return not (self.host or self.port or self.protocol or self.state or self.half_open)

    def of(self, flows: Flows) -> Flows:
        """Those that are meant."""
        return flows.where(
            host=self.host or None, port=self.port or None, protocol=self.protocol or None, state=self.state or None,
            half_open=self.half_open or None,
        )  # fmt: skip


def show_flows(name: str, chosen: FlowFilter, *, sources: bool, flush: bool, as_json: bool) -> None:
    """Print the connections that are meant, or who opened the most of them, or forget them."""
    if flush and sources:
        raise typer.BadParameter("--flush or --sources, not both")
    with open_link(only_name(name)) as link:
        with refuse_wrong_usage():
            every = _tracked(link)
            found = chosen.of(every)
        if flush:
            forgotten = link.forget(found)
            print_line(
                json.dumps({"forgotten": forgotten}) if as_json else f"{counted(forgotten, 'connection')} forgotten"
            )
            return
    if sources:
        top = found.top_sources()
        if as_json:
            print_line(json.dumps([{"source": str(address), "flows": n} for address, n in top]))
            return
        for address, n in top:
            print_line(f"{n:>12,}  {address}")
        return
    for flow in found:
        print_line(json.dumps(_as_json(flow)) if as_json else str(flow))
    if not as_json:
        notice(f"{counted(len(found), 'connection')} of {len(every):,}; {every!r}")


def _tracked(link: Link) -> Flows:
    """OSError where the rules track none: the command line is right."""
    try:
        return link.flows()
    except ValueError as error:
        raise OSError(str(error)) from None


def _as_json(flow: Flow) -> dict[str, object]:
    words = asdict(flow)
    return {**words, "source": str(flow.source), "destination": str(flow.destination)}
