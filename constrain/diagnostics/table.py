"""Numbers as text, and aligned tables in plain text and Markdown."""

from __future__ import annotations

import math
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "aligned",
    "cut",
    "fitted",
    "limit_text",
    "markdown",
    "number",
    "plus_minus",
    "short",
    "width",
    "wrapped",
]


def width(text: str) -> int:
    """Columns that a text takes in a terminal: combining marks take none."""
    return sum(not unicodedata.combining(c) for c in text)


def cut(text: str, limit: int) -> str:
    """The text, with its end replaced by `…` when it is longer than `limit`."""
    return text if width(text) <= limit else text[: limit - 1] + "…"


def _columns(rows: Sequence[Sequence[str]]) -> list[int]:
    """Positions of the columns that have an entry below the header."""
    return [c for c in range(len(rows[0])) if any(row[c] for row in rows[1:])]


def fitted(rows: Sequence[Sequence[str]], column: int, limit: int) -> list[list[str]]:
    """The same table with one column cut so that its lines stay within the limit (it keeps 12 at least)."""
    others = sum(max(width(row[c]) for row in rows) + 2 for c in _columns(rows) if c != column)
    room = max(12, limit - others)
    return [[cut(cell, room) if c == column else cell for c, cell in enumerate(row)] for row in rows]


def aligned(rows: Sequence[Sequence[str]], *, left: int, gap: str = "  ") -> list[str]:
    """Lines of a table; empty columns are dropped.

    Args:
        rows: the header first, all of the same length.
        left: that many columns are aligned to the left, the others to the right.
        gap: between columns.
    """
    kept = _columns(rows)
    sizes = {c: max(width(row[c]) for row in rows) for c in kept}
    lines: list[str] = []
    for row in rows:
        cells = [
            row[c] + " " * (sizes[c] - width(row[c]))
            if c < left
            else " " * (sizes[c] - width(row[c])) + row[c]
            for c in kept
        ]
        lines.append(gap.join(cells).rstrip())
    return lines


def markdown(rows: Sequence[Sequence[str]], *, left: int) -> list[str]:
    """The same table in Markdown."""
    kept = _columns(rows)
    lines: list[str] = []
    for number, row in enumerate(rows):
        lines.append("| " + " | ".join(row[c].replace("|", "\\|") for c in kept) + " |")
        if number == 0:
            lines.append("| " + " | ".join("---" if c < left else "---:" for c in kept) + " |")
    return lines


def wrapped(label: str, text: str, limit: int = 110, indent: int = 12) -> list[str]:
    """`label` padded to the indent, then the text, broken at spaces."""
    lines: list[str] = []
    line = label.ljust(indent)
    empty = True
    for word in text.split(" "):
        if not empty and width(line) + 1 + width(word) > limit:
            lines.append(line.rstrip())
            line, empty = " " * indent, True
        line += word if empty else f" {word}"
        empty = False
    return [*lines, line.rstrip()]


def number(value: float, digits: int = 4) -> str:
    """A number for a table: fixed point near 1, else with an exponent.

    Args:
        value: the number.
        digits: after the point of numbers below 10; one less for each further digit before it.
    """
    if not math.isfinite(value):
        return {math.inf: "inf", -math.inf: "-inf"}.get(value, "")
    if abs(value) < 1e-12:
        return "0"
    if not 1e-3 <= abs(value) < 1e5:
        return f"{value:.{max(1, digits - 2)}e}"
    before = max(0, math.floor(math.log10(abs(value))))
    return f"{value:.{max(0, digits - before)}f}"


def limit_text(value: float) -> str:
    """A bound, as short as the user wrote it."""
    return f"{value + 0.0:.6g}" if math.isfinite(value) else number(value)  # no -0


def short(value: float) -> str:
    """A residual: two digits with an exponent."""
    return "-" if math.isnan(value) else "0" if value == 0 else f"{value:.1e}"


def plus_minus(value: float, lower: float, upper: float) -> str:
    """`0.6883 ± 0.0224`, without the second part where it is unknown or zero."""
    half = (upper - lower) / 2
    return number(value) if math.isnan(half) or half == 0 else f"{number(value)} ± {number(half)}"
