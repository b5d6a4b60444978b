"""The slider over a parametric path that was computed: what the optimum would be, and what it would cost.

The numbers are those of the solves; the slider stops at each and nowhere between, so nothing is interpolated.
Without a script the table and the charts say the same.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from constrain.diagnostics.table import number
from constrain.reports.charts import Curve, curves
from constrain.reports.elements import Markup, element, joined

if TYPE_CHECKING:
    from constrain.solution import ParametricPath, Solution

__all__ = ["MULTIPLIERS", "agreement", "leading", "path_section"]

MULTIPLIERS = 5
"""Multipliers that are shown, the largest ones."""


def path_section(s: Solution) -> Markup | None:
    """One panel per parameter of `Solution.paths`."""
    if not s.paths:
        return None
    panels = [_panel(s, k, path) for k, path in enumerate(s.paths.values())]
    return element("section", element("h2", "What if"), *panels)


def leading(path: ParametricPath) -> list[str]:
    """Entries with the largest multipliers along the path, largest first; those without any are left out."""
    peaks = {
        key: float(np.nanmax(np.abs(numbers)))
        for key, numbers in path.multipliers.items()
        if np.isfinite(numbers).any()
    }
    largest = max(peaks.values(), default=0.0)
    kept = [key for key, peak in peaks.items() if peak > 1e-6 * max(largest, 1e-6)]
    return sorted(kept, key=lambda key: -peaks[key])[:MULTIPLIERS]


def agreement(path: ParametricPath) -> str:
    """What the differences of the optimal values say about the multipliers."""
    agrees = path.agrees
    if agrees is None:
        return "no slopes: the multipliers of these solves are no prices"
    worst = float(np.nanmax(path.mismatch))
    if agrees:
        return "slopes from multipliers agree with differences of the optimal values"
    return f"slopes from multipliers miss differences of the optimal values by up to {worst:.2g}"


def _panel(s: Solution, k: int, path: ParametricPath) -> Markup:
    keys = leading(path)
    places = path.values.tolist()
    now = s.provenance.parameters.get(path.parameter)
    start = len(path) // 2 if now is None else int(np.argmin(np.abs(path.values - float(np.asarray(now)))))
    charts = [
        curves("Optimal value", places, [Curve("value", path.objectives.tolist())], across=path.parameter)
    ]
    if keys:
        lines = [Curve(key, path.multipliers[key].tolist()) for key in keys]
        charts.append(curves("Multipliers", places, lines, across=path.parameter))
    return element(
        "div",
        _slider(k, path, start),
        element("dl", joined(*_facts(path, keys, start)), class_="facts"),
        element("div", joined(*charts), class_="charts"),
        element("p", f"{len(path)} solves; {agreement(path)}.", class_="caption"),
        _table(path, keys),
        element("script", Markup(_data(path, keys)), type="application/json"),
        class_="whatif",
        data_panel=str(k),
    )


def _slider(k: int, path: ParametricPath, start: int) -> Markup:
    bar = element(
        "input",
        type="range",
        id=f"path-{k}",
        min="0",
        max=str(len(path) - 1),
        step="1",
        value=str(start),
        autocomplete="off",
    )
    label = element("label", path.parameter, for_=f"path-{k}")
    shown = element("output", f"{path.values[start]:.6g}", for_=f"path-{k}", data_show="parameter")
    return element("div", label, bar, shown, class_="slider", hidden="")


def _facts(path: ParametricPath, keys: list[str], start: int) -> list[Markup]:
    def fact(term: str, shown: str, key: str) -> Markup:
        return element("div", element("dt", term), element("dd", shown, data_show=key))

    found = [
        fact("optimal value", number(float(path.objectives[start]), 5), "objective"),
        fact(f"slope in {path.parameter}", _number(path.slopes[start]), "slope"),
        fact("status", path.statuses[start].replace("_", " "), "status"),
    ]
    found += [
        fact(f"multiplier {key}", _number(path.multipliers[key][start]), f"multiplier-{i}")
        for i, key in enumerate(keys)
    ]
    return found


def _number(value: float) -> str:
    return "–" if math.isnan(value) else number(float(value))


def _table(path: ParametricPath, keys: list[str]) -> Markup:
    titles = [path.parameter, "optimal value", "slope", "status", *keys]
    rows: list[Markup] = []
    for i in range(len(path)):
        cells = [
            f"{path.values[i]:.6g}",
            number(float(path.objectives[i]), 5),
            _number(path.slopes[i]),
            path.statuses[i].replace("_", " "),
            *(_number(path.multipliers[key][i]) for key in keys),
        ]
        named = zip(cells, titles, strict=True)
        first, *others = [
            element("td", cell, class_="name" if j == 0 else None, data_label=title if j else None)
            for j, (cell, title) in enumerate(named)
        ]
        rows.append(element("tr", first, *others))
    head = element("thead", element("tr", joined(*(element("th", title) for title in titles))))
    return element(
        "details",
        element("summary", "All solves"),
        element("table", head, element("tbody", joined(*rows))),
    )


def _data(path: ParametricPath, keys: list[str]) -> str:
    """The texts that the slider shows, by key, as JSON that cannot end its element."""
    texts: dict[str, Any] = {
        "parameter": [f"{x:.6g}" for x in path.values.tolist()],
        "objective": [number(x, 5) for x in path.objectives.tolist()],
        "slope": [_number(x) for x in path.slopes.tolist()],
        "status": [word.replace("_", " ") for word in path.statuses],
    }
    for i, key in enumerate(keys):
        texts[f"multiplier-{i}"] = [_number(x) for x in path.multipliers[key].tolist()]
    body = {"places": path.values.tolist(), "texts": texts}
    return json.dumps(body, ensure_ascii=True).replace("<", "\\u003c").replace("&", "\\u0026")
