"""What kind of optimization problem a program is, and why it is not a simpler one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from constrain.analysis.curvature import analyze, facts_of
from constrain.analysis.fact import Fact, Reason, shown
from constrain.analysis.models import refusal_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from constrain.language import nodes as n
    from constrain.lowering.program import Program

__all__ = ["Facts", "ProblemClass", "TermFact", "classify"]

ProblemClass: TypeAlias = Literal["LP", "QP", "cone", "MILP", "MIQP", "mixed-integer cone", "nonconvex"]


@dataclass(frozen=True)
class TermFact:
    """What the convexity of a problem asks of one term, and what was found.

    Attributes:
        key: `objective`, or the key of a constraint part (`parity:upper`).
        node: the lowered expression: the objective to minimize, or the residual.
        required: `convex`, or `affine` for equalities.
        fact: its sign, curvature and form.
        ok: whether the requirement is met.
        reasons: why not; empty when it is met.
    """

    key: str
    node: n.Node
    required: Literal["convex", "affine"]
    fact: Fact
    ok: bool
    reasons: tuple[Reason, ...] = ()

    def lines(self) -> list[str]:
        """`key: convex (affine found)`, then the reasons indented."""
        found = self.fact.curvature if self.fact.curvature != "unknown" else "not certified"
        own = f"{self.key}: needs {self.required}, {found}"
        return [own, *(line for reason in self.reasons for line in reason.lines("  "))]


@dataclass(frozen=True)
class Facts:
    """What the analysis certifies about a program.

    Attributes:
        terms: the objective and every one-sided constraint part.
        problem_class: the smallest class that holds the problem; integer variables aside, all but `nonconvex`
            are convex in all decisions jointly.
        integer: names of boolean and integer variables.
        models: per trainable model None when it is affine in its weights, else why not.
    """

    terms: tuple[TermFact, ...]
    problem_class: ProblemClass
    integer: tuple[str, ...]
    models: dict[str, str | None]

    @property
    def convex(self) -> bool:
        """Whether the problem is certified convex in all decisions (with integrality relaxed)."""
        return all(term.ok for term in self.terms)

    @property
    def linear(self) -> bool:
        """Whether the problem is a linear program, integrality aside."""
        return self.problem_class in ("LP", "MILP")

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Why the problem is not certified convex."""
        return tuple(dict.fromkeys(reason for term in self.terms for reason in term.reasons))

    @property
    def certificate(self) -> str:
        """One sentence: convex in all decisions, or the first reason why not."""
        if self.convex:
            names = {
                "LP": "a linear program",
                "QP": "a convex quadratic program",
                "cone": "a convex cone program",
                "MILP": "a mixed-integer linear program",
                "MIQP": "a mixed-integer convex quadratic program",
                "mixed-integer cone": "a mixed-integer convex program",
                "nonconvex": "",
            }
            word = "convex in all decisions" if not self.integer else "convex but for integrality"
            return f"{word}: {names[self.problem_class]}"
        term = next(term for term in self.terms if not term.ok)
        return f"not certified convex: {term.key}: {term.reasons[0].text}"


def _term(key: str, node: n.Node, required: Literal["convex", "affine"], fact: Fact) -> TermFact:
    ok = fact.affine or (required == "convex" and fact.curvature == "convex")
    if ok:
        return TermFact(key, node, required, fact, ok)
    if fact.curvature == "unknown":
        return TermFact(key, node, required, fact, ok, fact.reasons)
    source = fact.source if fact.source is not None else node
    cause = (
        "an equality is convex only when its sides are affine" if required == "affine" else "convex is needed"
    )
    text = f"{shown(node)} is {fact.curvature} because of {shown(source)}; {cause}"
    return TermFact(key, node, required, fact, ok, (Reason(text, source),))


def _class(objective: Fact, constraints: Sequence[Fact], *, convex: bool, integer: bool) -> ProblemClass:
    if not convex:
        return "nonconvex"
    linear = all(fact.form in ("affine", "piecewise") for fact in constraints)
    if linear and objective.form in ("affine", "piecewise"):
        return "MILP" if integer else "LP"
    if linear and objective.form == "quadratic":
        return "MIQP" if integer else "QP"
    return "mixed-integer cone" if integer else "cone"


def classify(program: Program) -> Facts:
    """Curvature of every term and the class of the problem."""
    memo = facts_of(program)
    terms = [_term("objective", program.objective, "convex", analyze(program.objective, memo))]
    for part in program.parts:
        required: Literal["convex", "affine"] = "affine" if part.kind == "==" else "convex"
        terms.append(_term(part.key, part.residual, required, analyze(part.residual, memo)))
    integer = tuple(symbol.name for symbol in program.variables if symbol.boolean or symbol.integer)
    facts = [term.fact for term in terms]
    kind = _class(facts[0], facts[1:], convex=all(term.ok for term in terms), integer=bool(integer))
    models = {model.name: refusal_of(model.module) for model in program.models if not model.frozen}
    return Facts(tuple(terms), kind, integer, models)
