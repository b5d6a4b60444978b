"""The moment form: what every problem is after lowering, and what every solver and backend receives.

    minimize  phi_0(m, theta)   subject to   phi_c(m, theta) <= 0  or  == 0

`m` are moments: averages over rows of integrands, with weights known before solving (`nodes.Moment`). Each
`phi` is a deterministic node whose leaves are moments, decisions, parameters and constants. A constraint per
row keeps its rows: its residual is a per-row node (`Part.rows`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from constrain.language import nodes as n
from constrain.lowering.families import Forms, OnDemand, Stack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from constrain.language.data import Data
    from constrain.language.problem import Problem
    from constrain.language.symbols import Model

__all__ = ["Form", "Part", "Program", "Relaxation", "Step", "Tail"]

Kind = Literal["<=", "=="]


@dataclass(frozen=True)
class Part:
    """A one-sided piece of a user's constraint: `residual <= 0` or `residual == 0`.

    Attributes:
        constraint: the user's name.
        side: which piece: `""` when there is one, else `"upper"`, `"lower"`, `"max 0"` ...
        kind: `<=` or `==`.
        residual: an outer expression over moments; with `rows` set, an expression per row of that sample.
        rhs_sign: derivative of the residual with respect to the right-hand side as the user wrote it: -1 for
            `lhs <= b`, +1 for `lhs >= b`. The pulled-back shadow price is the sum over parts of
            multiplier * rhs_sign (envelope theorem).
        rows: the sample of a constraint per row, else None.
        where: the event that selects its rows, else None.
        scale: the unit of its residual (`relation.scale(s)`), None when the user gave none.
    """

    constraint: str
    side: str
    kind: Kind
    residual: n.Node
    rhs_sign: float
    rows: Data | None = None
    where: n.Node | None = None
    scale: float | None = None

    @property
    def key(self) -> str:
        """`parity`, or `parity:upper`: the key of multipliers in state dicts and tables."""
        return f"{self.constraint}:{self.side}" if self.side else self.constraint


@dataclass(frozen=True)
class Relaxation:
    """What relaxing a constraint costs (`relation.relax(cost=)`): slack z >= 0 at h(z).

    Attributes:
        cost: the kinds of the terms of h, `linear` (weight * z) or `squared` (weight / 2 * z**2).
        weights: the weight of each term, a number or a parameter.
        penalty: sum of h over the slacks, as it enters the objective.
        rhs: right side as written.
        slacks: the hidden decisions: one, or the two sides of an equality; none per row, where the slack is
            eliminated.
        parts: of a constraint per row, its parts as they are judged: `residual <= 0` as written. Solvers see
            the penalty only.
    """

    cost: tuple[str, ...]
    weights: tuple[n.Node, ...]
    penalty: n.Node
    rhs: tuple[n.Node, ...]
    slacks: tuple[n.VariableSymbol, ...] = ()
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Form:
    """A user's constraint: the sides as written (lowered), and its parts.

    The user's multiplier is the sum of the parts' multipliers, reduced to the shape of the constraint as
    written (a worst-group constraint has one multiplier: the sum over its groups).

    Attributes:
        name: the user's name.
        relation: the node as written, for printing.
        op: `<=`, `>=`, `==` or `between`.
        lhs: left side as written (the middle of `between`), lowered; per row for `forall`.
        rhs: right side as written; `(lower, upper)` for `between`; with the slack where it is relaxed (not
            per row).
        parts: the one-sided pieces; none of a relaxed constraint per row.
        rows: the sample of a constraint per row, else None.
        where: the event that selects its rows, else None.
        scale: the unit of its residual, None when the user gave none.
        relaxation: what relaxing it costs, None when it must hold.
    """

    name: str
    relation: n.Node
    op: Literal["<=", ">=", "==", "between"]
    lhs: n.Node
    rhs: tuple[n.Node, ...]
    parts: tuple[Part, ...]
    rows: Data | None = None
    where: n.Node | None = None
    scale: float | None = None
    relaxation: Relaxation | None = None


@dataclass(frozen=True)
class Step:
    """One application of a rewrite rule, for `explain()`."""

    rule: str
    target: str
    formula: str
    exact: bool


@dataclass(frozen=True)
class Tail:
    """Numbers of a sample that a statistic needs besides averages; `runtime/tails.py` sets them exactly.

    Arrays have the shape of one row of the integrand, after the levels of `by` when there are some.

    Attributes:
        name: such as `(value-at-risk of risk)`.
        kind: `CVaR` or `Quantile`, whose threshold is the exact quantile; `mean`: the exact mean.
        data: the sample.
        integrand: what is summarized, per row.
        given: the event that selects the rows that count; it may depend on decisions.
        by: columns of the levels.
        level: of the quantile, a number or a parameter; None for a mean.
        threshold: where the quantile or mean goes: a hidden decision, or a constant that is set.
        scale: of a hidden decision, its unit: the spread of the integrand.
        shares: of a quantile, the share of rows above it: exact, and by the surrogate.
        density: of a quantile, the slope of the surrogate share in the threshold, negated.
        width: of a quantile, the width of its surrogate.
        targets: the terms it belongs to, `objective` or names of constraints.
    """

    name: str
    kind: Literal["CVaR", "Quantile", "mean"]
    data: Data
    integrand: n.Node
    given: n.Node | None
    by: tuple[n.Column, ...]
    level: float | n.Knob | None
    threshold: n.VariableSymbol | n.ArraySymbol
    scale: n.ArraySymbol | None = None
    shares: tuple[n.ArraySymbol, n.ArraySymbol] | None = None
    density: n.ArraySymbol | None = None
    width: n.ArraySymbol | None = None
    targets: tuple[str, ...] = ()

    def of(self, targets: tuple[str, ...]) -> Tail:
        """The same tail with these targets."""
        return replace(self, targets=targets)


@dataclass(frozen=True)
class Program:
    """A problem in moment form.

    Attributes:
        problem: what the user wrote.
        objective: the outer expression to MINIMIZE (negated when the user maximizes; 0 for `find`).
        forms: the constraints, in the user's order; those of a family are made when one is asked for.
        moments: every distinct moment, in order of appearance; equal moments are one object.
        trace: the rules that were applied.
        auxiliary: variables that lowering introduced (epigraph, thresholds, slacks): no decisions of users.
        tails: numbers of samples that statistics need besides averages.
        base: the objective without the costs of relaxed constraints per row; None when there are none.
    """

    problem: Problem
    objective: n.Node
    forms: Sequence[Form]
    moments: tuple[n.Moment, ...]
    trace: Sequence[Step] = ()
    auxiliary: tuple[n.VariableSymbol, ...] = ()
    tails: tuple[Tail, ...] = ()
    base: n.Node | None = None

    @cached_property
    def judged(self) -> Program:
        """The program as it is judged: relaxed constraints per row are constraints, not terms of a cost.

        Its objective is `base`. The same program when no constraint per row is relaxed.
        """
        if self.base is None:
            return self

        def judged(form: Form) -> Form:
            relaxed = form.relaxation
            return form if relaxed is None or not relaxed.parts else replace(form, parts=relaxed.parts)

        return replace(self, objective=self.base, forms=self.shared.with_singles(judged), base=None)

    @cached_property
    def shared(self) -> Forms:
        """The constraints, with those that are alike in families."""
        return self.forms if isinstance(self.forms, Forms) else Forms(self.forms)

    @property
    def apart(self) -> Program:
        """The same program without families."""
        return replace(self, forms=tuple(self.forms)) if self.shared.families else self

    @cached_property
    def sign(self) -> float:
        """+1 when the user minimizes, -1 when the user maximizes: user value = sign * program value."""
        return -1.0 if self.problem.sense == "maximize" else 1.0

    @cached_property
    def feasibility(self) -> bool:
        """Whether any point that satisfies the constraints solves it: `find`, and nothing is relaxed."""
        return self.problem.sense == "find" and all(form.relaxation is None for form in self.shared.singles)

    @cached_property
    def parts(self) -> Sequence[Part]:
        """All one-sided pieces, in the user's order."""
        count = sum(len(stack.places) for stack in self.stacks)
        return OnDemand(count, lambda: [part for form in self.forms for part in form.parts])

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """The parts as they are evaluated: those of a family together."""
        return self.shared.stacks

    @cached_property
    def places(self) -> dict[str, tuple[int, ...]]:
        """By the name of a constraint the positions of its parts."""
        found: dict[str, list[int]] = {}
        for i, part in enumerate(self.parts):
            found.setdefault(part.constraint, []).append(i)
        return {name: tuple(places) for name, places in found.items()}

    @cached_property
    def per_row(self) -> dict[int, Part]:
        """The parts of constraints per row, by their positions."""
        return {int(stack.places[0]): stack.part for stack in self.stacks if stack.part.rows is not None}

    @cached_property
    def roots(self) -> tuple[n.Node, ...]:
        """Every expression that has to be evaluated: objective, residuals, and sides as written."""
        singles = self.shared.singles
        wheres = tuple(form.where for form in singles if form.where is not None)
        relaxed = tuple(form.relaxation for form in singles if form.relaxation is not None)
        weights = tuple(weight for relaxation in relaxed for weight in relaxation.weights)
        residuals = tuple(stack.residual for stack in self.stacks)
        return (self.objective, *residuals, *self.shared.sides, *wheres, *weights)

    @cached_property
    def nodes(self) -> tuple[n.Node, ...]:
        """Everything under the roots, children first."""
        return tuple(n.postorder(*self.roots))

    @cached_property
    def variables(self) -> tuple[n.VariableSymbol, ...]:
        """Decision tensors, the user's and auxiliary ones."""
        found = (x.symbol for x in self.nodes if isinstance(x, n.Decision))
        return tuple(dict.fromkeys(found))

    @cached_property
    def models(self) -> tuple[Model, ...]:
        """Models, frozen ones included."""
        found = (x.model for x in self.nodes if isinstance(x, (n.Call, n.Weights)))
        return tuple(dict.fromkeys(found))

    @cached_property
    def parameters(self) -> tuple[n.ParameterSymbol, ...]:
        """Parameters, those that are levels of tails included."""
        levels = [tail.level for tail in self.tails if isinstance(tail.level, n.Knob)]
        found = (x.symbol for x in (*self.nodes, *levels) if isinstance(x, n.Knob))
        return tuple(dict.fromkeys(found))

    @cached_property
    def populations(self) -> tuple[Data, ...]:
        """Samples that the problem averages over or constrains per row."""
        return tuple(dict.fromkeys(x.data for x in self.nodes if isinstance(x, (n.Column, n.Moment))))

    @cached_property
    def has_rates(self) -> bool:
        """Whether an indicator that depends on decisions occurs (its gradient is a surrogate's)."""
        return any(isinstance(x, n.Indicator) and x.surrogate for x in self.nodes)


@dataclass
class Trace:
    """Collects the steps of one lowering."""

    steps: list[Step] = field(default_factory=list[Step])

    def add(self, rule: str, target: str, formula: str, *, exact: bool = True) -> None:
        """Records one application."""
        self.steps.append(Step(rule, target, formula, exact))
