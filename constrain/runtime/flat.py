"""Refuses derivatives that are zero whatever the weights are: the second derivative of a network of ReLUs.

Such a problem runs without a complaint and learns nothing, because the derivative has no gradient in the
weights. A derivative that is only zero at the start, as with a last layer of zeros, has one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from constrain._lazy import language_printing
from constrain.errors import ModelingError
from constrain.language import nodes as n
from constrain.language.types import type_of
from constrain.lowering.dependence import depends_on_decisions
from constrain.runtime.codegen import generate

if TYPE_CHECKING:
    from constrain.runtime.evaluator import Evaluator

__all__ = ["check_derivatives"]

ROWS = 64
"""Rows on which derivatives are looked at."""


def check_derivatives(evaluator: Evaluator) -> None:
    """Looks at every derivative that depends on decisions.

    Raises:
        ModelingError: E161 for one that is zero on all rows, with a gradient of zero in all decisions.
    """
    if evaluator.device.type == "meta":
        return
    seen: set[n.Node] = set()
    for node in n.postorder(*evaluator.program.roots):
        if isinstance(node, n.Gradient) and node not in seen and depends_on_decisions(node):
            seen.add(node)
            _check(evaluator, node)


def _check(evaluator: Evaluator, node: n.Gradient) -> None:
    data = type_of(node).rows
    if data not in evaluator.populations:
        return
    generated = generate("derivative", evaluator.tables, [(node, "exact")])
    rows = evaluator.populations[data].spread(ROWS)
    with torch.enable_grad():
        (value,) = evaluator.compute(generated, rows, data)
    if bool((value != 0).any()):
        return
    if value.requires_grad:
        tensors = evaluator.decisions.tensors
        slopes = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype, device=value.device)
        scalar = (value.reshape(-1) * slopes).sum()
        found = cast(
            "tuple[torch.Tensor | None, ...]", torch.autograd.grad(scalar, tensors, allow_unused=True)
        )
        if any(g is not None and bool((g != 0).any()) for g in found):
            return
    printed = language_printing()
    arg, wrt = printed.text(node.arg, limit=80), printed.text(node.wrt, limit=40)
    raise ModelingError(
        "E161",
        f"the derivative of {arg} with respect to {wrt} is zero for all weights: "
        "the model is piecewise linear there, as with ReLU",
        at=node.loc,
        fix="a smooth activation in the module: torch.nn.Tanh, GELU or SiLU",
    )
