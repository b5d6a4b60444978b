"""Gradients of the objective and of active constraint entries, exact on the full data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from constrain.diagnostics.point import array_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from constrain.diagnostics.point import Point
    from constrain.runtime.evaluator import Evaluator, Outer, Rows

__all__ = ["LIMIT", "Entry", "Gradients", "Qualification", "choose", "gradients", "qualify"]

LIMIT = 200
"""Rows of the Jacobian that are formed; the rest enters as sums."""

MEMORY = 20_000_000
"""Largest number of entries of the Jacobian."""


@dataclass(frozen=True)
class Entry:
    """One scalar constraint: entry `index` (of the flattened residual) of part `part`.

    Attributes:
        part: position of the part.
        index: position in its flattened residual.
        label: name for reports.
        equality: whether it is `== 0`.
        residual: its exact value.
        multiplier: the given one, 0 without.
        active: an equality, or a residual that is not clearly negative.
        binding: an equality, or a residual that is zero within the tolerance.
    """

    part: int
    index: int
    label: str
    equality: bool
    residual: float
    multiplier: float
    active: bool
    binding: bool


@dataclass(frozen=True)
class Gradients:
    """Gradients in the flat vector of decisions, float64.

    Attributes:
        objective: (decisions,).
        rows: (entries, decisions), one per chosen entry.
        rest: (decisions,) sum of multiplier * gradient over all entries that were not chosen.
    """

    objective: NDArray[np.float64]
    rows: NDArray[np.float64]
    rest: NDArray[np.float64]

    def lagrangian(self, entries: Sequence[Entry]) -> NDArray[np.float64]:
        """Gradient of the Lagrangian with the entries' multipliers."""
        multipliers = np.array([e.multiplier for e in entries])
        return self.objective + self.rest + multipliers @ self.rows


