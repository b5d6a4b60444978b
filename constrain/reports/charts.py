"""Drawings as inline SVG: an interval against its bound, a residual against a tolerance, curves over steps.

Colors are classes of the page's style sheet, so that a drawing follows light and dark.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from constrain.diagnostics.table import number
from constrain.reports.elements import Markup, element, joined

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Bar", "Curve", "curves", "gauge", "interval_bar", "scale_of"]

POINTS = 300
"""Points of a curve that are drawn."""
SERIES = 6
"""Curves of a chart, which the style sheet knows by number."""


# ------------------------------------------------------------------------------------------ intervals
@dataclass(frozen=True)
class Bar:
    """One entry of a constraint: what is drawn against its bound.

    Attributes:
        value: on the training data.
        lower: lower end of the interval that is drawn; NaN without.
        upper: upper end.
        center: its middle, the value on the sample that it is of.
        bounds: `(None, b)` for `<=`, `(b, None)` for `>=`, `(b, b)` for `==`, `(a, b)` for `between`.
        verdict: of the entry.
    """

    value: float
    lower: float
    upper: float
    center: float
    bounds: tuple[float | None, float | None]
    verdict: str

    @property
    def numbers(self) -> list[float]:
        """All finite numbers that have to be in the picture."""
        found = [self.value, self.lower, self.upper, self.center, *(b for b in self.bounds if b is not None)]
        return [x for x in found if math.isfinite(x)]


def scale_of(bars: Sequence[Bar]) -> tuple[float, float]:
    """A common range for the entries of a block, with room at both ends."""
    numbers = [x for bar in bars for x in bar.numbers]
    if not numbers:
        return 0.0, 1.0
    low, high = min(numbers), max(numbers)
    room = 0.12 * (high - low) or 0.5 * max(abs(low), 1e-9)
    return max(low - room, -sys.float_info.max), min(high + room, sys.float_info.max)


def interval_bar(bar: Bar, scale: tuple[float, float], label: str) -> Markup:
    """The interval, the training value, and the bound with its admissible side shaded.

    Args:
        bar: what to draw.
        scale: range of the axis.
        label: said by screen readers.
    """
    wide, high = 180.0, 22.0
    middle = high / 2

    def x(value: float) -> float:
        span = scale[1] / 2 - scale[0] / 2  # halves, since the difference of large numbers overflows
        place = (value / 2 - scale[0] / 2) / span if span > 0 else 0.5
        return 2 + (wide - 4) * min(max(place, 0.0), 1.0)

    low, up = bar.bounds
    left = 2.0 if low is None else x(low)
    right = wide - 2 if up is None else x(up)
    shapes: list[Markup] = [
        element("rect", class_="room", x=left, y=middle - 6, width=max(right - left, 0.0), height=12, rx=2)
    ]
    shapes += [
        element("line", class_="bound", x1=x(b), x2=x(b), y1=2, y2=high - 2)
        for b in dict.fromkeys((low, up))
        if b is not None and math.isfinite(b)
    ]
    tone = _tone(bar.verdict)
    if math.isfinite(bar.lower) and math.isfinite(bar.upper) and bar.upper > bar.lower:
        shapes.append(
            element("line", class_=f"whisker {tone}", x1=x(bar.lower), x2=x(bar.upper), y1=middle, y2=middle)
        )
    if math.isfinite(bar.center) and bar.center != bar.value:
        shapes.append(element("circle", class_=f"mark {tone}", cx=x(bar.center), cy=middle, r=4))
        shapes.append(element("circle", class_="train", cx=x(bar.value), cy=middle, r=3))
    elif math.isfinite(bar.value):
        shapes.append(element("circle", class_=f"mark {tone}", cx=x(bar.value), cy=middle, r=4))
    return _svg(wide, high, label, "bar", shapes)


def _tone(verdict: str) -> str:
    if verdict in ("holds", "compatible"):
        return "good"
    return "bad" if verdict == "violated" else "open"


# ------------------------------------------------------------------------------------------- residuals
def gauge(value: float, tolerance: float, label: str) -> Markup:
    """A residual on a logarithmic axis from 1e-16 to 1e2, with the tolerance as a line.

    Args:
        value: >= 0.
        tolerance: of the judgment.
        label: said by screen readers.
    """
    wide, high = 150.0, 14.0

    def x(size: float) -> float:
        place = (math.log10(max(size, 1e-16)) + 16) / 18
        return wide * min(max(place, 0.0), 1.0)

    size = abs(value) if math.isfinite(value) else 1e2
    tone = "good" if size <= tolerance else "open"
    shapes = [
        element("rect", class_="track", x=0, y=5, width=wide, height=4, rx=2),
        element("rect", class_=f"fill {tone}", x=0, y=5, width=max(x(size), 2.0), height=4, rx=2),
        element("line", class_="bound", x1=x(tolerance), x2=x(tolerance), y1=1, y2=high - 1),
    ]
    return _svg(wide, high, label, "gauge", shapes)


# --------------------------------------------------------------------------------------------- curves
@dataclass(frozen=True)
class Curve:
    """A line of a chart; NaN breaks it."""

    label: str
    values: Sequence[float]


def curves(  # what a chart shows
    title: str,
    steps: Sequence[float],
    lines: Sequence[Curve],
    *,
    logarithmic: bool = False,
    rule: float | None = None,
    note: str = "",
    across: str = "step",
) -> Markup:
    """A chart with its title, lines labeled in a legend, and an axis at both sides.

    Args:
        title: what is drawn.
        steps: horizontal places, increasing.
        lines: of the length of `steps`; the first six are drawn.
        logarithmic: the vertical axis; what is not positive lies at its lower end.
        rule: a value to mark by a line, such as a tolerance.
        note: said under the title, such as what the rule is.
        across: word for the horizontal axis.
    """
    drawn = lines[:SERIES]
    plot = _Plot(steps, drawn, logarithmic=logarithmic, rule=rule)
    shapes = [*plot.axes(across), *(plot.line(k, curve) for k, curve in enumerate(drawn))]
    several = len(drawn) > 1
    legend = [
        element("li", element("span", class_=f"key line-{k}"), curve.label) for k, curve in enumerate(drawn)
    ]
    if len(lines) > SERIES:
        legend.append(element("li", f"and {len(lines) - SERIES} more", class_="quiet"))
    return element(
        "figure",
        element(
            "figcaption", element("b", title), element("span", f" {note}", class_="quiet") if note else None
        ),
        _svg(_Plot.wide, _Plot.high, title, "chart", shapes),
        element("ul", joined(*legend), class_="legend") if several else None,
    )


class _Plot:
    """Places of a chart's frame, and of numbers in it."""

    wide, high = 380.0, 190.0
    left, right, top, bottom = 58.0, 10.0, 10.0, 30.0

    def __init__(
        self, steps: Sequence[float], lines: Sequence[Curve], *, logarithmic: bool, rule: float | None
    ) -> None:
        self.steps = [float(s) for s in steps]
        self.logarithmic = logarithmic
        self.rule = rule
        numbers = [float(v) for curve in lines for v in curve.values if math.isfinite(v)]
        numbers += [] if rule is None else [rule]
        if logarithmic:
            positive = [v for v in numbers if v > 0]
            self.zero = len(positive) < len(numbers)  # the lower end stands for 0
            self.low = math.floor(math.log10(max(min(positive, default=1e-3), 1e-16))) - self.zero
            self.highest = max(self.low + 2, math.ceil(math.log10(max(positive, default=1.0))))
        else:
            low, high = min(numbers, default=0.0), max(numbers, default=1.0)
            room = 0.06 * (high - low) or max(0.05 * abs(high), 1e-6)
            self.low, self.highest = 0.0 if -0.1 * room <= low < 3 * room else low - room, high + room
        self.first, self.last = self.steps[0], self.steps[-1]

    def x(self, step: float) -> float:
        """Horizontal place."""
        span = self.last - self.first
        inside = self.wide - self.left - self.right
        return self.left + inside * ((step - self.first) / span if span else 0.5)

    def y(self, value: float) -> float:
        """Vertical place."""
        level = (math.log10(value) if value > 0 else self.low) if self.logarithmic else value
        place = (level - self.low) / (self.highest - self.low)
        return self.high - self.bottom - (self.high - self.top - self.bottom) * min(max(place, 0.0), 1.0)

    def axes(self, across: str) -> list[Markup]:
        """Three horizontal lines with their values, the rule, and the ends of the horizontal axis."""
        ends = self.wide - self.right
        found: list[Markup] = []
        for level in (self.low, (self.low + self.highest) / 2, self.highest):
            if self.logarithmic:
                level = float(round(level))  # noqa: PLW2901  # whole powers of ten
            value = 10**level if self.logarithmic else level
            text = f"1e{level:.0f}" if self.logarithmic else _tick(value, self.highest - self.low)
            if self.logarithmic and self.zero and level == self.low:
                text = "0"
            place = self.y(value)
            found.append(element("line", class_="grid", x1=self.left, x2=ends, y1=place, y2=place))
            found.append(element("text", text, x=self.left - 6, y=place + 4, text_anchor="end"))
        if self.rule is not None:
            place = self.y(self.rule)
            found.append(element("line", class_="rule", x1=self.left, x2=ends, y1=place, y2=place))
        base = self.high - 10
        found.append(element("text", f"{self.first:g}", x=self.left, y=base))
        found.append(element("text", across, x=(self.left + ends) / 2, y=base, text_anchor="middle"))
        found.append(element("text", f"{self.last:g}", x=ends, y=base, text_anchor="end"))
        return found

    def line(self, k: int, curve: Curve) -> Markup:
        """The path of a curve."""
        commands: list[str] = []
        pen = "M"
        for i in thinned(curve.values):
            value = float(curve.values[i])
            if not math.isfinite(value):
                pen = "M"
                continue
            commands.append(f"{pen}{self.x(self.steps[i]):.1f} {self.y(value):.1f}")
            pen = "L"
        return element("path", class_=f"curve line-{k}", d=" ".join(commands), fill="none")


