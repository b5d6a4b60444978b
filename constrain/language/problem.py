"""Problems: an objective and named constraints."""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from constrain._lazy import driver, language, language_printing
from constrain.errors import ModelingError
from constrain.language import nodes as n
from constrain.language.expr import Constraint, Expr, as_expr, code, is_flag, shown
from constrain.language.keywords import keywords
from constrain.language.location import here
from constrain.language.vanishing import warn_vanishing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from constrain.diagnostics.infeasibility import Infeasibility
    from constrain.driver import Check, Explanation
    from constrain.language.data import Data
    from constrain.language.symbols import Model
    from constrain.runtime.lagrangian import Lagrangian
    from constrain.solution import Evaluation, ParametricPath, ParetoFront, Solution
    from constrain.symbolic.derivation import Derivation

__all__ = ["Problem", "find", "from_json", "maximize", "minimize"]

Sense = Literal["minimize", "maximize", "find"]


class Problem:
    """An objective and named constraints. Immutable: `subject_to` returns a larger problem."""

    sense: Sense
    objective: n.Node | None
    constraints: Mapping[str, n.Node]

    def __init__(self, sense: Sense, objective: n.Node | None, constraints: Mapping[str, n.Node]) -> None:
        object.__setattr__(self, "sense", sense)
        object.__setattr__(self, "objective", objective)
        object.__setattr__(self, "constraints", MappingProxyType(dict(constraints)))

    def __setattr__(self, name: str, value: Any) -> None:
        raise ModelingError(
            "E113", f"problems are immutable; .{name} cannot be set", at=here(), fix="p = p.subject_to(...)"
        )

    # ---- building
    def subject_to(self, *unnamed: Any, **relations: Constraint | Expr) -> Problem:
        """The problem with these constraints added, under the names of the keywords.

        Raises:
            ModelingError: E101 (still per row), E109, E110 (a Python bool), E111 (no comparison), E117 (no
                name), E130 (name taken).

        Warns:
            ModelingWarning: W206, a constraint such as `E(r**2) == 0` whose gradient vanishes where it holds.
        """
        if unnamed:
            raise _unnamed(unnamed[0])
        blank = next((name for name in relations if not name.strip()), None)
        if blank is not None:
            raise _unnamed(relations[blank])
        added = {name: _constraint(name, relation) for name, relation in relations.items()}
        taken = sorted(set(added) & set(self.constraints))
        if taken:
            raise ModelingError(
                "E130", f"the problem already has a constraint {taken[0]!r}", at=here(), fix="another name"
            )
        for name, node in added.items():
            warn_vanishing(name, node)
        return Problem(self.sense, self.objective, {**self.constraints, **added})

    # ---- structure
    @property
    def roots(self) -> tuple[n.Node, ...]:
        """The objective (if any) and the constraints."""
        own = () if self.objective is None else (self.objective,)
        return (*own, *self.constraints.values())

    @property
    def variables(self) -> tuple[n.VariableSymbol, ...]:
        """Decision tensors, in order of appearance."""
        return tuple(dict.fromkeys(x.symbol for x in n.postorder(*self.roots) if isinstance(x, n.Decision)))

    @property
    def parameters(self) -> tuple[n.ParameterSymbol, ...]:
        """Parameters, in order of appearance."""
        return tuple(dict.fromkeys(x.symbol for x in n.postorder(*self.roots) if isinstance(x, n.Knob)))

    @property
    def models(self) -> tuple[Model, ...]:
        """Models, in order of appearance."""
        found = (x.model for x in n.postorder(*self.roots) if isinstance(x, (n.Call, n.Weights)))
        return tuple(dict.fromkeys(found))

    @property
    def populations(self) -> tuple[Data, ...]:
        """Samples, in order of appearance."""
        nodes = n.postorder(*self.roots)
        return tuple(dict.fromkeys(x.data for x in nodes if isinstance(x, (n.Column, n.ForAll))))

    # ---- printing
    def __str__(self) -> str:
        return str(language_printing().problem_text(self))

    def __repr__(self) -> str:
        return str(language_printing().problem_source(self))

    def _repr_latex_(self) -> str:
        return f"$$\n{language_printing().problem_latex(self)}\n$$"

    def symbols(self) -> dict[str, Any]:
        """The names that `repr(problem)` uses: `eval(repr(p), p.symbols())` is an equal problem."""
        return dict(language_printing().problem_symbols(self))

    # ---- JSON
    def to_dict(self) -> dict[str, Any]:
        """The structure as plain values, for JSON; its form is in `constrain.language.spec`."""
        return language("spec").problem_to_dict(self)  # type: ignore[no-any-return]

    def to_json(self, indent: int | None = None) -> str:
        """The structure as JSON: `cn.from_json(p.to_json(), p.symbols())` is an equal problem.

        Modules, data, functions and large arrays are named and not stored; the start values of variables are
        no part of the problem.
        """
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False)

    @staticmethod
    @keywords
    def from_json(document: str | Mapping[str, Any], symbols: Mapping[str, Any] | None = None) -> Problem:
        """The problem that `to_json` (or `to_dict`) wrote.

        Args:
            document: JSON text, or the dictionary.
            symbols: objects by the names of the document: modules or models, data, functions, large arrays;
                also variables and parameters, which are rebuilt from their declarations when left out.

        Raises:
            ModelingError: E176 (objects that were not given), E177 (no such document, or of another version),
                E178 (an object that does not fit its declaration).
        """
        return language("spec").problem_from_dict(document, symbols)  # type: ignore[no-any-return]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Problem):
            return NotImplemented
        return (self.sense, self.objective, list(self.constraints.items())) == (
            other.sense,
            other.objective,
            list(other.constraints.items()),
        )

    def __hash__(self) -> int:
        return hash((self.sense, self.objective, tuple(self.constraints.items())))

    # ---- what the driver does with it
    def explain(self, **options: Any) -> Explanation:
        """What each term is and why, which routes are open, why the others are not. Solves nothing."""
        return driver().explain(self, **options)  # type: ignore[no-any-return]

    def check(self, **options: Any) -> Check:
        """What can be said before solving: conflicts, small groups, noise; see `constrain.driver.check`."""
        return driver().check(self, **options)  # type: ignore[no-any-return]

    def solve(self, method: Any = "auto", **options: Any) -> Solution:
        """Solves the problem; see `constrain.driver.solve` for the options."""
        return driver().solve(self, method, **options)  # type: ignore[no-any-return]

    def compile(self, **options: Any) -> Lagrangian:
        """The Lagrangian as a `torch.nn.Module` for a training loop of your own."""
        return driver().compile(self, **options)  # type: ignore[no-any-return]

    def evaluate(self, data: Data | Mapping[str, Data] | None = None, **options: Any) -> Evaluation:
        """Objective and constraints at the current decisions, without a solve; see `constrain.driver`."""
        return driver().evaluate(self, data, **options)  # type: ignore[no-any-return]

    def kkt(self, point: Any = None, multipliers: Any = None, **options: Any) -> Any:
        """KKT diagnostics at any point, with given or best-fit multipliers; see `constrain.driver.kkt`."""
        return driver().kkt(self, point, multipliers, **options)

    def path(self, parameter: Any, values: Any, **options: Any) -> ParametricPath:
        """Optimal value and multipliers along a parameter; see `constrain.driver.paths.path`."""
        return driver().path(self, parameter, values, **options)  # type: ignore[no-any-return]

    def pareto(self, second: Any, **options: Any) -> ParetoFront:
        """The trade-off with a second objective; see `constrain.driver.paths.pareto`."""
        return driver().pareto(self, second, **options)  # type: ignore[no-any-return]

    def derive(self, **options: Any) -> Derivation:
        """Lagrangian and optimality conditions as SymPy objects; see `constrain.driver.derive`."""
        return driver().derive(self, **options)  # type: ignore[no-any-return]

    def diagnose_infeasible(self, method: Any = "auto", **options: Any) -> Infeasibility:
        """Which constraints exclude each other and what it takes to have a feasible point.

        See `constrain.driver.diagnose_infeasible` for the options; nothing of the user's is changed.
        """
        return driver().diagnose_infeasible(self, method, **options)  # type: ignore[no-any-return]

    def to_cvxpy(self, **options: Any) -> Any:
        """The sample-average program as a `cvxpy.Problem`."""
        return driver().to_cvxpy(self, **options)

    def to_pyomo(self, **options: Any) -> Any:
        """The sample-average program as a `pyomo.ConcreteModel`."""
        return driver().to_pyomo(self, **options)

    def to_cooper(self, **options: Any) -> Any:
        """The problem as a `cooper.ConstrainedMinimizationProblem`."""
        return driver().to_cooper(self, **options)


