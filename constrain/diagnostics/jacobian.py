"""Gradients of the objective and of active constraint entries, exact on the full data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from constrain.analysis.curvature import analyze, facts_of
from constrain.diagnostics.names import part_label
from constrain.diagnostics.point import array_of
from constrain.language import nodes as n
from constrain.language.atoms import ATOMS
from constrain.solvers.kinks import above_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from numpy.typing import NDArray
    from torch import Tensor

    from constrain.diagnostics.point import Point
    from constrain.diagnostics.relaxed import Priced
    from constrain.runtime.decisions import Decisions
    from constrain.runtime.evaluator import Evaluator, Outer
    from constrain.runtime.rows import Index

__all__ = [
    "LIMIT",
    "Entry",
    "Gradients",
    "Qualification",
    "at_bounds",
    "choose",
    "curved",
    "gradients",
    "inside",
    "qualify",
]

LIMIT = 200
"""Rows of the Jacobian that are formed; the rest enters as sums."""

MANY_ROWS = 5000
"""Rows of data up to which three times as many are formed."""

SEVERAL = 4
"""Entries of a part whose gradients are taken at once."""

NEAR_BOUND = 1e-6
"""A decision this close to its bound, relative to 1 + |bound|, is at it."""

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
        cap: largest size of its multiplier, infinite but for relaxed constraints per row.
    """

    part: int
    index: int
    label: str
    equality: bool
    residual: float
    multiplier: float
    active: bool
    binding: bool
    cap: float = np.inf


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


