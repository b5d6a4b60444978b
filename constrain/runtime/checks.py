"""What only a pass over rows can tell about the integrands, before any solve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from constrain._lazy import language_printing
from constrain.errors import DataError, ModelingError
from constrain.language import nodes as n
from constrain.language.types import type_of
from constrain.runtime.binding import as_array
from constrain.runtime.columns import reads_as_numbers
from constrain.runtime.streams import StreamPopulation
from constrain.runtime.surrogates import chosen_class

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from constrain.language.data import Data
    from constrain.lowering.program import Program
    from constrain.runtime.binding import Population
    from constrain.runtime.compiled import Job
    from constrain.runtime.evaluator import Evaluator
    from constrain.runtime.rows import Rows

_BINARY = ("binary_cross_entropy", "binary_cross_entropy_with_logits")
"""Losses of two classes, whose targets are probabilities."""
_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

__all__ = [
    "check_labels",
    "check_labels_met",
    "check_left_out",
    "check_rows",
    "check_texts",
    "labels_of",
    "refuse_labels",
]


def check_left_out(evaluator: Evaluator) -> None:
    """Refuses integrands that are not finite on rows that their condition leaves out (E138).

    Such a row adds nothing to the average, but back-propagation through it gives NaN.
    """
    moments = evaluator.program.moments

    def look(job: Job, rows: Rows, values: Sequence[Tensor]) -> None:
        population = evaluator.populations[job.data]
        for i, value in zip(job.moments, values, strict=False):
            event = population.stratum(moments[i].given, moments[i].by).event
            if event is not None:
                _refuse_left_out(moments[i], value, ~event(rows.columns))

    if evaluator.known is not None:
        evaluator.known.look(look)
        return
    for job in evaluator.jobs:
        population = evaluator.populations[job.data]
        if evaluator.device.type == "meta" or all(population.strata[key].event is None for key in job.strata):
            continue
        with torch.no_grad():
            for rows in population.chunks(evaluator.chunk):
                look(job, rows, evaluator.rows(job, rows, "exact"))


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


def check_rows(evaluator: Evaluator, *, start: bool = True) -> None:
    """Refuses integrands that fail, or whose value for a row depends on other rows or changes between calls.

    Args:
        evaluator: the problem on its data.
        start: the decisions are where the solve starts, so that values have to be finite there. Otherwise
            only integrands with models are looked at, which may do with rows whatever they want.

    Raises:
        DataError: E138 for values that are not finite at the start.
        ModelingError: E112 for torch functions that fail on the first rows; E122 for values that depend on
            other rows.
    """
    program = evaluator.program
    for job in evaluator.jobs:
        population = evaluator.populations[job.data]
        if population.rows < 2 or evaluator.device.type == "meta":
            continue
        nodes = [program.moments[i].integrand for i in job.moments]
        nodes += [program.per_row[i].residual for i in job.parts]
        if not start and not _plain_models(nodes):
            continue
        size = min(population.rows, 6)
        with torch.no_grad():
            whole = evaluator.rows(job, population.take(slice(0, size)), "primal")
            part = evaluator.rows(job, population.take(slice(0, size // 2)), "primal")
        for node, a, b in zip(nodes, whole, part, strict=False):
            _compare_rows(node, a, b, size, start)


def _plain_models(nodes: Sequence[n.Node]) -> bool:
    """Whether expressions hold models, and no problem inside, which may have no solution at the start."""
    parts = [x for node in nodes for x in n.postorder(node)]
    inner = any(isinstance(x, n.Opaque) and hasattr(x.function, "problem") for x in parts)
    return not inner and any(isinstance(x, n.Call) for x in parts)


def check_labels(program: Program, data: Mapping[str, Data] | None = None) -> None:
    """Refuses labels that are no position of a score, or no probability (E112), on all rows in memory.

    Args:
        program: the moment form.
        data: replaces the samples of the problem, by name.
    """
    for node in program.nodes:
        chosen = chosen_class(node)
        if chosen is not None and isinstance(chosen[1], n.Constant):
            refuse_labels(node, np.array([chosen[1].value]))
        labels = _labels(node)
        sample = None if labels is None else (data or {}).get(labels.data.name, labels.data)
        if labels is None or sample is None or sample.streamed or labels.name not in sample.columns:
            continue
        _refuse(node, labels, as_array(sample.values(labels.name)))


def check_labels_met(program: Program, data: Data, population: Population) -> None:
    """The same of a stream whose rows were passed over, where a loss takes such labels without a word.

    Args:
        program: the moment form.
        data: a sample of the problem.
        population: what is bound in its place.
    """
    met = population.met if isinstance(population, StreamPopulation) else {}
    for node in program.nodes if met else ():
        labels = _labels(node)
        if labels is None or labels.data is not data or labels.name not in met:
            continue
        values = met[labels.name]
        silent = _binary(node) or chosen_class(node) is not None or bool((values % 1 != 0).any())
        if silent:  # torch refuses other positions itself, and then the row is known
            _refuse(node, labels, values)


def _labels(node: n.Node) -> n.Column | None:
    """The labels that a loss takes; None of other nodes, and where they are computed."""
    found = n.children(node)[1] if _binary(node) else labels_of(node)
    return found if isinstance(found, n.Column) else None


def _binary(node: n.Node) -> bool:
    return isinstance(node, n.Apply) and node.atom in _BINARY


def _refuse(node: n.Node, labels: n.Column, values: NDArray[Any]) -> None:
    """E112 for labels that the loss would take without a word; missing values are refused as data."""
    if values.dtype.kind not in "biuf" or not np.isfinite(values).all():
        return
    if _binary(node):
        _refuse_probabilities(node, labels, values)
    else:
        refuse_labels(node, values)


def _refuse_probabilities(node: n.Node, labels: n.Column, values: NDArray[Any]) -> None:
    """E112 for targets of two classes outside of [0, 1]: the loss has no lower bound there."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    if low >= -1e-6 and high <= 1 + 1e-6:
        return
    signs = set(np.unique(values).tolist()) <= {-1, 1}
    shown = f"{labels.data.name}.{labels.name}"
    raise ModelingError(
        "E112",
        f"the labels {language_printing().text(labels, limit=40)} go from {low:g} to {high:g} in "
        f"{language_printing().text(node, limit=80)}, which takes 0, 1, and probabilities between them",
        at=node.loc,
        fix=f"({shown} + 1) / 2 in the place of {shown}"
        if signs
        else "labels 0 and 1; for more classes F.cross_entropy, with one output for each",
    )


