"""Where a search over integers begins: at the decisions as they are, with the switches that they imply."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from constrain.backends.pyomo.package import pyo
from constrain.backends.pyomo.term import expression_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from constrain.backends.pyomo.build import Built

__all__ = ["start_of"]


def start_of(built: Built) -> list[tuple[Any, float]]:
    """Values of all discrete variables at the present decisions; empty where some are not known.

    Only these are given: the solver finds the others by a linear program, which also gives events their room.

    Args:
        built: a model; its variables take the present values.
    """
    own = {id(v) for v in built.discrete}
    known: dict[int, float] = {}
    for array, values in _present(built):
        numbers: list[float] = values.reshape(-1).tolist()
        for term, value in zip(array.reshape(-1), numbers, strict=True):
            number: int = next(iter(term.linear))
            variable = built.space.variables[number]
            held = min(max(value, built.space.lower[number]), built.space.upper[number])
            held = float(round(held)) if id(variable) in own else held
            variable.set_value(held, skip_validation=True)
            known[id(variable)] = held
    for event in built.events:
        margin = float(pyo.value(expression_of(event.margin), exception=False) or 0.0)
        holds = margin > 0 if event.strict else margin >= 0
        known[id(built.space.variables[next(iter(event.switch.linear))])] = float(holds)
    if any(id(v) not in known for v in built.discrete):
        return []
    return [(v, known[id(v)]) for v in built.discrete]


def _present(built: Built) -> Iterator[tuple[NDArray[Any], NDArray[np.float64]]]:
    """Terms of the decisions with their present values, where they have some."""
    for symbol, array in built.variables.items():
        if symbol.value is not None:
            yield array, np.asarray(symbol.value, dtype=np.float64).reshape(array.shape)
    for model, arrays in built.weights.items():
        parameters = dict(model.module.named_parameters())
        for name, array in arrays.items():
            yield array, parameters[name].detach().cpu().double().numpy().reshape(array.shape)
