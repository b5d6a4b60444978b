"""Probabilities that a loss takes for scores: a sigmoid, or a softmax, is applied twice."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from torch import nn

from constrain._lazy import language_printing
from constrain.analysis.models import last_layer
from constrain.analysis.once import once
from constrain.errors import ModelingWarning
from constrain.language import nodes as n

if TYPE_CHECKING:
    from constrain.lowering.program import Program

__all__ = ["warn_of_probabilities"]

_OF_SCORES = {"binary_cross_entropy_with_logits": "sigmoid", "cross_entropy": "softmax"}
"""Losses that turn scores into probabilities, and by what."""
_LAYERS = {nn.Sigmoid: "sigmoid", nn.Softmax: "softmax"}
_MOVING = ("index", "reshape", "transpose", "stack")


@once
def warn_of_probabilities(program: Program) -> None:
    """Warns (W219) of losses of scores that are given probabilities.

    The loss then cannot go below log(1 + exp(-1)) = 0.31, and is nearly flat: what is learned is wrong, and
    nothing else shows it.
    """
    for node in program.nodes:
        if isinstance(node, n.Apply) and node.atom in _OF_SCORES:
            twice = _last(node.args[0])
            if twice is not None:
                _warn(node, twice)


def _last(node: n.Node) -> str | None:
    """The function that made probabilities of an expression; None of another expression."""
    while isinstance(node, n.Apply) and node.atom in _MOVING:
        node = node.args[0]
    if isinstance(node, n.Apply):
        return node.atom if node.atom in _LAYERS.values() else None
    if isinstance(node, n.Call):
        layer = last_layer(node.model.module)
        return next((name for kind, name in _LAYERS.items() if type(layer) is kind), None)
    return None


def _warn(loss: n.Apply, made_by: str) -> None:
    text = language_printing().text
    own = _OF_SCORES[loss.atom]
    message = (
        f"{text(loss, limit=80)} takes scores and applies a {own} to them, but is given probabilities: "
        f"{text(loss.args[0], limit=40)} comes out of a {made_by}"
    )
    instead = (
        "F.binary_cross_entropy of probabilities" if own == "sigmoid" else "F.nll_loss of their logarithm"
    )
    warning = ModelingWarning(
        "W219", message, at=loss.loc, fix=f"the score itself, without the {made_by}; or {instead}"
    )
    if loss.loc is None:
        warnings.warn(warning, stacklevel=2)
    else:
        warnings.warn_explicit(warning, ModelingWarning, loss.loc.filename, loss.loc.line)
