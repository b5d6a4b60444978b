"""From what the user wrote to the moment form."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import compress
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from constrain._lazy import language_printing
from constrain.errors import ModelingError
from constrain.language import nodes as n
from constrain.language.atoms import ATOMS
from constrain.language.relations import unwrapped
from constrain.language.surrogates import DEFAULT, Hinge
from constrain.language.types import type_of
from constrain.lowering import relaxation, rules
from constrain.lowering.alike import alike
from constrain.lowering.dependence import depends_on_decisions
from constrain.lowering.families import Family, Forms, Steps
from constrain.lowering.orientation import oriented
from constrain.lowering.program import Form, Part, Program, Relaxation, Trace
from constrain.lowering.tails import Tails, sides_of
from constrain.lowering.verify import verify

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from constrain.language.data import Data
    from constrain.language.location import Location
    from constrain.language.problem import Problem
    from constrain.language.surrogates import Surrogate
    from constrain.language.symbols import Model
    from constrain.lowering.alike import Alike
    from constrain.lowering.families import Picks
    from constrain.lowering.program import Step

__all__ = ["EPIGRAPH", "lower"]

EPIGRAPH = "(objective)"
"""Name of the constraints that the epigraph rule makes, one for each largest value; no user can choose it."""
EIGENVALUES = ("lambda_max", "lambda_min")
"""Functions of symmetric matrices that have several slopes where an eigenvalue is a multiple one."""


class _Lowering:
    """State of one lowering: the table of common subexpressions and the trace.

    Args:
        problem: what the user wrote.
        bound: samples that replace those of the problem, by name.
    """

    def __init__(self, problem: Problem, bound: Mapping[str, Data] | None = None) -> None:
        self.problem = problem
        self.bound = dict(bound or {})
        self.table: dict[n.Node, n.Node] = {}
        self.slopes: dict[n.Node, n.ArraySymbol] = {}
        self.trace = Trace()
        self.alike = alike(problem.constraints)
        alone = np.ones(len(problem.constraints), dtype=bool)
        for family in self.alike:
            alone[family.places[1:]] = False
        self.single = dict(compress(problem.constraints.items(), alone.tolist()))
        self.steps: list[tuple[int, tuple[Step, ...]]] = []
        self.picks: Mapping[n.Node, Picks] = {}
        self.tails = Tails(self.trace, self.bound)

    # ---- expressions
    def expression(self, root: n.Node, target: str, side: int = 0) -> n.Node:
        """The expression with statistics rewritten to moments.

        Args:
            root: as the user wrote it.
            target: the term it stands in.
            side: +1 when the term (a residual, or the minimized objective) increases in it, -1 when it
                decreases, 0 when neither is known.
        """
        memo: dict[int, n.Node] = {}
        sides = sides_of(root, side)

        def step(node: n.Node, new: tuple[n.Node, ...]) -> n.Node:
            rebuilt = n.rebuild(node, new)
            if isinstance(rebuilt, n.Apply) and rebuilt.atom in EIGENVALUES:
                return self._with_slope(rebuilt)
            if isinstance(rebuilt, n.Decision) and rebuilt.symbol.symmetric:
                return n.Apply("symmetric_part", (rebuilt,), loc=rebuilt.loc)
            if isinstance(rebuilt, n.Statistic):
                return self.expression(self.tails.written(rebuilt, sides[id(node)], target), target)
            return self._statistic(rules.deviation(rules.length(rebuilt)), target)

        return n.intern(n.fold(root, step, memo), self.table)

    def _with_slope(self, node: n.Apply) -> n.Node:
        """An extreme eigenvalue with a place for its slope, which a solver of matrix inequalities knows."""
        if not depends_on_decisions(node) or node.option("slope") is not None:
            return node
        if node not in self.slopes:
            self.slopes[node] = n.ArraySymbol(None, (), None)
        return n.Apply(node.atom, node.args, (("slope", self.slopes[node]),), loc=node.loc)

    def _statistic(self, node: n.Node, target: str, surrogate: Surrogate = DEFAULT) -> n.Node:
        match node:
            case n.Rate(event=event, given=given):
                chosen = node.surrogate or DEFAULT
                if any(x is not None and depends_on_decisions(x) for x in (event, given)):
                    formula = f"gradient of 1[A] by {chosen.described}; values stay exact"
                    self.trace.add("surrogate", target, formula, exact=False)
                return self._statistic(rules.indicator_mean(node), target, chosen)
            case n.Mean(arg=arg, given=given):
                data = type_of(arg).rows
                assert data is not None  # checked when E(...) was written
                if given is not None and depends_on_decisions(given):
                    self.trace.add("ratio", target, "E(g | A) = E(g 1[A]) / E(1[A]), A depends on decisions")
                    own = arg.surrogate if isinstance(arg, n.Indicator) else None
                    _refuse_hinge(node, own or surrogate)
                    return rules.ratio(node, data, own or surrogate)
                return rules.moment(node, data)
            case n.Indicator(event=event) if node.surrogate and not depends_on_decisions(event):
                return n.Indicator(event, None, loc=node.loc)
            case _:
                return node

    # ---- constraints
    def forms(self) -> tuple[list[Form], list[Form]]:
        """The user's constraints; of those that are alike, apart, the first of each kind, with holes."""
        families = {family.names[0]: family for family in self.alike}
        found: list[Form] = []
        shared: list[Form] = []
        for name, relation in self.single.items():
            if name in families:
                shared.append(self._shared(families[name]))
            else:
                found.append(self.form(name, relation))
        return found, shared

    @property
    def written(self) -> tuple[n.Node, ...]:
        """The objective and the constraints; of those that are alike the first of each kind."""
        own = () if self.problem.objective is None else (self.problem.objective,)
        return (*own, *self.single.values())

    def _shared(self, family: Alike) -> Form:
        """The form of a family; the rules that are applied to it are those of each of its members."""
        steps, self.trace.steps = self.trace.steps, []
        form = self.form(family.names[0], family.template)
        self.steps.append((len(steps), tuple(self.trace.steps)))
        self.trace.steps = steps
        return form

    def families(self, forms: list[Form]) -> list[Family]:
        """The families, out of their forms with holes; averages with a hole have been gathered."""
        found: list[Family] = []
        for own, form, (_, steps) in zip(self.alike, forms, self.steps, strict=True):
            nodes = n.postorder(form.lhs, *form.rhs, *(part.residual for part in form.parts))
            picks = {x: self.picks[x] for x in nodes if x in self.picks}
            held = {hole: x for hole, x in own.numbers.items() if isinstance(x[0], n.Constant)}
            found.append(Family(own.names, own.relations, own.places, form, held, picks, steps))
        return found

    def form(self, name: str, relation: n.Node) -> Form:
        """A user's constraint with its parts."""
        rows: Data | None = None
        where: n.Node | None = None
        inner, relaxed, scaled = unwrapped(relation)
        per_row = inner if isinstance(inner, n.ForAll) else None
        if per_row is not None:
            rows, inner = per_row.data, per_row.relation
            where = None if per_row.where is None else self.expression(per_row.where, name)
        op, lhs, rhs = self._sides(name, inner)
        kind: Literal["<=", "=="] = "==" if op == "==" else "<="
        pieces = self._pieces(name, op, lhs, rhs)
        _check_sides(name, per_row or relation, (lhs, *rhs), pieces)
        scale = None if scaled is None else scaled.scale
        form = Form(name, relation, op, lhs, rhs, (), rows, where, scale)
        if relaxed is not None and rows is not None:
            return self._interned(relaxation.per_row(form, relaxed, self.bound, self.trace))
        if relaxed is not None:
            pieces, form = relaxation.loosened(form, relaxed, pieces, self.bound, self.trace)
        residuals = [self.turned(piece.residual, name, kind) for piece in pieces]
        parts = tuple(
            Part(name, piece.side, kind, residual, piece.rhs_sign, rows, where, scale)
            for piece, residual in zip(pieces, residuals, strict=True)
        )
        return replace(form, parts=parts)

    def _interned(self, form: Form) -> Form:
        """A relaxed constraint per row whose expressions are shared with the others."""
        assert form.relaxation is not None  # callers check
        parts = tuple(
            replace(part, residual=n.intern(part.residual, self.table)) for part in form.relaxation.parts
        )
        return replace(form, relaxation=replace(form.relaxation, parts=parts))

    def paid(self, objective: n.Node, forms: list[Form]) -> tuple[n.Node, n.Node | None]:
        """The objective with the cost of all relaxations, and without that of constraints per row."""
        found = [form.relaxation for form in forms if form.relaxation is not None]
        for relaxed in found:
            if not relaxed.parts:
                objective = n.Apply("add", (objective, relaxed.penalty), loc=objective.loc)
        base = self.turned(objective, "objective")
        if not any(relaxed.parts for relaxed in found):
            return base, None
        for relaxed in found:
            if relaxed.parts:
                objective = n.Apply("add", (objective, relaxed.penalty), loc=objective.loc)
        return self.turned(objective, "objective"), base

    def turned(self, root: n.Node, target: str, kind: str = "<=") -> n.Node:
        """An objective or residual with its surrogates on the side where they bound it, interned."""
        found = oriented(root) if kind == "<=" else root
        if found is not root:
            self.trace.add("orient", target, "1[A] = 1 - 1[~A], so that the hinge bounds from the safe side")
        return n.intern(found, self.table)

    def _sides(
        self, name: str, relation: n.Node
    ) -> tuple[Literal["<=", ">=", "==", "between"], n.Node, tuple[n.Node, ...]]:
        match relation:
            case n.Between(lower=lower, arg=arg, upper=upper):
                sides = (self.expression(lower, name, 1), self.expression(upper, name, -1))
                return "between", self.expression(arg, name), sides
            case n.Comparison(op="<=" | ">=" | "==" as op, lhs=lhs, rhs=rhs):
                side = {"<=": 1, ">=": -1, "==": 0}[op]
                return op, self.expression(lhs, name, side), (self.expression(rhs, name, -side),)
            case _:
                raise AssertionError(type(relation))

    def _pieces(
        self, name: str, op: Literal["<=", ">=", "==", "between"], lhs: n.Node, rhs: tuple[n.Node, ...]
    ) -> list[rules.Piece]:
        if op == "==":
            return [rules.Piece(n.Apply("sub", (lhs, rhs[0]), loc=lhs.loc), "", -1.0)]
        if op == "between":
            self.trace.add("between", name, "lo <= e <= hi  <=>  e - hi <= 0 and lo - e <= 0")
            upper = rules.Piece(n.Apply("sub", (lhs, rhs[1]), loc=lhs.loc), "upper", -1.0)
            lower = rules.Piece(n.Apply("sub", (rhs[0], lhs), loc=lhs.loc), "lower", 1.0)
            return [upper, lower]
        if op == ">=":
            return self._at_least(name, lhs, rhs[0])
        return self._at_most(name, lhs, rhs[0])

    def _at_most(self, name: str, lhs: n.Node, rhs: n.Node) -> list[rules.Piece]:
        """`lhs <= rhs`, either side possibly to be split."""
        pieces = rules.split(lhs, rhs)
        if len(pieces) > 1:
            self.trace.add("split", name, "|e| <= b and max_i e_i <= b become one-sided parts")
            return pieces
        return [rules.Piece(p.residual, p.side, -1.0) for p in pieces]

    def _at_least(self, name: str, lhs: n.Node, rhs: n.Node) -> list[rules.Piece]:
        """`lhs >= rhs`: -lhs <= -rhs; a minimum on the left or a maximum on the right is split."""
        by_rhs = rules.split(rhs, lhs)
        if len(by_rhs) > 1:
            self.trace.add("split", name, "b >= |e| and b >= max_i e_i become one-sided parts")
            return [rules.Piece(p.residual, p.side, 1.0) for p in by_rhs]
        negated = n.Apply("neg", (lhs,), loc=lhs.loc)
        pieces = rules.split(negated, n.Apply("neg", (rhs,), loc=rhs.loc))
        if len(pieces) > 1 or pieces[0].residual.args[0] != negated:  # type: ignore[attr-defined]  # sub node
            self.trace.add("split", name, "min_i e_i >= b becomes one-sided parts")
            return [rules.Piece(p.residual, p.side, 1.0) for p in pieces]
        self.trace.add("flip", name, "lhs >= b  <=>  b - lhs <= 0")
        return [rules.flip(lhs, rhs)]


