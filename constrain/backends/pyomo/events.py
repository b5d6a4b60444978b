"""Which rows an event of decisions is asked of: the others need no binary variable."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from constrain.language import nodes as n
from constrain.language.types import type_of
from constrain.lowering.dependence import depends_on_decisions
from constrain.runtime.binding import parameter_values
from constrain.runtime.constants import Constants

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from constrain.lowering.program import Program

__all__ = ["asked_rows", "events"]


def asked_rows(program: Program, constants: Constants) -> dict[n.Node, NDArray[np.bool_]]:
    """By event of decisions (its indicator), the rows that enter an average or a constraint per row."""
    found: dict[n.Node, NDArray[np.bool_]] = {}
    for moment in program.moments:
        own = list(_indicators(moment.integrand))
        if own:
            weights = constants.averaging(moment).matrix
            _mark(found, own, np.asarray(abs(weights).sum(axis=0)).reshape(-1) > 0)
    for part in program.parts:
        if part.rows is not None:
            own = list(_indicators(part.residual))
            _mark(found, own, np.ones(constants.rows(part.rows), dtype=bool))
    return found


def _mark(
    found: dict[n.Node, NDArray[np.bool_]], indicators: list[n.Indicator], rows: NDArray[np.bool_]
) -> None:
    for node in indicators:
        found[node] = rows | found[node] if node in found else rows


def _indicators(root: n.Node) -> Iterator[n.Indicator]:
    """Events of decisions in the rows of an expression; averages inside of it have rows of their own."""
    stack, seen = [root], set[int]()
    while stack:
        node = stack.pop()
        if id(node) in seen or isinstance(node, n.Moment):
            continue
        seen.add(id(node))
        if isinstance(node, n.Indicator) and depends_on_decisions(node):
            yield node
        stack.extend(n.children(node))


def events(program: Program) -> int:
    """The number of binary variables that events of decisions need, but for their logic."""
    constants = Constants({}, parameter_values(program.parameters, None), tails=program.tails)
    rows = asked_rows(program, constants).items()
    return sum(int(mask.sum()) * math.prod(type_of(node).shape or ()) for node, mask in rows)
