"""The table of constraints: numbers, words, and a picture of every interval against its bound."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from constrain.diagnostics.listing import others_line, telling
from constrain.diagnostics.report import SHOWN, constraint_rows, listed, share_text
from constrain.diagnostics.table import limit_text, number, plus_minus
from constrain.reports.charts import Bar, interval_bar, scale_of
from constrain.reports.elements import Markup, element, joined

if TYPE_CHECKING:
    from collections.abc import Sequence

    from constrain.solution import ConstraintResult, Solution

__all__ = ["bar_of", "constraint_table"]

TONES = {"holds": "good", "compatible": "good", "relaxed": "open", "violated": "bad"}


def constraint_table(s: Solution) -> Markup:
    """One row per constraint, or a row for its name and one per entry."""
    columns = _columns(s)
    head = [element("th", title, class_="picture" if key == "picture" else None) for key, title in columns]
    rows = [row for name in telling(s) for row in _rows(s, s[name], [key for key, _ in columns])]
    return joined(
        element("table", element("thead", element("tr", joined(*head))), element("tbody", joined(*rows))),
        element("p", *_caption(s), class_="caption"),
    )


def _columns(s: Solution) -> list[tuple[str, str]]:
    """Keys and titles; columns without any entry are left out."""
    results = [s[name] for name in s.names]
    found = [("name", "constraint"), ("picture", ""), ("value", "value"), ("bound", "bound")]
    if any(
        float(np.max(np.asarray(c.relaxation), initial=0.0)) > s.record.tolerance
        for c in results
        if c.relaxation is not None
    ):
        found.append(("relaxed", "relaxed by"))
    if s.holdout is not None:
        found.append(("holdout", "hold-out, 95 %"))
    return [*found, ("word", "verdict"), ("multiplier", "multiplier"), ("price", "shadow price")]


def _caption(s: Solution) -> list[Markup | str]:
    sample = "hold-out" if s.holdout is not None else "training data"
    text = f"Bars: values that the bound admits are shaded; a line is the 95 % interval on the {sample}"
    text += ", a disk its center, a ring the training value. " if s.holdout is not None else ". "
    text += "Shadow price: change of the optimal value per unit of the right-hand side as written."
    others = others_line(s)
    return [f"{others}. {text}" if others else text]


def _rows(s: Solution, c: ConstraintResult, keys: Sequence[str]) -> list[Markup]:
    if c.rows is not None:
        return [_row(_per_row(s, c), keys, c.name, c.text)]
    records = constraint_rows(c)
    order = listed(s, records)[:SHOWN]
    bars = [bar_of(c, record) for record in records]
    scale = scale_of([bars[k] for k in order])
    if len(records) == 1:
        return [_row(_cells(s, c, records[0], bars[0], scale), keys, c.name, c.text)]
    head = element("td", c.name, element("small", c.text), class_="name", colspan=len(keys))
    rows = [element("tr", head, class_="group")]
    for k in order:
        label = str(records[k]["constraint"]).removeprefix(c.name).removeprefix("[").removesuffix("]")
        rows.append(_row(_cells(s, c, records[k], bars[k], scale), keys, label, "", kind="of"))
    if len(records) > SHOWN:
        more = element("td", f"and {len(records) - SHOWN} more", class_="name quiet", colspan=len(keys))
        rows.append(element("tr", more, class_="of"))
    return rows


def _row(
    cells: dict[str, Markup | str], keys: Sequence[str], name: str, text: str, kind: str | None = None
) -> Markup:
    titles = {"value": "value", "bound": "bound", "relaxed": "relaxed by", "holdout": "hold-out, 95 %"}
    titles |= {"word": "verdict", "multiplier": "multiplier", "price": "shadow price"}
    found = [element("td", name, element("small", text) if text else None, class_="name")]
    for key in keys[1:]:
        kinds = {"picture": "picture", "word": f"word {TONES.get(str(cells.get('word', '')), 'open')}"}
        found.append(element("td", cells.get(key, ""), class_=kinds.get(key), data_label=titles.get(key)))
    return element("tr", joined(*found), class_=kind)


def bar_of(c: ConstraintResult, record: dict[str, Any]) -> Bar:
    """The picture of one entry."""
    low, high = record.get("lower_bound", record.get("bound")), record.get("upper_bound", record.get("bound"))
    held = "holdout_value" in record
    start = "holdout" if held else "interval"
    return Bar(
        value=float(record["value"]),
        lower=float(record.get(f"{start}_lower", math.nan)),
        upper=float(record.get(f"{start}_upper", math.nan)),
        center=float(record["holdout_value"] if held else record["value"]),
        bounds=(None if c.op == "<=" else low, None if c.op == ">=" else high),
        verdict=str(record["holdout_verdict"] if held else record["verdict"]),
    )


def _cells(
    s: Solution, c: ConstraintResult, record: dict[str, Any], bar: Bar, scale: tuple[float, float]
) -> dict[str, Markup | str]:
    mark = " (?)" if c.uncertified else " (!)" if record["constraint"] in s.record.dependent else ""
    ends = [record[key] for key in ("lower_bound", "upper_bound", "bound") if key in record]
    said = f"{record['constraint']}: {number(bar.value)}, {bar.verdict}"
    relaxed = float(record.get("relaxation", 0.0))
    cells: dict[str, Markup | str] = {
        "picture": interval_bar(bar, scale, said),
        "value": number(bar.value),
        "bound": " … ".join(limit_text(float(b)) for b in ends),
        "relaxed": number(relaxed) if relaxed > s.record.tolerance else "",
        "word": bar.verdict,
    }
    if "holdout_value" in record:
        ends = record["holdout_lower"], record["holdout_upper"]
        cells["holdout"] = plus_minus(float(record["holdout_value"]), float(ends[0]), float(ends[1]))
    if "multiplier" in record:
        cells["multiplier"] = number(float(record["multiplier"])) + mark
        cells["price"] = number(float(record["shadow_price"])) + mark
    return cells


def _per_row(s: Solution, c: ConstraintResult) -> dict[str, Markup | str]:
    """A constraint per row: the share of rows that are off, the largest multiplier, the sum of prices."""
    mark = " (?)" if c.uncertified else ""
    cells: dict[str, Markup | str] = {
        "value": share_text(c.train),
        "bound": "",
        "word": c.verdict,
        "picture": element("span", f"{np.shape(c.value)[0]:,} rows", class_="quiet"),
    }
    if c.relaxation is not None:
        most = float(np.max(np.asarray(c.relaxation), initial=0.0))
        cells["relaxed"] = f"max {number(most)}" if most > s.record.tolerance else ""
    if c.holdout is not None:
        cells["holdout"] = share_text(c.holdout)
    if c.has_duals:
        cells["multiplier"] = f"max {number(float(np.max(np.abs(c.multiplier), initial=0.0)))}{mark}"
        cells["price"] = f"sum {number(float(np.sum(c.shadow_price)))}{mark}"
    return cells
