"""Lowerings of functions that a user declared with `cn.op(..., pyomo=)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from constrain.backends.pyomo.package import pyo
from constrain.backends.pyomo.term import Term, expression_of
from constrain.language.atoms import ATOMS
from constrain.runtime.declared import aligned_shapes, compare_lowering

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from constrain.backends.pyomo.atoms import Arguments, Lowering
    from constrain.language import nodes as n
    from constrain.language.atoms import Declared

__all__ = ["lowering_of", "refusal_of_declared"]

_COMPARED: set[tuple[Callable[..., Any], tuple[tuple[str, Any], ...]]] = set()
"""Lowerings that were compared with their torch function, with the options of the application."""


def refusal_of_declared(node: n.Apply) -> str | None:
    """Why a declared function cannot be part of a Pyomo model, or None."""
    declared = ATOMS[node.atom].declared
    if declared is None:
        return None
    if "pyomo" not in declared.lowerings:
        return f"{node.atom} is declared without pyomo="
    return None if declared.smooth else f"{node.atom} has kinks by its declaration"


def lowering_of(node: n.Apply) -> Lowering | None:
    """The lowering of a declared function, compared with its torch function first; None without one."""
    atom = ATOMS[node.atom]
    declared = atom.declared
    function = None if declared is None else declared.lowerings.get("pyomo")
    if declared is None or function is None:
        return None
    key = (function, node.options)
    if key not in _COMPARED:
        _compare(node, declared, function)
        _COMPARED.add(key)
    affine = atom.curvature == "affine"

    def lowered(a: Arguments) -> Any:
        shapes = aligned_shapes(declared, [v.shape for v in a.values], a.leads)
        arrays = [v.reshape(s) for v, s in zip(a.values, shapes, strict=True)]
        terms = [x for array in arrays for x in array.reshape(-1) if isinstance(x, Term)]
        if affine or not terms:  # terms know sums and products with numbers, and stay linear
            return _applied(declared, function, arrays, dict(node.options))
        given = [_mapped(expression_of, array) for array in arrays]
        found = _applied(declared, function, given, dict(node.options))
        return _mapped(lambda x: _term(terms[0], x), found)

    return lowered


def _term(like: Term, expression: Any) -> Any:
    if isinstance(expression, (int, float, np.number)):
        return float(cast("float", expression))
    return Term(like.space, 0.0, {}, {}, expression)


def _mapped(function: Callable[[Any], Any], array: NDArray[Any]) -> NDArray[Any]:
    found = np.empty(array.shape, dtype=object)
    found.reshape(-1)[:] = [function(x) for x in array.reshape(-1)]
    return found


def _applied(
    declared: Declared,
    function: Callable[..., Any],
    arrays: Sequence[NDArray[Any]],
    options: dict[str, Any],
) -> NDArray[Any]:
    """One application after the other: numbers or expressions, or object arrays of the core shape."""
    loops = [a.shape[: a.ndim - len(core)] for a, core in zip(arrays, declared.core, strict=True)]
    loop = np.broadcast_shapes(*loops)
    wide = [np.broadcast_to(a, (*loop, *a.shape[len(own) :])) for a, own in zip(arrays, loops, strict=True)]
    results: list[Any] = [function(*(w[place] for w in wide), **options) for place in np.ndindex(*loop)]
    core = np.shape(results[0]) if results else ()
    found = np.empty((*loop, *core), dtype=object)
    for place, result in zip(np.ndindex(*loop), results, strict=True):
        found[place] = result
    return found


def _compare(node: n.Apply, declared: Declared, function: Callable[..., Any]) -> None:
    options = dict(node.options)

    def evaluate(arrays: list[Any]) -> Any:
        found = _applied(declared, function, [np.asarray(a, dtype=object) for a in arrays], options)
        return _mapped(lambda x: float(pyo.value(x)), found)

    compare_lowering(node.atom, "pyomo", evaluate, options)