def semidefinite(symbol: n.VariableSymbol) -> tuple[str, n.Node]:
    """The constraint of a variable that was declared positive semidefinite, with a name of its own."""
    least = n.Apply("lambda_min", (n.Decision(symbol),))
    return f"{symbol.name} psd", n.Comparison(">=", least, n.Constant(0.0))


def _refuse_hinge(node: n.Mean, surrogate: Surrogate) -> None:
    """E175: the quotient of two bounds bounds nothing."""
    if isinstance(surrogate, Hinge):
        arg = node.arg
        written = n.Rate(arg.event, node.given, node.by) if isinstance(arg, n.Indicator) else node
        raise ModelingError(
            "E175",
            f"the condition of {shown(written)} depends on decisions, so it is a quotient of two rates, and "
            "a quotient of hinges is no bound of it",
            at=node.loc,
            fix='multiplied out: P(a & b, surrogate="hinge") <= 0.1 * P(b, surrogate="hinge"); or '
            'surrogate="sigmoid"',
        )


def _check_sides(name: str, relation: n.Node, sides: tuple[n.Node, ...], pieces: list[rules.Piece]) -> None:
    """Refuses infinite bounds (E138) and sides of a per-row constraint without rows (E134)."""
    for side in sides:
        if isinstance(side, n.Constant) and not math.isfinite(side.value):
            raise ModelingError(
                "E138",
                f"a side of the constraint {name!r} is {side.value}",
                at=relation.loc,
                fix="a number; leave the constraint out where there is no bound",
            )
    for piece in pieces:
        if isinstance(relation, n.ForAll) and type_of(piece.residual).rows is None:
            raise ModelingError(
                "E134",
                f"a side of the per-row constraint {name!r} does not depend on the rows: "
                f"{shown(piece.residual)}",
                at=relation.loc,
                fix="that side as a constraint of its own, without forall",
            )


