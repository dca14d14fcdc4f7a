"""Figures and words as a terminal shows them."""

from __future__ import annotations

__all__ = ["si"]


def si(value: float, unit: str = "") -> str:
    """Three significant digits with an SI prefix: 1.23 M."""
    for prefix in ("", "k", "M", "G"):
        if abs(value) < 999.5 or prefix == "G":
            digits = 0 if prefix == "" or value >= 99.95 else 1 if value >= 9.995 else 2
            return f"{value:.{digits}f} {prefix}{unit}".rstrip()
        value /= 1000
    raise AssertionError("unreachable")
