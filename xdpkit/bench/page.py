"""A comparison as one HTML page that stands alone: charts are SVG inside it, nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from ..language.errors import NotSupported
from ..terminal import make_console
from .report import show, waits
from .run import Results
from .sample import Row, rows

__all__ = ["page", "require_matplotlib"]

_OURS = ("afxdp", "devmap", "xdp", "live")
_STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:1100px;margin:2em auto;padding:0 1em}"
    "img{max-width:100%}pre{font-size:12px;overflow-x:auto;line-height:1.3}"
)


def require_matplotlib() -> Any:
    """matplotlib.pyplot, drawing to files; NotSupported without it."""
    try:
        import matplotlib
    except ImportError:
        raise NotSupported("an HTML report", "matplotlib: pip install 'xdpkit[perf]'") from None
    matplotlib.use("svg")
    from matplotlib import pyplot

    return pyplot


def page(results: Results, facts: dict[str, str]) -> str:
    """The page.  NotSupported without matplotlib."""
    pyplot = require_matplotlib()
    table = rows(results.samples)
    parts = ["<h1>Paths of packets, compared</h1>"]
    parts += [f"<p>{escape(' · '.join(f'{k}: {v}' for k, v in facts.items()))}</p>"]
    for direction in ("receive", "send", "forward"):
        mine = [r for r in table if r.direction == direction and r.rate]
        for size in dict.fromkeys(r.size for r in mine):
            title = f"{direction}, {size} bytes: packets/s, median, least and most"
            parts.append(_picture(pyplot, title, [r for r in mine if r.size == size], _rate_bars))
    for title, draw, mine in (
        (
            "CPU per packet at a fixed rate, 64 bytes: ns of the run's processes",
            _cost_bars,
            [r for r in table if r.own_ns],
        ),
        ("delay from send to receive at a fixed rate: p50, p99, p99.9", _delay_bars, [r for r in table if r.delays_us]),
    ):
        least = min((r.size for r in mine), default=0)
        mine = [r for r in mine if r.direction == "receive" and r.size == least]
        if mine:
            parts.append(_picture(pyplot, title, mine, draw))
    echo = [r for r in table if r.direction == "echo" and r.delays_us]
    if echo:
        parts.append(_picture(pyplot, "round trip, 64 bytes: p50, p99, p99.9", echo, _delay_bars))
    if found := waits(results):
        parts.append(_waits(pyplot, found))
    text = make_console(record=True, file=io.StringIO(), width=190)
    show(text, results, facts)
    parts.append(f"<h2>Figures</h2><pre>{escape(text.export_text())}</pre>")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>xdpkit: paths compared</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _picture(pyplot: Any, title: str, mine: Sequence[Row], draw: Callable[[Any, Sequence[Row]], None]) -> str:
    figure, axes = pyplot.subplots(figsize=(9, 0.9 + 0.32 * len(mine)), layout="constrained")
    draw(axes, list(reversed(mine)))
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(axis="x", alpha=0.3)
    return _inline(pyplot, figure, title)


def _inline(pyplot: Any, figure: Any, title: str) -> str:
    out = io.BytesIO()
    figure.savefig(out, format="svg")
    pyplot.close(figure)
    data = base64.b64encode(out.getvalue()).decode()
    return f'<p><img alt="{escape(title)}" src="data:image/svg+xml;base64,{data}"></p>'


def _short(axis: Any) -> None:
    """10k in place of 1e4."""
    from matplotlib.ticker import EngFormatter

    axis.set_major_formatter(EngFormatter(sep=""))


def _colours(mine: Sequence[Row]) -> list[str]:
    return ["tab:blue" if r.path.startswith(_OURS) else "tab:gray" for r in mine]


def _rate_bars(axes: Any, mine: Sequence[Row]) -> None:
    rates = [r.rate or (0.0, 0.0, 0.0) for r in mine]
    spread = [[median - low for median, low, _ in rates], [high - median for median, _, high in rates]]
    axes.barh([r.path for r in mine], [median for median, _, _ in rates], xerr=spread, color=_colours(mine))
    axes.set_xlabel("packets/s")
    _short(axes.xaxis)


def _cost_bars(axes: Any, mine: Sequence[Row]) -> None:
    axes.barh([r.path for r in mine], [r.own_ns or 0 for r in mine], color=_colours(mine))
    axes.set_xlabel("ns of CPU per packet, sender included")


def _delay_bars(axes: Any, mine: Sequence[Row]) -> None:
    for at, (name, marker) in enumerate((("p50", "o"), ("p99", "s"), ("p99.9", "^"))):
        axes.plot([(r.delays_us or (0, 0, 0))[at] for r in mine], [r.path for r in mine], marker, label=name)
    axes.set(xscale="log", xlabel="microseconds")
    axes.legend(fontsize=8)


def _waits(pyplot: Any, found: Sequence[dict[str, Any]]) -> str:
    """Delay and CPU over the offered rate, a line for each way of waiting."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for wait in dict.fromkeys(row["wait"] for row in found):
        mine = sorted((row for row in found if row["wait"] == wait), key=lambda row: row["rate"])
        rates = [row["rate"] for row in mine]
        (line,) = left.plot(rates, [row["delays_us"][0] for row in mine], "o-", label=wait)
        left.plot(rates, [row["delays_us"][1] for row in mine], "s--", color=line.get_color())
        right.plot(rates, [row["own"] for row in mine], "o-")
    left.set(xscale="log", yscale="log", ylabel="microseconds from send to receive\n(line: p50, dashes: p99)")
    right.set(xscale="log", ylabel="CPUs at work, sender included")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.set_xlabel("offered packets/s")
        _short(axes.xaxis)
    figure.legend(loc="outside lower center", ncols=4, fontsize=9)
    title = "ways of waiting: delay and cost"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return _inline(pyplot, figure, title)
