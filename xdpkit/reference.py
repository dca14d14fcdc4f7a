"""The meaning of a pipeline, in plain Python: every engine must agree with :func:`evaluate` on every frame.

:func:`walk` (``walk.py``) reads the headers of a frame, :func:`holds` says if a condition is true of them,
:func:`evaluate` finds the rule that takes the frame.  This is the specification, written to be read and not to be fast.
"""

from __future__ import annotations

from functools import singledispatch

from .classic import Classic, interpret
from .expr import Always, And, Expr, Not, Or, Present, Test
from .metadata import Metadata
from .pipeline import Pipeline, Rule
from .walk import NO_METADATA, Packet, walk

__all__ = ["Metadata", "Packet", "evaluate", "holds", "walk"]


@singledispatch
def holds(expr: Expr, packet: Packet) -> bool:
    """Is ``expr`` true of ``packet``?"""
    raise TypeError(f"no meaning for {type(expr).__name__}")


@holds.register
def _(expr: Always, packet: Packet) -> bool:
    return True


@holds.register
def _(expr: Present, packet: Packet) -> bool:
    return expr.header in packet.present


@holds.register
def _(expr: Test, packet: Packet) -> bool:
    value = packet.value(expr.spec)
    if value is not None and expr.mask is not None:
        value &= expr.mask
    return value is not None and any(low <= value <= high for low, high in expr.intervals)


@holds.register
def _(expr: Not, packet: Packet) -> bool:
    return not holds(expr.term, packet)


@holds.register
def _(expr: And, packet: Packet) -> bool:
    return all(holds(term, packet) for term in expr.terms)


@holds.register
def _(expr: Or, packet: Packet) -> bool:
    return any(holds(term, packet) for term in expr.terms)


@holds.register
def _(expr: Classic, packet: Packet) -> bool:
    return interpret(expr.instructions, packet.frame, wire_len=packet.members["len"]) != 0


def evaluate(
    pipeline: Pipeline,
    frame: bytes,
    *,
    rx_queue: int = 0,
    wire_bytes: int | None = None,
    metadata: Metadata = NO_METADATA,
) -> Rule:
    """The rule that takes ``frame``: the first whose condition holds, else the default.  Its ``action.verdict`` is the
    verdict.  ``metadata``: what is known of the frame beside its bytes, nothing by default."""
    packet = walk(frame, rx_queue=rx_queue, wire_bytes=wire_bytes, metadata=metadata)
    return next(rule for rule in pipeline.outcomes if holds(rule.expr, packet))
