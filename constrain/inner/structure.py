"""What an inner problem is: its variables, its smooth terms, and the kind of problem they make."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from constrain._lazy import language_printing
from constrain.errors import ModelingError
from constrain.inner.polynomial import Terms, degree, terms
from constrain.language import nodes as n
from constrain.language.types import type_of
from constrain.lowering.classify import classify
from constrain.lowering.lower import lower

if TYPE_CHECKING:
    from constrain.language.problem import Problem
    from constrain.lowering.classify import Facts
    from constrain.lowering.program import Program

__all__ = ["Structure", "Term", "structure"]


@dataclass(frozen=True)
class Term:
    """A one-sided smooth piece: `node <= 0` or `node == 0`.

    Attributes:
        key: the key of the constraint part; of a bound of a rewritten corner, a name in parentheses.
        node: the residual.
        size: number of its entries.
        terms: degrees of the residual in the variables.
    """

    key: str
    node: n.Node
    size: int
    terms: Terms


@dataclass(frozen=True)
class Structure:
    """An inner problem as its solvers see it: minimize a smooth function under smooth constraints.

    Attributes:
        problem: what the user wrote.
        program: its moment form, corners as written.
        facts: what is certified about it.
        variables: of the user, then those that replace corners.
        corners: per variable that replaces a corner, the expression that it is equal to at an optimum.
        objective: to minimize, smooth.
        terms: degrees of the objective.
        inequalities: residuals that are <= 0.
        equalities: residuals that are == 0.
        kind: `quadratic`, `cone` (convex, no quadratic program) or `nonlinear`.
    """

    problem: Problem
    program: Program
    facts: Facts
    variables: tuple[n.VariableSymbol, ...]
    corners: dict[n.VariableSymbol, n.Node]
    objective: n.Node
    terms: Terms
    inequalities: tuple[Term, ...]
    equalities: tuple[Term, ...]
    kind: Literal["quadratic", "cone", "nonlinear"]

    @property
    def linear(self) -> bool:
        """Whether the objective is linear, too."""
        return self.kind == "quadratic" and degree(self.terms) in (0, 1)

    @property
    def size(self) -> int:
        """Number of scalar variables."""
        return sum(math.prod(symbol.shape) for symbol in self.variables)

    @property
    def integer(self) -> tuple[n.VariableSymbol, ...]:
        """Variables that are boolean or integer."""
        return tuple(symbol for symbol in self.variables if symbol.boolean or symbol.integer)

    @property
    def described(self) -> str:
        """In words, for messages."""
        words = {"quadratic": "a quadratic program", "cone": "a convex cone program"}
        found = "a linear program" if self.linear else words.get(self.kind, "a nonlinear program")
        return found.replace("a ", "a mixed-integer ", 1) if self.integer else found


# -------------------------------------------------------------------------------------------- corners
@dataclass
class _Corners:
    """Replaces |e|, max(e), relu(e) and their like by a variable with linear bounds.

    Exact where the problem is certified convex: the rules of disciplined convex programming let such a term
    stand only where less of it is better (more, of a concave one).
    """

    definitions: dict[n.VariableSymbol, n.Node] = field(default_factory=dict[n.VariableSymbol, n.Node])
    bounds: list[tuple[str, n.Node]] = field(default_factory=list[tuple[str, n.Node]])
    known: dict[n.Node, n.Node] = field(default_factory=dict[n.Node, n.Node])

    def smooth(self, root: n.Node) -> n.Node:
        """The expression without corners."""
        originals: dict[int, n.Node] = {}

        def step(node: n.Node, new: tuple[n.Node, ...]) -> n.Node:
            rebuilt = n.rebuild(node, new)
            replaced = self._replaced(node, rebuilt) if isinstance(rebuilt, n.Apply) else None
            originals[id(node)] = node
            return rebuilt if replaced is None else replaced

        return n.fold(root, step)

    def _replaced(self, original: n.Node, node: n.Apply) -> n.Node | None:
        if node in self.known:
            return self.known[node]
        found = self._rule(original, node)
        if found is not None:
            self.known[node] = found
        return found

    def _rule(self, original: n.Node, node: n.Apply) -> n.Node | None:
        forms = [degree(terms(arg)) for arg in node.args]
        if all(form == 0 for form in forms):
            return None
        order = float(node.option("ord", 2.0)) if node.atom == "norm" else 2.0
        corner = node.atom if node.atom != "norm" else {1.0: "norm1", math.inf: "norminf"}.get(order, "")
        match corner:
            case "relu":
                return self._bounded(original, node, [node.args[0], n.Constant(0.0)])
            case "maximum":
                return self._bounded(original, node, list(node.args))
            case "minimum":
                return self._bounded(original, node, list(node.args), below=True)
            case "max" | "min":
                return self._bounded(original, node, [node.args[0]], below=corner == "min")
            case "abs" | "norminf" if forms[0] == 1:
                return self._bounded(original, node, [node.args[0], n.Apply("neg", node.args)])
            case "l1_loss" if max(form or 2 for form in forms) == 1:
                difference = n.Apply("sub", node.args)
                return self._bounded(original, node, [difference, n.Apply("neg", (difference,))])
            case "norm1" if forms[0] == 1:
                size = n.Apply("abs", node.args)
                return n.Apply("sum", (self._replaced(size, size) or size,), _axes(node))
            case _:
                return None

    def _bounded(
        self, original: n.Node, node: n.Apply, sides: list[n.Node], *, below: bool = False
    ) -> n.Node:
        """A variable that is at least (with `below`: at most) each of the sides."""
        shape = type_of(node).shape or ()
        symbol = n.VariableSymbol(f"({node.atom} {len(self.definitions) + 1})", shape)
        self.definitions[symbol] = original
        variable: n.Node = n.Decision(symbol, loc=node.loc)
        wide = _kept(node) if node.atom in ("max", "min", "norm") else shape
        spread = variable if wide == shape else n.Apply("reshape", (variable,), (("shape", wide),))
        for side in sides:
            pair = (spread, side) if below else (side, spread)
            self.bounds.append((symbol.name, n.Apply("sub", pair, loc=node.loc)))
        return variable


def _axes(node: n.Apply) -> tuple[tuple[str, Any], ...]:
    return tuple((key, value) for key, value in node.options if key in ("axis", "keepdims"))


def _kept(node: n.Apply) -> tuple[int, ...]:
    """The shape of a reduction that keeps its axes, so that it broadcasts against what was reduced."""
    shape, axes = type_of(node.args[0]).shape or (), node.option("axis")
    if axes is None:
        return ()
    drop = {axis + len(shape) for axis in axes}
    return tuple(1 if i in drop else size for i, size in enumerate(shape))


# ------------------------------------------------------------------------------------------- structure
def structure(problem: Problem, *, solution: bool) -> Structure:
    """The structure of an inner problem.

    Args:
        problem: over variables and parameters.
        solution: the solution itself is wanted, not only the optimal value.

    Raises:
        ModelingError: E190 (samples or trained models inside, nothing to optimize), E191 (the solution of an
            integer program), E132 and others of lowering.
    """
    _refuse(problem)
    program = lower(problem, use_epigraph=False)
    facts = classify(program)
    corners = _Corners()
    smooth = corners.smooth if facts.convex else _same
    objective = smooth(program.objective)
    pieces = [(part.key, part.kind, smooth(part.residual)) for part in program.parts]
    pieces += [(key, "<=", node) for key, node in corners.bounds]
    memo: dict[int, Terms] = {}
    found = [(kind, _term(key, node, memo)) for key, kind, node in pieces]
    quadratic = terms(objective, memo) is not None and all(degree(t.terms) in (0, 1) for _, t in found)
    variables = tuple(dict.fromkeys((*program.variables, *corners.definitions)))
    built = Structure(
        problem,
        program,
        facts,
        variables,
        corners.definitions,
        objective,
        terms(objective, memo),
        tuple(term for kind, term in found if kind == "<="),
        tuple(term for kind, term in found if kind == "=="),
        "quadratic" if quadratic else "cone" if facts.convex else "nonlinear",
    )
    _refuse_integers(built, solution=solution)
    return built


def _same(node: n.Node) -> n.Node:
    return node


def _term(key: str, node: n.Node, memo: dict[int, Terms]) -> Term:
    shape = type_of(node).shape
    if shape is None:
        raise ModelingError(
            "E190",
            f"the shape of {language_printing().text(node, limit=80)} in the inner constraint {key!r} is "
            "unknown",
            at=node.loc,
            fix="e.reshape(...) with its shape",
        )
    return Term(key, node, math.prod(shape), terms(node, memo))


def _refuse(problem: Problem) -> None:
    """E190 for what an inner problem cannot hold."""
    for node in n.postorder(*problem.roots):
        if isinstance(node, (n.Column, n.ForAll)):
            data = node.data.name
            raise ModelingError(
                "E190",
                f"the inner problem depends on rows of {data!r}; it is over variables and parameters",
                at=node.loc,
                fix=f'an array: x = torch.as_tensor({data}.values("x")), or a cn.Parameter per row',
            )
        if isinstance(node, (n.Call, n.Weights)) and not node.model.frozen:
            name = node.model.name
            raise ModelingError(
                "E190",
                f"the inner problem holds the trained model {name!r}; what is trained stands outside of it",
                at=node.loc,
                fix=f'a cn.Parameter in its place, at={name}(...); or cn.Model(net, "{name}", frozen=True)',
            )
        if isinstance(node, (n.Relaxed, n.Indicator, n.Rate)):
            raise ModelingError(
                "E190",
                f"{language_printing().text(node, limit=80)} cannot stand in an inner problem",
                at=node.loc,
                fix='a slack of its own: s = cn.Variable((), "s", nonneg=True), and its cost',
            )
    if problem.sense == "find" or not any(isinstance(x, n.Decision) for x in n.postorder(*problem.roots)):
        raise ModelingError(
            "E190",
            "the inner problem has nothing to optimize: an objective and a Variable are needed",
            fix="cn.minimize(cn.sum_squares(x - y)).subject_to(...)",
        )


def _refuse_integers(built: Structure, *, solution: bool) -> None:
    """E191: the solution of an integer program is piecewise constant; only linear ones have a value here."""
    if not built.integer:
        return
    names = ", ".join(symbol.name for symbol in built.integer)
    if solution:
        raise ModelingError(
            "E191",
            f"the solution of an inner problem with integer variables ({names}) is piecewise constant in its "
            "parameters: its gradient is zero or does not exist",
            fix="cn.value(inner, at=...), whose gradient is that with the integers fixed",
        )
    if built.kind != "quadratic":
        raise ModelingError(
            "E191",
            f"the inner problem is {built.described}; with integer variables ({names}) it has to be linear "
            "or quadratic",
            fix="linear constraints and a linear or convex quadratic objective",
        )
