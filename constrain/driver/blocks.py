"""Problems that fall apart: blocks without a common decision, each by the route that suits it best.

An objective that is a sum, and constraints, connect the decisions that they mention. Where several connected
blocks are left, a solution of each is a solution of all (the Lagrangian is the sum of theirs), so that a
network may be trained while integers beside it go to a search.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from constrain.driver.formulas import formula_of
from constrain.driver.routes import choose
from constrain.driver.setup import lowered
from constrain.errors import RouteError
from constrain.language import nodes as n
from constrain.language.problem import Problem
from constrain.lowering.classify import classify
from constrain.runtime.result import RawResult
from constrain.solution import Status

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from constrain.language.data import Data
    from constrain.runtime.result import Ending
    from constrain.solution import Solution

__all__ = [
    "Block",
    "blocks_of",
    "components",
    "in_order",
    "merged",
    "own_data",
    "own_params",
    "own_start",
    "text_of",
]

_ENDINGS: dict[Status, Ending] = {
    Status.INFEASIBLE: "infeasible",
    Status.LIKELY_INFEASIBLE: "likely_infeasible",
    Status.DIVERGED: "diverged",
    Status.LIMIT: "limit",
}
"""Of a status that is no solution, worst first; the others have converged."""
_LAST = ("lagrangian", "augmented", "newton")
"""Methods that take what is left of a limit of time, the exact ones before them."""


@dataclass(frozen=True)
class Block:
    """Decisions that are connected, and what mentions them.

    Attributes:
        problem: of these decisions alone.
        names: of the decisions.
        method: what `method="auto"` runs for it.
        reason: why.
    """

    problem: Problem
    names: tuple[str, ...]
    method: str
    reason: str


# ------------------------------------------------------------------------------------------- connection
def components(problem: Problem) -> list[tuple[Problem, tuple[str, ...]]]:
    """The connected blocks of a problem, with the names of their decisions; one where all is connected."""
    terms = [] if problem.objective is None else _terms(problem.objective)
    items: list[tuple[str | None, float, n.Node]] = [(None, sign, node) for sign, node in terms]
    items += [(name, 1.0, node) for name, node in problem.constraints.items()]
    groups: list[tuple[dict[Any, str], list[int]]] = []
    for place, (_, _, node) in enumerate(items):
        used, members = _decisions(node), [place]
        rest: list[tuple[dict[Any, str], list[int]]] = []
        for known, others in groups:
            if known.keys() & used.keys():
                used, members = {**known, **used}, [*others, *members]
            else:
                rest.append((known, others))
        groups = [*rest, (used, members)]
    groups = _with_constants(sorted(groups, key=lambda group: min(group[1])))
    return [
        (_part(problem, [items[i] for i in sorted(members)]), tuple(used.values()))
        for used, members in groups
    ]


def _with_constants(groups: list[tuple[dict[Any, str], list[int]]]) -> list[tuple[dict[Any, str], list[int]]]:
    """What mentions no decision belongs to the first block."""
    moving = [group for group in groups if group[0]]
    fixed = [place for used, members in groups if not used for place in members]
    if not moving:
        return [({}, fixed)]
    return [(moving[0][0], [*moving[0][1], *fixed]), *moving[1:]]


def _terms(root: n.Node) -> list[tuple[float, n.Node]]:
    """Terms of a sum with their signs."""
    found: list[tuple[float, n.Node]] = []
    stack = [(1.0, root)]
    while stack:
        sign, node = stack.pop()
        if isinstance(node, n.Apply) and node.atom in ("add", "sub", "neg"):
            signs = {"add": (sign, sign), "sub": (sign, -sign), "neg": (-sign,)}[node.atom]
            stack.extend(reversed(list(zip(signs, node.args, strict=True))))
        else:
            found.append((sign, node))
    return found


def _decisions(root: n.Node) -> dict[Any, str]:
    """Variables and trained models that an expression mentions, with their names."""
    found: dict[Any, str] = {}
    for node in n.postorder(root):
        if isinstance(node, n.Decision):
            found[node.symbol] = node.symbol.name
        elif isinstance(node, (n.Call, n.Weights)) and not node.model.frozen:
            found[node.model] = node.model.name
    return found


def _part(problem: Problem, items: Sequence[tuple[str | None, float, n.Node]]) -> Problem:
    objective: n.Node | None = None
    for name, sign, node in items:
        if name is None:
            term = node if sign > 0 else n.Apply("neg", (node,), loc=node.loc)
            objective = term if objective is None else n.Apply("add", (objective, term), loc=node.loc)
    constraints = {name: node for name, _, node in items if name is not None}
    return Problem("find" if objective is None else problem.sense, objective, constraints)


# --------------------------------------------------------------------------------------------- routing
def blocks_of(
    problem: Problem,
    joint: str | None,
    options: Mapping[str, Any],
    data: Mapping[str, Data] | None = None,
    params: Mapping[str, Any] | None = None,
) -> list[Block]:
    """The blocks that are better solved apart; none where one method is the choice for all of them.

    Args:
        problem: what to solve.
        joint: the method of the whole problem, None when none takes it.
        options: of the solve; any that asks for a kind of method keeps the problem whole.
        data: replaces samples, by their names.
        params: values of parameters by name.
    """
    if any(value is not None and value is not False for value in options.values()):
        return []
    found = components(problem)
    if len(found) < 2:
        return []
    try:
        blocks = [
            Block(part, names, *_choice(part, own_data(part, data), own_params(part, params)))
            for part, names in found
        ]
    except RouteError:
        return []
    return [] if all(block.method == joint for block in blocks) else blocks


def _choice(problem: Problem, data: Mapping[str, Data] | None, params: Mapping[str, Any]) -> tuple[str, str]:
    program = lowered(problem, data)
    form = formula_of(program, data, params)
    if not isinstance(form, str):
        return "closed", form.reason
    return choose(program, classify(program), {})


def own_data(problem: Problem, data: Mapping[str, Data] | None) -> Mapping[str, Data] | None:
    """Of the samples that replace others, those of a block."""
    names = {population.name for population in problem.populations}
    return {name: sample for name, sample in (data or {}).items() if name in names} or None


def own_params(problem: Problem, params: Mapping[str, Any] | None) -> dict[str, Any]:
    """Of the values of parameters, those of a block."""
    names = {symbol.name for symbol in problem.parameters}
    return {name: value for name, value in (params or {}).items() if name in names}


def own_start(problem: Problem, multipliers: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Of the multipliers to start from, those of a block."""
    if multipliers is None:
        return None
    return {key: m for key, m in multipliers.items() if key.split(":")[0] in problem.constraints}


