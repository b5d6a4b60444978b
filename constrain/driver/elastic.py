"""Problems in which constraints or bounds may give way, and the oracle of those that are not convex."""

from __future__ import annotations

import copy
import math
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from constrain.diagnostics.infeasibility import Entry, Least
from constrain.language import nodes as n
from constrain.language.expr import Constraint, Expr
from constrain.language.problem import Problem
from constrain.language.relations import linear
from constrain.lowering.lower import semidefinite
from constrain.runtime.binding import as_array

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from numpy.typing import NDArray

    from constrain.solution import Solution

__all__ = ["Opened", "Trained", "opened", "relations", "restored"]

ROOM = 10.0
"""Total violation that counts as none, in tolerances of the method."""


@contextmanager
def restored(problem: Problem) -> Generator[None]:
    """Runs a block, after which variables have the values and models the state that they had."""
    values = {symbol: symbol.value for symbol in problem.variables}
    states = {model: copy.deepcopy(model.module.state_dict()) for model in problem.models}
    modes = [(m, m.training) for model in problem.models for m in model.module.modules()]
    try:
        yield
    finally:
        for symbol, value in values.items():
            symbol.value = value
        for model, state in states.items():
            model.module.load_state_dict(state)
        for module, training in modes:
            module.training = training


def relations(problem: Problem) -> dict[str, n.Node]:
    """The constraints, with those of variables that were declared positive semidefinite."""
    return dict(problem.constraints) | dict(semidefinite(s) for s in problem.variables if s.psd)


# --------------------------------------------------------------------------------------- without bounds
@dataclass(frozen=True)
class Opened:
    """A problem whose variables are free, with their bounds (or without their integrality) as constraints.

    Attributes:
        problem: the constraints that were asked for, then the bounds.
        labels: of the entries of bounds, as `w[3] >= 0`; those that are infinite are left out.
        integers: names of the variables that were integer.
    """

    problem: Problem
    labels: dict[str, str]
    integers: tuple[str, ...] = ()


def opened(problem: Problem, names: Sequence[str], *, integers: bool = False) -> Opened | None:
    """Some constraints of a problem, with the bounds of their variables as constraints of free variables.

    Args:
        problem: without an objective.
        names: of the constraints to keep, those of variables declared positive semidefinite among them.
        integers: keep the bounds, and let integer variables take any value.

    Returns:
        None when there is nothing to open.
    """
    kept = {name: problem.constraints[name] for name in names if name in problem.constraints}
    everything = relations(problem)
    roots = [everything[name] for name in names]
    found = [x.symbol for x in n.postorder(*roots) if isinstance(x, n.Decision)]
    other: dict[n.VariableSymbol, n.VariableSymbol] = {}
    for symbol in dict.fromkeys(found):
        whole = symbol.integer or symbol.boolean
        if integers and whole:
            limits = (0.0, 1.0) if symbol.boolean else symbol.bounds
            other[symbol] = replace(symbol, integer=False, boolean=False, bounds=limits)
        elif not integers and (symbol.nonneg or symbol.bounds is not None) and not symbol.boolean:
            other[symbol] = replace(symbol, nonneg=False, bounds=None)
    if not other:
        return None
    memo: dict[int, n.Node] = {}

    def step(node: n.Node, new: tuple[n.Node, ...]) -> n.Node:
        if isinstance(node, n.Decision) and node.symbol in other:
            return n.Decision(other[node.symbol], loc=node.loc)
        return n.rebuild(node, new)

    constraints = {name: n.fold(root, step, memo) for name, root in kept.items()}
    labels: dict[str, str] = {}
    if not integers:
        for symbol, free in other.items():
            for op, limit in _limits(symbol):
                name = f"{symbol.name} {op}"
                constraints[name] = _limit(free, op, limit)
                labels |= _labels(symbol, name, op, limit)
    if not constraints:
        return None
    whole = tuple(s.name for s in other if s.integer or s.boolean)
    return Opened(Problem("find", None, constraints), labels, whole)


def _limits(symbol: n.VariableSymbol) -> list[tuple[str, NDArray[np.float64]]]:
    low, high = symbol.bounds if symbol.bounds is not None else (None, None)
    found: list[tuple[str, NDArray[np.float64]]] = []
    if low is not None or symbol.nonneg:
        lower = np.zeros(symbol.shape) if low is None else np.asarray(as_array(low), dtype=np.float64)
        lower = np.broadcast_to(lower, symbol.shape)
        found.append((">=", np.maximum(lower, 0.0) if symbol.nonneg else lower))
    if high is not None:
        upper = np.asarray(as_array(high), dtype=np.float64)
        found.append(("<=", np.broadcast_to(upper, symbol.shape)))
    return found


def _limit(symbol: n.VariableSymbol, op: str, limit: NDArray[np.float64]) -> n.Node:
    """The bound as a constraint; where it is infinite 0 stands, and the entry is not used."""
    finite = np.where(np.isfinite(limit), limit, 0.0)
    bound: Any = float(finite) if finite.ndim == 0 else finite
    relation: Any = Expr(n.Decision(symbol)) >= bound if op == ">=" else Expr(n.Decision(symbol)) <= bound
    return relation.node  # type: ignore[no-any-return]


