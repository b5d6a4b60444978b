"""Optimal values and solutions of inner problems as differentiable functions of their parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from constrain.errors import ModelingError
from constrain.inner.convexity import Curvature, curvature_of
from constrain.inner.gradients import Value
from constrain.inner.program import Answer, Inner, compiled
from constrain.inner.rows import Given
from constrain.inner.watching import Valued, record
from constrain.language import nodes as n
from constrain.language.expr import Expr, as_number
from constrain.language.location import here
from constrain.language.types import type_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from constrain.language.problem import Problem

__all__ = ["Call", "Layer", "layer"]


@dataclass(frozen=True)
class Call:
    """An inner problem as a function of some of its parameters: what an expression records, and a layer runs.

    Attributes:
        problem: the inner problem.
        inputs: the parameters that are arguments, in order; the others have their own values.
        outputs: variables, names of constraints (their multipliers), or `"value"`.
        name: for printing.
    """

    problem: Problem
    inputs: tuple[n.ParameterSymbol, ...]
    outputs: tuple[Any, ...]
    name: Literal["value", "argmin", "layer"] = "layer"

    def __deepcopy__(self, _memo: Any) -> Call:
        """Itself: it does not change."""
        return self

    @property
    def curvature(self) -> Curvature | None:
        """Of an optimal value in its inputs; None of a solution, about which nothing is known."""
        return curvature_of(self.problem, self.inputs) if self.outputs == ("value",) else None

    def __call__(self, *tensors: Any) -> Any:
        """One tensor per input, each with the same leading axes in front of its shape, or none.

        Of expressions an expression is recorded.

        Raises:
            ModelingError: E112 (shapes), E127 (a parameter without value).
            RouteError: E192, E193.
        """
        if any(isinstance(t, Expr) for t in tensors):
            return self.recorded(tensors)
        given = Given.of(self.name, self.inputs, tensors)
        lead, kind = given.lead, given.kind
        if any(t.device.type == "meta" for t in given.tensors):
            return self._packed([torch.empty((*lead, *s), dtype=kind, device="meta") for s in self._shapes()])
        inner = compiled(self.problem, solution=self.outputs != ("value",))
        parameters, batched, batch = given.flattened(inner.functions.parameters)
        found = self._outputs(inner, parameters, batched, batch) if batch else self._empty(given)
        shaped = [v.reshape((*lead, *s)) for v, s in zip(found, self._shapes(), strict=True)]
        return self._packed([v.to(device=given.device, dtype=kind) for v in shaped])

    def recorded(self, tensors: Sequence[Any]) -> Expr:
        """The call as an expression.

        Raises:
            ModelingError: E189 for several outputs.
        """
        if len(self.outputs) > 1:
            raise ModelingError(
                "E189",
                "an expression is one output of an inner problem",
                at=here(),
                fix="one cn.argmin(...) for each; the inner problem is solved once per call",
            )
        nodes = tuple(as_number(x) for x in tensors)
        return Expr(n.Opaque(f"constrain.{self.name}", self, nodes, loc=here()))

    @staticmethod
    def _packed(found: list[Tensor]) -> Any:
        return found[0] if len(found) == 1 else tuple(found)

    def _outputs(
        self, inner: Inner, parameters: list[Tensor], batched: list[bool], batch: int
    ) -> list[Tensor]:
        answer = inner.solutions(parameters, batched, batch)
        split = inner.functions.split(answer.x)
        found: list[Tensor] = []
        for wanted in self.outputs:
            if not isinstance(wanted, str):
                found.append(split[wanted])
            elif wanted == "value":
                found.append(inner.structure.program.sign * _value(inner, answer, batched, parameters))
            else:
                found.append(_multiplier(inner, answer, wanted))
        return found

    def _empty(self, given: Given) -> list[Tensor]:
        """Of no rows: nothing is solved, and the gradient of every input is zero."""
        home, kind = given.home, torch.float64
        link = sum((0.0 * t.sum().to(device=home, dtype=kind) for t in given.tensors), torch.zeros(()))
        return [torch.zeros((0, *s), dtype=kind, device=home) + link for s in self._shapes()]

    def _shapes(self) -> list[tuple[int, ...]]:
        shapes: list[tuple[int, ...]] = []
        for wanted in self.outputs:
            if not isinstance(wanted, str):
                shapes.append(wanted.shape)
            elif wanted == "value":
                shapes.append(())
            else:
                shapes.append(_shape_of(self.problem, wanted))
        return shapes


def _value(inner: Inner, answer: Answer, batched: list[bool], parameters: list[Tensor]) -> Tensor:
    functions = inner.functions
    if answer.solved is None:
        return functions.batch(functions.objective, batched)(answer.x, *parameters)
    points = (answer.x, answer.z, answer.y)
    value = cast("Tensor", Value.apply(inner, tuple(batched), answer.solved, *points, *parameters))
    record(Valued(inner, tuple(batched), parameters, answer.solved, value))
    return value


def _multiplier(inner: Inner, answer: Answer, name: str) -> Tensor:
    """Multipliers of a user's constraint: the sum over its parts; of `abs(e) <= b` upper minus lower."""
    pieces: list[Tensor] = []
    form = next(form for form in inner.structure.program.forms if form.name == name)
    for part in form.parts:
        if answer.closed is not None:
            pieces.append(answer.closed.multipliers[part.key])
            continue
        source, group = (
            (answer.y, inner.structure.equalities)
            if part.kind == "=="
            else (answer.z, inner.structure.inequalities)
        )
        start = 0
        for term in group:
            if term.key == part.key:
                pieces.append(source[:, start : start + term.size])
                break
            start += term.size
    return torch.stack(pieces).sum(0)


def _shape_of(problem: Problem, name: str) -> tuple[int, ...]:
    form = next(f for f in compiled(problem).structure.program.forms if f.name == name)
    return type_of(form.parts[0].residual).shape or ()


class Layer(nn.Module):
    """The solution of an inner problem as a layer of a torch model. It has no weights.

    `forward` takes one tensor per input, with any number of axes of rows in front of the parameter's shape
    (the same for all inputs, or none), and returns one tensor per output, in the type and on the device of
    the inputs. It computes in float64.

    Attributes:
        route: how the problem is solved, in words.
    """

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call
        self.inner = compiled(call.problem, solution=call.outputs != ("value",))

    @property
    def route(self) -> str:
        """How the problem is solved, in words."""
        return self.inner.route

    def forward(self, *tensors: Tensor) -> Any:
        """Solves the problem in every row."""
        return self.call(*tensors)

    def extra_repr(self) -> str:
        """Inputs, outputs and route."""
        inputs = ", ".join(symbol.name for symbol in self.call.inputs)
        outputs = ", ".join(o if isinstance(o, str) else o.name for o in self.call.outputs)
        return f"({inputs}) -> ({outputs}), {self.route}"


def layer(call: Call) -> Layer:
    """The layer of a call."""
    return Layer(call)