def _constraint(name: str, relation: Any) -> n.Node:
    if isinstance(relation, bool):
        raise ModelingError(
            "E110",
            f"constraint {name!r} is the Python bool {relation}: both sides were plain numbers, "
            "so Python compared them first",
            at=here(),
            fix="an expression with a decision on one side",
        )
    if isinstance(relation, Expr) and relation.type.event and relation.type.rows is not None:
        data = relation.type.rows
        raise ModelingError(
            "E101",
            f"constraint {name!r} ( {shown(relation)} ) still depends on every row of {data.name} "
            f"(n={len(data)})",
            at=relation.node.loc or here(),
            fix=_readings(relation, data),
        )
    if isinstance(relation, Expr) and not relation.type.event:
        raise ModelingError(
            "E111",
            f"constraint {name!r} is not a comparison: {shown(relation)}",
            at=here(),
            fix=f"P({code(relation)}) <= share" if is_flag(relation) else "add <= 0, >= 0 or == 0",
        )
    if not isinstance(relation, Constraint):
        listed = isinstance(relation, (list, tuple, dict))
        raise ModelingError(
            "E111",
            f"constraint {name!r} is a {type(relation).__name__}, not a comparison",
            at=here(),
            fix="one name for each: subject_to(first=..., second=...), or subject_to(**dictionary)"
            if listed
            else "e <= b",
        )
    return relation.node


