"""Curvature of an optimal value in its parameters, from the inner problem with its parameters as decisions.

    V(t) = minimum over x of f(x, t) subject to g(x, t) <= 0, h(x, t) == 0

is convex in t where the problem is convex in x and t together (Boyd and Vandenberghe 2004, 3.2.5), and
concave where only f depends on t, and is affine in it: then V is a minimum of affine functions, whatever the
rest is. Of a maximum it is the other way around.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from constrain.analysis.curvature import analyze
from constrain.language import nodes as n
from constrain.language.problem import Problem
from constrain.lowering.classify import classify
from constrain.lowering.lower import lower

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Curvature", "curvature_of", "replaced"]


@dataclass(frozen=True)
class Curvature:
    """Curvature of an optimal value in its inputs together.

    Attributes:
        curve: as in the analysis of expressions.
        joint: the inner problem is convex in variables and inputs together: it can be written out in place of
            its value.
        reason: why nothing is known; empty otherwise.
    """

    curve: Literal["convex", "concave", "unknown"]
    joint: bool = False
    reason: str = ""


@lru_cache(maxsize=128)
def curvature_of(problem: Problem, inputs: tuple[n.ParameterSymbol, ...]) -> Curvature:
    """Of the optimal value of a problem in some of its parameters."""
    minimized = problem.sense == "minimize"
    integer = [symbol.name for symbol in problem.variables if symbol.boolean or symbol.integer]
    decisions: dict[n.Node, n.Node] = {
        n.Knob(p): n.Decision(n.VariableSymbol(f"{p.name} (input)", p.shape)) for p in inputs
    }
    joined = replaced(problem, decisions)
    facts = classify(lower(joined, use_epigraph=False))
    if facts.convex and not integer:
        return Curvature("convex" if minimized else "concave", joint=True)
    free = not any(x in decisions for node in problem.constraints.values() for x in n.postorder(node))
    if free and problem.objective is not None and _affine(problem, decisions):
        return Curvature("concave" if minimized else "convex")
    if integer:
        return Curvature(
            "unknown", reason=f"its integer variables ({', '.join(integer)}) make it jump or bend"
        )
    return Curvature(
        "unknown",
        reason="its inner problem is not certified convex in variables and parameters together: "
        + "; ".join(reason.text for reason in facts.reasons[:1]),
    )


def _affine(problem: Problem, decisions: Mapping[n.Node, n.Node]) -> bool:
    """Whether the objective is affine in the inputs, for any values of the variables."""
    assert problem.objective is not None  # the caller looks
    constants: dict[n.Node, n.Node] = {
        n.Decision(v): n.Knob(n.ParameterSymbol(f"{v.name} (variable)", v.shape)) for v in problem.variables
    }
    return analyze(_node(_node(problem.objective, constants), decisions)).affine


def replaced(problem: Problem, by: Mapping[n.Node, n.Node]) -> Problem:
    """The problem with other nodes in the place of some."""
    objective = None if problem.objective is None else _node(problem.objective, by)
    return Problem(problem.sense, objective, {k: _node(v, by) for k, v in problem.constraints.items()})


def _node(root: n.Node, by: Mapping[n.Node, n.Node]) -> n.Node:
    def step(node: n.Node, new: tuple[n.Node, ...]) -> n.Node:
        return by[node] if node in by else n.rebuild(node, new)

    return n.fold(root, step)
