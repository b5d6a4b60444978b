"""Multipliers of constraints per row as a function of the row: a network instead of a table."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from constrain._lazy import language_printing
from constrain.errors import ModelingError
from constrain.language import nodes as n
from constrain.language.data import suggest
from constrain.language.expr import Expr
from constrain.language.types import type_of
from constrain.runtime.modes import TRIED, Modes, acting_words

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from constrain.lowering.program import Part, Program
    from constrain.runtime.binding import Population
    from constrain.runtime.evaluator import Evaluator

__all__ = [
    "MultiplierFunction",
    "function_values",
    "multiplier_functions",
    "over_distribution",
    "part_shapes",
]


class MultiplierFunction(nn.Module):
    """The multiplier of a row as the value of a model on its columns.

    One multiplier per row needs rows that come back; a function of the row also serves fresh samples of a
    continuous population, streams, and samples whose table would not fit.

    Its target is the multiplier that the decisions see, max(0, multiplier + gain * step * residual): rows far
    within their bounds rest at 0, and do not outweigh the others (Park and Van Hentenryck, 2023,
    "Self-supervised primal-dual learning for constrained optimization").

    Args:
        value: columns of some rows -> (rows, ...) values, differentiable in `module`.
        module: the model, whose parameters ascend.
        lr: step of the ascent, by Adam.
        nonneg: multipliers are softplus of the values, for inequalities: a projection would leave a function
            that is negative somewhere without a gradient there.
    """

    def __init__(
        self,
        value: Callable[[Mapping[str, Tensor]], Tensor],
        module: nn.Module,
        lr: float = 1e-2,
        *,
        nonneg: bool = True,
    ) -> None:
        super().__init__()
        self.lr = lr
        self.nonneg = nonneg
        self.module = module
        self._value = value
        self.optimizer = torch.optim.Adam(module.parameters(), lr=lr, maximize=True)

    def forward(self, columns: Mapping[str, Tensor]) -> Tensor:
        """Multipliers of some rows, times the number of rows of the sample."""
        value = self._value(columns)
        return nn.functional.softplus(value) if self.nonneg else value

    def pace(self, factor: float) -> None:
        """Steps of this part of the first ones from now on."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * factor

    def ascend(self, columns: Mapping[str, Tensor], gradient: Tensor) -> None:
        """One step along the gradient of sum(gradient * value)."""
        with torch.enable_grad():
            value: Any = self(columns)
            self.optimizer.zero_grad(set_to_none=True)
            (value * gradient.to(value.dtype)).sum().backward()
        self.optimizer.step()


def multiplier_functions(
    evaluator: Evaluator, given: Mapping[str, Any], lr: float
) -> dict[str, MultiplierFunction]:
    """The functions that give the multipliers of constraints per row.

    Args:
        evaluator: the program with data.
        given: by constraint name an expression per row, such as `lam(D.x)` with a model of its own.
        lr: step of their ascent.

    Raises:
        ModelingError: E183 for a name that is no constraint per row, an expression of other rows or of
            another shape, or a model that the problem trains.
    """
    return {name: _function(evaluator, name, value, lr) for name, value in given.items()}


def _function(evaluator: Evaluator, name: str, value: Any, lr: float) -> MultiplierFunction:
    part = _part(evaluator.program, name)
    node = value.node if isinstance(value, Expr) else None
    shown = language_printing().text(node, limit=80) if node is not None else repr(value)
    fix = f"multipliers={{{name!r}: lam(...)}} with lam = cn.Model(net, 'lam')"
    assert part.rows is not None  # checked in _part
    if node is None or type_of(node).rows is not part.rows:
        raise ModelingError(
            "E183", f"{shown} is no expression per row of {part.rows.name!r}, the rows of {name!r}", fix=fix
        )
    own, wanted = type_of(node).shape, type_of(part.residual).shape
    if own is not None and wanted is not None and own != wanted:
        raise ModelingError(
            "E183", f"{shown} has shape {own} per row, the constraint {name!r} has {wanted}", fix=fix
        )
    models = list(dict.fromkeys(x.model for x in n.postorder(node) if isinstance(x, n.Call)))
    if not models or any(m in evaluator.program.models for m in models):
        raise ModelingError(
            "E183", f"{shown} has no model of its own whose parameters could ascend", at=node.loc, fix=fix
        )
    module = nn.ModuleList([m.module for m in models])
    value = evaluator.per_row(node, part.rows)
    module = module.to(evaluator.device)
    _refuse_modes(Modes(models), evaluator.populations[part.rows], value, node)
    return MultiplierFunction(value, module, lr, nonneg=part.kind == "<=")


def _refuse_modes(
    modes: Modes, population: Population, value: Callable[[Mapping[str, Tensor]], Tensor], node: n.Node
) -> None:
    """E122 for multipliers that training mode changes: they are weights of rows, not drawn at random."""
    if not any(modes.flags) or population.device.type == "meta":
        return
    rows = population.take(slice(0, min(population.rows, TRIED)))

    def values(training: bool) -> list[Tensor]:
        with nullcontext() if training else modes.evaluation():
            return [value(rows.columns)]

    if modes.acts(values):
        name = modes.models[0].name
        what = acting_words(modes.models) or f"training mode of {name}"
        shown = language_printing().text(node, limit=80)
        raise ModelingError(
            "E122",
            f"{what} changes the multipliers {shown}: a multiplier is a function of its row",
            at=node.loc,
            fix=f"{name}.module.eval(), or layers without dropout and batch normalization",
        )


def _part(program: Program, name: str) -> Part:
    rowwise = [p for p in program.parts if p.rows is not None]
    own = [p for p in rowwise if p.constraint == name]
    if not own:
        names = [p.constraint for p in rowwise]
        raise ModelingError(
            "E183",
            f"{name!r} is no constraint per row{suggest(name, names)}",
            fix=f"one of {', '.join(names)}" if names else "forall(D, relation)",
        )
    if len(own) > 1:
        raise ModelingError(
            "E183",
            f"{name!r} has {len(own)} one-sided parts per row, and one function gives one multiplier",
            fix="one constraint for each side",
        )
    return own[0]


def function_values(function: nn.Module, population: Population, chunk: int) -> Tensor:
    """A multiplier function on all rows of a sample."""
    return torch.cat([function(rows.columns) for rows in population.chunks(chunk)])


def over_distribution(values: Tensor, population: Population) -> Tensor:
    """Values per point of a support, times its weights where steps draw from the distribution."""
    if not population.boundless or population.base is None:
        return values
    return values * population.base.reshape(-1, *(1 for _ in range(values.dim() - 1))).to(values.dtype)


def part_shapes(evaluator: Evaluator) -> list[tuple[int, ...]]:
    """Shape of every part's residual: levels first; (rows, ...) for constraints per row."""
    with torch.no_grad():
        values = evaluator.roots(evaluator.moments("exact"), "exact")[1:]
    shapes: list[tuple[int, ...]] = [()] * len(evaluator.program.parts)
    for stack, residual in zip(evaluator.program.stacks, values, strict=True):
        if stack.names is not None:
            continue
        i = int(stack.places[0])
        if stack.part.rows is None and residual is not None:
            shapes[i] = tuple(residual.shape)
        else:
            job = next(j for j in evaluator.jobs if j.data is stack.part.rows)
            place = len(job.moments) + job.parts.index(i)
            population = evaluator.populations[job.data]
            with torch.no_grad():
                first = evaluator.rows(job, population.take(slice(0, 1)), "exact")[place]
            shapes[i] = (population.rows, *first.shape[1:])
    return shapes
