"""Lowerings of functions that a user declared with `cn.op(..., cvxpy=)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from constrain.backends.cvxpy.package import cp
from constrain.language import nodes as n
from constrain.language.atoms import ATOMS
from constrain.lowering.dependence import depends_on_decisions
from constrain.runtime.declared import aligned_shapes, compare_lowering, refuse

if TYPE_CHECKING:
    from collections.abc import Callable

    from constrain.backends.cvxpy.atoms import Arguments, Lowering
    from constrain.language.atoms import Declared
    from constrain.lowering.program import Program

__all__ = ["lowering_of", "without_lowering"]

_COMPARED: set[tuple[Callable[..., Any], tuple[tuple[str, Any], ...]]] = set()
"""Lowerings that were compared with their torch function, with the options of the application."""


def without_lowering(program: Program) -> str | None:
    """A declared function of decisions that has no lowering, or None."""
    for root in (program.objective, *(part.residual for part in program.parts)):
        for node in n.postorder(root):
            declared = ATOMS[node.atom].declared if isinstance(node, n.Apply) else None
            if declared is not None and "cvxpy" not in declared.lowerings and depends_on_decisions(node):
                return node.atom if isinstance(node, n.Apply) else None
    return None


def lowering_of(node: n.Apply) -> Lowering | None:
    """The lowering of a declared function, compared with its torch function first; None without one."""
    declared = ATOMS[node.atom].declared
    function = None if declared is None else declared.lowerings.get("cvxpy")
    if declared is None or function is None:
        return None
    key = (function, node.options)
    if key not in _COMPARED:
        _compare(node, declared, function)
        _COMPARED.add(key)
    return lambda a: function(*_aligned(declared, a), **dict(node.options))


def _aligned(declared: Declared, a: Arguments) -> list[Any]:
    """The arguments with one loop shape, as the torch function gets them."""
    shapes = aligned_shapes(declared, [tuple(v.shape) for v in a.values], a.leads)
    loops = [s[: len(s) - len(core)] for s, core in zip(shapes, declared.core, strict=True)]
    loop = np.broadcast_shapes(*loops)
    found: list[Any] = []
    for value, shape, own in zip(a.values, shapes, loops, strict=True):
        shaped = value if tuple(value.shape) == shape else cp.reshape(value, shape, order="C")
        found.append(shaped if own == loop else cp.broadcast_to(shaped, (*loop, *shape[len(own) :])))
    return found


def _compare(node: n.Apply, declared: Declared, function: Callable[..., Any]) -> None:
    """Values against torch, and what the disciplined rules say of it against the declaration."""
    options = dict(node.options)

    def evaluate(arrays: list[Any]) -> Any:
        return function(*map(cp.Constant, arrays), **options).value

    compare_lowering(node.atom, "cvxpy", evaluate, options)
    curvature = ATOMS[node.atom].curvature
    sizes = {x: int(x) if x.isdigit() else 2 for axes in declared.core for x in axes}
    variables: list[Any] = []
    for axes, (low, high) in zip(declared.core, declared.domain, strict=True):
        ends = [None if np.isinf(end) else end for end in (low, high)]
        bounds = None if ends == [None, None] else ends
        variables.append(cp.Variable((2, *(sizes[x] for x in axes)), bounds=bounds))
    known = function(*variables, **options)
    fits = {"convex": known.is_convex, "concave": known.is_concave, "affine": known.is_affine}[curvature]
    if not fits():
        raise refuse(
            node.atom,
            f"curvature={curvature!r}, but to cvxpy its lowering is {str(known.curvature).lower()}",
            f"a cvxpy= whose disciplined form is {curvature}",
            node.loc,
        )
