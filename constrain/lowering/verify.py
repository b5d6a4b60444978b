"""Checks the invariants of the moment form. A failure is a bug of a rule, not of the user."""

from __future__ import annotations

from typing import TYPE_CHECKING

from constrain.errors import ModelingError
from constrain.language import nodes as n
from constrain.language.types import type_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from constrain.language.atoms import Atom
    from constrain.lowering.program import Program

__all__ = ["verify"]


def _fail(message: str, at: n.Node) -> ModelingError:
    return ModelingError("E132", f"lowering produced an invalid program: {message}", at=at.loc)


def verify(program: Program, atoms: Mapping[str, Atom]) -> None:
    """Every statistic is a moment, outer expressions are deterministic, moments do not nest, atoms are known.

    Raises:
        ModelingError: E132 with the offending expression.
    """
    for node in n.postorder(*program.roots):
        if isinstance(node, (n.Mean, n.Rate, n.Statistic, n.ForAll)):
            raise _fail(f"a {type(node).__name__} is left", node)
        if isinstance(node, n.Apply) and node.atom not in atoms:
            raise _fail(f"unknown function {node.atom!r}", node)
        if isinstance(node, n.Moment) and (
            type_of(node.integrand).rows is not node.data or n.mentions(node.integrand, n.Moment)
        ):
            raise _fail("a moment over no rows, or inside another", node)
    if type_of(program.objective).random:
        raise _fail("the objective depends on rows", program.objective)
    for stack in program.stacks:
        if type_of(stack.residual).rows is not stack.part.rows:
            raise _fail(f"the residual of {stack.part.key!r} depends on the wrong rows", stack.residual)
        if stack.names is not None and type_of(stack.residual).shape != (len(stack.names),):
            raise _fail(f"the constraints like {stack.part.key!r} are no vector", stack.residual)