def _limit(evaluator: Evaluator) -> int:
    rows = sum(population.rows for population in evaluator.populations.values())
    return max(1, min(LIMIT if rows > MANY_ROWS else 3 * LIMIT, MEMORY // max(1, evaluator.decisions.size)))


def choose(
    evaluator: Evaluator,
    point: Point,
    multipliers: Sequence[NDArray[np.float64] | None],
    scales: Sequence[NDArray[np.float64]],
    tolerance: float,
    priced: Mapping[int, Priced],
) -> tuple[list[Entry], list[NDArray[np.bool_]]]:
    """The entries whose gradients are formed, and per part which entries are active.

    Chosen are equalities, entries within the tolerance of their bound and entries with a multiplier;
    equalities and the largest multipliers first, as many as the limits allow. Of relaxed constraints per row
    (`priced`) only entries at a kink of their cost are: the multipliers of the others are known.
    """
    actives: list[NDArray[np.bool_]] = []
    owners: list[NDArray[np.int64]] = []
    places: list[NDArray[np.int64]] = []
    urgency: list[NDArray[np.float64]] = []
    for i, part in enumerate(evaluator.program.parts):
        residual, given = point.selected(i), multipliers[i]
        size = np.zeros(residual.size) if given is None else np.abs(given.ravel())
        active = np.isfinite(residual) & ((part.kind == "==") | (residual >= -tolerance * scales[i]))
        wanted = np.flatnonzero(active.ravel() | (size > 1e-9 * np.max(size, initial=1e-300)))
        if i in priced:
            active = priced[i].kink
            wanted = np.flatnonzero(active)
        actives.append(active)
        owners.append(np.full(wanted.size, i))
        places.append(wanted)
        urgency.append(size[wanted] + (1e9 if part.kind == "==" else 0.0))
    owner, place = (np.concatenate([np.zeros(0, dtype=np.int64), *found]) for found in (owners, places))
    order = np.argsort(-np.concatenate([np.zeros(0), *urgency]), kind="stable")[: _limit(evaluator)]
    entries: list[Entry] = []
    chosen: list[tuple[int, int]] = sorted(zip(owner[order].tolist(), place[order].tolist(), strict=True))
    for i, k in chosen:
        part, residual, given = evaluator.program.parts[i], point.selected(i), multipliers[i]
        r, active = float(residual.flat[k]), bool(actives[i].flat[k])
        equality = part.kind == "=="
        binding = active and (equality or r <= tolerance * float(scales[i].flat[k]))
        lam = 0.0 if given is None else float(given.flat[k])
        label = part_label(evaluator, i, k, residual.shape)
        cap = float(priced[i].cap.flat[k]) if i in priced else np.inf
        entries.append(Entry(i, k, label, equality, r, lam, active, binding, cap))
    return entries, actives


def _flat(tensors: Sequence[Tensor]) -> NDArray[np.float64]:
    return np.concatenate([array_of(t).reshape(-1) for t in tensors])


def gradients(
    evaluator: Evaluator, entries: Sequence[Entry], multipliers: Sequence[NDArray[np.float64] | None]
) -> Gradients:
    """Gradients of the objective, of each entry, and of the weighted sum of all others, in two passes."""
    parts = evaluator.program.parts
    rest = _remaining(entries, multipliers)
    groups = _groups(evaluator, [e for e in entries if parts[e.part].rows is None])

    def picked(group: list[Entry]) -> Callable[[Outer], Tensor]:
        def function(outer: Outer) -> Tensor:
            residual = outer.residuals[group[0].part]
            assert residual is not None  # entries of outer parts only
            flat = residual.reshape(-1)
            return flat[group[0].index] if len(group) == 1 else flat[[e.index for e in group]]

        return function

    def remainder(outer: Outer) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=evaluator.device)
        for residual, weight in zip(outer.residuals, rest, strict=True):
            if residual is not None and weight is not None and weight.any():
                total = total + (residual * torch.as_tensor(weight).to(residual)).sum()
        return total

    def row_term(i: int, residual: Tensor, index: Index) -> Tensor:
        weight = rest[i]
        if weight is None:
            return residual.sum() * 0
        chosen = torch.as_tensor(weight)[index if isinstance(index, slice) else index.cpu()]
        return (residual * chosen.to(residual)).sum()

    pulled = evaluator.pull([remainder, lambda outer: outer.objective, *map(picked, groups)], row_term)
    outer_entries = (e for group in groups for e in group)
    found = {(e.part, e.index): _flat(g) for e, (_, g) in zip(outer_entries, pulled[2:], strict=True)}
    for i in {e.part for e in entries if parts[e.part].rows is not None}:
        found.update(_row_gradients(evaluator, i, [e.index for e in entries if e.part == i]))
    size = evaluator.decisions.size
    rows = np.concatenate([np.zeros(0), *(found[e.part, e.index] for e in entries)])
    return Gradients(_flat(pulled[1][1]), rows.reshape(len(entries), size), _flat(pulled[0][1]))


def _groups(evaluator: Evaluator, entries: Sequence[Entry]) -> list[list[Entry]]:
    """The entries whose gradients are taken together: those of an affine part, else each alone.

    A vectorized backward pass needs a rule for every operation, which those of users and of problems inside
    of problems may lack.
    """
    own: dict[int, list[Entry]] = {}
    for e in entries:
        own.setdefault(e.part, []).append(e)
    memo = facts_of(evaluator.program)
    groups: list[list[Entry]] = []
    for i, group in own.items():
        root = evaluator.program.parts[i].residual
        together = (
            len(group) >= SEVERAL and analyze(root, memo).affine and all(map(_built_in, above_rows(root)))
        )
        groups += [group] if together else [[e] for e in group]
    return groups


def _built_in(node: n.Node) -> bool:
    match node:
        case n.Apply():
            return ATOMS[node.atom].declared is None
        case n.Array() | n.Constant() | n.Decision() | n.Knob() | n.Moment() | n.Pinned() | n.Weights():
            return True
        case _:
            return False


def at_bounds(decisions: Decisions) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(decisions,) coordinates at their lower and at their upper bound.

    Whole numbers are at both: multipliers and balance are those of the program with its integers fixed.
    """
    lower, upper = decisions.bounds()
    x = decisions.get()
    whole = decisions.integers()
    finite_lower, finite_upper = np.isfinite(lower), np.isfinite(upper)
    low, high = np.where(finite_lower, lower, 0.0), np.where(finite_upper, upper, 0.0)
    at_lower = finite_lower & (x - low <= NEAR_BOUND * (1 + np.abs(low)))
    at_upper = finite_upper & (high - x <= NEAR_BOUND * (1 + np.abs(high)))
    return at_lower | whole, at_upper | whole


def inside(
    evaluator: Evaluator,
    entries: Sequence[Entry],
    multipliers: Sequence[NDArray[np.float64] | None],
    found: Gradients,
    at_lower: NDArray[np.bool_],
    at_upper: NDArray[np.bool_],
) -> Gradients:
    """The gradients, with the coordinates at a bound taken a little inside of it (approximate KKT).

    The slope of an entropy is infinite at 0: a solver's 1e-12 in the place of 1e-11 there is no error worth
    the name, though the gradients differ by log 10.
    """
    moved = at_lower | at_upper
    if not moved.any():
        return found
    decisions = evaluator.decisions
    lower, upper = decisions.bounds()
    x = decisions.get()
    inside = np.where(at_lower, lower + NEAR_BOUND * (1 + np.abs(np.where(at_lower, lower, 0.0))), x)
    inside = np.where(at_upper, upper - NEAR_BOUND * (1 + np.abs(np.where(at_upper, upper, 0.0))), inside)
    bent = curved(evaluator, entries)
    decisions.set(inside)
    try:
        other = gradients(evaluator, [entries[k] for k in bent], _remaining(entries, multipliers))
    finally:
        decisions.set(x)
    rows = found.rows.copy()
    rows[bent] = np.where(moved, other.rows, rows[bent])
    return Gradients(
        np.where(moved, other.objective, found.objective), rows, np.where(moved, other.rest, found.rest)
    )


def curved(evaluator: Evaluator, entries: Sequence[Entry]) -> list[int]:
    """Places of the entries of parts that are not affine: gradients of the others are the same everywhere."""
    memo = facts_of(evaluator.program)
    parts = {e.part for e in entries}
    affine = {i for i in parts if analyze(evaluator.program.parts[i].residual, memo).affine}
    return [k for k, e in enumerate(entries) if e.part not in affine]


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
    population = evaluator.populations[job.data]
    width = max(1, evaluator.rows(job, population.take(slice(0, 1)), "primal")[place].numel())
    tensors = evaluator.decisions.tensors
    rows = sorted({k // width for k in wanted})
    taken = population.take(torch.as_tensor(rows, device=evaluator.device))
    residual = evaluator.rows(job, taken, "primal")[place]
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

    @property
    def dependent_labels(self) -> tuple[str, ...]:
        """Labels of the dependent entries, each once."""
        return tuple(dict.fromkeys(entry.label for entry, _ in self.dependent))

    @property
    def vanishing_labels(self) -> tuple[str, ...]:
        """Labels of the entries whose gradient vanishes, each once."""
        return tuple(dict.fromkeys(entry.label for entry in self.vanishing))


def _like_a_square(residual: float, length: float) -> bool:
    """Whether |grad c|^2 falls with c, as that of E[r^2] does, while c is nearly 0."""
    return 0.0 < abs(residual) <= 1e-4 and length**2 <= 10 * abs(residual)


def qualify(
    entries: Sequence[Entry],
    rows: NDArray[np.float64],
    free: NDArray[np.bool_],
    *,
    bent: AbstractSet[int],
    single: bool,
) -> Qualification:
    """Rank of the active Jacobian (LICQ), with the dependent and the vanishing rows.

    Args:
        entries: the chosen entries.
        rows: (entries, decisions) their gradients.
        free: (decisions,) coordinates that are off their bounds.
        bent: places of the entries that are not affine. The gradient of an affine one is small in its unit
            only, or zero everywhere: a row of zeros constrains nothing and is not counted.
        single: whether gradients come from single precision.
    """
    lengths = np.linalg.norm(rows, axis=1)
    active = [k for k, e in enumerate(entries) if e.binding and (lengths[k] > 0 or k in bent)]
    cut = (1e-4 if single else 1e-6) * max(1.0, float(np.max(lengths, initial=0.0)))
    small = {k for k in bent if lengths[k] <= cut or _like_a_square(entries[k].residual, float(lengths[k]))}
    gone = small & set(active)
    vanishing = [entries[k] for k in active if k in gone]
    used = [k for k in active if k not in gone]
    matrix = (rows[used] / lengths[used, None])[:, free] if used else np.zeros((0, 1))
    if not used or not matrix.shape[1]:
        return Qualification(np.zeros(0), 0, len(active), [], parallel=False, vanishing=vanishing)
    wide = matrix.shape[1] > 2 * matrix.shape[0]
    triangle = np.asarray(np.linalg.qr(matrix.T, mode="r")).T if wide else matrix
    s: NDArray[np.float64] = np.asarray(np.linalg.svd(triangle, compute_uv=False), dtype=np.float64)
    rank = int((s > (1e-4 if single else 1e-7) * max(1.0, s[0])).sum())
    values = np.concatenate([s, np.zeros(len(used) - s.size)])
    dependent: list[tuple[Entry, float]] = []
    if rank < len(used):
        null = np.linalg.svd(triangle, full_matrices=True)[0][:, rank:]
        weight = np.abs(null).max(axis=1)
        first = null[:, 0] / np.abs(null[:, 0]).max()
        dependent = [(entries[used[k]], float(first[k])) for k in np.flatnonzero(weight > 0.02)]
    return Qualification(values, rank, len(active), dependent, len(dependent) == 2, vanishing)
