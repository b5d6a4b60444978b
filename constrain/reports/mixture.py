"""The card of a mixture: what drawing one of several iterates reaches, its members, its constraints."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from constrain.diagnostics.samples import constraint_table, member_table
from constrain.diagnostics.table import number, plus_minus
from constrain.reports.diagnosis import facts_of, table_of
from constrain.reports.elements import Markup, element
from constrain.reports.sections import section

if TYPE_CHECKING:
    from constrain.solution import Solution

__all__ = ["mixture_section"]


def mixture_section(s: Solution) -> Markup | None:
    """Members with their probabilities, and the constraints under the draw; None without a mixture."""
    m = s.mixture
    if m is None:
        return None
    alone = number(m.single, 6) if math.isfinite(m.single) else "none"
    note = "" if math.isfinite(m.single) else "no single one is feasible"
    facts = [
        ("objective when one is drawn", number(m.objective, 6), f"{len(m)} members"),
        ("the best single iterate", alone, note),
    ]
    if m.holdout is not None:
        held = plus_minus(m.holdout.objective, m.holdout.lower, m.holdout.upper)
        facts.append(("hold-out objective", held, "when one is drawn"))
    members, constraints = member_table(s), _constraints(s)
    return section(
        "Mixture",
        facts_of(facts),
        table_of(members[0], members[1:]),
        table_of(constraints[0], constraints[1:]) if len(constraints) > 1 else None,
        element(
            "p",
            "One member is drawn, with its probability, every time that a decision is needed. Averages hold "
            "over rows and draws; no member has to satisfy the constraints by itself.",
            class_="caption",
        ),
    )


def _constraints(s: Solution) -> list[tuple[str, ...]]:
    """The constraints of the mixture on the training data, and beside them on the hold-out."""
    m = s.mixture
    if m is None:
        return []
    train = constraint_table(m.train)
    if m.holdout is None:
        return train
    held = constraint_table(m.holdout)
    if [row[:2] for row in held] != [row[:2] for row in train]:
        return train  # another order of the worst entries
    titles = (*train[0], "hold-out", "verdict there")
    return [titles, *((*own, row[2], row[4]) for own, row in zip(train[1:], held[1:], strict=True))]