def labels_of(node: n.Node) -> n.Column | None:
    """The labels of a cross entropy or of `scores.argmax(-1) == labels`, one score per class; else None."""
    chosen = chosen_class(node)
    if chosen is not None:
        scores, labels = chosen
    elif isinstance(node, n.Apply) and node.atom == "cross_entropy":
        scores, labels = node.args[:2]
    elif isinstance(node, n.Opaque) and node.function is F.nll_loss and len(n.children(node)) == 2:
        scores, labels = n.children(node)
    else:
        return None
    shape = type_of(scores).shape
    one_score_each = shape is not None and len(shape) == 1 and type_of(labels).shape == ()
    return labels if isinstance(labels, n.Column) and one_score_each else None


def refuse_labels(node: n.Node, values: Any, where: str = "") -> None:
    """Refuses labels that are no position of a score.

    Args:
        node: with `labels_of(node)`.
        values: the labels, numbers of any kind; those that the loss ignores are passed over.
        where: which rows they are of.

    Raises:
        ModelingError: E112.
    """
    scores, labels = chosen_class(node) or n.children(node)[:2]
    outputs = (type_of(scores).shape or (0,))[0]
    if isinstance(node, n.Opaque):
        values = values[values != dict(node.keywords).get("ignore_index", -100)]
    if len(values) == 0:
        return
    broken = values[values % 1 != 0] if "float" in str(values.dtype) else values[:0]
    low, high = int(values.min()), int(values.max())
    if low >= 0 and high < outputs and len(broken) == 0:
        return
    if len(broken):
        raise ModelingError(
            "E112",
            f"the labels {language_printing().text(labels, limit=40)} have the value {float(broken[0]):g}; "
            f"a label is the position of its class, from 0{where}",
            at=node.loc,
            fix='whole numbers; F.mse_loss(prediction, label, reduction="none") for a quantity',
        )
    told = f"go up to {high}" if high >= outputs else f"go down to {low}"
    text = language_printing().text
    shown = "1 output" if outputs == 1 else f"{outputs} outputs"
    many = f"as many outputs as classes ({high + 1})"
    binary = 'F.binary_cross_entropy_with_logits(score[..., 0], label, reduction="none") for one logit'
    raise ModelingError(
        "E112",
        f"the labels {text(labels, limit=40)} {told} while {text(scores, limit=60)} has {shown}; "
        f"a label is the position of its class, from 0{where}",
        at=node.loc,
        fix="labels from 0 on" if low < 0 else f"{binary}, or {many}" if outputs == 1 else many,
    )


