"""What only a pass over rows can tell about the integrands, before any solve."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from constrain._lazy import language_printing
from constrain.errors import DataError, ModelingError

if TYPE_CHECKING:
    from torch import Tensor

    from constrain.language import nodes as n
    from constrain.runtime.evaluator import Evaluator

__all__ = ["check_left_out", "check_rows"]


def check_left_out(evaluator: Evaluator) -> None:
    """Refuses integrands that are not finite on rows that their condition leaves out (E138).

    Such a row adds nothing to the average, but back-propagation through it gives NaN.
    """
    moments = evaluator.program.moments
    for job in evaluator.jobs:
        population = evaluator.populations[job.data]
        strata = [population.stratum(m.given, m.by) for m in (moments[i] for i in job.moments)]
        if evaluator.device.type == "meta" or not any(s.event is not None for s in strata):
            continue
        with torch.no_grad():
            for rows in population.chunks(evaluator.chunk):
                values = evaluator.rows(job, rows, "exact")
                for i, stratum, value in zip(job.moments, strata, values, strict=False):
                    if stratum.event is not None:
                        _refuse_left_out(moments[i], value, ~stratum.event(rows.columns))


def _refuse_left_out(moment: n.Moment, value: Tensor, left_out: Tensor) -> None:
    bad = ~torch.isfinite(value.reshape(value.shape[0], -1)).all(1) & left_out
    if bool(bad.any()):
        shown = language_printing().text(moment.integrand, limit=80)
        raise DataError(
            "E138",
            f"{shown} is not finite on {int(bad.sum())} rows "
            "that its condition leaves out; they add nothing to the average, but their gradient is NaN",
            at=moment.loc,
            fix="cn.where(condition, x, 1.0) inside of the function, or those rows as a cn.Data",
        )


def check_rows(evaluator: Evaluator) -> None:
    """Refuses integrands whose value for a row depends on other rows, or changes between calls (E122)."""
    program = evaluator.program
    for job in evaluator.jobs:
        population = evaluator.populations[job.data]
        if population.rows < 2 or evaluator.device.type == "meta":
            continue
        size = min(population.rows, 6)
        with torch.no_grad():
            whole = evaluator.rows(job, population.take(slice(0, size)), "primal")
            part = evaluator.rows(job, population.take(slice(0, size // 2)), "primal")
        nodes = [program.moments[i].integrand for i in job.moments]
        nodes += [program.per_row[i].residual for i in job.parts]
        for node, a, b in zip(nodes, whole, part, strict=False):
            _compare_rows(node, a, b, size)


def _compare_rows(node: n.Node, whole: Tensor, part: Tensor, size: int) -> None:
    shown = language_printing().text(node, limit=100)
    if whole.dim() == 0 or whole.shape[0] != size:
        raise ModelingError(
            "E112",
            f"{shown} has shape {tuple(whole.shape)} on {size} rows: the first axis is not the rows",
            at=node.loc,
        )
    if not torch.isfinite(whole).all():
        raise DataError(
            "E138", f"{shown} is not finite at the starting point", at=node.loc, fix="another start"
        )
    a, b = whole[: size // 2].double(), part.double()
    if not torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max()) + 1e-8):
        raise ModelingError(
            "E122",
            f"{shown} of one row changes with the other rows of its batch (batch normalization, dropout, "
            "or a function along the row axis)",
            at=node.loc,
            fix="put the module into eval() mode, use GroupNorm or LayerNorm, or reduce along dim=-1",
        )
