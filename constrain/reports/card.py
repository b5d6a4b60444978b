"""A solution in a notebook: the verdict, one line per constraint, the warnings; as small as it can be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from constrain.diagnostics.report import HEADER, report_table, status_text
from constrain.diagnostics.report import objective_text as objective_line
from constrain.reports.elements import Markup, element, joined

if TYPE_CHECKING:
    from constrain.solution import Solution

__all__ = ["card_html"]

MARKS = {"optimal": "✓", "stationary": "✓", "feasible": "–"}


def card_html(s: Solution) -> str:
    """A fragment of HTML with the colors and fonts of its surroundings; no style sheet, no script."""
    word, _, meaning = status_text(s).partition(": ")
    head = element(
        "p",
        element("b", f"{MARKS.get(s.status.value, '✕')} {word.replace('_', ' ')}"),
        f" · {objective_line(s)}",
        element("br"),
        element("small", meaning),
    )
    warnings = [element("li", element("b", f"{w.code} "), w.message) for w in s.warnings]
    return element(
        "div",
        head,
        _table(s) if s.names else None,
        element("ul", joined(*warnings)) if warnings else None,
        element(
            "small",
            s.provenance.solver,
            f" · {s.provenance.seconds:.2f} s · ",
            element("code", 'solution.report("report.html")'),
        ),
    )


def _table(s: Solution) -> Markup:
    table = report_table(s)
    kept = [k for k in range(len(HEADER)) if any(row[k] for row in table[1:])]
    side = {k: "left" if k < 2 else "right" for k in kept}
    head, *body = [
        joined(*(element("th" if i == 0 else "td", row[k], style=f"text-align: {side[k]}") for k in kept))
        for i, row in enumerate(table)
    ]
    rows = [element("tr", row) for row in body]
    return element("table", element("thead", element("tr", head)), element("tbody", joined(*rows)))
