"""The functions of an inner problem on a batch: objective, residuals and their derivatives, in float64.

Variables are one flat vector x of length n per row, inequality residuals one vector of length m (those of the
constraints, then those of the bounds of variables), equality residuals one of length p. A parameter is one
tensor for all rows, or has an axis of rows in front.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import grad, jacrev, vmap

from constrain.analysis.models import on_host
from constrain.language.types import type_of
from constrain.runtime.binding import as_array
from constrain.runtime.codegen import Tables, generate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from constrain.inner.structure import Structure, Term
    from constrain.language import nodes as n

__all__ = ["Batched", "Functions"]

Batched = tuple[list[Tensor], list[bool]]
"""Tensors of the parameters, and whether each has an axis of rows in front."""
_Fixed = tuple[list[nn.Module], list[Tensor]]
"""Copies of models, and values of arrays, on one device."""


class Functions:
    """Objective and residuals of an inner problem as generated code.

    Args:
        structure: the inner problem.

    Attributes:
        size: number of variables n.
        own: number of those that the user declared; they come first.
        lower: (n,) lower bounds of the variables, -inf where there are none.
        upper: (n,) upper bounds.
    """

    def __init__(self, structure: Structure) -> None:
        self.structure = structure
        self.size = structure.size
        self.own = self.size - sum(math.prod(symbol.shape) for symbol in structure.corners)
        self.parameters = structure.program.parameters
        self._fixed: list[tuple[Tables, dict[torch.device, _Fixed]]] = []
        self.low, self.high = _bounds(structure)
        self._below = torch.as_tensor(np.flatnonzero(np.isfinite(self.low)))
        self._above = torch.as_tensor(np.flatnonzero(np.isfinite(self.high)))
        rows = [term.node for term in (*structure.inequalities, *structure.equalities)]
        self._evaluate = self.of(structure.objective, *rows)
        self._cut = len(structure.inequalities) + 1

    @property
    def inequalities(self) -> int:
        """Number m of inequality residuals, those of bounds included."""
        return sum(t.size for t in self.structure.inequalities) + len(self._below) + len(self._above)

    @property
    def equalities(self) -> int:
        """Number p of equality residuals."""
        return sum(t.size for t in self.structure.equalities)

    @property
    def moving(self) -> Tensor:
        """(m + p,) whether each inequality and each equality depends on a parameter; bounds do not."""
        known = self.structure

        def flags(group: Sequence[Term]) -> list[bool]:
            return [t.terms is None or any(t.terms.values()) for t in group for _ in range(t.size)]

        bounds = [False] * (len(self._below) + len(self._above))
        return torch.tensor([*flags(known.inequalities), *bounds, *flags(known.equalities)], dtype=torch.bool)

    def bounds_of(self, places: Tensor) -> Tensor:
        """Positions among the inequalities of the bounds of these entries of x."""
        start = sum(t.size for t in self.structure.inequalities)
        where = torch.cat([self._below, self._above])
        return torch.isin(where, places).nonzero()[:, 0] + start

    # ---- generated code
    def of(self, *roots: n.Node) -> Callable[[Tensor, Sequence[Tensor]], list[Tensor]]:
        """Expressions as a function of one row: (x (n,), parameters) -> a tensor each."""
        tables = Tables()
        generated = generate("inner", tables, [(root, "exact") for root in roots])
        fixed: dict[torch.device, _Fixed] = {}
        self._fixed.append((tables, fixed))
        self.place(torch.device("cpu"))

        def number(value: Any) -> Tensor:
            return torch.as_tensor(value, dtype=torch.float64)

        def run(x: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
            known = dict(zip(self.parameters, parameters, strict=True))
            split = self.split(x)
            variables = [split[symbol] for symbol in tables.variables]
            knobs = [known[symbol] for symbol in tables.parameters]
            modules, constants = fixed[x.device]
            inputs: tuple[Any, ...] = ({}, variables, modules, [], knobs, constants, [], [])
            found = generated.function(*inputs, torch.float64, number, None)
            return [v if isinstance(v, Tensor) else number(v) for v in found]

        return run

    def place(self, device: torch.device) -> None:
        """Puts models and constants on a device; never inside of a transform of `torch.func`."""
        for tables, held in self._fixed:
            if device not in held:
                copies = [on_host(model.module).to(device) for model in tables.models]
                modules = [own.requires_grad_(False) for own in copies]
                held[device] = modules, [_constant(symbol, device) for symbol in tables.arrays]

    def split(self, x: Tensor) -> dict[n.VariableSymbol, Tensor]:
        """Each variable in its shape, out of flat vectors (..., n)."""
        found: dict[n.VariableSymbol, Tensor] = {}
        start = 0
        for symbol in self.structure.variables:
            count = math.prod(symbol.shape)
            found[symbol] = x[..., start : start + count].reshape((*x.shape[:-1], *symbol.shape))
            start += count
        return found

    def join(self, values: dict[n.VariableSymbol, Any]) -> Tensor:
        """The flat vector (n,) of values by variable; 0 for those that are left out."""
        pieces = [
            torch.as_tensor(as_array(values[s]).copy(), dtype=torch.float64).reshape(-1)
            if s in values
            else torch.zeros(math.prod(s.shape), dtype=torch.float64)
            for s in self.structure.variables
        ]
        return torch.cat(pieces)

    # ---- one row
    def objective(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """The objective of one row, ()."""
        return self._evaluate(x, parameters)[0].reshape(())

    def residuals(self, x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Inequality and equality residuals of one row, (m,) and (p,)."""
        _, below, equal = self.everything(x, *parameters)
        return below, equal

    def everything(self, x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Objective and residuals of one row, (), (m,) and (p,)."""
        found = self._evaluate(x, parameters)
        low = torch.as_tensor(self.low, device=x.device)[self._below]
        high = torch.as_tensor(self.high, device=x.device)[self._above]
        terms = (*self.structure.inequalities, *self.structure.equalities)
        rows = [v.expand(_shape(t.node)).reshape(-1) for v, t in zip(found[1:], terms, strict=True)]
        empty = x.new_zeros(0)
        bounds = [low - x[self._below], x[self._above] - high]
        below = torch.cat([*rows[: self._cut - 1], *bounds])
        return found[0].reshape(()), below, torch.cat([empty, *rows[self._cut - 1 :]])

    def lagrangian(self, x: Tensor, z: Tensor, y: Tensor, *parameters: Tensor) -> Tensor:
        """f + z·g + y·h of one row, ()."""
        value, below, equal = self.everything(x, *parameters)
        return value + z @ below + y @ equal

    # ---- a batch
    def batch(
        self, function: Callable[..., Any], batched: Sequence[bool], own: int = 1
    ) -> Callable[..., Any]:
        """A function of one row as one of a batch; its first `own` arguments have an axis of rows."""
        return vmap(function, in_dims=(*(0 for _ in range(own)), *(0 if b else None for b in batched)))

    def curvature(self, batched: Sequence[bool]) -> Callable[..., Tensor]:
        """Hessian of the Lagrangian, (x, z, y, *parameters) -> (B, n, n)."""
        return self.batch(jacrev(grad(self.lagrangian)), batched, 3)

    def slopes(self, batched: Sequence[bool]) -> Callable[..., tuple[Tensor, Tensor]]:
        """Jacobians of the residuals, (x, *parameters) -> (B, m, n), (B, p, n)."""
        return self.batch(jacrev(self.residuals), batched)


def _shape(node: n.Node) -> tuple[int, ...]:
    """Shape of an expression, known since the structure was built."""
    return type_of(node).shape or ()


def _constant(symbol: n.ArraySymbol, device: torch.device) -> Tensor:
    given = symbol.value
    value = given if isinstance(given, Tensor) else torch.as_tensor(as_array(given).copy())
    kind = torch.float64 if value.is_floating_point() else value.dtype
    return value.detach().to(device=device, dtype=kind)


def _bounds(structure: Structure) -> tuple[Any, Any]:
    """Bounds of the flat vector of all variables, infinite where there are none."""
    lows: list[Any] = []
    highs: list[Any] = []
    for symbol in structure.variables:
        low, high = symbol.bounds or (None, None)
        if symbol.boolean:
            low, high = 0.0, 1.0
        ends: list[Any] = []
        for bound, free in ((low, -np.inf), (high, np.inf)):
            value = free if bound is None else np.asarray(as_array(bound), dtype=np.float64)
            ends.append(np.broadcast_to(value, symbol.shape).reshape(-1).astype(np.float64))
        lows.append(np.maximum(ends[0], 0.0) if symbol.nonneg else ends[0])
        highs.append(ends[1])
    return np.concatenate(lows), np.concatenate(highs)
