"""Fixed points as functions of parameters: what an expression records, and a layer of a torch model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from constrain.errors import ModelingError
from constrain.inner.fixed import SMALL, Equation, Fixed, Root, compiled_equation
from constrain.inner.rows import Given
from constrain.language import nodes as n
from constrain.language.expr import Expr, as_number
from constrain.language.location import here
from constrain.language.types import type_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FixedPoint", "Implicit"]


@dataclass(frozen=True)
class Implicit:
    """The fixed point of an equation as a function of its inputs and of the weights of its trained models.

    Attributes:
        equation: `z == F(z)`.
        inputs: the parameters that are arguments, in order; the others have their own values.
    """

    equation: Equation
    inputs: tuple[n.ParameterSymbol, ...]

    def __deepcopy__(self, _memo: Any) -> Implicit:
        """Itself: it does not change."""
        return self

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of a row of the fixed point, known without running it."""
        return self.equation.unknown.shape

    def __call__(self, *tensors: Any) -> Any:
        """One tensor per input, then the flat weights of each trained model.

        Raises:
            ModelingError: E112 (shapes), E127 (a parameter without value).
            RouteError: E193 (no fixed point found in a row).
        """
        count = len(self.inputs)
        if any(isinstance(t, Expr) for t in tensors):
            return self.recorded(tensors[:count])
        given = Given.of("fixed point", self.inputs, tensors[:count])
        lead, shape = given.lead, self.row_shape
        kind = given.kind if given.tensors else _kind(tensors[count:])
        if any(t.device.type == "meta" for t in given.tensors):
            return torch.empty((*lead, *shape), dtype=kind, device="meta")
        root = compiled_equation(self.equation)
        parameters, batched, batch = given.flattened(root.parameters)
        weights = [t.to(device=given.home, dtype=torch.float64) for t in tensors[count:]]
        if not batch:
            link = sum((0.0 * t.sum() for t in (*parameters, *weights)), torch.zeros(()))
            return (torch.zeros((*lead, *shape), dtype=torch.float64) + link).to(given.device, kind)
        flags = (*batched, *(False for _ in weights))
        found = cast("Tensor", Fixed.apply(root, flags, batch, *parameters, *weights))
        return found.reshape((*lead, *shape)).to(device=given.device, dtype=kind)

    def check_number(self, inputs: Sequence[Any]) -> None:
        """Raises E112 for more or fewer inputs than there are."""
        if len(inputs) != len(self.inputs):
            names = ", ".join(symbol.name for symbol in self.inputs)
            text = f"the fixed point takes {len(self.inputs)} inputs ({names}), got {len(inputs)}"
            raise ModelingError("E112", text, at=here())

    def recorded(self, inputs: Sequence[Any]) -> Expr:
        """The fixed point as an expression of its inputs; trained models in it are decisions.

        Raises:
            ModelingError: E112 (shapes).
        """
        self.check_number(inputs)
        nodes = tuple(as_number(x) for x in inputs)
        for symbol, node in zip(self.inputs, nodes, strict=True):
            shape = type_of(node).shape
            if shape is not None and shape != symbol.shape:
                raise ModelingError(
                    "E112",
                    f"Parameter {symbol.name!r} of the fixed point has shape {symbol.shape}, "
                    f"what stands in its place {shape} per row",
                    at=here(),
                )
        weights = tuple(n.Weights(model, loc=here()) for model in self.equation.models)
        return Expr(n.Opaque("constrain.fixed_point", self, (*nodes, *weights), loc=here()))


def _kind(weights: Sequence[Tensor]) -> torch.dtype:
    return weights[0].dtype if weights else torch.get_default_dtype()


class FixedPoint(nn.Module):
    """The solution of `z == F(z, inputs)` as a layer of a torch model. Its weights are those of models in F.

    `forward` takes one tensor per input, with any number of axes of rows in front of the parameter's shape
    (the same for all inputs, or none), and returns the fixed points in the type and on the device of the
    inputs. It computes in float64. Called with expressions it is recorded.
    """

    def __init__(self, call: Implicit) -> None:
        super().__init__()
        self.call = call
        self.models = nn.ModuleList([model.module for model in call.equation.models])

    @property
    def root(self) -> Root:
        """The compiled equation."""
        return compiled_equation(self.call.equation)

    @property
    def route(self) -> str:
        """How the equation is solved, in words."""
        size = self.root.size
        if self.root.small:
            return f"Anderson acceleration, then Newton's method with matrices ({size} numbers <= {SMALL})"
        return f"Anderson acceleration, Newton's method by GMRES where it fails ({size} numbers > {SMALL})"

    def forward(self, *inputs: Any) -> Any:
        """The fixed point in every row."""
        if any(isinstance(t, Expr) for t in inputs):
            return self.call.recorded(inputs)
        self.call.check_number(inputs)
        weights = [
            torch.cat([p.reshape(-1) for p in module.parameters() if p.requires_grad])
            for module in self.models
        ]
        return self.call(*inputs, *weights)

    def extra_repr(self) -> str:
        """Inputs, unknown and route."""
        inputs = ", ".join(symbol.name for symbol in self.call.inputs)
        return f"({inputs}) -> {self.call.equation.unknown.name}, {self.route}"
