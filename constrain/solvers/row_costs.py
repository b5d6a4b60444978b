"""What it costs to exceed constraints per row, row by row: for methods that keep them as constraints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from constrain.lowering.relaxation import rows_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from constrain.lowering.program import Program, Relaxation
    from constrain.runtime.evaluator import Evaluator

__all__ = ["row_costs", "row_relaxations"]


def row_relaxations(program: Program) -> list[Relaxation]:
    """The relaxations of constraints per row."""
    return [
        form.relaxation for form in program.forms if form.relaxation is not None and form.relaxation.parts
    ]


def row_costs(evaluator: Evaluator, shapes: Sequence[tuple[int, ...]]) -> dict[str, tuple[Tensor, Tensor]]:
    """By part key the weights of the linear and the squared term of h, per row.

    Args:
        evaluator: of the judged program.
        shapes: of its parts.
    """
    known = {part.key: shape for part, shape in zip(evaluator.program.parts, shapes, strict=True)}
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for form in evaluator.program.forms:
        relaxation = form.relaxation
        if relaxation is None or form.rows is None:
            continue
        terms = {"linear": 0.0, "squared": 0.0}
        for kind, weight in zip(relaxation.cost, relaxation.weights, strict=True):
            terms[kind] += evaluator.constant(weight)
        population = evaluator.populations[form.rows]
        share = torch.ones(population.rows, dtype=torch.float64, device=evaluator.device)
        if rows_of(form.rows) is None:  # points of a region: costs are averaged
            share = (share if population.base is None else population.base.to(share)) / population.rows
        for part in relaxation.parts:
            wide = share.reshape(-1, *(1 for _ in known[part.key][1:]))
            found[part.key] = terms["linear"] * wide, terms["squared"] * wide
    return found