def check_texts(program: Program, data: Data, population: Population) -> None:
    """Text columns are groups or compared with a text.

    Args:
        program: the moment form.
        data: a sample of the problem.
        population: what is bound in its place.

    Raises:
        DataError: E106 for an unknown level, E147 for other uses.
    """
    for node in n.postorder(*program.roots):
        match node:
            case n.Comparison(op="==" | "!=", lhs=n.Column() as column, rhs=n.Array(symbol=symbol)) if (
                isinstance(symbol.value, str)
            ):
                if column.data is data:
                    population.level_code(column.name, symbol.value, node.loc)
                used: tuple[n.Node, ...] = ()
            case n.Moment(integrand=integrand, given=given):
                used = (integrand,) if given is None else (integrand, given)
            case _:
                used = n.children(node)
        for x in used:
            if isinstance(x, n.Column) and x.data is data and x.name in population.levels:
                one = f'{data.name}.{x.name} == "{population.levels[x.name][0]}"'
                fix = f"cn.indicator({one}) as a number, {one} as an event, or by="
                if reads_as_numbers(population.levels[x.name]):
                    fix = f"a column of numbers: {x.name} holds their texts"
                raise DataError(
                    "E147",
                    f"the text column {data.name}.{x.name} is used as a number in "
                    f"{language_printing().text(node, limit=80)}",
                    at=node.loc,
                    fix=fix,
                )


def _compare_rows(node: n.Node, whole: Tensor, part: Tensor, size: int, start: bool) -> None:
    shown = language_printing().text(node, limit=100)
    if whole.dim() == 0 or whole.shape[0] != size:
        raise ModelingError(
            "E112",
            f"{shown} has shape {tuple(whole.shape)} on {size} rows: the first axis is not the rows",
            at=node.loc,
        )
    if not torch.isfinite(whole).all():
        if not start:
            return
        raise DataError(
            "E138", f"{shown} is not finite at the starting point", at=node.loc, fix="another start"
        )
    a, b = whole[: size // 2].double(), part.double()
    if a.shape != b.shape:
        raise ModelingError(
            "E112",
            f"{shown} pairs every row with every row: its shape is {tuple(whole.shape)} on {size} rows "
            f"and {tuple(part.shape)} on {size // 2}",
            at=node.loc,
            fix="parts of one shape per row: of an output with one column f(D.x)[..., 0]",
        )
    if not torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max()) + 1e-8):
        raise _dependent(node, shown)


def _dependent(node: n.Node, shown: str) -> ModelingError:
    """E122 for values in evaluation mode; it names batch normalization without running statistics."""
    what = f"{shown} of one row changes with the other rows of its batch, in evaluation mode too"
    models = dict.fromkeys(x.model for x in n.postorder(node) if isinstance(x, n.Call))
    for model in models:
        for name, layer in model.module.named_modules():
            if not isinstance(layer, _BATCH_NORM) or layer.running_mean is not None:
                continue
            kind = f"{type(layer).__name__} {name!r}" if name else type(layer).__name__
            text = f"{what}: {kind} of the model {model.name} has no running statistics"
            return ModelingError("E122", text, at=node.loc, fix="track_running_stats=True")
    return ModelingError(
        "E122",
        f"{what} (a function along the row axis, attention between rows, or noise in every call)",
        at=node.loc,
        fix="reduce along dim=-1; noise of training only where the module's self.training is set",
    )