def text_of(blocks: Sequence[Block]) -> str:
    """Which decisions go where, in a sentence."""
    each = [f"{', '.join(block.names)} by {block.method} ({block.reason})" for block in blocks]
    return f"{len(blocks)} blocks without a common decision: {'; '.join(each)}"


def in_order(blocks: Sequence[Block]) -> list[Block]:
    """Exact methods first, so that the others know how much time is left."""
    return sorted(blocks, key=lambda block: block.method in _LAST)


# --------------------------------------------------------------------------------------------- merging
def merged(solutions: Sequence[Solution], sign: float, keys: Sequence[str]) -> RawResult:
    """One record of several runs, as if one solver had made it.

    Args:
        solutions: of the blocks.
        sign: -1 where the user maximizes.
        keys: of the parts of the whole problem.
    """
    endings: list[Ending] = [_ENDINGS.get(s.status, "converged") for s in solutions]
    worst: list[Ending] = [*_ENDINGS.values(), "converged"]
    found = {k: v for s in solutions for k, v in (s.multipliers or {}).items() if k in keys}
    known = all(s.multipliers is not None for s in solutions)
    bounds = [s.bound for s in solutions if s.bound is not None]
    longest = max(solutions, key=lambda s: len(s.history))
    messages = (
        f"{s.provenance.solver}: {s.message}" if s.message else s.provenance.solver for s in solutions
    )
    return RawResult(
        ending=min(endings, key=worst.index),
        multipliers=found if known else None,
        solver=" + ".join(dict.fromkeys(s.provenance.solver for s in solutions)),
        seconds=sum(s.provenance.seconds for s in solutions),
        iterations=sum(s.provenance.iterations for s in solutions),
        history=list(longest.history),
        bound=sign * sum(bounds) if len(bounds) == len(solutions) else None,
        message="; ".join(messages),
    )