def _labels(symbol: n.VariableSymbol, name: str, op: str, limit: NDArray[np.float64]) -> dict[str, str]:
    """By the label of an entry of the constraint, the bound as a user would write it."""
    found: dict[str, str] = {}
    for place in np.ndindex(*limit.shape):
        value = float(limit[place])
        if math.isfinite(value):
            at = f"[{', '.join(map(str, place))}]" if place else ""
            found[f"{name}{at}"] = f"{symbol.name}{at} {op} {value:g}"
    return found


# ------------------------------------------------------------------------------------ not convex
class Trained:
    """Relaxes whole constraints at a linear cost and solves by a route of `solve`: evidence, no proof.

    Args:
        problem: the constraints that must hold.
        method: of the solves.
        units: of the constraints by name.
        options: of the solves.
        starts: how many points to start from.
        seed: of all but the first, which is the current one.

    Attributes:
        entries: one per constraint.
        tolerance: ten times that of the method, once something was solved.
        best: the answer for all constraints from the best start.
        bound: proven lower bound of the least total violation, None without.
        method_used: what solved it.
    """

    def __init__(
        self,
        problem: Problem,
        method: Any,
        units: Mapping[str, float],
        options: Mapping[str, Any],
        *,
        starts: int,
        seed: int,
    ) -> None:
        self.problem = problem
        self.entries = [Entry(name, name, units[name]) for name in problem.constraints]
        self.tolerance = float(options.get("tolerance", 0.0))
        self.best: Least | None = None
        self.bound: float | None = None
        self.method_used = ""
        self._method = method
        self._options = {"progress": False, **options}
        self._starts = starts
        self._seed = seed
        self._state: tuple[dict[Any, Any], dict[Any, Any]] = ({}, {})

    def explore(self) -> tuple[float, ...]:
        """Relaxes all constraints from every start; the best point is where later solves begin."""
        totals: list[float] = []
        state = self._now()
        for k in range(self._starts):
            self._begin(k)
            self._state = self._now()
            found = self.least(range(len(self.entries)))
            if found is None:
                continue
            totals.append(found.total)
            if self.best is None or found.total < self.best.total:
                self.best, state = found, self._now()
            if found.total <= self.tolerance or self.bound is not None:
                break
        self._state = state
        return tuple(totals)

    def least(self, soft: Sequence[int], hard: Sequence[int] = ()) -> Least | None:
        """The least total violation of `soft` that was found with `hard`; infinite where that failed."""
        self._resume()
        constraints: dict[str, n.Node] = {}
        chosen = [self.entries[k] for k in sorted({*soft, *hard})]
        firm = {self.entries[k].name for k in hard}
        for entry in chosen:
            relation = self.problem.constraints[entry.name]
            if entry.name not in firm:
                relation = Constraint(relation).relax(cost=linear(1.0 / entry.unit)).node
            constraints[entry.name] = relation
        solution = Problem("find", None, constraints).solve(self._method, **self._options)
        self.method_used = solution.provenance.route.split(":")[0] or "solve"
        self.tolerance = max(self.tolerance, ROOM * solution.record.tolerance)
        if not math.isfinite(solution.objective):
            return None
        if len(chosen) == len(self.entries) and not firm and solution.bound is not None:
            self.bound = solution.bound
        return self._read(solution, soft, firm)

    def _read(self, solution: Solution, soft: Sequence[int], firm: set[str]) -> Least:
        amounts, total = np.zeros(len(soft)), 0.0
        for at, k in enumerate(soft):
            result = solution[self.entries[k].name]
            missed = np.asarray(result.violation) + np.asarray(result.relaxation)
            amounts[at] = float(np.max(missed, initial=0.0))
            total += float(np.sum(missed)) / self.entries[k].unit
        broken: list[Any] = [
            e
            for e in self.entries
            if e.name in firm and solution[e.name].max_violation > self.tolerance * e.unit
        ]
        declared = relations(self.problem).keys() - self.problem.constraints.keys()
        broken += [name for name in declared if solution[name].max_violation > self.tolerance]
        if broken:
            amounts[:], total = np.inf, math.inf
        return Least(amounts, total, None, dict(solution.variables))

    # ---- where to start
    def _begin(self, k: int) -> None:
        """The current point, or a random one."""
        if k == 0:
            return
        rng = np.random.default_rng(self._seed + k)
        for symbol in self.problem.variables:
            if not (symbol.integer or symbol.boolean):
                symbol.value = rng.normal(size=symbol.shape)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed + k)
            for model in self.problem.models:
                if not model.frozen:
                    _reset(model.module)

    def _now(self) -> tuple[dict[Any, Any], dict[Any, Any]]:
        values = {symbol: symbol.value for symbol in self.problem.variables}
        return values, {m: copy.deepcopy(m.module.state_dict()) for m in self.problem.models}

    def _resume(self) -> None:
        values, states = self._state
        for symbol, value in values.items():
            symbol.value = value
        for model, state in states.items():
            model.module.load_state_dict(state)


def _reset(module: Any) -> None:
    """New random weights, by each layer's own rule; small random ones where a layer has none."""
    for layer in module.modules():
        reset = getattr(layer, "reset_parameters", None)
        if callable(reset):
            reset()
            continue
        with torch.no_grad():
            for parameter in layer.parameters(recurse=False):
                if parameter.requires_grad:
                    parameter.normal_(0.0, 0.1)
