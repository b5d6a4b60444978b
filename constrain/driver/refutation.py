"""The proof of a conflict: multipliers of convex constraints, checked at a point from the definition."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from constrain.diagnostics.infeasibility import Certificate, Oracle, certificate_value
from constrain.diagnostics.point import array_of, read_point
from constrain.errors import ModelingWarning

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from constrain.driver.setup import Setup
    from constrain.runtime.evaluator import Outer

__all__ = ["certificate", "write"]


class Relaxed(Oracle, Protocol):
    """An oracle that relaxes number by number."""

    @property
    def elastic(self) -> Any:
        """The phase-one programs."""
        ...


def certificate(setup: Setup, oracle: Relaxed, conflict: Sequence[int]) -> Certificate | None:
    """The multipliers of the conflict alone, checked from the definition in float64; None if they fail."""
    found = oracle.least(conflict)
    if found is None or found.multipliers is None:
        return None
    evaluator, decisions = setup.evaluator, setup.decisions
    write(setup, found.point)
    weights = _weights(setup, oracle, conflict, found.multipliers)

    def total(outer: Outer) -> torch.Tensor:
        whole = torch.zeros((), dtype=torch.float64, device=evaluator.device)
        for residual, weight in zip(outer.residuals, weights, strict=True):
            if residual is not None:
                whole = (
                    whole + (residual * torch.as_tensor(weight).to(residual).reshape(residual.shape)).sum()
                )
        return whole

    def row_term(i: int, residual: torch.Tensor, index: Any) -> torch.Tensor:
        chosen = torch.as_tensor(weights[i])[index if isinstance(index, slice) else index.cpu()]
        return (residual * chosen.to(residual)).sum()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ModelingWarning)  # W220: at a kink any one-sided gradient will do
        value, tensors = evaluator.pull([total], row_term)[0]
    gradient = np.concatenate([array_of(t).reshape(-1) for t in tensors])
    used: dict[str, float] = {}
    for e, m in zip(conflict, found.multipliers.tolist(), strict=True):
        label = oracle.entries[e].label
        if m:
            used[label] = used.get(label, 0.0) + m
    names = _coordinates(setup)
    low, high = decisions.bounds()

    def label_of(j: int, upper: bool) -> str:
        return f"{names[j]} {'<=' if upper else '>='} {float((high if upper else low)[j]):g}"

    proof = certificate_value(value, gradient, decisions.get(), (low, high), label_of, used)
    return proof if proof.value > 0 else None


def write(setup: Setup, point: Any) -> None:
    """The point of a phase-one program as the decisions."""
    with torch.no_grad():
        for symbol, value in point.values.items():
            if symbol in setup.decisions.variables:
                tensor = setup.decisions.variables[symbol]
                tensor.copy_(torch.as_tensor(np.asarray(value, dtype=np.float64)).reshape(tensor.shape))
        for model, arrays in point.weights.items():
            parameters = dict(model.module.named_parameters())
            for name, array in arrays.items():
                parameters[name].copy_(torch.as_tensor(array).reshape(parameters[name].shape))
    for symbol, slope in point.slopes.items():
        symbol.value = slope


def _weights(
    setup: Setup, oracle: Relaxed, conflict: Sequence[int], multipliers: NDArray[np.float64]
) -> list[NDArray[np.float64]]:
    """Multipliers per part, in the shape of its residual; of a constraint per row, of all rows."""
    point = read_point(setup.evaluator)
    weights: list[NDArray[np.float64]] = [np.zeros(residual.shape) for residual in point.residuals]
    rows: Mapping[str, Any] = oracle.elastic.built.rows
    places: Sequence[tuple[int, int]] = oracle.elastic.entries
    for e, m in zip(conflict, multipliers.tolist(), strict=True):
        i, k = places[e]
        own = rows.get(setup.program.parts[i].key)
        if own is not None:
            width = weights[i][:1].size
            k = int(own.selected[k // width]) * width + k % width
        weights[i].reshape(-1)[k] = m
    return weights


def _coordinates(setup: Setup) -> list[str]:
    """`w[3]`, `f.weight[0, 2]`: a name per coordinate of the decisions."""
    found: list[str] = []
    for block in setup.decisions.blocks:
        shape = tuple(block.tensor.shape)
        found += [f"{block.name}[{', '.join(map(str, k))}]" if k else block.name for k in np.ndindex(*shape)]
    return found
