"""An inner problem compiled: how it is solved on a batch, and what is said where it has no solution."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.func import grad, jacrev

from constrain.errors import ModelingWarning, RouteError
from constrain.inner.closed import Closed, closed_form
from constrain.inner.curved import Curved
from constrain.inner.failure import reason_of, shown_parameters
from constrain.inner.functions import Functions
from constrain.inner.gradients import Solution
from constrain.inner.kkt import places_of, weak
from constrain.inner.linalg import linalg
from constrain.inner.quadratic import Quadratic, Solved, solve
from constrain.inner.signs import needed, relied_on
from constrain.inner.splitting import split
from constrain.inner.structure import Structure, structure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from constrain.language.problem import Problem

__all__ = ["LARGE", "Answer", "Inner", "compiled"]

LARGE = 3000
"""Variables and constraints beyond which the optimality conditions are not made as a matrix at first."""
NUMBERS = 20_000_000
"""Most entries of the matrices of a batch that are made where products take as long as a factorization."""


@lru_cache(maxsize=128)
def compiled(problem: Problem, *, solution: bool = True) -> Inner:
    """The compiled inner problem, kept: equal problems share it."""
    return Inner(problem, solution=solution)


@dataclass
class Answer:
    """Solutions of a batch, with gradients: x (B, n), z (B, m), y (B, p).

    Attributes:
        x: the variables.
        z: multipliers of inequalities; empty of a formula.
        y: multipliers of equalities; empty of a formula.
        solved: the same without gradients, and the optimality conditions; None of a formula.
        closed: what the formula gave, if there is one.
    """

    x: Tensor
    z: Tensor
    y: Tensor
    solved: Solved | None = None
    closed: Closed | None = None


class Inner:
    """An inner problem that is solved on batches.

    Args:
        problem: over variables and parameters.
        solution: the solution is wanted, not only the optimal value.

    Attributes:
        structure: what kind of problem it is.
        route: how it is solved, in words.

    Raises:
        ModelingError: E190, E191.
    """

    def __init__(self, problem: Problem, *, solution: bool = True) -> None:
        self.problem = problem
        self.structure: Structure = structure(problem, solution=solution)
        self.functions = Functions(self.structure)
        self.signs = relied_on(problem, self.functions.parameters) if self.structure.facts.convex else {}
        self.closed = closed_form(self.structure, self.functions)
        size = self.functions.size + self.functions.inequalities + self.functions.equalities
        self.large = size > LARGE and not self.structure.integer
        self.curved = Curved(self.structure, self.functions, large=self.large)
        self.iterations = 0
        self._said: Counter[str] = Counter()
        self._constant: dict[tuple[str, torch.device], Tensor] = {}

    def __deepcopy__(self, _memo: Any) -> Inner:
        """Itself: nothing in it is changed by solving."""
        return self

    @property
    def route(self) -> str:
        """How it is solved, in words."""
        if self.closed is not None:
            return f"closed form: {self.closed.name}"
        if self.structure.integer:
            return f"{self.structure.described}: HiGHS per row, then the program with the integers fixed"
        ways = {
            "quadratic": "batched interior point",
            "cone": "CVXPY per row, Newton's method on the batch",
            "nonlinear": "solvers of the package per row, Newton's method on the batch",
        }
        if not self.large:
            return f"{self.structure.described}: {ways[self.structure.kind]}"
        size = self.functions.size + self.functions.inequalities + self.functions.equalities
        ways["quadratic"] = "operator splitting with conjugate gradients"
        return (
            f"{self.structure.described}: {ways[self.structure.kind]}, products in the place of matrices "
            f"(MINRES; {size} variables and constraints > {LARGE})"
        )

    # ---- numbers
    def solutions(self, parameters: Sequence[Tensor], batched: Sequence[bool], batch: int) -> Answer:
        """Solves the batch; what comes back carries gradients to the parameters.

        Args:
            parameters: float64, in the order of the problem's parameters.
            batched: whether each has an axis of rows in front.
            batch: number of rows.

        Raises:
            RouteError: E192 (no solution), E193 (the solver stopped short of one).
        """
        if parameters:
            self.functions.place(parameters[0].device)
        for t, many in zip(parameters, batched, strict=True):
            finite = torch.isfinite(t)
            if not bool(finite.all()):
                row = int((~finite).nonzero()[0, 0]) if many else 0
                fix = "finite numbers in the parameter: look at what it is computed from"
                raise self._error("E193", row, "a parameter is infinite or NaN", parameters, batched, fix)
        self._refuse_signs(parameters, batched)
        if self.closed is not None:
            found = self.closed(parameters, batched, batch)
            self._refuse(~found.feasible, "infeasible", parameters, batched)
            if torch.is_grad_enabled() and any(t.requires_grad for t in parameters):
                self._warn_kinks(found.kinked)
            none = found.x[:, :0]
            return Answer(found.x, none, none, closed=found)
        solved: list[Solved] = []
        found = cast(
            "tuple[Tensor, Tensor, Tensor]", Solution.apply(self, tuple(batched), batch, solved, *parameters)
        )
        return Answer(*found, solved[0])

    def _refuse_signs(self, parameters: Sequence[Tensor], batched: Sequence[bool]) -> None:
        """E193 where a parameter has another sign than the one that makes the problem convex."""
        for symbol, t, many in zip(self.functions.parameters, parameters, batched, strict=True):
            sign = self.signs.get(symbol, 0.0)
            if sign and bool((wrong := sign * t.detach() < 0).any()):
                row = int(wrong.nonzero()[0, 0]) if many else 0
                reason = (
                    f"it is convex for {symbol.name} {'>=' if sign > 0 else '<='} 0, the sign of its value"
                )
                fix = f"abs({symbol.name}); where both signs occur, a cn.Parameter without a value"
                raise self._error("E193", row, reason, parameters, batched, fix)

    def solve(self, parameters: Sequence[Tensor], batched: Sequence[bool], batch: int) -> Solved:
        """Solves the batch without a formula; no gradients."""
        with torch.no_grad():
            if self.structure.kind != "quadratic":
                return self._solve_curved(parameters, batched, batch)
            if self.large and self.structure.facts.convex:
                split_up = self._solve_large(parameters, batched, batch)
                if split_up is not None:
                    return split_up
            qp = self._quadratic(parameters, batched, batch)
            if self.structure.integer:
                qp = self._fixed(qp, parameters, batched, batch)
            if not self.structure.facts.convex and self._bent(qp):
                return self._solve_curved(parameters, batched, batch)
            found = solve(qp)
            self.iterations = found.iterations
            for i in places_of(~found.ok):
                reason = reason_of(qp.take(torch.tensor([i], device=qp.q.device)))
                raise self._error("E192" if reason else "E193", i, reason or _SHORT, parameters, batched)
            return found

    def _solve_large(
        self, parameters: Sequence[Tensor], batched: Sequence[bool], batch: int
    ) -> Solved | None:
        """Without matrices; None where that takes as many products as they have columns, and they fit."""
        n = self.functions.size
        size = n + self.functions.inequalities + self.functions.equalities
        limit = size if batch * n * size <= NUMBERS else math.inf
        answer = split(self.functions, parameters, batched, batch, limit=limit)
        if answer is None:
            return None
        found, failures = answer
        for i, reason in failures.items():
            none = reason.startswith(("infeasible", "unbounded"))
            raise self._error("E192" if none else "E193", i, reason, parameters, batched)
        return found

    def _solve_curved(self, parameters: Sequence[Tensor], batched: Sequence[bool], batch: int) -> Solved:
        found = self.curved.solve(parameters, batched, batch)
        for i, reason in self.curved.failures.items():
            none = reason.startswith(("infeasible", "unbounded"))
            missing = () if self.structure.facts.convex else needed(self.problem, self.functions.parameters)
            if missing:
                fix = "; ".join(
                    f'cn.Parameter("{name}", 1.0), or abs({name}) in the problem' for name in missing
                )
                fix += ", where it is never negative: the problem is then known to be convex"
                raise self._error("E192" if none else "E193", i, reason, parameters, batched, fix)
            raise self._error("E192" if none else "E193", i, reason, parameters, batched)
        for i in places_of(~found.ok):
            warnings.warn(_inexact(i), stacklevel=2)
        return found

    def _bent(self, qp: Quadratic) -> bool:
        """Whether some quadratic form is not positive semidefinite."""
        least: Tensor = linalg.eigvalsh(qp.P)[:, 0]
        return bool((least < -1e-10 * (1 + qp.P.abs().amax((-2, -1)))).any())

    def _kept(self, name: str, make: Any, device: torch.device) -> Tensor:
        key = (name, device)
        if key not in self._constant:
            self._constant[key] = make()
        return self._constant[key]

    def _quadratic(self, parameters: Sequence[Tensor], batched: Sequence[bool], batch: int) -> Quadratic:
        """The matrices of the batch; those that no parameter moves are made once."""
        functions, known = self.functions, self.structure
        device = parameters[0].device if parameters else torch.device("cpu")
        zero = torch.zeros(batch, functions.size, dtype=torch.float64, device=device)
        one = [t[0] if many else t for t, many in zip(parameters, batched, strict=True)]
        assert known.terms is not None  # quadratic
        bend = jacrev(grad(functions.objective))
        if not known.terms.get(2, False):
            curvature = self._kept("P", lambda: bend(zero[0], *one)[None], device)
        else:
            curvature = functions.batch(bend, batched)(zero, *parameters)
        rows = (*known.inequalities, *known.equalities)
        if any(t.terms is None or t.terms.get(1, False) for t in rows):
            unequal, equations = functions.slopes(batched)(zero, *parameters)
        else:
            slopes = jacrev(functions.residuals)
            unequal = self._kept("G", lambda: slopes(zero[0], *one)[0][None], device)
            equations = self._kept("A", lambda: slopes(zero[0], *one)[1][None], device)
        q = functions.batch(grad(functions.objective), batched)(zero, *parameters)
        below, equal = functions.batch(functions.residuals, batched)(zero, *parameters)
        return Quadratic((curvature + curvature.mT) / 2, q, unequal, -below, equations, -equal)

    def _fixed(
        self, qp: Quadratic, parameters: Sequence[Tensor], batched: Sequence[bool], batch: int
    ) -> Quadratic:
        """The program with its integers at the optimum of the integer program: equalities at the end of A."""
        whole = torch.zeros(self.functions.size, dtype=torch.bool)
        rows: list[Tensor] = []
        for i in range(batch):
            own = {
                symbol.name: (t[i] if many else t).detach().cpu().numpy()
                for symbol, t, many in zip(self.functions.parameters, parameters, batched, strict=True)
            }
            values, failure = self.curved.integers(own)
            if failure:
                none = failure.startswith(("infeasible", "unbounded"))
                raise self._error("E192" if none else "E193", i, failure, parameters, batched)
            rows.append(self.functions.join(values))
        for symbol, mask in self.functions.split(whole).items():
            if symbol in self.structure.integer:
                mask.fill_(True)
        places = whole.nonzero()[:, 0]
        eye = torch.eye(self.functions.size, dtype=torch.float64)[places].to(qp.q.device)
        at = torch.stack(rows)[:, places].to(qp.q.device)
        # a bound of an integer that is met would be an active constraint beside the equality that fixes it
        G, h = qp.G.clone(), qp.h.clone()
        idle = self.functions.bounds_of(places)
        G[:, idle], h[:, idle] = 0.0, 1.0
        A = torch.cat([qp.A, eye.expand(qp.A.shape[0], -1, -1)], 1)
        return Quadratic(qp.P, qp.q, G, h, A, torch.cat([qp.b, at], 1))

    # ---- messages
    def _refuse(
        self, bad: Tensor, reason: str, parameters: Sequence[Tensor], batched: Sequence[bool]
    ) -> None:
        for i in places_of(bad):
            raise self._error("E192", i, reason, parameters, batched)

    def _error(
        self,
        code: str,
        row: int,
        reason: str,
        parameters: Sequence[Tensor],
        batched: Sequence[bool],
        fix: str = "a slack with a cost in the constraint that can fail, or bounds on the variables",
    ) -> RouteError:
        shown = shown_parameters(self.functions.parameters, parameters, batched, row)
        what = "has no solution" if code == "E192" else "was not solved"
        return RouteError(
            code,
            f"the inner problem {what} in row {row} of the batch ({reason}){shown}",
            at=None if self.problem.objective is None else self.problem.objective.loc,
            fix=fix,
        )

    def warn(self, found: Solved, *, solution: bool) -> None:
        """W220, W221: what has no gradient, or one that is not unique, in these rows."""
        system = found.system
        assert system is not None  # a solved batch has one
        if solution:
            self._warn_kinks(weak(found.z, found.slack).any(1) if found.z.shape[1] else found.ok & False)
        if not bool(system.singular.any()):
            return
        moving = self.functions.moving.to(found.x.device)
        extra = found.y.shape[1] - self.functions.equalities  # those that fix integers
        dependent = system.dependent(torch.cat([moving, moving.new_zeros(extra)]))
        if bool(dependent.any()):
            self._warn_duals(dependent)
        flat = system.flat(self.functions.own) if solution else dependent
        if solution and bool(flat.any()):
            rows = places_of(flat)
            self._warn(
                "W221",
                f"the solution of the inner problem is not unique in {_rows(rows)}: its gradient is that of "
                "one of many",
                "a strictly convex term in the objective, such as 1e-3 * cn.sum_squares(x)",
            )

    def _warn_duals(self, dependent: Tensor) -> None:
        rows = places_of(dependent)
        self._warn(
            "W220",
            f"the multipliers of the inner problem are not unique in {_rows(rows)}: more constraints are "
            "active than their gradients are independent, and the optimal value has a kink there; the "
            "gradient is one of several one-sided ones",
            "a quadratic cost on a slack of the constraint: the value is smooth then",
        )

    def _warn_kinks(self, kinked: Tensor) -> None:
        if bool(kinked.any()):
            rows = places_of(kinked)
            self._warn(
                "W222",
                f"an active constraint of the inner problem has multiplier zero in {_rows(rows)}: strict "
                "complementarity fails, the solution has a kink there and the gradient is one-sided",
                None,
            )

    def _warn(self, code: str, message: str, fix: str | None) -> None:
        """Warns at the first, second, fourth, eighth, ... batch: every training step meets other rows."""
        self._said[code] += 1
        times = self._said[code]
        if times & (times - 1) == 0:
            again = f" (batch {times} with such rows)" if times > 2 else ""
            warnings.warn(ModelingWarning(code, message + again, fix=fix), stacklevel=2)


_SHORT = "the interior-point method stopped short of its tolerance"


def _rows(rows: Sequence[int]) -> str:
    listed = ", ".join(map(str, rows[:5]))
    return f"row {listed}" if len(rows) == 1 else f"rows {listed}{' …' if len(rows) > 5 else ''}"


def _inexact(row: int) -> ModelingWarning:
    return ModelingWarning(
        "W223",
        f"the optimality conditions of the inner problem could not be solved exactly in row {row}: its "
        "gradient has the accuracy of the solver's point",
        fix="a smooth objective and constraints around the solution; bounds that are met exactly",
    )
