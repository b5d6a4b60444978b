"""Schemes of minibatch training: what one step of decisions and multipliers is, by name and by options."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from constrain.errors import ModelingError
from constrain.runtime.ascent import Mirror, NuPI
from constrain.solvers.schemes.descent_ascent import DescentAscent
from constrain.solvers.schemes.dual_descent import DualDescent
from constrain.solvers.schemes.extragradient import Extragradient, Optimistic
from constrain.solvers.schemes.penalty import Penalty
from constrain.solvers.schemes.protocol import Scheme, State
from constrain.solvers.schemes.switching import Switching
from constrain.solvers.schemes.tiada import TiAda

if TYPE_CHECKING:
    from constrain.runtime.ascent import Ascent

__all__ = [
    "DUALS",
    "SCHEMES",
    "DescentAscent",
    "DualDescent",
    "Extragradient",
    "Mirror",
    "NuPI",
    "Optimistic",
    "Penalty",
    "Scheme",
    "State",
    "Switching",
    "TiAda",
    "dual_of",
    "scheme_of",
]

SCHEMES: dict[str, Scheme] = {
    "simultaneous": DescentAscent("simultaneous"),
    "alternating": DescentAscent("alternating"),
    "dual-first": DescentAscent("dual-first"),
    "extragradient": Extragradient(),
    "optimistic": Optimistic(),
    "penalty": Penalty(),
    "dual-descent": DualDescent(),
    "switching": Switching(),
    "tiada": TiAda(),
}
"""Schemes with their usual options, by the name that `solve(scheme=)` takes."""
DUALS: dict[str, Ascent | None] = {
    "pi": None,
    "plain": None,
    "nupi": NuPI(),
    "optimistic": NuPI(gain=None, memory=0.0),
    "mirror": Mirror(),
}
"""Rules of the multipliers that `solve(dual=)` takes by name; None for what the Lagrangian does itself."""


def scheme_of(asked: Scheme | str) -> Scheme:
    """A scheme, or the one of a name with its usual options.

    Raises:
        ModelingError: E141 for an unknown name, or something that is no scheme.
    """
    found = SCHEMES.get(asked) if isinstance(asked, str) else asked
    if not isinstance(found, Scheme):
        known = ", ".join(map(repr, SCHEMES))
        raise ModelingError(
            "E141",
            f"no scheme is called {asked!r}",
            fix=f"one of {known}, or an object of constrain.solvers.schemes",
        )
    return found


def dual_of(
    asked: Ascent | str | None, gain: float | None, memory: float | None
) -> tuple[Ascent | None, str | None]:
    """A rule of the multipliers, None for the Lagrangian's own, and its name, None where nothing was asked.

    Args:
        asked: the rule, or its name.
        gain: proportional gain, where the user asks for one.
        memory: of the running residual, where the user asks for one.

    Raises:
        ModelingError: E141 for an unknown name, something that is no rule, or no decay; E208 for a gain or
            memory that the rule does not have.
    """
    if memory is not None and not 0 <= memory < 1:
        raise ModelingError("E141", f"memory={memory!r} is not a decay in [0, 1)", fix="memory=0.95")
    if asked is None:
        return None, None
    name = asked if isinstance(asked, str) else type(asked).__name__.lower()
    rule = DUALS.get(asked) if isinstance(asked, str) else asked
    if (isinstance(asked, str) and asked not in DUALS) or (rule is not None and not hasattr(rule, "moved")):
        known = ", ".join(map(repr, DUALS))
        raise ModelingError(
            "E141",
            f"no rule of the multipliers is called {asked!r}",
            fix=f"one of {known}, or NuPI(...) or Mirror(...) of constrain.solvers.schemes",
        )
    if name == "pi":
        return None, name
    if isinstance(asked, str) and asked == "nupi":
        own = NuPI()
        gain, memory = own.gain if gain is None else gain, own.memory if memory is None else memory
        return replace(own, gain=gain, memory=memory), name
    if gain or memory is not None:
        option = "gain" if gain else "memory"
        raise ModelingError("E208", f"dual={asked!r} has no {option}=", fix=f'dual="pi", or no {option}=')
    return rule, name
