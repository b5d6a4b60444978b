"""Views of statistics on one sample, and of the mixtures that a run offers: aligned text and Markdown."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from constrain.diagnostics.listing import bounds_of, telling_estimates
from constrain.diagnostics.table import (
    aligned,
    cut,
    fitted,
    limit_text,
    markdown,
    number,
    plus_minus,
    short,
    wrapped,
)

if TYPE_CHECKING:
    from constrain.solution import Estimate, Evaluation, Solution

__all__ = [
    "SHOWN",
    "WIDTH",
    "constraint_table",
    "evaluation_text",
    "margin_lines",
    "member_table",
    "mixture_lines",
    "mixture_markdown",
    "mixture_text",
    "run_error_line",
]

SHOWN = 6
"""Entries of a block that are listed; the worst ones."""

WIDTH = 110
"""Columns of a report."""


# ------------------------------------------------------------------------------------------- samples
def evaluation_text(e: Evaluation) -> str:
    """An evaluation: objective and one line per constraint entry."""
    sizes = ", ".join(f"{name} n={rows}" for name, rows in zip(e.data, e.rows, strict=True))
    lines = wrapped("data", sizes) + wrapped("objective", plus_minus(e.objective, e.lower, e.upper))
    rows = constraint_table(e)
    return "\n".join([*lines, *(aligned(fitted(rows, 1, WIDTH), left=2) if len(rows) > 1 else [])])


def constraint_table(e: Evaluation) -> list[tuple[str, ...]]:
    """The constraints of an evaluation, a row per entry, under their titles."""
    rows: list[tuple[str, ...]] = [("constraint", "as written", "value", "bound", "verdict")]
    kept = telling_estimates(e.estimates)
    for name in kept:
        rows += _estimate_rows(name, e.texts.get(name, ""), e.estimates[name])
    if len(kept) < len(e.estimates):
        rows.append((f"  ... and {len(e.estimates) - len(kept):,} more constraints", "", "", "", ""))
    return rows


def _estimate_rows(name: str, text: str, estimate: Estimate) -> list[tuple[str, ...]]:
    if estimate.share is not None:
        relaxed = estimate.relaxed is not None and not estimate.share
        share, word = (estimate.relaxed or 0.0, "relaxed") if relaxed else (estimate.share, "violated")
        shown = f"{share:.2%} of {estimate.smallest} rows {word}"
        return [(name, text, shown, "", estimate.verdict)]
    shape = np.shape(estimate.value)
    values, lower, upper = (
        np.broadcast_to(x, shape).ravel() for x in (estimate.value, estimate.lower, estimate.upper)
    )
    bounds = [np.broadcast_to(b, shape).ravel() for b in bounds_of(estimate)]
    violation = np.broadcast_to(estimate.violation, shape).ravel()
    order = np.argsort(-violation, kind="stable")[:SHOWN] if values.size > SHOWN else np.arange(values.size)
    rows: list[tuple[str, ...]] = []
    for position, k in enumerate(order.tolist()):
        label = cut(estimate.labels[k] if estimate.labels else name, 26)
        bound = " … ".join(limit_text(float(b[k])) for b in bounds)
        shown = plus_minus(float(values[k]), float(lower[k]), float(upper[k]))
        rows.append((label, text if position == 0 else "", shown, bound, estimate.verdicts[k]))
    if values.size > SHOWN:
        rows.append((f"  ... and {values.size - SHOWN} more", "", "", "", ""))
    return rows


def run_error_line(s: Solution) -> str:
    """`level 0.674 ± 0.021, ...` for the multipliers of a training run whose noise has an error."""
    errors = {key: e for key, e in s.run_errors().items() if not e.reason}
    shown = sorted(errors, key=lambda key: -abs(errors[key].value))[:SHOWN]
    listed = ", ".join(f"{key} {number(errors[key].value)} ± {short(errors[key].error)}" for key in shown)
    return f"{listed} (noise of batches, not of starts or samples)" if listed else ""


def margin_lines(s: Solution) -> list[str]:
    """By how much bounds were tightened, why, and what it costs."""
    t = s.tightening
    if t is None:
        return []
    sizes = ", ".join(f"{name} {number(t.largest(name))}" for name in t.margins)
    how = "as given"
    if t.errors:
        count = "one number" if t.counted == 1 else f"{t.counted} numbers together"
        how = f"one-sided {100 * t.confidence:g} % for {count}"
        rows = f"{t.held_back:,} rows held back" if t.held_back else "the calibration sample"
        how += f", and the gap to {rows}" if t.gaps else ""
    price = f"objective {number(t.objective, 6)} without, price {number(t.price)}"
    if math.isfinite(t.expected):
        price += f" (multipliers foresaw {number(t.expected)})"
    skipped = [f"{name} has none: {why}" for name, why in t.skipped.items()]
    return [f"bounds tightened by up to {sizes} ({how}); {price}", *skipped]


# ------------------------------------------------------------------------------------------ mixtures
def mixture_lines(s: Solution) -> list[str]:
    """What drawing one of several iterates reaches, against the best single one; the hold-out, if any."""
    m = s.mixture
    if m is None:
        return []
    alone = f"{number(m.single, 6)} alone" if math.isfinite(m.single) else "no single one is feasible"
    count = "one iterate" if len(m) == 1 else f"one of {len(m)} iterates"
    found = [f"objective {number(m.objective, 6)} drawing {count}; {alone}"]
    if m.holdout is not None:
        broken = [name for name, e in m.holdout.estimates.items() if e.verdict == "violated"]
        on = f"violated: {', '.join(broken)}" if broken else "no constraint shown to be violated"
        found.append(f"on the hold-out {number(m.holdout.objective, 6)}, {on}")
    return found


def member_table(s: Solution) -> list[tuple[str, ...]]:
    """The members of the mixture with their probabilities, and what each would be alone, under titles."""
    m = s.mixture
    if m is None:
        return []
    recorded = {row["epoch"]: row for row in s.history if "epoch" in row}
    rows: list[tuple[str, ...]] = [("drawn", "probability", "objective alone", "violation alone")]
    for weight, epoch in zip(m.weights, m.epochs, strict=True):
        own = recorded.get(epoch, {})
        objective = number(float(own.get("objective", math.nan)), 6)
        rows.append(
            (f"epoch {epoch}", number(weight), objective, short(float(own.get("violation", math.nan))))
        )
    return rows


def mixture_text(s: Solution) -> list[str]:
    """The mixture as lines of a report: what it reaches, its members, its constraints."""
    if s.mixture is None:
        return []
    lines = [
        line for k, text in enumerate(mixture_lines(s)) for line in wrapped("" if k else "mixture", text)
    ]
    tables = [aligned(member_table(s), left=1)]
    constraints = constraint_table(s.mixture.train)
    if len(constraints) > 1:
        tables.append(aligned(fitted(constraints, 1, WIDTH - 12), left=2))
    return [*lines, *(" " * 12 + line for table in tables for line in table)]


def mixture_markdown(s: Solution) -> list[str]:
    """The mixture as a section in Markdown."""
    if s.mixture is None:
        return []
    lines = ["", "## Mixture", "", *(f"- {text}" for text in mixture_lines(s))]
    lines += ["", *markdown(member_table(s), left=1)]
    constraints = constraint_table(s.mixture.train)
    return [*lines, "", *markdown(constraints, left=2)] if len(constraints) > 1 else lines
