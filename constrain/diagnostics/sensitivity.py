"""How the optimum moves with a parameter, by differentiating the KKT system.

With z = (theta, multipliers of active entries), F(z, p) = (grad L, active residuals) = 0 stays zero when p
moves, so dz/dp = -[[H, J'], [J, 0]]^-1 dF/dp, as long as the same entries stay active. The value follows from
the envelope theorem: dV/dp = dL/dp at fixed z. Derivatives in p are central differences of exact quantities.

Source: Fiacco, Introduction to Sensitivity and Stability Analysis in Nonlinear Programming (1983), theorem
3.2.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from constrain.diagnostics.jacobian import gradients
from constrain.diagnostics.point import array_of
from constrain.errors import ModelingError
from constrain.language import nodes as n
from constrain.language.data import suggest
from constrain.solution.records import Sensitivity, plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from constrain.diagnostics.system import System
    from constrain.runtime.evaluator import Evaluator

__all__ = ["sensitivity", "value_slope"]

STEP = 1e-5
"""Step of central differences in a parameter, relative to 1 + its size."""


def sensitivity(system: System, params: Mapping[str, Any], name: str) -> Sensitivity:
    """Derivatives of value, decisions and multipliers in a parameter.

    Args:
        system: at the optimum.
        params: values of all parameters there; the evaluator is left with these.
        name: of the parameter.

    Raises:
        ModelingError: E127 for an unknown parameter; E195 where the derivative does not exist or cannot be
            computed, with the reason.
    """
    evaluator = system.evaluator
    if name not in params:
        raise ModelingError("E127", f"no Parameter is named {name!r}{suggest(name, params)}")
    moments = evaluator.program.moments
    if any(m.given is not None and _reads(m.given, name) for m in moments):
        raise _refused(name, "it decides which rows count, so the optimum moves in steps")
    if _steps(evaluator, name):
        raise _refused(name, "it is the level of a quantile, which is the value of one row after the other")
    inverse = system.inverse()
    if isinstance(inverse, str):
        raise _refused(name, inverse)
    value = np.asarray(params[name], dtype=np.float64)
    columns: list[NDArray[np.float64]] = []
    prices: list[float] = []
    for k in range(value.size):
        step = STEP * (1 + abs(float(value.flat[k])))
        sides = [_at(system, {**params, name: _shifted(value, k, sign * step)}) for sign in (1.0, -1.0)]
        (up, force), (down, other) = sides
        prices.append(evaluator.program.sign * (up - down) / (2 * step))
        columns.append(-inverse @ (force - other) / (2 * step))
    evaluator.set_parameters(params)
    moved = np.array(columns).T.reshape(system.size + len(system.entries), *value.shape)
    labels = [e.label for e in system.entries]
    return Sensitivity(
        parameter=name,
        value=plain(np.array(prices).reshape(value.shape)),
        decisions=_blocks(system, moved[: system.size]),
        multipliers={k: plain(row) for k, row in zip(labels, moved[system.size :], strict=True)},
    )


def _refused(name: str, reason: str) -> ModelingError:
    return ModelingError(
        "E195",
        f"the optimum has no derivative in {name!r} that could be computed: {reason}",
        fix=f'two solves, params={{"{name}": ...}} a little above and below',
    )


def _reads(node: n.Node, name: str) -> bool:
    return any(isinstance(x, n.Knob) and x.symbol.name == name for x in n.postorder(node))


def _steps(evaluator: Evaluator, name: str) -> bool:
    """Whether a parameter is the level of a quantile of the sample."""
    tails = (tail for tail in evaluator.program.tails if tail.kind == "Quantile")
    return any(isinstance(tail.level, n.Knob) and tail.level.symbol.name == name for tail in tails)


def _shifted(value: NDArray[np.float64], k: int, step: float) -> NDArray[np.float64]:
    moved = np.array(value, dtype=np.float64)
    moved.reshape(-1)[k] += step
    return moved


def value_slope(
    evaluator: Evaluator, multipliers: Mapping[str, Any] | None, params: Mapping[str, Any], name: str
) -> float:
    """d(optimal value)/d(parameter) in the user's sense by the envelope theorem, dL/dp at fixed multipliers.

    Unlike `sensitivity` it needs no unique multipliers and no KKT system: at a kink it is one of the slopes.

    Args:
        evaluator: with the decisions at the optimum; left with `params`.
        multipliers: per part key.
        params: values of all parameters there.
        name: of a parameter without a shape.

    Returns:
        NaN where there are no multipliers, or the parameter decides which rows count.
    """
    parts, moments = evaluator.program.parts, evaluator.program.moments
    if multipliers is None or any(part.key not in multipliers for part in parts):
        return float("nan")
    if any(m.given is not None and _reads(m.given, name) for m in moments) or _steps(evaluator, name):
        return float("nan")
    weights = [np.asarray(multipliers[part.key], dtype=np.float64) for part in parts]
    value = np.asarray(params[name], dtype=np.float64)
    step = STEP * (1 + abs(float(value)))
    totals: list[float] = []
    for sign in (1.0, -1.0):
        evaluator.set_parameters({**params, name: _shifted(value, 0, sign * step)})
        totals.append(_lagrangian(evaluator, weights)[0])
    evaluator.set_parameters(params)
    return float(evaluator.program.sign * (totals[0] - totals[1]) / (2 * step))


def _lagrangian(
    evaluator: Evaluator, weights: Sequence[NDArray[np.float64]]
) -> tuple[float, list[NDArray[np.float64]]]:
    """L with exact statistics, and the residuals of all parts."""
    outer = evaluator.full("exact")
    total = float(outer.objective)
    residuals: list[NDArray[np.float64]] = []
    for i, (residual, weight) in enumerate(zip(outer.residuals, weights, strict=True)):
        own = array_of(evaluator.row_residuals(i)[0] if residual is None else residual)
        total += float(np.sum(np.where(weight != 0, weight * own, 0.0)))
        residuals.append(own)
    return total, residuals


def _at(system: System, params: Mapping[str, Any]) -> tuple[float, NDArray[np.float64]]:
    """L, and (grad L on free coordinates, active residuals), at other values of the parameters."""
    evaluator = system.evaluator
    evaluator.set_parameters(params)
    parts = evaluator.program.parts
    weights = [np.asarray(system.multipliers[part.key], dtype=np.float64) for part in parts]
    found = gradients(evaluator, [], weights)
    total, residuals = _lagrangian(evaluator, weights)
    active = np.array([residuals[e.part].flat[e.index] for e in system.entries])
    return total, np.concatenate([(found.objective + found.rest)[system.free], active])


def _blocks(system: System, moved: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Per decision of the user its derivative: its shape, then that of the parameter."""
    full = np.zeros((system.free.size, *moved.shape[1:]))
    full[system.free] = moved
    hidden = {symbol.name for symbol in system.evaluator.program.auxiliary}
    found: dict[str, NDArray[np.float64]] = {}
    start = 0
    for block in system.evaluator.decisions.blocks:
        stop = start + block.tensor.numel()
        if block.name not in hidden:
            found[block.name] = full[start:stop].reshape(*block.tensor.shape, *moved.shape[1:])
        start = stop
    return found
