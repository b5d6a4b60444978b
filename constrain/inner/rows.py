"""Tensors in the place of parameters: axes of rows in front, own values of those that are no inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from constrain.errors import ModelingError
from constrain.runtime.binding import as_array

if TYPE_CHECKING:
    from collections.abc import Sequence

    from constrain.language import nodes as n

__all__ = ["Given"]


@dataclass(frozen=True)
class Given:
    """The inputs of a call.

    Attributes:
        what: `value`, `argmin`, `layer` or `fixed point`, for messages.
        symbols: the parameters that are inputs.
        tensors: one per input, with axes of rows in front of its shape or none.
    """

    what: str
    symbols: tuple[n.ParameterSymbol, ...]
    tensors: tuple[Tensor, ...]

    @staticmethod
    def of(what: str, symbols: Sequence[n.ParameterSymbol], values: Sequence[Any]) -> Given:
        """Of tensors, arrays or numbers.

        Raises:
            ModelingError: E112 (their number).
        """
        if len(values) != len(symbols):
            names = ", ".join(symbol.name for symbol in symbols)
            takes = f"{len(symbols)} inputs ({names})" if names else "no inputs: it has no Parameter"
            raise ModelingError(
                "E112",
                f"the {what} takes {takes}, got {len(values)}",
                fix=f"layer({names})" if names else 'cn.Parameter("c", shape=...) in the problem',
            )
        tensors = [t if isinstance(t, Tensor) else torch.as_tensor(as_array(t).copy()) for t in values]
        return Given(what, tuple(symbols), tuple(tensors))

    @property
    def lead(self) -> tuple[int, ...]:
        """The axes in front of the shapes of the inputs, which have to broadcast (E112)."""
        leads: list[tuple[int, ...]] = []
        for symbol, t in zip(self.symbols, self.tensors, strict=True):
            cut = t.dim() - len(symbol.shape)
            if cut < 0 or tuple(t.shape[cut:]) != symbol.shape:
                where = "fixed point" if self.what == "fixed point" else "inner problem"
                rows = ", ".join(map(str, ("rows", *symbol.shape)))
                raise ModelingError(
                    "E112",
                    f"Parameter {symbol.name!r} of the {where} has shape {symbol.shape}, "
                    f"its tensor {tuple(t.shape)}",
                    fix=f"a tensor of shape {symbol.shape}, or ({rows})",
                )
            leads.append(tuple(t.shape[:cut]))
        try:
            return tuple(torch.broadcast_shapes(*leads))
        except RuntimeError:
            listed = ", ".join(f"{s.name} {lead}" for s, lead in zip(self.symbols, leads, strict=True))
            raise ModelingError("E112", f"the rows of the inputs differ in number: {listed}") from None

    @property
    def kind(self) -> torch.dtype:
        """The floating type that the inputs share, of the answers."""
        found = torch.get_default_dtype() if not self.tensors else self.tensors[0].dtype
        for t in self.tensors:
            found = torch.promote_types(found, t.dtype)
        return found if found.is_floating_point else torch.get_default_dtype()

    @property
    def device(self) -> torch.device:
        """Where the inputs are, and the answers."""
        return self.tensors[0].device if self.tensors else torch.device("cpu")

    @property
    def home(self) -> torch.device:
        """Where float64 is computed."""
        return torch.device("cpu") if self.device.type == "mps" else self.device

    def flattened(self, symbols: Sequence[n.ParameterSymbol]) -> tuple[list[Tensor], list[bool], int]:
        """All parameters in float64, those with rows flattened to one axis; which have rows; their number.

        Args:
            symbols: inputs and others, which have their own values (E127).
        """
        lead = self.lead
        batch = math.prod(lead)
        own = dict(zip(self.symbols, self.tensors, strict=True))
        tensors: list[Tensor] = []
        batched: list[bool] = []
        for symbol in symbols:
            t = own.get(symbol)
            t = _own_value(symbol) if t is None else t
            t = t.to(device=self.home, dtype=torch.float64)
            many = t.dim() > len(symbol.shape)
            tensors.append(t.expand((*lead, *symbol.shape)).reshape((batch, *symbol.shape)) if many else t)
            batched.append(many)
        return tensors, batched, batch


def _own_value(symbol: n.ParameterSymbol) -> Tensor:
    if symbol.value is None:
        raise ModelingError(
            "E127",
            f"Parameter {symbol.name!r} of the inner problem has no value and is no input",
            fix=f"{symbol.name}.value = ..., or an input: at={{{symbol.name}: ...}}",
        )
    return torch.as_tensor(as_array(symbol.value).copy())
