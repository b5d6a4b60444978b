"""Cards for margins that were put on bounds, and for why a problem has no feasible point."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from constrain.diagnostics.report import SHOWN
from constrain.diagnostics.table import number, short
from constrain.reports.elements import Markup, element, joined

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from constrain.diagnostics.infeasibility import Infeasibility
    from constrain.solution import Solution
    from constrain.solution.records import Number

__all__ = ["facts_of", "infeasibility_section", "margin_section", "table_of"]


def _section(title: str, *children: str | None) -> Markup:
    return element("section", element("h2", title), *children)


def facts_of(facts: Sequence[tuple[str, str, str]]) -> Markup:
    """Numbers with their names above and notes below."""
    found = [
        element("div", element("dt", term), element("dd", value, element("small", note) if note else None))
        for term, value, note in facts
    ]
    return element("dl", joined(*found), class_="facts plain")


def table_of(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """A table of text without its empty columns; on a phone every cell has its title beside it."""
    kept = [k for k in range(len(titles)) if k == 0 or any(row[k] for row in rows)]
    head = [element("th", titles[k]) for k in kept]
    body: list[Markup] = []
    for row in rows:
        cells = [element("td", row[0], class_="name")]
        cells += [element("td", row[k], data_label=titles[k]) for k in kept[1:]]
        body.append(element("tr", joined(*cells)))
    return element("table", element("thead", element("tr", joined(*head))), element("tbody", joined(*body)))


# --------------------------------------------------------------------------------------------- margins
def margin_section(s: Solution) -> Markup | None:
    """By how much each bound was moved and why, and what that costs."""
    t = s.tightening
    if t is None:
        return None
    rows: list[list[str]] = []
    for name, margin in t.margins.items():
        labels = s[name].labels or (name,)
        sizes = _numbers(margin, len(labels))
        bounds = s[name].bound
        ends = [_numbers(b, len(labels)) for b in (bounds if isinstance(bounds, tuple) else (bounds,))]
        errors, gaps = (_numbers(found.get(name, math.nan), len(labels)) for found in (t.errors, t.gaps))
        for k in sorted(range(len(labels)), key=lambda k, own=sizes: -own[k])[:SHOWN]:
            written = " … ".join(number(own[k]) for own in ends)
            rows.append([labels[k], written, number(sizes[k]), _known(errors[k]), _known(gaps[k])])
        if len(labels) > SHOWN:
            rows.append([f"{name}: and {len(labels) - SHOWN} more", "", "", "", ""])
    skipped = [[name, "", f"none: {why}", "", ""] for name, why in t.skipped.items()]
    note = "The solve kept these margins to its bounds; constraints are judged by the bounds as written."
    if t.errors:
        count = "one number" if t.counted == 1 else f"{t.counted} numbers together"
        note += f" Margins hold {count} at one-sided {100 * t.confidence:g} %, as far as sampling error goes"
        where = f"{t.held_back:,} rows that were held back" if t.held_back else "the calibration sample"
        note += f", beyond the gap to {where}." if t.gaps else "."
    foreseen = f"multipliers foresaw {number(t.expected)}" if math.isfinite(t.expected) else ""
    titles = ("constraint", "bound as written", "margin", "standard error", "gap")
    return _section(
        "Margins",
        facts_of(
            [
                ("objective without margins", number(t.objective, 6), ""),
                ("price of the margins", number(t.price), foreseen),
            ]
        ),
        table_of(titles, [*rows, *skipped]),
        element("p", note, class_="caption"),
    )


def _numbers(value: Number, count: int) -> list[float]:
    """One number per entry of a constraint, which may share them."""
    flat = np.asarray(value, dtype=np.float64).ravel()
    return [float(x) for x in flat] if flat.size == count else [float(np.max(flat))] * count


def _known(value: float) -> str:
    return number(value) if math.isfinite(value) else ""


# ---------------------------------------------------------------------------------------- infeasibility
VERDICTS = {
    "infeasible": "no point satisfies all constraints",
    "likely_infeasible": "no point was found that does",
    "feasible": "all constraints can hold together",
}


def infeasibility_section(found: Infeasibility, title: str = "Infeasibility") -> Markup:
    """The conflict, what would resolve it, and the proof or the evidence."""
    if found.feasible:
        return _section(title, element("p", found.reason))
    names = list(dict.fromkeys((*found.names, *found.amounts)))
    titles = ("constraint", "in the conflict", "gives way by", "alone it would need")
    rows = [
        [
            name,
            "yes" if name in found.names else "",
            number(found.amounts[name]) if name in found.amounts else "",
            _alone(found.alone, name),
        ]
        for name in names
    ]
    fewest = "" if found.fewest is None else f"of the fewest that must: {', '.join(found.fewest)}"
    facts = [
        ("smallest conflict", f"{len(found.conflict)}", "" if found.minimal else "a smaller one may exist"),
        ("constraints to relax", f"{len(found.fewest)}" if found.fewest is not None else "–", fewest),
        ("least total relaxation", number(found.total), "in the constraints' units"),
    ]
    notes = [*_notes(found), *([_sentence(found.advice)] if found.advice else [])]
    return _section(
        title,
        element("p", _sentence(f"{found.verdict.replace('_', ' ')}: {found.reason}"), class_="reason"),
        facts_of(facts),
        table_of(titles, rows),
        element("ul", joined(*(element("li", note) for note in notes)), class_="notes"),
        element("details", element("summary", "Proof"), element("pre", str(found.certificate)))
        if found.certificate is not None
        else None,
    )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _alone(alone: Mapping[str, float], name: str) -> str:
    by = alone.get(name)
    return "" if by is None else number(by) if math.isfinite(by) else "no amount suffices"


def _notes(found: Infeasibility) -> list[str]:
    notes = [f"Conflict: {', '.join(found.conflict)}."]
    if found.integers:
        notes.append(f"Not of whole numbers, it could hold: {', '.join(found.integers)}.")
    if found.parameters:
        values = {name: np.asarray(value) for name, value in found.parameters.items()}
        shown = [
            f"{k} = {number(float(v))}" if v.ndim == 0 else f"{k} ({v.size} numbers)"
            for k, v in values.items()
        ]
        notes.append(f"Parameters in it: {', '.join(shown)}.")
    if found.columns:
        notes.append(f"Columns of data in it: {', '.join(found.columns)}.")
    if found.evidence is not None:
        totals = ", ".join(short(t) for t in found.evidence.totals)
        notes.append(f"No proof, but evidence: least total violation by start {totals}.")
        if found.evidence.growing:
            notes.append(f"Multipliers kept growing: {', '.join(found.evidence.growing)}.")
    return notes
