"""Schemes of minibatch training: what one step of decisions and multipliers is."""

from constrain.solvers.schemes.descent_ascent import DescentAscent
from constrain.solvers.schemes.protocol import Scheme, State

__all__ = ["DescentAscent", "Scheme", "State"]
