"""Steps over continuous populations: what quadrature with few points cannot average."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from constrain._lazy import language_printing
from constrain.errors import ModelingWarning
from constrain.language import nodes as n
from constrain.language.regions import Region

if TYPE_CHECKING:
    from constrain.lowering.program import Program

__all__ = ["warn_of_steps"]

_SMOOTH_RULES = ("gauss", "trapezoid")


def warn_of_steps(program: Program) -> None:
    """Warns (W214) of rates, conditions and quantiles over points that are made for smooth functions.

    Gauss points integrate polynomials exactly; the average of a step they know up to the weight of one
    point, and nothing in their values says how far they are off.
    """
    seen: set[str] = set()
    for moment in program.moments:
        steps = any(isinstance(x, n.Indicator) for x in n.postorder(moment.integrand))
        if steps or moment.given is not None:
            _warn(moment.data, moment, seen)
    for tail in program.tails:
        if tail.level is not None:
            _warn(tail.data, tail.integrand, seen)


def _warn(data: object, node: n.Node, seen: set[str]) -> None:
    if not isinstance(data, Region) or data.rule not in _SMOOTH_RULES or data.name in seen:
        return
    seen.add(data.name)
    warning = ModelingWarning(
        "W214",
        f"{language_printing().text(node, limit=80)} is a step over {data.name!r}, whose {len(data)} points "
        f"({data.rule}) integrate smooth functions: it is off by up to the weight of a point",
        at=node.loc,
        fix=f'rule="sobol", size=4096 where {data.name!r} is declared',
    )
    if node.loc is None:
        warnings.warn(warning, stacklevel=2)
    else:
        warnings.warn_explicit(warning, ModelingWarning, node.loc.filename, node.loc.line)
