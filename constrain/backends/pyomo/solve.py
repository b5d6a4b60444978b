"""Whether a program can be taken, and solving it: values, multipliers in the signs of the language, bounds.

Pyomo's dual of a constraint `body <= 0` or `body == 0` is the derivative of the minimum in its right-hand
side, which is the multiplier of semantics S10 with the other sign.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from constrain.analysis.fact import shown
from constrain.analysis.models import refusal_of
from constrain.backends.pyomo.atoms import LOWERINGS
from constrain.backends.pyomo.bounds import lower_bound
from constrain.backends.pyomo.build import Built, build
from constrain.backends.pyomo.declared import refusal_of_declared
from constrain.backends.pyomo.engines import LINEAR, Outcome, label, nonlinear_engine, run
from constrain.backends.pyomo.expressions import moving, sides
from constrain.backends.pyomo.outer import GAP, outer_approximation, solve_fixed
from constrain.backends.pyomo.package import pyo
from constrain.backends.pyomo.products import product_bound
from constrain.backends.pyomo.starts import start_of
from constrain.backends.pyomo.term import Term, expression_of
from constrain.errors import ConstrainError, RouteError
from constrain.language import nodes as n
from constrain.language.atoms import ATOMS
from constrain.language.types import type_of
from constrain.runtime.result import RawResult, put_back

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from constrain.language.symbols import Model
    from constrain.lowering.classify import Facts
    from constrain.lowering.program import Program, Tail
    from constrain.runtime.result import Ending

__all__ = ["RawSolution", "Support", "discrete", "solve", "support"]

INTEGER_ATOMS = frozenset(("count_nonzero",))
"""Functions that only integers can express."""
KINKS = {
    **dict.fromkeys(("abs", "l1_loss", "relu", "norm", "maximum", "max", "max_levels"), 1),
    **dict.fromkeys(("minimum", "min", "min_levels"), -1),
}
"""Functions with kinks, and the side against which they are convex or concave."""
FEW_KINKS = 300
"""Most entries of functions with kinks for which `method="auto"` searches over integers."""
MANY_SWITCHES = 5_000
"""Binary variables for kinks, counts and events beyond which no model is built."""
NEEDS_NLP = "it needs a nonlinear solver: pip install 'constrain-lang[nlp]' (pounce), or Ipopt on the path"
ENTRY_LIMIT = 2_000_000
"""Rows times the width of what they depend on beyond which no model is built."""
_CLASSES = {
    "LP": "a linear program",
    "QP": "a convex quadratic program",
    "NLP": "a smooth nonlinear program",
    "MILP": "a mixed-integer linear program",
    "MIQP": "a mixed-integer convex quadratic program",
    "MINLP": "a mixed-integer nonlinear program",
}
RESTRICTED = "multipliers are those of the program with its integers fixed"
NO_ROOM = "no proof: a strict event has to hold (or a weak one not) with some room, and no point has it"
NO_POINT = "no point satisfies the constraints: a linear relaxation of the products has none"
ROOMY = "no point is better whose events hold, or not, with some room"
ROOMLESS = "no point is better, whether its events have room or not"
PROOF_NODES = 1_000
"""Most nodes of the search for a bound that holds without room."""


# --------------------------------------------------------------------------------------------- support
@dataclass(frozen=True)
class Support:
    """Whether this backend takes a program.

    Attributes:
        ok: yes or no.
        reason: why, or why not, in a sentence.
        solver: the solver that would run, when `ok`.
        cost: rough number of scalar coefficients of the model; comparable between backends.
    """

    ok: bool
    reason: str
    solver: str = ""
    cost: float = math.inf


def discrete(program: Program) -> bool:
    """Whether a program asks for integers.

    Its variables do, or a function that counts, or a few functions with kinks where they are not convex (of
    many, as in a loss per row, a local method is the better choice).
    """
    if _declared(program):
        return True
    kinks = _kinks(program)
    return bool(kinks) and sum(_entries(x) for x in kinks) <= FEW_KINKS


def _declared(program: Program) -> bool:
    integer = any(s.boolean or s.integer for s in program.variables)
    return integer or any(
        isinstance(x, n.Apply) and x.atom in INTEGER_ATOMS and moving(x)
        for x in n.postorder(*_roots(program))
    )


def _kinks(program: Program) -> list[n.Apply]:
    """Functions with kinks that are not pushed against their convex side."""
    found: list[n.Apply] = []
    placed = sides(program)
    for node in n.postorder(*_roots(program)):
        if not isinstance(node, n.Apply) or node.atom not in KINKS or placed[id(node)] == KINKS[node.atom]:
            continue
        if moving(node) and (node.atom != "norm" or float(node.option("ord", 2.0)) != 2.0):
            found.append(node)
    return found


def _switched(program: Program) -> list[n.Node]:
    """What needs binary variables of its own: counts, kinks where not convex, events of decisions."""
    counted = [x for x in n.postorder(*_roots(program)) if isinstance(x, n.Apply) and x.atom in INTEGER_ATOMS]
    events = [x for x in n.postorder(*_roots(program)) if isinstance(x, n.Indicator)]
    return [*_kinks(program), *(x for x in (*counted, *events) if moving(x))]


def _unswitchable(nodes: list[n.Node]) -> str | None:
    """Why binary variables cannot stand for these, as far as that shows without building the model."""
    for node in nodes:
        model = next((x.model for x in n.postorder(node) if isinstance(x, (n.Call, n.Weights))), None)
        if model is not None and not model.frozen:
            return (
                f"{shown(node)} needs integers, and these need bounds, which the weights of {model.name} lack"
            )
    entries = sum(_entries(node) for node in nodes)
    if entries > MANY_SWITCHES:
        return f"it needs about {entries:,} binary variables, more than {MANY_SWITCHES:,}"
    return None


def _entries(node: n.Node) -> int:
    """Numbers that go into a function."""
    kinds = [type_of(x) for x in n.children(node)]
    rows = max((len(kind.rows) for kind in kinds if kind.rows is not None), default=1)
    return rows * max(math.prod(kind.shape or ()) for kind in kinds)


def _roots(program: Program) -> tuple[n.Node, ...]:
    return (program.objective, *(part.residual for part in program.parts))


def _refusal(program: Program) -> str | None:
    """The first thing that no Pyomo model can hold, found without building one."""
    streamed = next((data for data in program.populations if data.streamed), None)
    if streamed is not None:
        return f"the sample {streamed.name} streams from a loader: there is no table"
    if not program.variables and all(model.frozen for model in program.models):
        return "there are no decisions"
    memo: dict[int, bool] = {}
    for tail in program.tails:
        if _held(tail, memo):
            return f"{tail.name} is held at its present value, and moves with the decisions"
    for node in n.postorder(*_roots(program)):
        if not moving(node, memo):
            continue
        if isinstance(node, n.Call):
            reason = refusal_of(node.model.module) if not node.model.frozen else None
            if reason is not None:
                return f"the model {node.model.name}: {reason}"
            if node.model.frozen or any(moving(x, memo) for x in node.args):
                return (
                    f"the model {node.model.name} is applied to decisions: a network is no closed formula; "
                    "written out, cn.relu(W @ z + b) layer by layer, one of linear layers and ReLU is"
                )
        elif isinstance(node, n.Apply):
            own = refusal_of_declared(node)
            if own is not None:
                return own
            if node.atom == "where" and moving(node.args[0], memo):
                return "it has no form of where with a condition on decisions"
            if node.atom not in LOWERINGS and ATOMS[node.atom].declared is None:
                return ATOMS[node.atom].refusals.get("pyomo", f"it has no form of {node.atom}")
        elif isinstance(node, (n.Gradient, n.Opaque)):
            what = "derivatives of models" if isinstance(node, n.Gradient) else node.path
            return f"it has no form of {what}"
    return None


def _held(tail: Tail, memo: dict[int, bool]) -> bool:
    """Whether a threshold is that of the present point only, and the program is no more than near to it.

    A center may be any number, and a threshold that is a decision finds its place.
    """
    if tail.kind == "mean" or isinstance(tail.threshold, n.VariableSymbol):
        return False
    return moving(tail.integrand, memo) or (tail.given is not None and moving(tail.given, memo))


def _size(program: Program) -> int:
    """Rows of averages and of constraints per row, times the decisions."""
    trainable = [p for m in program.models if not m.frozen for p in m.module.parameters() if p.requires_grad]
    width = sum(math.prod(s.shape) for s in program.variables) + sum(p.numel() for p in trainable)
    memo: dict[int, bool] = {}
    rows = sum(
        len(moment.data) * math.prod(type_of(moment.integrand).shape or ())
        for moment in program.moments
        if moving(moment, memo)
    )
    rows += sum(len(part.rows) for part in program.parts if part.rows is not None)
    return max(rows, 1) * max(width, 1)


def support(program: Program, facts: Facts, parameters: Mapping[str, Any] | None = None) -> Support:
    """Whether a program has a form in Pyomo that an installed solver takes.

    A program that needs no integers is looked at and not built.

    Args:
        program: the moment form.
        facts: of the analysis.
        parameters: values of parameters by name; the current ones when left out.
    """
    refusal = _refusal(program)
    if refusal is not None:
        return Support(False, refusal)
    size = _size(program)
    if size > ENTRY_LIMIT:
        return Support(False, f"the model would have about {size:,} coefficients, more than {ENTRY_LIMIT:,}")
    switched = _switched(program)
    if not switched and not _declared(program):
        return _continuous(facts, size)
    refusal = _unswitchable(switched)
    if refusal is not None:
        return Support(False, refusal)
    try:
        built = build(program, None, parameters)
    except ConstrainError as error:
        reason = str(error).splitlines()[0].removeprefix(f"[{error.code}] ")
        return Support(False, f"{reason}; write {error.fix}" if error.fix else reason)
    answer = _accepted(built, facts)
    return Support(answer.ok, answer.reason, answer.solver, float(size))


def _continuous(facts: Facts, size: int) -> Support:
    kind = facts.problem_class
    if kind in ("LP", "QP"):
        return Support(True, f"{_CLASSES[kind]}; HiGHS solves it", LINEAR, float(size))
    engine = nonlinear_engine()
    if engine is None:
        return Support(False, f"{_CLASSES['NLP']}; {NEEDS_NLP}")
    local = "" if facts.convex else ", to a local optimum"
    return Support(True, f"{_CLASSES['NLP']}; {engine} solves it{local}", engine, float(size))


def _accepted(built: Built, facts: Facts) -> Support:
    """The solver of a built model, or why there is none."""
    what = _CLASSES[built.kind]
    if built.switches:
        what += f" with {built.switches:,} switches"
    if built.kind in ("LP", "QP", "MILP"):
        return Support(True, f"{what}; HiGHS solves it", LINEAR)
    if built.kind == "MINLP" and not _convex(built, facts):
        return Support(False, f"{what} that is not certified convex: {facts.certificate}")
    if built.kind == "MIQP":
        return Support(True, f"{what}; HiGHS solves it by outer approximation", LINEAR)
    engine = nonlinear_engine()
    if engine is None:
        return Support(False, f"{what}; {NEEDS_NLP}")
    how = f"HiGHS and {engine} solve it by outer approximation" if built.integer else f"{engine} solves it"
    return Support(True, f"{what}; {how}", engine)


def _convex(built: Built, facts: Facts) -> bool:
    """Whether everything curved is certified convex."""
    certified = {term.key for term in facts.terms if term.ok}
    curved = {row.part for row in built.rows if _curved(row.term)}
    if _curved(built.objective):
        curved.add("objective")
    if any(_curved(term) for term, _ in built.auxiliary) and not facts.convex:
        return False
    return curved <= certified


def _curved(item: Any) -> bool:
    return isinstance(item, Term) and item.degree not in (0, 1)


# -------------------------------------------------------------------------------------------- solution
@dataclass(frozen=True)
class RawSolution:
    """What the solver found, in the language's terms.

    Attributes:
        ending: how the run ended.
        objective: value of the program, which minimizes; None without a point.
        values: per variable (auxiliary ones included) an array of its shape.
        weights: per model, parameter name to array.
        multipliers: per part key an array of the shape of the residual, 0 where a row takes no part; None
            when there are none: `message` says why.
        solver: name and version.
        seconds: wall time of the solver.
        bound: proven lower bound of the program's optimal value, None without.
        message: the ending in words.
        steps: master problems of outer approximation.
    """

    ending: Ending
    objective: float | None
    values: Mapping[n.VariableSymbol, NDArray[Any]]
    weights: Mapping[Model, Mapping[str, NDArray[Any]]]
    multipliers: dict[str, NDArray[Any]] | None
    solver: str
    seconds: float
    bound: float | None = None
    message: str = ""
    steps: int = 0
    warnings: tuple[str, ...] = field(default=())

    def write_back(self) -> None:
        """Puts the values into the `Variable`s and the weights into the modules; dtype and device stay."""
        put_back(self.values, self.weights)

    def result(self) -> RawResult:
        """The record that solvers and backends share."""
        return RawResult(
            ending=self.ending,
            multipliers=self.multipliers,
            solver=self.solver,
            seconds=self.seconds,
            iterations=self.steps,
            bound=self.bound,
            message=self.message,
        )


def solve(
    built: Built,
    facts: Facts,
    *,
    solver: str | None = None,
    time_limit: float | None = None,
    options: Mapping[str, Any] | None = None,
    verbose: bool = False,
) -> RawSolution:
    """Runs a solver on a built model.

    Args:
        built: by `build`.
        facts: of the analysis.
        solver: `highs`, `pounce` or `ipopt` in the place of the one that fits.
        time_limit: in seconds.
        options: of the solver, by its own names.
        verbose: show the solver's log.

    Raises:
        RouteError: E125 when no installed solver takes the model.
    """
    engine = None if solver is None else solver.lower()
    if engine is None:
        answer = _accepted(built, facts)
        if not answer.ok:
            raise RouteError("E125", f"pyomo cannot take the problem: {answer.reason}")
        engine = answer.solver
    start = time.perf_counter()

    def search(model: Built) -> _Found:
        left = None if time_limit is None else max(time_limit - (time.perf_counter() - start), 0.1)
        return _search(model, engine, left, options, verbose=verbose)

    found = _with_events(search(built), search, engine) if built.events else search(built)
    if found.built.roomy and found.outcome.ending == "converged":
        left = None if time_limit is None else max(time_limit - (time.perf_counter() - start), 0.1)
        found = _with_bound(found, left)
    model, steps = found.built, found.steps
    used = label(engine) if steps == 0 or engine == LINEAR else f"{label(LINEAR)} + {label(engine)}"
    seconds, convex = time.perf_counter() - start, built.kind in ("LP", "QP") or _convex(built, facts)
    return _solution(model, found.outcome, found.integers, used, seconds, steps, found.notes, convex=convex)


@dataclass(frozen=True)
class _Found:
    """The point of one model: with its integers, the master problems of outer approximation, and notes."""

    built: Built
    outcome: Outcome
    integers: list[float]
    steps: int
    notes: list[str]


def _search(
    built: Built,
    engine: str,
    time_limit: float | None,
    options: Mapping[str, Any] | None,
    *,
    verbose: bool,
) -> _Found:
    steps, integers, notes = 0, [], []
    if built.integer and built.kind != "MILP":
        found = outer_approximation(built, engine, time_limit=time_limit)
        outcome, integers, steps = found.outcome, found.integers, found.steps
        notes = [RESTRICTED] if outcome.duals is not None else []
    else:
        start = start_of(built) if built.integer else []
        outcome = run(
            engine, built.model, time_limit=time_limit, options=options, verbose=verbose, start=start
        )
        if built.integer and outcome.values:
            outcome, integers = _restricted(built, engine, outcome)
            notes = [RESTRICTED if outcome.duals is not None else "no multipliers: the integers moved"]
    return _Found(built, outcome, integers, steps, notes)


def _with_events(found: _Found, search: Callable[[Built], _Found], engine: str) -> _Found:
    """What a search with closed sides of events says about the events themselves, which see no tolerance.

    With the same integers all events get room, where there is some. Where there is none and rounding changes
    an event, a search with room follows. Nothing found is a proof only if no event needs room for it.
    """
    built, outcome = found.built, found.outcome
    if outcome.values:
        roomy = built.again("all")
        inside = solve_fixed(roomy, engine, found.integers)
        if inside.ending == "converged":
            moved = Outcome(outcome.ending, outcome.message, inside.values, inside.duals, outcome.bound)
            return replace(found, built=roomy, outcome=moved)
        if _events_hold(built, outcome):
            return found
        again = search(roomy)
        return again if again.outcome.values else found
    if outcome.ending != "infeasible" or not built.roomy:
        return found
    relaxed = search(built.again("none")).outcome
    if relaxed.ending == "infeasible":
        return found
    return replace(found, outcome=Outcome("limit", f"{NO_ROOM}; {outcome.message}"))


def _with_bound(found: _Found, time_limit: float | None) -> _Found:
    """The same point with a bound that holds without room: that of the search in which no event needs room.

    Both sides of every event are closed there, which enlarges the feasible set. In general position the
    bound is met, as rows on the boundary of an event may be moved to either side of it.
    """
    closed = found.built.again("none")
    if closed.kind != "MILP":
        return replace(found, outcome=replace(found.outcome, bound=None))
    start = list(zip(closed.discrete, found.integers, strict=True)) if found.integers else []
    options = {"mip_max_nodes": PROOF_NODES}
    outcome = run(LINEAR, closed.model, time_limit=time_limit, options=options, start=start)
    return replace(found, outcome=replace(found.outcome, bound=outcome.bound))


def _events_hold(built: Built, outcome: Outcome) -> bool:
    """Whether the events are at the point what their switches say, without a tolerance."""
    for variable in built.space.variables:
        variable.set_value(_finite(outcome.values.get(variable, variable.value)), skip_validation=True)
    return all(
        event.agrees(
            float(pyo.value(expression_of(event.margin))), on=pyo.value(expression_of(event.switch)) > 0.5
        )
        for event in built.events
    )


def _restricted(built: Built, engine: str, found: Outcome) -> tuple[Outcome, list[float]]:
    """The program with the integers fixed where the search left them: exact values, and multipliers."""
    integers = [float(round(found.values.get(v, v.value or 0.0))) for v in built.discrete]
    again = solve_fixed(built, engine, integers)
    if again.ending != "converged":
        return Outcome(found.ending, found.message, found.values, None, found.bound), integers
    return Outcome(found.ending, found.message, again.values, again.duals, found.bound), integers


def _solution(
    built: Built,
    outcome: Outcome,
    integers: list[float],
    solver: str,
    seconds: float,
    steps: int,
    notes: list[str],
    *,
    convex: bool,
) -> RawSolution:
    message = "; ".join((outcome.message, *notes))
    relaxed, impossible = (None, False) if convex or built.integer else product_bound(built)
    if impossible and outcome.ending in ("likely_infeasible", "limit", "error"):
        outcome = Outcome("infeasible", NO_POINT)
        message = NO_POINT
    if not outcome.values:
        return RawSolution(outcome.ending, None, {}, {}, None, solver, seconds, None, message, steps)
    x = np.array([_finite(outcome.values.get(v, v.value)) for v in built.space.variables])
    place = {id(v): k for k, v in enumerate(built.space.variables)}
    for variable, value in zip(built.discrete, integers, strict=False):
        x[place[id(variable)]] = value
    for number, switch in built.zero:  # a solver's 1e-9 would count as nonzero
        x[number] = x[number] if x[switch] else 0.0
    x = np.clip(x, built.space.lower, built.space.upper)
    for variable, value in zip(built.space.variables, x, strict=True):
        variable.set_value(float(value), skip_validation=True)
    # a bound of events with some room is that of a smaller feasible set
    bound = outcome.bound if built.integer and (not built.roomy or outcome.ending == "converged") else None
    if not built.integer and convex and outcome.ending == "converged" and outcome.duals is not None:
        pairs = [(row.term, row.constraint) for row in built.rows] + list(built.auxiliary)
        bound = lower_bound(built.space, built.objective, pairs, outcome.duals, x)
    bound = relaxed if bound is None else bound
    values = {symbol: _read(array, x) for symbol, array in built.variables.items()}
    weights = {m: {k: _read(array, x) for k, array in own.items()} for m, own in built.weights.items()}
    objective = float(pyo.value(built.model.objective.expr))
    multipliers = None if outcome.duals is None else _multipliers(built, outcome.duals)
    proven = bound is not None and objective - bound <= GAP * (1.0 + abs(objective))
    if outcome.ending == "converged" and built.roomy:
        message = f"{message}; {ROOMLESS if proven else ROOMY}"
    return RawSolution(
        outcome.ending, objective, values, weights, multipliers, solver, seconds, bound, message, steps
    )


def _finite(value: Any) -> float:
    return 0.0 if value is None or not math.isfinite(value) else float(value)


def _read(array: NDArray[Any], x: NDArray[np.float64]) -> NDArray[np.float64]:
    numbers = [next(iter(term.linear)) for term in array.reshape(-1)]
    return x[np.array(numbers, dtype=np.int64)].reshape(array.shape)


def _multipliers(built: Built, duals: Mapping[Any, float]) -> dict[str, NDArray[Any]]:
    found = {key: np.zeros(math.prod(shape)) for key, shape in built.shapes.items()}
    kinds = {part.key: part.kind for part in built.program.parts}
    for row in built.rows:
        if row.constraint is not None:
            own = -float(duals.get(row.constraint, 0.0))
            found[row.part][row.place] = own if kinds[row.part] == "==" else max(own, 0.0)
    return {key: value.reshape(built.shapes[key]) for key, value in found.items()}
