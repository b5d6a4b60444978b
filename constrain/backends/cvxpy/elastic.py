"""Phase one of a convex program: the least total violation of some of its scalar constraints.

    minimize  sum_i weight_i s_i    subject to    r_i(x) <= s_i  or  r_i(x) == s_i - s_i',   s >= 0

for the entries that may give way, r_i(x) <= 0 or == 0 for those that may not; all other constraints are left
out. A matrix inequality M(x) >> 0 is one entry, the residual -lambda_min(M(x)): it becomes M(x) + s I >> 0.
What an expression means (the level of an eigenvalue, the constraints of an inner problem) never gives way and
holds wherever the expression takes part. The optimal value is 0 exactly where the entries can hold together.
With the multipliers y of the optimum, sum_i y_i r_i(x) is at least that value for every x (duality), so a
positive value proves that there is no such point (Farkas 1902 for linear programs).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from constrain.backends.cvxpy.averages import added
from constrain.backends.cvxpy.matrices import Inequality, dual_of
from constrain.backends.cvxpy.package import cp, without_inferred_bounds

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from constrain.backends.cvxpy.build import Built
    from constrain.language import nodes as n
    from constrain.language.symbols import Model
    from constrain.lowering.classify import Facts

__all__ = ["Elastic", "Phase"]

_LINEAR: tuple[tuple[str, dict[str, Any]], ...] = (
    ("HIGHS", {"mip_rel_gap": 1e-9}),
    ("CLARABEL", {}),
    ("SCIPY", {}),
)
_CONES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("CLARABEL", dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), 1e-10)),
    ("CLARABEL", {}),
    ("SCS", {"eps_abs": 1e-7, "eps_rel": 1e-7}),
)
_SOLVED = (cp.OPTIMAL, cp.OPTIMAL_INACCURATE)


@dataclass(frozen=True)
class Phase:
    """The optimum of a phase-one program.

    Attributes:
        amounts: per entry that gave way how far, >= 0; infinite in all where the hard ones alone exclude it.
        multipliers: per entry, in the sign of the program; None without any (integer variables).
        values: of the variables.
        weights: of the models.
        slopes: of extreme eigenvalues there, from the dual values of matrix inequalities.
        excluded: whether the hard entries alone exclude every point.
    """

    amounts: NDArray[np.float64]
    multipliers: NDArray[np.float64] | None
    values: Mapping[n.VariableSymbol, Any]
    weights: Mapping[Model, Mapping[str, Any]]
    slopes: Mapping[n.ArraySymbol, Any] = field(default_factory=dict["n.ArraySymbol", Any])
    excluded: bool = False


class Elastic:
    """The scalar constraints of a built program, to be relaxed one by one.

    Args:
        built: of a program without relaxed constraints.
        facts: of its analysis.

    Attributes:
        entries: the part and the place in its flattened residual (of the rows that take part), one per entry.
        integer: whether some variable is.
    """

    def __init__(self, built: Built, facts: Facts) -> None:
        self.built = built
        self.integer = bool(facts.integer)
        self._linear = facts.problem_class in ("LP", "MILP")
        parts = built.program.parts
        self._matrices = {i: found for i, p in enumerate(parts) if (found := built.inequalities.get(p.key))}
        self._flat = [self._residual(part.key) for part in parts]
        self._equal = [part.kind == "==" for part in parts]
        sizes = [1 if i in self._matrices else flat.size for i, flat in enumerate(self._flat)]
        self.entries = [(i, k) for i, size in enumerate(sizes) for k in range(size)]
        own = [*built.variables.values(), *(v for w in built.weights.values() for v in w.values())]
        known = {v.id for v in own}
        self._hidden = [{v.id for v in rule.variables()} - known for rule in built.rules]

    def _residual(self, key: str) -> Any:
        residual = self.built.constraints[key].expr
        return cp.reshape(residual, (residual.size,), order="C")

    def _rules(self, parts: Iterable[int]) -> list[Any]:
        """What the expressions of these parts mean, which holds whether or not the parts give way.

        A rule belongs to the expressions with which it shares variables that are none of the program's.
        """
        used = {v.id for i in parts for v in self._flat[i].variables()}
        taken = [not hidden for hidden in self._hidden]
        while new := [k for k, own in enumerate(self._hidden) if not taken[k] and own & used]:
            for k in new:
                taken[k] = True
                used |= self._hidden[k]
        return [rule for rule, needed in zip(self.built.rules, taken, strict=True) if needed]

    def empty(self) -> bool:
        """Whether it is proved that there is no point where all expressions have values."""
        status = self._solve(cp.Problem(cp.Minimize(0.0), self._rules(range(len(self._flat)))))
        return status == cp.INFEASIBLE

    def inside(self) -> Phase | None:
        """A point where all expressions have values, with no regard to the constraints; None without any."""
        status = self._solve(cp.Problem(cp.Minimize(0.0), self._rules(range(len(self._flat)))))
        return self._phase(np.zeros(0), None) if status in _SOLVED else None

    def least(
        self, soft: Sequence[int], weights: NDArray[np.float64], hard: Sequence[int] = ()
    ) -> Phase | None:
        """The least weighted violation of the entries `soft` while the entries `hard` hold.

        Args:
            soft: numbers of entries that may give way.
            weights: what a unit of each of these costs, > 0.
            hard: numbers of entries that may not.

        Returns:
            None when no solver came to an end.
        """
        costs: list[Any] = []
        slacks: list[tuple[list[int], Any]] = []
        rules: list[Any] = []
        matrices: dict[int, Inequality] = {}
        duals: list[tuple[list[int], Any]] = []
        place = {entry: at for at, entry in enumerate(soft)}
        for i, (own, where) in self._grouped(soft).items():
            s, rule, cost = self._relaxed(i, where, weights[[place[e] for e in own]])
            costs.append(cost)
            slacks.append((own, s))
            rules.append(rule)
            duals.append((own, rule))
            if i in self._matrices:
                matrices[i] = Inequality(rule, self._matrices[i].slope)
        for i, (_, where) in self._grouped(hard).items():
            residual = self._flat[i][where] if i not in self._matrices else None
            if residual is None:
                rules.append(self._matrices[i].constraint)
            else:
                rules.append(residual == 0 if self._equal[i] else residual <= 0)
        rules += self._rules({self.entries[entry][0] for entry in (*soft, *hard)})
        problem = cp.Problem(cp.Minimize(added(costs) if costs else cp.Constant(0.0)), rules)
        status = self._solve(problem)
        if status in (cp.INFEASIBLE, cp.INFEASIBLE_INACCURATE):
            return Phase(np.full(len(soft), np.inf), None, {}, {}, excluded=True)
        if status not in _SOLVED:
            return None
        amounts, multipliers = np.zeros(len(soft)), np.zeros(len(soft))
        known = not self.integer
        for own, s in slacks:
            amounts[[place[e] for e in own]] = np.maximum(np.asarray(s.value, dtype=np.float64), 0.0)
        for own, rule in duals:
            if rule.dual_value is None:
                known = False
            else:
                i = self.entries[own[0]][0]
                value = dual_of(matrices[i])[0] if i in matrices else rule.dual_value
                multipliers[[place[e] for e in own]] = np.asarray(value, dtype=np.float64).ravel()
        hidden = [own for key, own in self.built.inequalities.items() if isinstance(key, int)]
        slopes = {
            own.slope: dual_of(own)[1]
            for own in (*matrices.values(), *hidden)
            if own.constraint.dual_value is not None
        }
        return self._phase(amounts, multipliers if known else None, slopes)

    def _phase(
        self,
        amounts: NDArray[np.float64],
        multipliers: NDArray[np.float64] | None,
        slopes: Mapping[n.ArraySymbol, Any] | None = None,
    ) -> Phase:
        """The record of the program that was solved last."""
        values = {k: v.value for k, v in self.built.variables.items() if v.value is not None}
        models = {
            model: {k: v.value for k, v in own.items() if v.value is not None}
            for model, own in self.built.weights.items()
        }
        return Phase(amounts, multipliers, values, models, slopes or {})

    def _grouped(self, entries: Sequence[int]) -> dict[int, tuple[list[int], list[int]]]:
        """Per part the numbers of these entries and their places in its residual."""
        found: dict[int, tuple[list[int], list[int]]] = {}
        for entry in entries:
            i, k = self.entries[entry]
            own, where = found.setdefault(i, ([], []))
            own.append(entry)
            where.append(k)
        return found

    def _relaxed(self, i: int, where: list[int], weights: NDArray[np.float64]) -> tuple[Any, Any, Any]:
        """The slack of some entries of a part, their constraint, and the cost."""
        if i in self._matrices:
            matrix = self._matrices[i].constraint.args[0]
            up = cp.Variable(1, nonneg=True)
            return up, matrix + up[0] * np.eye(matrix.shape[0]) >> 0, weights @ up
        residual = self._flat[i][where]
        up = cp.Variable(len(where), nonneg=True)
        if not self._equal[i]:
            return up, residual - up <= 0, weights @ up
        down = cp.Variable(len(where), nonneg=True)
        return up + down, residual - (up - down) == 0, weights @ (up + down)

    def _solve(self, problem: Any) -> str:
        installed = cp.installed_solvers()
        for name, options in _LINEAR if self._linear else _CONES:
            if name not in installed:
                continue
            with warnings.catch_warnings(), without_inferred_bounds():
                warnings.simplefilter("ignore")
                try:
                    problem.solve(solver=name, **options)
                except cp.error.SolverError:
                    continue
            if problem.status in (cp.OPTIMAL, cp.INFEASIBLE):
                break
        return str(problem.status)