def _check_names(nodes: Sequence[n.Node]) -> None:
    """Two different symbols of one kind may not share a name: reports would be ambiguous (E131)."""
    models = dict.fromkeys(x.model for x in nodes if isinstance(x, (n.Call, n.Weights)))
    symbols: tuple[tuple[str, Iterable[Any]], ...] = (
        ("Variable", dict.fromkeys(x.symbol for x in nodes if isinstance(x, n.Decision))),
        ("Parameter", dict.fromkeys(x.symbol for x in nodes if isinstance(x, n.Knob))),
        ("Model", models),
        ("Data", dict.fromkeys(x.data for x in nodes if isinstance(x, (n.Column, n.ForAll)))),
    )
    for kind, found in symbols:
        counts = Counter(symbol.name for symbol in found)
        twice = sorted(name for name, count in counts.items() if count > 1)
        if twice:
            raise ModelingError(
                "E131",
                f"two {kind} objects are named {twice[0]!r}",
                at=_second(nodes, [symbol for symbol in found if symbol.name == twice[0]]),
                fix="give each its own name",
            )
    _check_shared(models)


def _second(nodes: Sequence[n.Node], symbols: Sequence[Any]) -> Location | None:
    """Where the second of some symbols is used first, as far as that is known."""
    for node in nodes:
        own = (getattr(node, name, None) for name in ("symbol", "model", "data"))
        if node.loc is not None and any(x is symbols[1] for x in own):
            return node.loc
    return None