def choose(
    evaluator: Evaluator,
    point: Point,
    multipliers: Sequence[NDArray[np.float64] | None],
    scales: Sequence[NDArray[np.float64]],
    labels: Callable[[int, int], str],
    tolerance: float,
) -> tuple[list[Entry], int]:
    """The entries whose gradients are formed, and how many active ones were left out.

    Chosen are equalities, entries within the tolerance of their bound and entries with a multiplier; the
    largest multipliers and the smallest slacks first.
    """
    found: list[tuple[float, Entry]] = []
    for i, part in enumerate(evaluator.program.parts):
        equality = part.kind == "=="
        residual, scale = point.selected(i).ravel(), scales[i].ravel()
        given = multipliers[i]
        lam = np.zeros(residual.shape) if given is None else given.ravel()
        near = np.isfinite(residual) & (equality | (residual >= -tolerance * scale))
        wanted = np.flatnonzero(near | (np.abs(lam) > 1e-9 * np.max(np.abs(lam), initial=1e-300)))
        if wanted.size > 4 * LIMIT:
            wanted = wanted[np.argsort(-np.abs(lam[wanted]), kind="stable")[: 4 * LIMIT]]
        for k in wanted.tolist():
            binding = bool(near[k]) and (equality or residual[k] <= tolerance * scale[k])
            entry = Entry(
                i, k, labels(i, k), equality, float(residual[k]), float(lam[k]), bool(near[k]), bool(binding)
            )
            found.append((-abs(lam[k]) - (1e6 if equality else 0.0), entry))
    found.sort(key=lambda item: item[0])
    limit = max(1, min(LIMIT, MEMORY // max(1, evaluator.decisions.size)))
    left = found[limit:]
    chosen = sorted((entry for _, entry in found[:limit]), key=lambda e: (e.part, e.index))
    return chosen, sum(entry.active for _, entry in left)


def _flat(tensors: Sequence[Tensor]) -> NDArray[np.float64]:
    return np.concatenate([array_of(t).reshape(-1) for t in tensors])


def gradients(
    evaluator: Evaluator, entries: Sequence[Entry], multipliers: Sequence[NDArray[np.float64] | None]
) -> Gradients:
    """Gradients of the objective, of each entry, and of the weighted sum of all others, in two passes."""
    parts = evaluator.program.parts
    rest = _remaining(entries, multipliers)
    outer_entries = [e for e in entries if parts[e.part].rows is None]

    def picked(e: Entry) -> Callable[[Outer], Tensor]:
        def function(outer: Outer) -> Tensor:
            residual = outer.residuals[e.part]
            assert residual is not None  # entries of outer parts only
            return residual.reshape(-1)[e.index]

        return function

    def remainder(outer: Outer) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=evaluator.device)
        for residual, weight in zip(outer.residuals, rest, strict=True):
            if residual is not None and weight is not None and weight.any():
                total = total + (residual * torch.as_tensor(weight).to(residual)).sum()
        return total

    def row_term(i: int, residual: Tensor, index: Rows) -> Tensor:
        weight = rest[i]
        if weight is None:
            return residual.sum() * 0
        chosen = torch.as_tensor(weight)[index if isinstance(index, slice) else index.cpu()]
        return (residual * chosen.to(residual)).sum()

    pulled = evaluator.pull([remainder, lambda outer: outer.objective, *map(picked, outer_entries)], row_term)
    found = {(e.part, e.index): _flat(g) for e, (_, g) in zip(outer_entries, pulled[2:], strict=True)}
    for i in {e.part for e in entries if parts[e.part].rows is not None}:
        found.update(_row_gradients(evaluator, i, [e.index for e in entries if e.part == i]))
    size = evaluator.decisions.size
    rows = np.array([found[e.part, e.index] for e in entries]).reshape(len(entries), size)
    return Gradients(_flat(pulled[1][1]), rows, _flat(pulled[0][1]))


def _remaining(
    entries: Sequence[Entry], multipliers: Sequence[NDArray[np.float64] | None]
) -> list[NDArray[np.float64] | None]:
    """The multipliers with those of the entries set to 0."""
    rest = [None if m is None else m.copy() for m in multipliers]
    for e in entries:
        weight = rest[e.part]
        if weight is not None:
            weight.reshape(-1)[e.index] = 0.0
    return rest


def _row_gradients(
    evaluator: Evaluator, i: int, wanted: Sequence[int]
) -> dict[tuple[int, int], NDArray[np.float64]]:
    """Gradients of single entries of a constraint per row; runs the rows concerned only."""
    part = evaluator.program.parts[i]
    job = next(job for job in evaluator.jobs if job.data is part.rows)
    place = len(job.moments) + job.parts.index(i)
    width = max(1, evaluator.rows(job, slice(0, 1), "primal")[place].numel())
    tensors = evaluator.decisions.tensors
    rows = sorted({k // width for k in wanted})
    residual = evaluator.rows(job, torch.as_tensor(rows, device=evaluator.device), "primal")[place]
    found: dict[tuple[int, int], NDArray[np.float64]] = {}
    for k in wanted:
        scalar = residual[rows.index(k // width)].reshape(-1)[k % width]
        grads = torch.autograd.grad(
            scalar, tensors, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        found[i, k] = _flat(grads)
    return found


@dataclass(frozen=True)
class Qualification:
    """Linear independence of active constraint gradients on the coordinates off their bounds.

    Attributes:
        singular_values: of the Jacobian with rows of norm 1, largest first.
        rank: numerical rank.
        active: number of active entries.
        dependent: entries that take part in a dependence, with their weights in it (largest 1 in size).
        parallel: whether the dependence is between two parallel gradients.
        vanishing: active entries whose gradient vanishes.
    """

    singular_values: NDArray[np.float64]
    rank: int
    active: int
    dependent: list[tuple[Entry, float]]
    parallel: bool
    vanishing: list[Entry]


def _like_a_square(residual: float, length: float) -> bool:
    """Whether |grad c|^2 falls with c, as that of E[r^2] does, while c is nearly 0."""
    return 0.0 < abs(residual) <= 1e-4 and length**2 <= 10 * abs(residual)


def qualify(
    entries: Sequence[Entry], rows: NDArray[np.float64], free: NDArray[np.bool_], *, single: bool
) -> Qualification:
    """Rank of the active Jacobian (LICQ), with the dependent and the vanishing rows.

    Args:
        entries: the chosen entries.
        rows: (entries, decisions) their gradients.
        free: (decisions,) coordinates that are off their bounds.
        single: whether gradients come from single precision.
    """
    active = [k for k, e in enumerate(entries) if e.binding]
    lengths = np.linalg.norm(rows, axis=1)
    cut = (1e-4 if single else 1e-6) * max(1.0, float(np.max(lengths, initial=0.0)))
    gone = {k for k in active if lengths[k] <= cut or _like_a_square(entries[k].residual, float(lengths[k]))}
    vanishing = [entries[k] for k in active if k in gone]
    used = [k for k in active if k not in gone]
    matrix = (rows[used] / lengths[used, None])[:, free] if used else np.zeros((0, 1))
    if not used or not matrix.shape[1]:
        return Qualification(np.zeros(0), 0, len(active), [], parallel=False, vanishing=vanishing)
    wide = matrix.shape[1] > matrix.shape[0]
    triangle = np.asarray(np.linalg.qr(matrix.T, mode="r")).T if wide else matrix
    u, s, _ = np.linalg.svd(triangle, full_matrices=True)
    rank = int((s > (1e-4 if single else 1e-7) * max(1.0, s[0])).sum())
    values = np.concatenate([s, np.zeros(len(used) - s.size)])
    dependent: list[tuple[Entry, float]] = []
    if rank < len(used):
        null = u[:, rank:]
        weight = np.abs(null).max(axis=1)
        first = null[:, 0] / np.abs(null[:, 0]).max()
        dependent = [(entries[used[k]], float(first[k])) for k in np.flatnonzero(weight > 0.02)]
    return Qualification(values, rank, len(active), dependent, len(dependent) == 2, vanishing)
