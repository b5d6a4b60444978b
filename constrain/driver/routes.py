"""Which methods can take a problem, which one is chosen, and why."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from constrain import plugins
from constrain._lazy import backend, language_printing
from constrain.analysis.models import affine_model
from constrain.driver.request import Request
from constrain.driver.searched import SECONDS, few_events
from constrain.errors import ModelingError, RouteError
from constrain.language import nodes as n
from constrain.language.data import suggest
from constrain.language.regions import Region
from constrain.language.types import type_of
from constrain.lowering.dependence import depends_on_decisions
from constrain.runtime.estimates import estimators
from constrain.runtime.modes import acting_words
from constrain.runtime.tails import moving_quantiles
from constrain.solvers.augmented import AugmentedLagrangian
from constrain.solvers.kinks import kinked_layers, kinks_left
from constrain.solvers.primal_dual import PrimalDual
from constrain.solvers.second_order import MANY_ROWS, Newton

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from constrain.lowering.classify import Facts
    from constrain.lowering.program import Part, Program

__all__ = ["BUILT_IN", "METHODS", "Route", "asks_otherwise", "choose", "make_solver", "routes"]

BUILT_IN: dict[str, Any] = {"newton": Newton, "augmented": AugmentedLagrangian, "lagrangian": PrimalDual}
METHODS = ("auto", "closed", "cvxpy", "pyomo", "newton", "augmented", "lagrangian", "cooper")
_OF_BATCHES = ("batch", "epochs", "optimizer", "estimator", "sampling", "multipliers")
TRAINING = (*_OF_BATCHES, "scheme", "dual", "scheduler", "graph")
"""Options that only minibatch training has."""
NEWTON_SIZE, NEWTON_NUMBERS = 2_000, 10_000_000
"""Most decisions plus constraints, and these times rows, for which dense second derivatives are formed."""
CONE_WORK = 1_000_000
"""Rows times decisions above which Newton's method takes smooth cone programs in the place of CVXPY."""
SOLVERS = {
    "cvxpy": ("CLARABEL", "SCS", "OSQP", "SCIPY", "SCIP", "GUROBI", "MOSEK", "CPLEX"),
    "pyomo": ("HIGHS", "POUNCE", "IPOPT"),
}
"""Names that are mistaken for methods, and where they belong."""
EXACT = ("solver", "options", "verbose")
"""Options that only exact backends have."""
FULL_DATA_WORK = 100_000_000
"""Rows times trainable parameters up to which exact full-data gradients are the default for models."""


@dataclass(frozen=True)
class Route:
    """One method's answer to a problem.

    Attributes:
        method: as in `solve(method=...)`.
        open: whether it can take the problem.
        reason: why it is open, or why not, in a sentence.
    """

    method: str
    open: bool
    reason: str


def _parameters(program: Program) -> int:
    models = (m.module for m in program.models if not m.frozen)
    own = sum(int(p.numel()) for m in models for p in m.parameters() if p.requires_grad)
    return own + sum(_size(s.shape) for s in program.variables if s not in program.auxiliary)


def _work(program: Program) -> int:
    """Rows of the largest sample times the number of decisions."""
    return max((len(d) for d in program.populations), default=1) * _parameters(program)


