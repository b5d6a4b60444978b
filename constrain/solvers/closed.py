"""Problems whose solution is a formula, recognized in whatever way they are written.

- A cost with an entropy or divergence over finite distributions, under constraints on expectations: a tilted
  softmax, with the multipliers found by Newton's method on the dual (`tilted.py`).
- The nearest point, in a diagonal metric, of boxes, half-spaces, simplices, boxes with budgets, affine sets
  and balls (`nearest.py`).

`recognize` reads the numbers of a program (`separable.py`) and says what it is, or why it is none of these.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from scipy import sparse

from constrain.language import nodes as n
from constrain.runtime.constants import Constants
from constrain.runtime.decisions import limits
from constrain.runtime.result import RawResult
from constrain.solvers.nearest import BallForm, Nearest, name_of
from constrain.solvers.separable import ENTROPY, LINEAR, SQUARE, NotSeparable, Reader, Sums, refuse_early
from constrain.solvers.tilted import Tilted, maximize_dual

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from constrain.language.data import Data
    from constrain.lowering.program import Part, Program
    from constrain.runtime.evaluator import Evaluator
    from constrain.runtime.result import Ending
    from constrain.solvers.progress import Progress

__all__ = ["ClosedForm", "recognize"]

Floats: TypeAlias = "NDArray[np.float64]"

SIZE, ENTRIES = 500, 20_000_000
"""Most constraints on expectations of a tilted problem, and these times outcomes."""
SAME = 1e-12
"""Relative difference up to which coefficients are equal."""


# ---------------------------------------------------------------------------------------------- numbers
class _Numbers:
    """A program as coefficients.

    Attributes:
        size: n, entries of the decisions.
        objective: constant and (4, n) coefficients by kind; the linear one is inf where an entry of an
            entropy is 0 at every point of finite cost.
        residuals: of the parts; None where that of the part cannot be read.
        rows: (m, n) sparse, of the residuals, one row per entry of a part.
        constant: (m,) rest of the residuals.
        equal: (m,) whether it is an equality.
        lower: (n,) bounds of the variables themselves, -inf where open.
        upper: (n,), inf where open.
    """

    def __init__(self, program: Program, constants: Constants) -> None:
        self.program = program
        self.reader = reader = Reader(program, constants)
        self.size = reader.size
        with np.errstate(invalid="ignore"):  # an infinite weight times 0 is refused below
            found = reader.sums(program.objective)
        self.value = float(found.constant.reshape(()))
        self.objective = np.stack([found.coefficients(kind, self.size) for kind in range(4)])
        allowed = (self.objective[LINEAR] == np.inf) & (self.objective[ENTROPY] > 0)
        if not (np.isfinite(self.objective).all(axis=0) | allowed).all():
            raise NotSeparable("the objective has no finite value")
        ends = [limits(symbol) for symbol in program.variables]
        self.lower = np.concatenate([low.reshape(-1) for low, _ in ends])
        self.upper = np.concatenate([high.reshape(-1) for _, high in ends])

    def read_constraints(self) -> None:
        """The residuals, which have to be affine.

        Raises:
            NotSeparable: with the reason.
        """
        self.residuals = [self.reader.part(part) for part in self.program.parts]
        for part, residual in zip(self.program.parts, self.residuals, strict=True):
            if not residual.only(LINEAR) or not np.isfinite(residual.weight).all():
                raise NotSeparable(f"{part.constraint} is not affine")
        self.rows = _matrix(self.residuals, self.size)
        self.constant = np.concatenate([np.zeros(0), *(r.constant.reshape(-1) for r in self.residuals)])
        kinds = [
            np.full(r.constant.size, part.kind == "==")
            for part, r in zip(self.program.parts, self.residuals, strict=True)
        ]
        self.equal = np.concatenate([np.zeros(0, dtype=bool), *kinds])

    def by_part(self, prices: Floats) -> dict[str, Floats]:
        """Multipliers of the rows in the shapes of the residuals."""
        found: dict[str, Floats] = {}
        start = 0
        for part, residual in zip(self.program.parts, self.residuals, strict=True):
            shape = residual.constant.shape
            found[part.key] = prices[start : start + residual.constant.size].reshape(shape)
            start += residual.constant.size
        return found

    def of_parts(self, multipliers: Mapping[str, Any]) -> Floats:
        """The multipliers of all rows; zeros for parts that are missing."""
        pieces = [
            np.broadcast_to(np.asarray(multipliers.get(part.key, 0.0), np.float64), r.constant.shape)
            for part, r in zip(self.program.parts, self.residuals, strict=True)
        ]
        return np.concatenate([np.zeros(0), *(piece.reshape(-1) for piece in pieces)])


def _matrix(residuals: list[Sums], size: int) -> Any:
    """The linear coefficients of all entries, one row each, without zeros."""
    starts = np.cumsum([0, *(r.constant.size for r in residuals)])
    at = [start + r.at for start, r in zip(starts[:-1], residuals, strict=True)]
    none = np.zeros(0, dtype=np.int64)
    places = np.concatenate([none, *at]), np.concatenate([none, *(r.column for r in residuals)])
    weights = np.concatenate([np.zeros(0), *(r.weight for r in residuals)])
    matrix = sparse.coo_matrix((weights, places), shape=(int(starts[-1]), size)).tocsr()
    matrix.eliminate_zeros()
    return matrix


@dataclass(frozen=True)
class _Limits:
    """Bounds of single entries: those of the variables, and constraints on one entry that are tighter.

    Attributes:
        lower: (n,).
        upper: (n,).
        below: (n,) the row that is the lower bound, -1 where it is the variable's own.
        above: (n,) the row that is the upper bound, -1 where it is the variable's own.
        coupling: rows on several entries.
    """

    lower: Floats
    upper: Floats
    below: NDArray[np.int64]
    above: NDArray[np.int64]
    coupling: NDArray[np.int64]


def _limits(numbers: _Numbers, *, equalities: bool) -> _Limits:
    """Takes constraints on one entry as bounds; equalities among them only when asked for."""
    rows = numbers.rows
    counts = np.diff(rows.indptr)
    _refuse_empty(numbers, counts == 0)
    alone = (counts == 1) & (equalities | ~numbers.equal)
    lower, upper = numbers.lower.copy(), numbers.upper.copy()
    below, above = np.full(numbers.size, -1), np.full(numbers.size, -1)
    for row in np.flatnonzero(alone):
        place = rows.indptr[row]
        column, weight = rows.indices[place], rows.data[place]
        at = -numbers.constant[row] / weight
        if (weight < 0 or numbers.equal[row]) and at >= lower[column]:
            lower[column], below[column] = at, row
        if (weight > 0 or numbers.equal[row]) and at <= upper[column]:
            upper[column], above[column] = at, row
    return _Limits(lower, upper, below, above, np.flatnonzero((counts > 0) & ~alone))


def _refuse_empty(numbers: _Numbers, empty: NDArray[np.bool_]) -> None:
    over = np.where(numbers.equal, np.abs(numbers.constant), numbers.constant)
    if (empty & (over > SAME)).any():
        raise NotSeparable("a constraint on no decision does not hold")


# ------------------------------------------------------------------------------------------------ forms
@dataclass(frozen=True)
class _Found:
    """A solution of a form: the decisions, multipliers by part key, and what is known of them."""

    x: Floats
    multipliers: dict[str, Floats]
    bound: float
    ending: Ending
    trace: list[tuple[float, float]]


class _NearestForm:
    """The nearest point of a set with bounds and affine constraints."""

    def __init__(self, numbers: _Numbers) -> None:
        curvature, slope = 2 * numbers.objective[SQUARE], numbers.objective[LINEAR]
        self.numbers, self.limits = numbers, _limits(numbers, equalities=True)
        rows = self.limits.coupling
        self.given = Nearest(
            curvature, slope, numbers.rows[rows], -numbers.constant[rows], numbers.equal[rows],
            self.limits.lower, self.limits.upper,
        )  # fmt: skip
        self.given.check()
        self.reason = f"the nearest point of {name_of(self.given)}, by a formula"

    def solve(self, start: Mapping[str, Any] | None, deadline: float) -> _Found:
        """By its formula."""
        del start, deadline
        found = self.given.solve()
        prices = np.zeros(len(self.numbers.constant))
        prices[self.limits.coupling] = found.prices
        self._price_bounds(found.x, prices)
        bound = self.numbers.value + found.bound
        ending: Ending = "converged" if found.feasible else "infeasible"
        return _Found(found.x, self.numbers.by_part(prices), bound, ending, [])

    def _price_bounds(self, x: Floats, prices: Floats) -> None:
        """Multipliers of the rows that are bounds of an entry: they take the force that is left there."""
        given, limits = self.given, self.limits
        force = given.curvature * x + given.slope + self.numbers.rows.T @ prices
        for rows, wanted in ((limits.below, (force > 0) & (x <= given.lower)),
                             (limits.above, (force < 0) & (x >= given.upper))):  # fmt: skip
            columns = np.flatnonzero(wanted & (rows >= 0))
            chosen = rows[columns]
            weights = self.numbers.rows.data[self.numbers.rows.indptr[chosen]]
            prices[chosen] = -force[columns] / weights


class _TiltedForm:
    """A cost with an entropy over finite distributions.

    Outcomes of infinite cost (zeros of a reference distribution) have probability 0 and are left out.
    """

    def __init__(self, numbers: _Numbers) -> None:
        self.numbers = numbers
        limits = _limits(numbers, equalities=False)
        weight = numbers.objective[ENTROPY]
        self.masses, self.block = _distributions(numbers, limits.coupling)
        places = numbers.rows.indptr[self.masses]
        temperature = weight[numbers.rows.indices[places]]
        if not (np.abs(weight - temperature[self.block]) <= SAME * weight).all():
            raise NotSeparable("the weights of the entropy differ within a distribution")
        self.scale = numbers.rows.data[places]
        mass = -numbers.constant[self.masses] / self.scale
        if not (mass > 0).all():
            raise NotSeparable("a distribution has no mass")
        cutting = _cutting(limits, mass[self.block])
        self.coupling = np.union1d(np.setdiff1d(limits.coupling, self.masses), cutting)
        if len(self.coupling) > SIZE or len(self.coupling) * numbers.size > ENTRIES:
            raise NotSeparable(f"{len(self.coupling):,} constraints on expectations are too many")
        order = np.argsort(self.block, kind="stable")
        self.order = order[np.isfinite(numbers.objective[LINEAR][order])]
        if len(np.unique(self.block[self.order])) < len(mass):
            raise NotSeparable("a distribution has no outcome of finite cost")
        self.given = Tilted(
            numbers.objective[LINEAR][self.order],
            np.searchsorted(self.block[self.order], np.arange(len(mass))),
            mass,
            temperature,
            numbers.rows[self.coupling].toarray()[:, self.order],
            -numbers.constant[self.coupling],
            numbers.equal[self.coupling],
        )
        count, many = len(mass), len(self.coupling)
        sets = "a finite distribution" if count == 1 else f"{count:,} finite distributions"
        how = f"; Newton's method on the dual of {many} constraint{'s' * (many > 1)}" if many else ""
        self.reason = f"entropy or divergence over {sets}: a tilted softmax{how}"

    def solve(self, start: Mapping[str, Any] | None, deadline: float) -> _Found:
        """By Newton's method on the dual."""
        numbers = self.numbers
        begin = None if start is None else numbers.of_parts(start)[self.coupling]
        found = maximize_dual(self.given, begin, deadline)
        prices = np.zeros(len(numbers.constant))
        prices[self.coupling] = found.prices
        prices[self.masses] = found.masses / self.scale
        x = np.zeros(numbers.size)
        x[self.order] = found.p
        ending = found.ending
        if ending == "infeasible" and len(self.order) < numbers.size:
            ending = "limit"  # no point of finite cost: one of infinite cost may satisfy the constraints
        trace = [(numbers.value + cost, over) for cost, over in found.trace]
        return _Found(x, numbers.by_part(prices), numbers.value + found.value, ending, trace)