def _unnamed(relation: Any) -> ModelingError:
    fix = "subject_to(first=..., second=...), or subject_to(**dictionary)"
    what = f"a {type(relation).__name__}"
    if isinstance(relation, (Expr, Constraint)):
        what, fix = f"the constraint {shown(relation)}", f"subject_to(limit={code(relation)})"
    return ModelingError(
        "E117",
        f"{what} has no name; every report speaks in names",
        at=here(),
        fix=fix,
    )


def _readings(relation: Expr, data: Data) -> str:
    """The three readings of a relation that still depends on every row (semantics S1)."""
    node, name = relation.node, data.name
    event = code(relation)
    readings: list[str] = []
    if isinstance(node, n.Comparison):
        lhs, rhs = (f"E({code(x)})" if x.type.random else code(x) for x in (Expr(node.lhs), Expr(node.rhs)))
        readings.append(f"{lhs} {node.op} {rhs}, for the average (1 multiplier)")
    if isinstance(node, n.Between):
        lower, e, upper = (code(Expr(x)) for x in (node.lower, node.arg, node.upper))
        readings.append(f"cn.between({lower}, E({e}), {upper}), for the average (1 multiplier)")
        event = f"({lower} <= {e}) & ({e} <= {upper})"
    readings.append(f"P({event}) >= share, for a share of the rows (1 multiplier)")
    if not isinstance(node, n.Logic):
        readings.append(f"forall({name}, {code(relation)}), for every row ({len(data)} multipliers)")
    return "\n".join(readings)


def _objective(expr: Any, word: str) -> n.Node:
    if isinstance(expr, Constraint) or (isinstance(expr, Expr) and expr.type.event):
        raise ModelingError(
            "E111",
            f"the objective of {word} is a comparison: {shown(expr)}",
            at=here(),
            fix=f"cn.{word}(value).subject_to(limit={code(expr)})",
        )
    e = as_expr(expr)
    if e.type.rows is not None:
        raise ModelingError(
            "E101",
            f"the objective {shown(e)} still depends on every row of {e.type.rows.name}",
            at=here(),
            fix=f"cn.{word}(E({code(e)}))",
        )
    if e.type.levels is not None or e.shape not in ((), (1,), None):
        what = f"levels of {e.type.levels.describe()}" if e.type.levels is not None else f"shape {e.shape}"
        raise ModelingError(
            "E112",
            f"the objective {shown(e)} is no single number: it has {what}",
            at=here(),
            fix="cn.sum(...) or cn.max(...)",
        )
    return e.node if e.shape != (1,) else e.reshape(()).node


def minimize(objective: Any, *others: Any, **named: Any) -> Problem:
    """The problem of making `objective` (a single deterministic number) as small as possible.

    Constraints are added by `.subject_to(name=relation)`; others here are refused (E117).
    """
    _no_constraints("minimize", others, named)
    return Problem("minimize", _objective(objective, "minimize"), {})


def maximize(objective: Any, *others: Any, **named: Any) -> Problem:
    """The problem of making `objective` (a single deterministic number) as large as possible.

    Constraints are added by `.subject_to(name=relation)`; others here are refused (E117).
    """
    _no_constraints("maximize", others, named)
    return Problem("maximize", _objective(objective, "maximize"), {})


def _no_constraints(word: str, others: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    """E117 for constraints among the arguments of an objective."""
    if not others and not named:
        return
    first = others[0] if others else next(iter(named.values()))
    listed: list[Any] = [*first] if isinstance(first, (list, tuple)) else [first]  # type: ignore[reportUnknownVariableType]
    name, relation = next(iter(named), "limit"), listed[0] if listed else "e <= b"
    written = code(relation) if isinstance(relation, (Expr, Constraint)) else "e <= b"
    raise ModelingError(
        "E117",
        f"cn.{word} takes the objective alone; constraints have names and are added to the problem",
        at=here(),
        fix=f"cn.{word}(objective).subject_to({name}={written})",
    )


from_json = Problem.from_json


@keywords
def find(*objective: Any) -> Problem:
    """A feasibility problem: any point that satisfies the constraints."""
    if objective:
        raise ModelingError(
            "E117",
            f"cn.find() has no objective, got {shown(objective[0])}",
            at=here(),
            fix="cn.find().subject_to(limit=...), or cn.minimize(...)",
        )
    return Problem("find", None, {})