def thinned(values: Sequence[float]) -> list[int]:
    """Places of at most about `POINTS` values: the least and the largest of every stretch, and both ends."""
    if len(values) <= POINTS:
        return list(range(len(values)))
    size = math.ceil(2 * len(values) / POINTS)
    chosen = {0, len(values) - 1}
    for start in range(0, len(values), size):
        stretch = range(start, min(start + size, len(values)))
        finite = [i for i in stretch if math.isfinite(values[i])]
        if len(finite) < len(stretch):
            chosen.add(next(i for i in stretch if not math.isfinite(values[i])))
        if finite:
            chosen |= {min(finite, key=lambda i: values[i]), max(finite, key=lambda i: values[i])}
    return sorted(chosen)


def _tick(value: float, span: float) -> str:
    """A number of the axis with as many decimals as tell its ticks apart."""
    if abs(value) >= 1e5 or span < 1e-4:
        return number(value, 3)
    return f"{value:.{max(0, min(5, 2 - math.floor(math.log10(span))))}f}"


def _svg(wide: float, high: float, label: str, kind: str, shapes: Sequence[Markup]) -> Markup:
    return element(
        "svg",
        *shapes,
        viewBox=f"0 0 {wide:g} {high:g}",
        role="img",
        aria_label=label,
        class_=kind,
        preserveAspectRatio="xMinYMid",
    )