def _cutting(limits: _Limits, mass: Floats) -> NDArray[np.int64]:
    """Rows that bound single probabilities within (0, mass).

    Raises:
        NotSeparable: for such bounds of the variables themselves.
    """
    below, above = limits.lower > 0, limits.upper < mass
    if (below & (limits.below < 0)).any() or (above & (limits.above < 0)).any():
        raise NotSeparable("bounds of variables cut off a part of the distributions")
    return np.concatenate([limits.below[below], limits.above[above]])


def _distributions(numbers: _Numbers, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Equalities that fix the sum of disjoint sets of entries, and the set (b,) that each entry is in."""
    block = np.full(numbers.size, -1)
    chosen: list[int] = []
    matrix = numbers.rows
    for row in sorted(rows[numbers.equal[rows]], key=lambda row: matrix.indptr[row + 1] - matrix.indptr[row]):
        places = slice(matrix.indptr[row], matrix.indptr[row + 1])
        weights, columns = matrix.data[places], matrix.indices[places]
        even = weights.max() - weights.min() <= SAME * abs(weights[0])
        if even and (block[columns] < 0).all():
            block[columns] = len(chosen)
            chosen.append(row)
    if (block < 0).any():
        raise NotSeparable("no constraints fix the sums of all probabilities")
    return np.array(chosen, dtype=np.int64), block


class _Ball:
    """The nearest point of a ball."""

    def __init__(self, numbers: _Numbers) -> None:
        (part,) = numbers.program.parts
        curvature = 2 * numbers.objective[SQUARE]
        bounded = np.isfinite(numbers.lower).any() or np.isfinite(numbers.upper).any()
        if bounded or part.kind != "<=" or np.ptp(curvature) > SAME * curvature[0]:
            raise NotSeparable("a ball has a formula without bounds, in the metric of its norm")
        self.numbers, self.key = numbers, part.key
        found = _norm_ball(numbers, part) or _squared_ball(numbers, part)
        center, radius, order, unit, squared = found
        self.given = BallForm(
            float(curvature[0]), numbers.objective[LINEAR], center, radius, order, unit, squared
        )
        self.reason = f"the nearest point of a ball in the norm of order {order:g}, by a formula"

    def solve(self, start: Mapping[str, Any] | None, deadline: float) -> _Found:
        """By its formula."""
        del start, deadline
        found = self.given.solve()
        bound = self.numbers.value + found.bound
        return _Found(found.x, {self.key: found.prices.reshape(())}, bound, "converged", [])


_Sphere: TypeAlias = "tuple[Floats, float, float, float, bool]"
"""Center, radius, order of the norm, unit of the residual, and whether norm and radius are squared in it."""


def _norm_ball(numbers: _Numbers, part: Part) -> _Sphere | None:
    """Of a residual `norm(scale x - offset) - bound`; None for others."""
    match part.residual:
        case n.Apply(atom="sub", args=(n.Apply(atom="norm", args=(inside,)) as size, bound)):
            order = float(size.option("ord", 2.0))
            if size.option("axis") is not None or order not in (1.0, 2.0):
                return None
        case _:
            return None
    e, radius = numbers.reader.sums(inside), numbers.reader.sums(bound)
    scale = np.abs(e.weight)
    once = e.only(LINEAR) and len(e.column) == numbers.size == e.constant.size
    if not once or len(np.unique(e.column)) < numbers.size or radius.at.size:
        raise NotSeparable(f"{part.constraint} is no ball around one point")
    if np.ptp(scale) > SAME * scale[0] or not float(radius.constant.reshape(())) >= 0:
        raise NotSeparable(f"{part.constraint} is an ellipsoid, or empty")
    center = np.empty(numbers.size)
    center[e.column] = -e.constant.reshape(-1)[e.at] / e.weight
    return center, float(radius.constant.reshape(())) / float(scale[0]), order, float(scale[0]), False


def _squared_ball(numbers: _Numbers, part: Part) -> _Sphere:
    """Of a residual that is a sum of squares, with one coefficient for all entries."""
    residual = numbers.reader.part(part)
    square = residual.coefficients(SQUARE, numbers.size)
    round_ = residual.only(LINEAR, SQUARE) and square[0] > 0 and np.ptp(square) <= SAME * square[0]
    if residual.constant.size != 1 or not round_:
        raise NotSeparable(f"{part.constraint} is no ball")
    unit = float(square[0])
    center = -residual.coefficients(LINEAR, numbers.size) / (2 * unit)
    rest = float(center @ center) - float(residual.constant.reshape(())) / unit
    if not rest > 0:
        raise NotSeparable(f"{part.constraint} is a single point, or empty")
    return center, float(np.sqrt(rest)), 2.0, unit, True


def _form(numbers: _Numbers) -> _NearestForm | _TiltedForm | _Ball:
    """The form of a program that can be read.

    Raises:
        NotSeparable: with the reason.
    """
    _, square, log, entropy = numbers.objective
    if not log.any() and not entropy.any() and (square > 0).all():
        try:
            numbers.read_constraints()
        except NotSeparable:
            if len(numbers.program.parts) != 1:
                raise
            return _Ball(numbers)
        return _NearestForm(numbers)
    if log.any() or square.any() or not (entropy > 0).all():
        raise NotSeparable("the objective is neither a sum of squares nor an entropy of all decisions")
    numbers.read_constraints()
    return _TiltedForm(numbers)


def recognize(
    program: Program, data: Mapping[Data, Data] | None, parameters: Mapping[n.ParameterSymbol, Any]
) -> ClosedForm | str:
    """The solver of a program whose solution is a formula, or why it is none.

    Args:
        program: the moment form.
        data: the sample to use in the place of each sample of the problem.
        parameters: values of parameters.
    """
    if not program.variables or program.base is not None or program.tails or program.feasibility:
        return "the problem is no cost of variables alone"
    try:
        refuse_early(program.objective)
        numbers = _Numbers(program, Constants(data or {}, parameters))
        return ClosedForm(_form(numbers))
    except NotSeparable as reason:
        return str(reason)


# ----------------------------------------------------------------------------------------------- solver
class ClosedForm:
    """Solves a recognized problem; see the module.

    Attributes:
        reason: what was recognized, in a sentence.
    """

    name = "closed form"
    minibatch = False

    def __init__(self, form: _NearestForm | _TiltedForm | _Ball) -> None:
        self.form = form
        self.reason = form.reason

    def solve(
        self,
        evaluator: Evaluator,
        *,
        progress: Progress,
        multipliers: Mapping[str, Any] | None = None,
        time_limit: float | None = None,
    ) -> RawResult:
        """Writes the solution into the decisions; `multipliers` are a start of the dual method."""
        begun = time.perf_counter()
        found = self.form.solve(multipliers, np.inf if time_limit is None else begun + time_limit)
        evaluator.decisions.set(found.x)
        sign = evaluator.program.sign
        history = [
            {"step": k, "epoch": k, "objective": sign * value, "violation": over}
            for k, (value, over) in enumerate(found.trace)
        ]
        for row in history[-1:]:
            progress.update(len(history), len(history), row)
        message = self.reason if found.ending == "converged" else _ENDINGS.get(found.ending, "")
        bound = found.bound if np.isfinite(found.bound) and found.ending == "converged" else None
        return RawResult(
            found.ending, found.multipliers, self.name, time.perf_counter() - begun,
            len(history), history, bound=bound, message=message,
        )  # fmt: skip


_ENDINGS = {
    "limit": "the dual function has no maximizer within reach: the constraints hold on the boundary only",
}
