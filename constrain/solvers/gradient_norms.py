"""Norms of the gradients of the objective and of every constraint, by which a problem is scaled."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from constrain.runtime.evaluator import Evaluator, Outer

__all__ = ["gradient_norms"]


def gradient_norms(evaluator: Evaluator, like: Sequence[Tensor]) -> list[float]:
    """Norms at the current decisions: of the objective's gradient, then of every part's.

    Of a block it is that of one random combination of its entries, with signs of a fixed seed: the same
    wherever the block stands among the others.

    Args:
        evaluator: of the program.
        like: one tensor per part, with the shape of its residuals.
    """
    functions: list[Callable[[Outer], Tensor]] = [lambda outer: outer.objective]
    signs: list[Tensor] = []
    parts = evaluator.program.parts
    for i, (part, y) in enumerate(zip(parts, like, strict=True)):
        sign = (torch.randint(2, y.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1).to(y)
        signs.append(sign / max(sign.numel(), 1) ** 0.5)
        if part.rows is None:
            functions.append(_combination(i, signs[i]))
    norms = [_norm(gradient) for _, gradient in evaluator.pull(functions)]
    outer_norms = iter(norms[1:])
    return [
        norms[0],
        *(
            next(outer_norms) if part.rows is None else _norm_of_rows(evaluator, i, signs[i])
            for i, part in enumerate(parts)
        ),
    ]


def _combination(i: int, signs: Tensor) -> Callable[[Outer], Tensor]:
    """One random combination of the entries of part `i`."""

    def combined(outer: Outer) -> Tensor:
        return (cast("Tensor", outer.residuals[i]) * signs).sum()  # of parts that are no constraint per row

    return combined


def _norm_of_rows(evaluator: Evaluator, i: int, signs: Tensor) -> float:
    """The same of a constraint per row."""

    def term(j: int, residual: Tensor, index: Tensor | slice) -> Tensor:
        return (residual * signs[index].to(residual.dtype)).sum() if j == i else residual.sum() * 0

    return _norm(evaluator.pull([lambda outer: outer.objective * 0], term)[0][1])


def _norm(gradient: list[Tensor]) -> float:
    return sum(float(g.double().square().sum()) for g in gradient) ** 0.5