def _check_shared(models: Iterable[Model]) -> None:
    """Models may not share parameters: what is fixed in one name would be trained under the other (E131)."""
    owners: dict[int, str] = {}
    for model in models:
        for parameter in model.module.parameters():
            owner = owners.setdefault(id(parameter), model.name)
            if owner != model.name:
                raise ModelingError(
                    "E131",
                    f"the models {owner!r} and {model.name!r} share parameters",
                    fix="one cn.Model for both; a fixed reference is "
                    "cn.Model(copy.deepcopy(net), name, frozen=True)",
                )


def _bounded(objective: n.Node, forms: list[Form], state: _Lowering) -> tuple[n.Node, list[n.VariableSymbol]]:
    """The objective with bounds in the place of its maxima, whose constraints are added to the forms."""

    def named(k: int) -> n.VariableSymbol:
        return n.VariableSymbol(EPIGRAPH if k == 1 else f"{EPIGRAPH} {k}", ())

    bounded, found = rules.epigraph(objective, named, state.trace)
    for k, own in enumerate(found, start=1):
        label = "" if k == 1 else str(k)
        residuals = ((f"{label} {p.side}".strip(), state.turned(p.residual, "objective")) for p in own.pieces)
        parts = tuple(Part(EPIGRAPH, side, "<=", residual, 0.0) for side, residual in residuals)
        bound = n.Decision(own.bound, loc=own.term.loc)
        relation = n.Comparison("<=", own.term, bound, loc=own.term.loc)
        forms.append(Form(EPIGRAPH, relation, "<=", own.term, (bound,), parts))
    return bounded, [own.bound for own in found]