def _size(shape: Sequence[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _package(method: str, program: Program, facts: Facts) -> Route:
    """The answer of the backend of another library; closed where that is not installed."""
    try:
        answer = backend(method).support(program, facts)
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        return Route(method, False, f"{missing} is not installed: pip install {missing}")
    return Route(method, answer.ok, answer.reason)


def _cvxpy(program: Program, facts: Facts) -> Route:
    return _package("cvxpy", program, facts)


def _pyomo(program: Program, facts: Facts) -> Route:
    return _package("pyomo", program, facts)


def _newton(program: Program, facts: Facts) -> Route:
    reason = _unsmooth(program, facts)
    if reason:
        return Route("newton", False, reason)
    rows = max((len(d) for d in program.populations), default=1)
    entries = _parameters(program) + sum(_entries(part) for part in program.parts if part.rows is None)
    lengths = {part: len(part.rows) for part in program.parts if part.rows is not None}
    of_rows = sum(_entries(part) for part in lengths)
    if sum(lengths.values()) <= MANY_ROWS:
        entries += of_rows
    else:
        rows += of_rows
    size = f"{entries:,} decisions and constraints" + (f", {rows:,} rows" if program.populations else "")
    if entries > NEWTON_SIZE or entries * rows > NEWTON_NUMBERS:
        return Route("newton", False, f"dense second derivatives are too large: {size}")
    return Route("newton", True, f"exact second derivatives, {size}")


def _unsmooth(program: Program, facts: Facts) -> str:
    """Why Newton's method cannot take a problem whatever its size, or an empty text."""
    if facts.integer:
        return f"{facts.integer[0]} is integer: there is no gradient to follow"
    streamed = next((d.name for d in program.populations if d.streamed), None)
    if streamed is not None:
        return f"{streamed} streams: its rows are not in memory"
    if program.has_rates:
        return "rates have no second derivatives"
    if program.base is not None:
        return "constraints per row that are relaxed have costs with kinks"
    moving = [p.constraint for p in program.parts if p.where is not None and depends_on_decisions(p.where)]
    if moving:
        return f"which rows {moving[0]} selects depends on decisions"
    layers = [
        f"{layer} of the model {m.name} has kinks" for m in program.models for layer in kinked_layers(m)
    ]
    if layers:
        return layers[0]
    kink = kinks_left(program)
    return "" if kink is None else f"{language_printing().text(kink, limit=60)} has kinks"


def _entries(part: Part) -> int:
    """Number of residuals of a part, about: levels are counted once."""
    return (1 if part.rows is None else len(part.rows)) * _size(type_of(part.residual).shape or ())


def _augmented(program: Program, facts: Facts) -> Route:
    if facts.integer:
        return Route("augmented", False, f"{facts.integer[0]} is integer: there is no gradient to follow")
    rows, work = max((len(d) for d in program.populations), default=1), _work(program)
    decisions = f"{_parameters(program):,} decisions"
    text = (
        f"full-data gradients, {rows:,} rows x {decisions}"
        if program.populations
        else f"gradients, {decisions}"
    )
    if work > FULL_DATA_WORK:
        text += f": slow (over {FULL_DATA_WORK:,})"
    if program.has_rates:
        text += (
            "; quantiles are followed smoothly"
            if _only_quantiles(program)
            else "; rates are followed by shifted surrogates"
        )
    return Route("augmented", True, text)


def _lagrangian(program: Program, facts: Facts) -> Route:
    if facts.integer:
        return Route("lagrangian", False, f"{facts.integer[0]} is integer: there is no gradient to follow")
    if not program.populations:
        return Route("lagrangian", False, "the problem has no data: there are no minibatches to draw")
    text = "minibatches, exact values for the multipliers"
    for kind, how in (("halves", "two half batches"), ("running", "running averages")):
        names = [key for key, found in estimators(program) if found == kind]
        if names:
            listed = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
            text += f"; {listed} is not affine in the averages: {how}"
    return Route("lagrangian", True, text)


def _cooper(program: Program, facts: Facts) -> Route:
    answer = _lagrangian(program, facts)
    if not answer.open:
        return Route("cooper", False, answer.reason)
    return Route("cooper", True, "Cooper's multipliers and optimizers on the same compiled estimates")


_ASKED: dict[str, Callable[[Program, Facts], Route]] = {
    "cvxpy": _cvxpy,
    "pyomo": _pyomo,
    "newton": _newton,
    "augmented": _augmented,
    "lagrangian": _lagrangian,
    "cooper": _cooper,
}


def routes(program: Program, facts: Facts) -> tuple[Route, ...]:
    """Every method's answer."""
    return tuple(ask(program, facts) for ask in _ASKED.values())


class _Answers(dict[str, Route]):
    """Answers by method; those that nobody needs are not asked for, since they look at the data."""

    def __init__(self, program: Program, facts: Facts, known: Sequence[Route]) -> None:
        super().__init__((route.method, route) for route in known)
        self.program, self.facts = program, facts

    def __missing__(self, method: str) -> Route:
        self[method] = found = _ASKED[method](self.program, self.facts)
        return found


def asks_otherwise(options: Mapping[str, Any]) -> bool:
    """Whether options ask for minibatches, or for a solver of another package."""
    return any(options.get(name) is not None for name in (*TRAINING, *EXACT))


def choose(
    program: Program,
    facts: Facts,
    options: Mapping[str, Any],
    known: tuple[Route, ...] | None = None,
) -> tuple[str, str]:
    """The method of `method="auto"` and the reason, in a sentence.

    Args:
        program: the moment form.
        facts: of the analysis.
        options: of the solve.
        known: every method's answer, if they were asked already.

    Raises:
        RouteError: E125 when no method takes the problem; the message lists each one's reason.
    """
    answers = _Answers(program, facts, known or ())
    asked = [name for name in TRAINING if options.get(name) is not None]
    if asked and answers["lagrangian"].open:
        return "lagrangian", f"{asked[0]}= asks for minibatch training"
    search = _search(program, answers["pyomo"], options)
    if search:
        return "pyomo", search
    own = any(options.get(name) is not None for name in EXACT)
    if answers["newton"].open and facts.problem_class == "cone" and _work(program) > CONE_WORK and not own:
        return "newton", f"{facts.certificate}; {answers['newton'].reason}: less work than a cone program"
    if answers["cvxpy"].open:
        return "cvxpy", answers["cvxpy"].reason
    why = facts.certificate if not facts.convex else answers["cvxpy"].reason
    batches = _better_on_batches(program) if answers["lagrangian"].open else ""
    if batches:
        return "lagrangian", f"{why}; {batches}"
    deep = _deep(program)
    sampled = program.populations and not any(isinstance(d, Region) for d in program.populations)
    acting = acting_words(program.models)
    if deep and (sampled or acting) and answers["lagrangian"].open:
        plain = "a network on samples: minibatch training, polish=True for the last digits"
        without = f"minibatch training, since {acting} would have no part in other methods"
        return "lagrangian", f"{why}; {without if acting else plain}"
    if answers["newton"].open and not deep:
        return "newton", f"{why}; {answers['newton'].reason}"
    if answers["augmented"].open and _work(program) <= FULL_DATA_WORK:
        return "augmented", f"{why}; {answers['augmented'].reason}"
    if answers["lagrangian"].open:
        return "lagrangian", f"{why}; {answers['lagrangian'].reason}"
    if answers["augmented"].open:
        return "augmented", f"{why}; {answers['augmented'].reason}"
    listed = "; ".join(f"{r.method}: {r.reason}" for r in map(answers.__getitem__, _ASKED))
    raise RouteError("E125", f"no method takes the problem: {listed}")


def _search(program: Program, pyomo: Route, options: Mapping[str, Any]) -> str:
    """Why a search over integers is worth it, or an empty text."""
    if not pyomo.open:
        return ""
    if backend("pyomo").discrete(program):
        return pyomo.reason
    count = few_events(program, options)
    how = f"exact rates of {count} events for at most {SECONDS:.0f} s, then training from the best point"
    return f"{pyomo.reason}; {how}" if count else ""


def _deep(program: Program) -> bool:
    """Whether a trained model is not affine in its weights.

    Such a model has flat regions that are KKT points, with saturated units, and second derivatives lead there
    where gradients do not.
    """
    return any(not model.frozen and affine_model(model.module) is None for model in program.models)


def _better_on_batches(program: Program) -> str:
    """Why minibatch training suits a problem better than gradients on all rows, or an empty text."""
    if program.has_rates and not _only_quantiles(program):
        return "rates have no exact gradient: minibatch training with surrogates"
    streamed = next((d.name for d in program.populations if d.streamed), None)
    if streamed is not None:
        return f"{streamed} streams: passes over it cost more than minibatches"
    kink = kinks_left(program.judged) if any(not model.frozen for model in program.models) else None
    if kink is None:
        return ""
    shown = language_printing().text(kink, limit=60)
    return f"full-data gradients jump at the kinks of {shown}: minibatch training"


def _only_quantiles(program: Program) -> bool:
    """Whether every rate of a program is the share above a quantile, whose threshold is exact on all rows."""
    own = {tail.threshold for tail in moving_quantiles(program)}
    rates = [x.event for x in n.postorder(*program.roots) if isinstance(x, n.Indicator) and x.surrogate]
    return all(own & {x.symbol for x in n.postorder(e) if isinstance(x, n.Pinned)} for e in rates)


def make_solver(method: Any, options: Mapping[str, Any]) -> Any:
    """A solver object for a method name with its options, or the object that was given.

    Raises:
        RouteError: E125 for an unknown method.
        ModelingError: E141 for an unknown option.
    """
    given = {k: v for k, v in options.items() if v is not None}
    if not isinstance(method, str) and not hasattr(method, "solve"):
        known = ", ".join(METHODS)
        raise RouteError("E125", f"method={method!r} is no method", fix=f"one of {known}, or a solver object")
    if not isinstance(method, str):
        if given:
            raise ModelingError(
                "E141", f"{sorted(given)} belong to the solver object", fix=f"{type(method).__name__}(...)"
            )
        return method
    if method not in BUILT_IN:
        names = [*METHODS, *(p.name for group in ("backends", "solvers") for p in plugins.available(group))]
        close = difflib.get_close_matches(method, names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        known = ", ".join(names)
        owner = next((o for o, own in SOLVERS.items() if method.upper() in own), None)
        fix = f"one of {known}, or a solver object"
        if owner is not None:
            hint, fix = f": it is a solver of {owner}", f"solve({owner!r}, solver={method!r})"
        raise RouteError("E125", f"there is no method {method!r}{hint}", fix=fix)
    kind: Any = BUILT_IN[method]
    if method == "augmented" and ("batch" in given or "epochs" in given):
        kind = BUILT_IN["lagrangian"]
        given = {"formulation": "augmented", **given}
    names = [f.name for f in fields(kind)]
    for name in given:
        if name not in names:
            hint = suggest(name, (*names, *(f.name for f in fields(Request))))
            raise ModelingError(
                "E141", f"method {method!r} has no option {name!r}{hint}", fix=f"one of {', '.join(names)}"
            )
    return kind(**given)
