"""What only a pass over rows can tell about the integrands, before any solve."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from constrain._lazy import language_printing
from constrain.errors import DataError, ModelingError
from constrain.language import nodes as n
from constrain.language.types import type_of
from constrain.runtime.binding import as_array
from constrain.runtime.codegen import generate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from constrain.language.data import Data
    from constrain.lowering.program import Program
    from constrain.runtime.binding import Rows
    from constrain.runtime.compiled import Job
    from constrain.runtime.evaluator import Evaluator

__all__ = ["check_labels", "check_left_out", "check_rows"]


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
                values = _values(evaluator, job, rows, "exact")
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
    """Refuses integrands that fail, or whose value for a row depends on other rows or changes between calls.

    Raises:
        ModelingError: E112 for torch functions that fail on the first rows; E122 for values that depend on
            other rows.
    """
    program = evaluator.program
    for job in evaluator.jobs:
        population = evaluator.populations[job.data]
        if population.rows < 2 or evaluator.device.type == "meta":
            continue
        size = min(population.rows, 6)
        with torch.no_grad():
            whole = _values(evaluator, job, population.take(slice(0, size)), "primal")
            part = _values(evaluator, job, population.take(slice(0, size // 2)), "primal")
        nodes = [program.moments[i].integrand for i in job.moments]
        nodes += [program.per_row[i].residual for i in job.parts]
        for node, a, b in zip(nodes, whole, part, strict=False):
            _compare_rows(node, a, b, size)


def _roots(evaluator: Evaluator, job: Job) -> list[n.Node]:
    """What a job computes for every row."""
    program = evaluator.program
    return [
        *(program.moments[i].integrand for i in job.moments),
        *(program.per_row[i].residual for i in job.parts),
    ]


def _values(evaluator: Evaluator, job: Job, rows: Rows, mode: str) -> list[Tensor]:
    """The integrands on some rows; what torch refuses is said with the place where it was written (E112)."""
    try:
        return evaluator.rows(job, rows, mode)
    except (DataError, ModelingError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        failing = _failing(evaluator, job, rows)
        if failing is None:
            raise
        words = str(error).strip().split("\n", 1)[0] or type(error).__name__
        raise ModelingError(
            "E112",
            f"{language_printing().text(failing, limit=80)} fails on rows of "
            f"{job.data.name}: {type(error).__name__}: {words}",
            at=failing.loc,
            fix="arguments that the function takes, for every row",
        ) from error


def _failing(evaluator: Evaluator, job: Job, rows: Rows) -> n.Node | None:
    """The innermost operation that cannot be computed on these rows."""
    for node in n.postorder(*_roots(evaluator, job)):
        if isinstance(node, n.Apply | n.Call | n.Opaque):
            try:
                alone = generate("alone", evaluator.tables, [(node, "exact")])
                evaluator.compute(alone, rows, job.data)
            except Exception:  # whatever a function of the user raises
                return node
    return None


def check_labels(program: Program, data: Mapping[str, Data] | None = None) -> None:
    """Refuses labels of a cross entropy that are no position of a score (E112), on all rows.

    Args:
        program: the moment form.
        data: replaces the samples of the problem, by name.
    """
    for node in program.nodes:
        if not isinstance(node, n.Apply) or node.atom != "cross_entropy":
            continue
        scores, labels = node.args[:2]
        shape, target = type_of(scores).shape, type_of(labels).shape
        if not isinstance(labels, n.Column) or target != () or not shape or len(shape) != 1:
            continue
        sample = (data or {}).get(labels.data.name, labels.data)
        if sample.streamed or labels.name not in sample.columns:
            continue
        values = as_array(sample.values(labels.name))
        if values.dtype.kind not in "biuf":
            continue
        low, high = int(values.min()), int(values.max())
        if low >= 0 and high < shape[0]:
            continue
        told = f"go up to {high}" if high >= shape[0] else f"go down to {low}"
        text = language_printing().text
        outputs = "1 output" if shape[0] == 1 else f"{shape[0]} outputs"
        many = f"as many outputs as classes ({high + 1})"
        binary = 'F.binary_cross_entropy_with_logits(score[..., 0], label, reduction="none") for one logit'
        raise ModelingError(
            "E112",
            f"the labels {text(labels, limit=40)} {told} while {text(scores, limit=60)} has {outputs}; "
            "a label is the position of its class, from 0",
            at=node.loc,
            fix="labels from 0 on" if low < 0 else f"{binary}, or {many}" if shape[0] == 1 else many,
        )


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
