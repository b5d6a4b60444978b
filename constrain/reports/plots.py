"""Figures by matplotlib, which is loaded when the first one is asked for.

A figure belongs to nobody's global state: `figure.savefig(...)` writes it, and notebooks show it.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from constrain._lazy import attribute
from constrain.errors import ModelingError
from constrain.reports.histories import multiplier_curves, objective_curve, steps_of, violation_curves
from constrain.reports.whatif import agreement, leading

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from constrain.reports.charts import Curve
    from constrain.solution import ParametricPath, ParetoFront, Solution

__all__ = ["front_figure", "history_figure", "path_figure"]

LINES = 6
"""Curves of one plot."""


def _figure(columns: int, rows: int = 1) -> tuple[Any, list[Any]]:
    """An empty figure with plots side by side (E143 without matplotlib)."""
    try:
        figure = attribute("matplotlib.figure:Figure")(
            figsize=(4.4 * columns, 3.2 * rows), layout="constrained"
        )
    except ModuleNotFoundError:
        raise ModelingError(
            "E143",
            "a plot needs matplotlib",
            fix='pip install "constrain-lang[plot]", or solution.report("report.html"), which draws its own',
        ) from None
    plots: list[Any] = np.ravel(figure.subplots(rows, columns)).tolist()
    for plot in plots:
        plot.spines[["top", "right"]].set_visible(False)
        plot.grid(axis="y", linewidth=0.5, alpha=0.4)
    return figure, plots


def _draw(plot: Any, steps: Sequence[float], lines: Sequence[Curve], title: str, across: str) -> None:
    for line in lines[:LINES]:
        plot.plot(steps, line.values, label=line.label, linewidth=1.5)
    if len(lines) > 1:
        plot.legend(frameon=False, fontsize="small")
    plot.set_title(title, loc="left", fontsize="medium")
    plot.set_xlabel(across)


def history_figure(s: Solution) -> Any:
    """Objective, violations and multipliers over the steps of a run.

    Raises:
        ModelingError: E143 without matplotlib, E141 for a route that has no steps.
    """
    if len(s.history) < 2:
        raise ModelingError(
            "E141",
            f"there is no course to plot: {s.provenance.solver or 'the solver'} reports no steps",
            fix='solve(method="augmented"), or solution.path(parameter, values).plot()',
        )
    violations, multipliers = violation_curves(s), multiplier_curves(s)
    figure, plots = _figure(1 + bool(violations) + bool(multipliers))
    steps, word = steps_of(s.history)
    _draw(plots[0], steps, [objective_curve(s)], f"objective ({s.sense})", word)
    if violations:
        _draw(plots[1], steps, violations, "violation", word)
        plots[1].axhline(s.record.tolerance, color="black", linewidth=0.8, linestyle="--")
        plots[1].set_yscale("symlog", linthresh=s.record.tolerance)
        plots[1].set_ylim(bottom=0)
    if multipliers:
        _draw(plots[-1], steps, multipliers, "multipliers", word)
    return figure


def path_figure(path: ParametricPath) -> Any:
    """The optimal value with short tangents of the slopes, and the largest multipliers.

    Raises:
        ModelingError: E143 without matplotlib.
    """
    keys = leading(path)
    figure, plots = _figure(2 if keys else 1)
    plots[0].plot(path.values, path.objectives, marker="o", markersize=3.5, linewidth=1.2)
    _tangents(plots[0], path.values, path.objectives, path.slopes)
    plots[0].set_title("optimal value, tangents by multipliers", loc="left", fontsize="medium")
    plots[0].set_xlabel(path.parameter)
    if keys:
        for key in keys:
            plots[1].plot(path.values, path.multipliers[key], label=key, marker=".", linewidth=1.2)
        plots[1].legend(frameon=False, fontsize="small")
        plots[1].set_title("multipliers", loc="left", fontsize="medium")
        plots[1].set_xlabel(path.parameter)
    figure.suptitle(agreement(path), fontsize="small", x=0.01, ha="left", color="0.4")
    return figure


def front_figure(front: ParetoFront) -> Any:
    """The two objectives against each other, with tangents by the multiplier of the bound.

    Raises:
        ModelingError: E143 without matplotlib.
    """
    figure, (plot,) = _figure(1)
    plot.plot(front.seconds, front.firsts, marker="o", markersize=3.5, linewidth=1.2)
    _tangents(plot, front.seconds, front.firsts, front.slopes)
    (first, beside), (alone, away) = front.ends
    plot.plot([beside, away], [first, alone], linestyle="none", marker="s", markersize=5, fillstyle="none")
    plot.set_xlabel(f"second ({front.senses[1]})")
    plot.set_ylabel(f"first ({front.senses[0]})")
    return figure


def _tangents(plot: Any, x: NDArray[np.float64], y: NDArray[np.float64], slopes: NDArray[np.float64]) -> None:
    """A short line of the given slope through each point."""
    places: list[float] = x.tolist()
    half = 0.35 * min((b - a for a, b in pairwise(sorted(places))), default=0.0)
    for place, value, slope in zip(places, y.tolist(), slopes.tolist(), strict=True):
        if math.isfinite(slope) and half > 0:
            ends = [value - half * slope, value + half * slope]
            plot.plot([place - half, place + half], ends, color="C1", linewidth=2, solid_capstyle="round")