def _gathered(
    objective: n.Node, base: n.Node | None, forms: list[Form], state: _Lowering
) -> tuple[n.Node, n.Node | None, list[Form]]:
    """The same terms, with averages over several levels of one column made by one sum."""
    program = Program(state.problem, objective, Forms(forms), (), base=base)
    roots = (*program.roots, *program.judged.roots)
    moments = [x for x in n.postorder(*roots) if isinstance(x, n.Moment)]
    numbers = {hole: nodes for family in state.alike for hole, nodes in family.numbers.items()}
    listed = [x for m in moments if numbers and (x := rules.listed(m, numbers)) is not None]
    found, state.picks = rules.gathered(moments, state.trace, listed)
    if not found:
        return objective, base, forms
    memo: dict[int, n.Node] = {}

    def step(node: n.Node, new: tuple[n.Node, ...]) -> n.Node:
        other = found.get(node)
        return state.table.setdefault(other, other) if other is not None else n.rebuild(node, new)

    def own(node: n.Node) -> n.Node:
        return n.fold(node, step, memo)

    def part(p: Part) -> Part:
        return replace(p, residual=own(p.residual))

    def relaxed(r: Relaxation | None) -> Relaxation | None:
        if r is None:
            return None
        rhs, parts = tuple(map(own, r.rhs)), tuple(map(part, r.parts))
        return replace(r, penalty=own(r.penalty), rhs=rhs, parts=parts)

    changed = [
        replace(
            form,
            lhs=own(form.lhs),
            rhs=tuple(map(own, form.rhs)),
            parts=tuple(map(part, form.parts)),
            relaxation=relaxed(form.relaxation),
        )
        for form in forms
    ]
    return own(objective), None if base is None else own(base), changed


def lower(problem: Problem, *, use_epigraph: bool = True, data: Mapping[str, Data] | None = None) -> Program:
    """The moment form of a problem.

    Args:
        problem: what the user wrote.
        use_epigraph: rewrite `min max` objectives to a bound variable with constraints.
        data: samples that will replace those of the problem, by name: hidden decisions with one value per
            level follow their levels, sums over rows their rows.

    Raises:
        ModelingError: E131 (two symbols with one name, models that share parameters), E134 (a side of a
            per-row constraint without rows), E132 (a form that no rule covers), E158 (a relaxed constraint of
            unknown shape), E175 (a quotient of hinges).
    """
    state = _Lowering(problem, data)
    nodes = n.postorder(*state.written)
    _check_names(nodes)
    side = -1 if problem.sense == "maximize" else 1
    objective: n.Node = (
        n.Constant(0.0)
        if problem.objective is None
        else state.expression(problem.objective, "objective", side)
    )
    if problem.sense == "maximize":
        objective = n.Apply("neg", (objective,), loc=objective.loc)
        state.trace.add("negate", "objective", "max f = -min(-f)")
    forms, shared = state.forms()
    variables = dict.fromkeys(x.symbol for x in nodes if isinstance(x, n.Decision))
    forms += [state.form(*semidefinite(symbol)) for symbol in variables if symbol.psd]
    bounds: list[n.VariableSymbol] = []
    if use_epigraph:
        objective, bounds = _bounded(objective, forms, state)
    objective, base = state.paid(objective, forms)
    objective, base, both = _gathered(objective, base, [*forms, *shared], state)
    slacks = tuple(s for form in forms if form.relaxation is not None for s in form.relaxation.slacks)
    families = state.families(both[len(forms) :])
    known = Forms((*both[: len(forms)], *families))
    roots = (objective, *(stack.residual for stack in known.stacks), *known.sides)
    moments = tuple(dict.fromkeys(x for x in n.postorder(*roots) if isinstance(x, n.Moment)))
    hidden = (*bounds, *state.tails.hidden, *slacks)
    places = [place for place, _ in state.steps]
    steps = Steps(state.trace.steps, list(zip(places, families, strict=True)))
    program = Program(problem, objective, known, moments, steps, hidden, state.tails.all, base)
    verify(program, ATOMS)
    return program


def shown(node: n.Node, limit: int = 80) -> str:
    """Short text of a node for messages."""
    return str(language_printing().text(node, limit=limit))
