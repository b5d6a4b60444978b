"""Standard errors of multipliers: how much they would move with another sample of the same size.

Decisions and multipliers z = (theta, lambda of active entries) solve mean_i psi_i(z) = 0 with
psi_i = (influence of row i on grad L, influence of row i on each active residual). To first order
z - z_0 = -K^-1 mean_i psi_i, K = [[H, J'], [J, 0]], so that Cov(z) = K^-1 Cov(psi) K^-T / n: a sandwich.

Only the rows of K^-1 that belong to multipliers are needed. With u the decision part of one of them,
u' psi_i is the derivative along u of the influence of row i on L, taken by central differences; influences
are those of `influence.py`, centered within groups, so ratios and conditions are included.

Measured (docs/how-to/kkt.md): intervals cover 92-97 % where the multiplier is above two standard errors, and
fail near 0, where its sampling distribution is cut off. There no error is given.

Source: van der Vaart, Asymptotic Statistics (1998), section 5.3; Shapiro, Dentcheva and Ruszczynski, Lectures
on Stochastic Programming (2009), section 5.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from constrain.diagnostics.influence import influences
from constrain.lowering.lower import EPIGRAPH

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from constrain.diagnostics.jacobian import Entry
    from constrain.diagnostics.system import System
    from constrain.language.data import Data

__all__ = ["multiplier_errors"]

ROWS = 5_000_000
"""Most numbers of influences held at once."""

STEP = 1e-5
"""Step of central differences, relative to 1 + the largest decision."""

CLEAR = 2.0
"""Multipliers of inequalities below this many standard errors get none."""


def multiplier_errors(system: System) -> tuple[dict[str, NDArray[np.float64]], str]:
    """Standard errors by part key, NaN where there is none, and why not; no keys where there are none at all.

    Returns:
        Errors in the units of the multipliers, and a reason for those that are missing (else empty).
    """
    reason = _refusal(system)
    inverse = reason or system.inverse()
    if isinstance(inverse, str):
        return {}, inverse
    size, entries = system.size, system.entries
    shares = inverse[size:]
    moves = _influence(system, shares[:, :size])
    total = np.zeros(len(entries))
    for (data, rows), (_, residuals) in zip(moves, _residual_influence(system), strict=True):
        influence = rows + shares[:, size:] @ residuals
        count = system.evaluator.populations[data].rows
        total += np.square(influence).sum(axis=1) / count / max(count - 1, 1)
    errors = np.sqrt(total)
    parts = system.evaluator.program.parts
    result = {part.key: np.full(system.multipliers[part.key].shape, np.nan) for part in parts}
    unclear: list[str] = []
    for e, error in zip(entries, errors.tolist(), strict=True):
        if not e.equality and abs(e.multiplier) < CLEAR * error:
            unclear.append(e.label)
        elif parts[e.part].constraint != EPIGRAPH:
            result[parts[e.part].key].reshape(-1)[e.index] = error
    note = f"{', '.join(unclear)}: within two standard errors of 0, where no normal interval is valid"
    return result, note if unclear else ""


def _refusal(system: System) -> str:
    evaluator = system.evaluator
    if system.refusal:
        return system.refusal
    if not system.entries:
        return "no constraint is active"
    sampled = [p for p in evaluator.populations.values() if p.sampled]
    if not sampled:
        return "no data enters"
    if any(evaluator.program.parts[e.part].rows is not None for e in system.entries):
        return "constraints per row bind: another sample has other constraints"
    if max(p.rows for p in sampled) * len(system.entries) > ROWS:
        return "rows times active entries are too many"
    return ""


def _lagrangian(system: System, moments: Sequence[Tensor]) -> Tensor:
    function, _ = system.terms()
    return function(system.evaluator.outer(moments, "exact"))


def _influence(system: System, directions: NDArray[np.float64]) -> list[tuple[Data, NDArray[np.float64]]]:
    """Per sample (directions, rows) the derivative of each row's influence on L along each direction."""
    decisions = system.evaluator.decisions
    at = decisions.get()
    found: list[list[tuple[Data, NDArray[np.float64]]]] = []
    try:
        for direction in directions:
            full = np.zeros(at.size)
            full[system.free] = direction
            length = float(np.abs(full).max(initial=0.0))
            step = STEP * (1 + float(np.abs(at).max(initial=0.0))) / (length or 1.0)
            sides: list[list[tuple[Data, NDArray[np.float64]]]] = []
            for sign in (1.0, -1.0):
                decisions.set(at + sign * step * full)
                sides.append(influences(system.evaluator, lambda moments: [_lagrangian(system, moments)]))
            found.append([(d, (p - m)[0] / (2 * step)) for (d, p), (_, m) in zip(*sides, strict=True)])
    finally:
        decisions.set(at)
    return [(samples[0][0], np.array([rows for _, rows in samples])) for samples in zip(*found, strict=True)]


def _residual_influence(system: System) -> list[tuple[Data, NDArray[np.float64]]]:
    """Per sample (entries, rows) the influence of each row on each active residual."""

    def scalars(moments: Sequence[Tensor]) -> list[Tensor]:
        outer = system.evaluator.outer(moments, "exact")
        return [_entry(outer.residuals, e) for e in system.entries]

    return influences(system.evaluator, scalars)


def _entry(residuals: Sequence[Tensor | None], e: Entry) -> Tensor:
    residual = residuals[e.part]
    assert residual is not None  # constraints per row are refused
    return residual.reshape(-1)[e.index]
