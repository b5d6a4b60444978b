"""`problem.diagnose_infeasible()`: smallest conflicts, least relaxations and proofs, for any problem.

Constraints that are convex together are relaxed number by number in one phase-one program after the other
(`backends/cvxpy/elastic.py`), which proves what it finds. Other constraints are relaxed as a whole
(`relation.relax(cost=cn.linear(...))`) and solved by the route of `solve`, from several starts: what comes of
that is evidence. Nothing of the user's is changed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from constrain._lazy import backend
from constrain.diagnostics.course import growing
from constrain.diagnostics.infeasibility import (
    Certificate,
    Entry,
    Evidence,
    Infeasibility,
    Least,
    Search,
    amounts_by_name,
)
from constrain.diagnostics.names import part_label
from constrain.diagnostics.point import bound_scale, read_point
from constrain.driver.elastic import Trained, opened, relations, restored
from constrain.driver.linear import System
from constrain.driver.options import check_options, check_parameters
from constrain.driver.refutation import certificate, write
from constrain.driver.setup import lowered, place, prepare
from constrain.driver.structure import conflicts
from constrain.errors import ModelingError, RouteError
from constrain.inner import Call
from constrain.language import nodes as n
from constrain.language.problem import Problem
from constrain.language.relations import unwrapped
from constrain.lowering.classify import classify
from constrain.runtime.decisions import precision
from constrain.solution.records import Status, Warn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from constrain.diagnostics.point import Point
    from constrain.driver.setup import Setup
    from constrain.language.data import Data
    from constrain.lowering.classify import Facts
    from constrain.lowering.program import Program
    from constrain.runtime.evaluator import Evaluator
    from constrain.solution import Solution

__all__ = ["diagnose_infeasible", "with_conflict", "with_exclusion"]

TOLERANCE = 1e-6
"""Total violation, in the units of the constraints, that counts as none."""
OBJECTIVE, LEVEL = "the objective", "level of the objective"
"""Names of the constraint that stands for the domain of the objective, and of its variable."""
PROOF_SOLVES, TRAINING_SOLVES = 400, 40
"""Most programs that are solved, of convex constraints and of others."""
CHEAP_ENTRIES, CHEAP_SIZE, CHEAP_SOLVES = 400, 20_000, 60
"""Scalar constraints, entries of the program and programs to solve up to which a report looks by itself."""


@dataclass(frozen=True)
class _Asked:
    """What a proof works with.

    Attributes:
        data: replaces the samples of the problem.
        params: values of parameters by name.
        solves: most programs to solve.
        tolerance: total violation that counts as none.
        cheap: give up where the program is large.
    """

    data: Data | Mapping[str, Data] | None
    params: Mapping[str, Any] | None
    solves: int
    tolerance: float
    cheap: bool = False

    def prepared(self, program: Program) -> Setup:
        """The program with data, in float64."""
        device = place(program, None)
        return prepare(
            program, device=device, dtype=torch.float64, data=self.data, params=self.params, check=False
        )


def diagnose_infeasible(  # noqa: PLR0913  # the public options
    problem: Problem,
    method: Any = "auto",
    *,
    data: Data | Mapping[str, Data] | None = None,
    params: Mapping[str, Any] | None = None,
    starts: int = 3,
    solves: int | None = None,
    seed: int = 0,
    tolerance: float | None = None,
    solution: Solution | None = None,
    **options: Any,
) -> Infeasibility:
    """Which constraints exclude each other, what it takes to have a feasible point, and the proof.

    Of the objective only its domain plays a part, where the problem is convex: `the objective` is in the
    conflict when it has no value where the constraints hold, as beyond the solutions of an inner problem.
    Constraints that may give way already (`.relax`) exclude nothing.

    Args:
        problem: what to look at. Its variables and models are left as they are.
        method: of the solves where the constraints are not convex; as in `solve`. Another one than `"auto"`
            asks for it although they are.
        data: replaces the samples of the problem.
        params: values of parameters by name.
        starts: from how many points (the current one, then random ones) the least violation is looked for
            where nothing can be proved.
        solves: most programs to solve; 400 of convex constraints, 40 of others.
        seed: of the random starts.
        tolerance: total violation, in the units of the constraints, that counts as none; 1e-6, or ten times
            that of the method.
        solution: a run on the problem, whose history is read for multipliers that grew.
        options: of the method, such as `epochs=` and `time_limit=`.

    Returns:
        A record; it prints as text. Where a point exists its verdict is `feasible`.

    Raises:
        ModelingError: E141, E127, and others of `solve`.
    """
    check_options({"seed": seed, "tolerance": tolerance, "starts": starts, "solves": solves, **options})
    firm = _firm(problem)
    if method == "auto":
        proof = _Asked(data, params, solves or PROOF_SOLVES, tolerance or TOLERANCE)
        found = _by_proof(problem, firm, proof)
        if found is not None:
            return found
    if not firm:
        return Infeasibility("feasible", "the problem has no constraint that must hold as written")
    asked = {"data": data, "params": params, "seed": seed, "tolerance": tolerance, **options}
    return _by_search(firm, method, asked, starts, solves or TRAINING_SOLVES, solution)


def _by_proof(problem: Problem, firm: Mapping[str, n.Node], asked: _Asked) -> Infeasibility | None:
    """What can be proved of constraints that are convex together, and of the domain of the objective.

    Returns:
        None where the constraints are not convex, or there are none and the objective has a value.
    """
    found = None
    if firm:
        program = _stated(firm, asked.data)
        check_parameters(program, asked.params)
        facts = classify(program)
        found = _proved(program, facts, asked) if facts.convex else None
        if found is None or not found.feasible:
            return found
    return _valued(problem, asked) or found


def _by_search(
    firm: Mapping[str, n.Node],
    method: Any,
    asked: Mapping[str, Any],
    starts: int,
    solves: int,
    solution: Solution | None,
) -> Infeasibility:
    """The evidence of solves from several starts, with options as of `solve`."""
    skeleton = Problem("find", None, dict(firm))
    data, params = asked["data"], asked["params"]
    program = lowered(skeleton, data)
    check_parameters(program, params)
    with precision(program, torch.float64), restored(skeleton):
        setup = prepare(program, device=place(program, None), dtype=torch.float64, data=data, params=params)
        units = _units(setup, read_point(setup.evaluator))
    given = {key: value for key, value in asked.items() if value is not None}
    with restored(skeleton):
        trained = Trained(skeleton, method, units, given, starts=starts, seed=asked["seed"])
        return _searched(trained, setup, solves, solution)


def with_conflict(
    solution: Solution,
    problem: Problem,
    data: Data | Mapping[str, Data] | None,
    params: Mapping[str, Any] | None,
) -> Solution:
    """An infeasible solution whose warning C305 names the smallest conflict, where that is cheap to find.

    Where a point is found instead that satisfies all constraints, the status is `limit`.
    """
    firm, found = _firm(problem), None
    asked = _Asked(data, params, CHEAP_SOLVES, TOLERANCE, cheap=True)
    if firm:
        program = _stated(firm, data)
        facts = classify(program)
        if not facts.convex or facts.integer:
            return solution
        found = _proved(program, facts, asked)
    if not firm or (found is not None and found.feasible):
        found = _valued(problem, asked) or found
    if found is None:
        return solution
    words = f"{', '.join(found.conflict)} exclude each other" if len(found.conflict) > 1 else ""
    words = words or f"{''.join(found.conflict)} cannot hold"
    if OBJECTIVE in found.names:
        words = found.reason
    words += f"; {found.advice}" if found.advice else ""
    words += "; solution.infeasibility() has all amounts and the proof"
    if found.feasible:
        words = (
            "a point satisfies all constraints (problem.diagnose_infeasible() finds it); the method did not"
        )
    told = [replace(w, message=words) if w.code == "C305" else w for w in solution.warnings]
    told_of = replace(solution, warnings=tuple(told))
    if not found.feasible:
        return told_of
    return replace(told_of, status=Status.LIMIT, objective=solution.train.objective)


def with_exclusion(solution: Solution, evaluator: Evaluator) -> Solution:
    """A solution that misses constraints, with W202 where they exclude each other, whatever the decisions.

    That is proven by a linear program over averages, as in `problem.check()`: no longer run helps.
    """
    parts = [part for part in evaluator.program.parts if part.rows is None]
    if len({part.constraint for part in parts}) < 2:
        return solution
    with torch.no_grad():
        residuals = evaluator.full().residuals
    system = System(evaluator, [() if r is None else tuple(r.shape) for r in residuals])
    told = [Warn("W202", "conflict", f"{f.message}; {f.fix}") for f in conflicts(system)]
    return replace(solution, warnings=(*told, *solution.warnings)) if told else solution


def _valued(problem: Problem, asked: _Asked) -> Infeasibility | None:
    """The diagnosis of constraints that can hold, but nowhere where the objective has a value.

    The objective becomes a constraint that every number satisfies, objective <= t with a free variable t:
    what it excludes is where it has no value.

    Returns:
        None where the objective has a value, or where its constraint is not convex.
    """
    if problem.objective is None:
        return None
    level = n.Decision(n.VariableSymbol(LEVEL, ()))
    op = ">=" if problem.sense == "maximize" else "<="
    rules = {OBJECTIVE: n.Comparison(op, problem.objective, level), **_firm(problem)}
    try:
        program = lowered(Problem("find", None, rules), asked.data)
    except ModelingError:  # an objective that cannot stand in a constraint
        return None
    facts = classify(program)
    if not facts.convex or facts.integer:
        return None
    found = _proved(program, facts, asked)
    if found is None and asked.data is None and not asked.cheap and _empty(program, facts, asked.params):
        why = "the objective has no value within the bounds of the variables"
        return Infeasibility("infeasible", why, conflict=(OBJECTIVE,), names=(OBJECTIVE,), solves=1)
    if found is None or OBJECTIVE not in found.names:
        return None
    others = [label for label in found.conflict if label != OBJECTIVE]
    where = f" where {', '.join(others)} hold{'s' if len(others) == 1 else ''}" if others else " anywhere"
    inner = [x.function for x in n.postorder(problem.objective) if isinstance(x, n.Opaque)]
    names = [name for call in inner if isinstance(call, Call) for name in call.problem.constraints]
    why = f": its inner problem ({', '.join(names)}) has no solution there" if names else ""
    return replace(found, reason=f"the objective has no value{where}{why}")


def _empty(program: Program, facts: Facts, params: Mapping[str, Any] | None) -> bool:
    """Whether it is proved that inner problems have no solution, whatever the variables are."""
    elastic = _elastic(program, facts, None, params)
    return elastic is not None and bool(elastic.empty())


def _stated(firm: Mapping[str, n.Node], data: Data | Mapping[str, Data] | None) -> Program:
    """The constraints alone; those without a decision get a free number, since a program has one."""
    program = lowered(Problem("find", None, dict(firm)), data)
    if program.variables or any(not model.frozen for model in program.models):
        return program
    level = n.Decision(n.VariableSymbol(LEVEL, ()))
    return lowered(Problem("find", None, {**firm, LEVEL: n.Comparison("==", level, n.Constant(0.0))}), data)


def _firm(problem: Problem) -> dict[str, n.Node]:
    """The constraints that may not give way."""
    return {name: r for name, r in problem.constraints.items() if unwrapped(r)[1] is None}


# ------------------------------------------------------------------------------------ convex constraints
class _Convex:
    """Relaxes convex constraints number by number; what it says is the optimum of a convex program.

    Attributes:
        entries: one per number of a residual.
        tolerance: totals up to it count as none.
        elastic: the phase-one programs.
    """

    def __init__(self, elastic: Any, entries: Sequence[Entry], tolerance: float) -> None:
        self.elastic = elastic
        self.entries = entries
        self.tolerance = tolerance
        self._costs = np.array([1.0 / e.unit for e in entries])

    def least(self, soft: Sequence[int], hard: Sequence[int] = ()) -> Least | None:
        """The least total violation of `soft` while `hard` holds."""
        costs = self._costs[list(soft)]
        found = self.elastic.least(soft, costs, hard)
        if found is None:
            return None
        total = math.inf if found.excluded else float(costs @ found.amounts)
        return Least(found.amounts, total, found.multipliers, found)


def _elastic(program: Program, facts: Facts, bound: Any, params: Mapping[str, Any] | None) -> Any | None:
    """The phase-one programs; None where CVXPY cannot take them."""
    try:
        cvxpy = backend("cvxpy")
    except ModuleNotFoundError:
        return None
    if not cvxpy.support(program, facts).ok:
        return None
    try:
        return cvxpy.Elastic(cvxpy.build(program, bound, params), facts)
    except RouteError:
        return None


def _oracle(program: Program, facts: Facts, setup: Setup, asked: _Asked) -> _Convex | None:
    """The oracle of a convex program; None where CVXPY cannot take it."""
    bound = {d: population.data for d, population in setup.evaluator.populations.items()}
    elastic = _elastic(program, facts, bound if asked.data is not None else None, asked.params)
    if elastic is None:
        return None
    built = elastic.built
    point = _valued_point(setup, elastic)
    if point is None:
        return None
    units = _units(setup, point)
    entries = [_entry(setup, built, point, units, i, k) for i, k in elastic.entries]
    return _Convex(elastic, entries, asked.tolerance)


def _valued_point(setup: Setup, elastic: Any) -> Point | None:
    """The current point, or one where inner problems have solutions; None without any."""
    try:
        return read_point(setup.evaluator)
    except RouteError:
        inside = elastic.inside()
        if inside is None:
            return None
        write(setup, inside)
    try:
        return read_point(setup.evaluator)
    except RouteError:
        return None


def _units(setup: Setup, point: Point) -> dict[str, float]:
    """The unit of each constraint: the one the user gave, else 1 + |bound|."""
    forms = zip(setup.program.forms, point.sides, strict=True)
    return {
        form.name: float(np.max(bound_scale(sides, np.shape(sides[0]), form.scale), initial=0.0)) or 1.0
        for form, sides in forms
    }


def _entry(setup: Setup, built: Any, point: Point, units: Mapping[str, float], i: int, k: int) -> Entry:
    """Number `k` of the residual of part `i`, on the rows that take part."""
    part, shape = setup.program.parts[i], point.residuals[i].shape
    rows = built.rows.get(part.key)
    if rows is not None:
        width = math.prod(shape[1:])
        k = int(rows.selected[k // width]) * width + k % width
    label = part_label(setup.evaluator, i, k, shape)
    side = f" ({part.side} side)" if part.side in ("upper", "lower") else ""
    return Entry(part.constraint, label + side, units[part.constraint])


def _proved(program: Program, facts: Facts, asked: _Asked) -> Infeasibility | None:
    """The diagnosis of convex constraints; None where their program cannot be built or is too large."""
    if asked.cheap and backend("cvxpy").support(program, facts).cost > CHEAP_SIZE:
        return None
    with precision(program, torch.float64), restored(program.problem):
        setup = asked.prepared(program)
        oracle = _oracle(program, facts, setup, asked)
        if oracle is None or (asked.cheap and len(oracle.entries) > CHEAP_ENTRIES):
            return None
        search = Search(oracle, asked.solves)
        every = list(range(len(oracle.entries)))
        found = search.least(every)
        if found is None:
            return None
        if not search.violated(found):
            return Infeasibility("feasible", "a point satisfies all constraints", solves=search.solves)
        conflict, minimal = search.conflict(every, found)
        bounds, needed = _bounds_of(program, oracle, conflict, asked, search)
        domain = any(oracle.entries[e].name == OBJECTIVE for e in conflict)  # its multipliers prove nothing
        proof = None if facts.integer or domain else certificate(setup, oracle, conflict)
        record = _described(program, setup, oracle, search, conflict, found)
        return replace(
            record,
            reason=_reason(facts, proof),
            bounds=bounds if needed or proof is None else tuple(proof.bounds),
            conflict=(*record.conflict, *(bounds if needed or proof is None else proof.bounds)),
            integers=_integers(program, oracle, conflict, asked) if facts.integer else (),
            minimal=minimal and needed,
            certificate=proof,
            solves=search.solves,
        )


def _reason(facts: Facts, proof: Certificate | None) -> str:
    if proof is not None and proof.verified:
        return "a nonnegative combination of the conflicting constraints is positive everywhere"
    if facts.integer:
        return "the search over integers proved that the least violation is positive"
    return "the least violation of a convex program is positive, by its solver; multipliers were not verified"


def _described(
    program: Program, setup: Setup, oracle: _Convex, search: Search, conflict: Sequence[int], found: Least
) -> Infeasibility:
    """The record of a conflict: amounts, the fewest to relax, each alone, parameters and columns."""
    names = tuple(dict.fromkeys(oracle.entries[e].name for e in conflict))
    amounts = amounts_by_name(oracle.entries, found.amounts.tolist(), oracle.tolerance)
    pairs = zip(oracle.entries, found.amounts.tolist(), strict=True)
    entries = {e.label: by for e, by in pairs if by > oracle.tolerance * e.unit}
    amounts = {name: by for name, by in amounts.items() if math.isfinite(by)}
    entries = {label: by for label, by in entries.items() if math.isfinite(by)}
    values = {symbol.name: value for symbol, value in found.point.values.items()}
    hidden = {LEVEL, *(symbol.name for symbol in program.auxiliary)}
    return Infeasibility(
        "infeasible",
        "",
        conflict=tuple(dict.fromkeys(oracle.entries[e].label for e in conflict)),
        names=names,
        parameters=_parameters(setup, names),
        columns=_columns(program, names),
        total=found.total,
        amounts=amounts,
        entries=entries,
        alone=search.alone(names),
        fewest=search.fewest(conflict, amounts),
        point={name: value for name, value in values.items() if name not in hidden},
    )


def _roots(program: Program, names: Sequence[str]) -> list[n.Node]:
    written = relations(program.problem)
    return [written[name] for name in names]


def _parameters(setup: Setup, names: Sequence[str]) -> dict[str, Any]:
    """Values of the parameters in these constraints."""
    symbols = [x.symbol for x in n.postorder(*_roots(setup.program, names)) if isinstance(x, n.Knob)]
    given = setup.evaluator.params
    return {s.name: np.asarray(given.get(s.name, s.value)) for s in dict.fromkeys(symbols)}


def _columns(program: Program, names: Sequence[str]) -> tuple[str, ...]:
    """`people.income` for the columns in these constraints."""
    nodes = n.postorder(*_roots(program, names))
    return tuple(sorted({f"{x.data.name}.{x.name}" for x in nodes if isinstance(x, n.Column)}))


# ------------------------------------------------------------------------------------ bounds and proof
def _bounds_of(
    program: Program, oracle: _Convex, conflict: Sequence[int], asked: _Asked, search: Search
) -> tuple[tuple[str, ...], bool]:
    """Bounds of variables that the conflict needs, and whether each was shown to be needed.

    Bounds count as constraints of variables that have none, if the program stays convex without them.
    """
    names = list(dict.fromkeys(oracle.entries[e].name for e in conflict))
    free = opened(program.problem, names)
    if free is None:
        return (), True
    other = lowered(free.problem, asked.data)
    facts = classify(other)
    if not facts.convex:
        return (), False
    wide = _oracle(other, facts, asked.prepared(other), asked)
    if wide is None:
        return (), False
    labels = {oracle.entries[e].label for e in conflict}
    own = [k for k, e in enumerate(wide.entries) if e.label in labels]
    limits = {k: label for k, e in enumerate(wide.entries) if (label := free.labels.get(e.label)) is not None}
    inner = Search(wide, max(1, search.limit - search.solves))
    found = inner.least([*own, *limits])
    if found is None or not inner.violated(found):
        return (), False
    kept, minimal = inner.conflict([*own, *limits], found, own)
    search.solves += inner.solves
    return tuple(limits[k] for k in kept if k in limits), minimal


def _integers(program: Program, oracle: _Convex, conflict: Sequence[int], asked: _Asked) -> tuple[str, ...]:
    """Integer variables of a conflict that is gone when they may take any value."""
    names = list(dict.fromkeys(oracle.entries[e].name for e in conflict))
    free = opened(program.problem, names, integers=True)
    if free is None:
        return ()
    other = lowered(free.problem, asked.data)
    wide = _oracle(other, classify(other), asked.prepared(other), asked)
    labels = {oracle.entries[e].label for e in conflict}
    found = None
    if wide is not None:
        found = wide.least([k for k, e in enumerate(wide.entries) if e.label in labels])
    return () if found is None or found.total > asked.tolerance else free.integers


# ------------------------------------------------------------------------------------ other constraints
def _searched(oracle: Trained, setup: Setup, solves: int, solution: Solution | None) -> Infeasibility:
    """The diagnosis where nothing is convex: what several starts came to."""
    every = list(range(len(oracle.entries)))
    totals = oracle.explore()
    search = Search(oracle, solves)
    search.solves = len(totals)
    found = oracle.best
    if found is None:
        return Infeasibility("likely_infeasible", "no start came to a finite point", minimal=False)
    if not search.violated(found):
        return Infeasibility(
            "feasible", "a point that satisfies all constraints was found", solves=search.solves
        )
    conflict, minimal = search.conflict(every, found)
    names = tuple(oracle.entries[e].name for e in conflict)
    amounts = amounts_by_name(oracle.entries, found.amounts.tolist(), oracle.tolerance)
    grown = () if solution is None else tuple(growing(list(solution.history), oracle.tolerance))
    violations = dict(zip((e.name for e in oracle.entries), found.amounts.tolist(), strict=True))
    proved = oracle.bound is not None and oracle.bound > oracle.tolerance
    count = f"{len(totals)} starts" if len(totals) > 1 else "one start"
    return Infeasibility(
        "infeasible" if proved else "likely_infeasible",
        "the solver has a bound: the least violation is positive"
        if proved
        else f"{count} of {oracle.method_used} came to a violation that none of them could remove",
        conflict=names,
        names=names,
        parameters=_parameters(setup, names),
        columns=_columns(setup.program, names),
        minimal=minimal,
        total=found.total,
        amounts=amounts,
        entries=amounts,
        alone=search.alone(names),
        fewest=search.fewest(conflict, amounts),
        evidence=None if proved else Evidence(totals, violations, grown),
        point=found.point,
        solves=search.solves,
    )
