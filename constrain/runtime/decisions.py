"""The decisions of a program as tensors: `Variable`s and the trainable parameters of its models."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from constrain.errors import ModelingError
from constrain.language.data import suggest
from constrain.runtime.binding import as_array

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from numpy.typing import NDArray

    from constrain.language import nodes as n
    from constrain.lowering.program import Program

__all__ = ["Block", "Decisions", "limits", "precision"]


@dataclass(frozen=True)
class Block:
    """One decision tensor.

    Attributes:
        name: `w` for a variable, `f.0.weight` for a parameter of model `f`.
        tensor: the leaf that solvers change in place.
        lower: lower bounds of the tensor's shape, or None.
        upper: upper bounds, or None.
    """

    name: str
    tensor: Tensor
    lower: NDArray[Any] | None = None
    upper: NDArray[Any] | None = None


def _full(bound: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """A bound for every entry; a copy, since torch takes no read-only arrays."""
    return np.broadcast_to(np.asarray(as_array(bound), dtype=np.float64), shape).copy()


def _like(tensor: Tensor, bound: NDArray[Any] | None) -> Tensor | None:
    return None if bound is None else torch.as_tensor(bound).to(tensor)


def _bounds(symbol: n.VariableSymbol) -> tuple[NDArray[Any] | None, NDArray[Any] | None]:
    low, high = symbol.bounds if symbol.bounds is not None else (None, None)
    if symbol.boolean:
        low, high = 0.0, 1.0
    lower = None if low is None else _full(low, symbol.shape)
    upper = None if high is None else _full(high, symbol.shape)
    if symbol.nonneg:
        lower = np.zeros(symbol.shape) if lower is None else np.maximum(lower, 0.0)
    if symbol.symmetric:  # both places of an entry share its bounds
        lower = None if lower is None else np.maximum(lower, lower.T)
        upper = None if upper is None else np.minimum(upper, upper.T)
    if lower is not None and upper is not None and (lower > upper).any():
        raise ModelingError("E136", f"Variable {symbol.name!r} has a lower bound above its upper bound")
    return lower, upper


def limits(symbol: n.VariableSymbol) -> tuple[NDArray[Any], NDArray[Any]]:
    """Lower and upper bounds of every entry of a variable, infinite where there are none (E136)."""
    lower, upper = _bounds(symbol)
    open_ends = np.full(symbol.shape, -np.inf), np.full(symbol.shape, np.inf)
    return open_ends[0] if lower is None else lower, open_ends[1] if upper is None else upper


def _start(symbol: n.VariableSymbol, lower: NDArray[Any] | None, upper: NDArray[Any] | None) -> NDArray[Any]:
    """The user's start, else a point inside of the bounds, which integers round down."""
    if symbol.value is not None:
        value = np.array(as_array(symbol.value), dtype=np.float64).reshape(symbol.shape)
        value = (value + value.T) / 2 if symbol.symmetric else value
        return np.clip(value, -np.inf if lower is None else lower, np.inf if upper is None else upper)
    if lower is None and upper is None:
        return np.zeros(symbol.shape)
    if lower is None:
        assert upper is not None  # narrows the type
        return np.minimum(0.0, upper - 1.0)
    high = np.full(symbol.shape, np.inf) if upper is None else upper
    inside = np.where(np.isfinite(high), (lower + np.minimum(high, lower + 2.0)) / 2, lower + 1.0)
    return np.maximum(np.floor(inside), np.ceil(lower)) if symbol.integer or symbol.boolean else inside


class Decisions:
    """All decision tensors of a program, in a fixed order: variables first, then models by parameter name.

    Solvers read and write `blocks`; full-batch solvers use the flat float64 vector of `get` and `set`.
    """

    def __init__(self, program: Program, device: torch.device, dtype: torch.dtype) -> None:
        self.program = program
        self.device = device
        self.variables: dict[n.VariableSymbol, Tensor] = {}
        self._bounded: list[tuple[Tensor, Tensor | None, Tensor | None]] | None = None
        self.blocks: list[Block] = []
        for symbol in program.variables:
            lower, upper = _bounds(symbol)
            start = torch.as_tensor(_start(symbol, lower, upper), dtype=dtype, device=device)
            self.variables[symbol] = start.clone().requires_grad_(True)
            self.blocks.append(Block(symbol.name, self.variables[symbol], lower, upper))
        for model in program.models:
            if not model.frozen:
                for name, parameter in model.module.named_parameters():
                    if parameter.requires_grad:
                        self.blocks.append(Block(f"{model.name}.{name}", parameter))
        if not self.blocks:
            raise ModelingError(
                "E126",
                "the problem has no decisions: every model is frozen and there is no Variable",
                fix="cn.Model(net)",
            )

    def replace(self, symbol: n.VariableSymbol, tensor: Tensor) -> None:
        """Takes a variable's tensor from other decisions, which then share it."""
        place = list(self.variables).index(symbol)
        self.variables[symbol] = tensor
        self._bounded = None
        self.blocks[place] = replace(self.blocks[place], tensor=tensor)

    def pin(self, symbol: n.VariableSymbol, chosen: NDArray[np.bool_]) -> None:
        """Fixes the chosen entries of a variable at 0, if its bounds allow 0 there."""
        place = list(self.variables).index(symbol)
        low, high = limits(symbol)
        if not ((low <= 0) & (high >= 0))[chosen].all():
            return
        tensor = self.variables[symbol]
        lower, upper = (np.where(chosen, 0.0, end) for end in (low, high))
        self.blocks[place] = replace(self.blocks[place], lower=lower, upper=upper)
        self._bounded = None
        with torch.no_grad():
            tensor[torch.as_tensor(chosen.copy(), device=tensor.device)] = 0.0

    @property
    def tensors(self) -> list[Tensor]:
        """The leaves."""
        return [block.tensor for block in self.blocks]

    @property
    def size(self) -> int:
        """Number of scalar decisions."""
        return sum(t.numel() for t in self.tensors)

    # ---- the flat vector
    def get(self) -> NDArray[np.float64]:
        """All decisions as one float64 vector (a copy)."""
        return np.concatenate([t.detach().cpu().double().numpy().reshape(-1) for t in self.tensors])

    def set(self, flat: NDArray[Any]) -> None:
        """Writes a flat vector into the tensors, in place."""
        start = 0
        with torch.no_grad():
            for t in self.tensors:
                piece = flat[start : start + t.numel()]
                t.copy_(torch.as_tensor(piece, dtype=t.dtype).reshape(t.shape))
                start += t.numel()
        self._symmetrize()

    def _symmetrize(self) -> None:
        """Takes the symmetric part of symmetric variables, in place.

        A program depends on that part alone, so nothing else holds back a step in the rest.
        """
        with torch.no_grad():
            for symbol, tensor in self.variables.items():
                if symbol.symmetric:
                    tensor.copy_((tensor + tensor.T) / 2)

    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lower and upper bounds of the flat vector, infinite where there are none."""
        lows: list[NDArray[np.float64]] = []
        highs: list[NDArray[np.float64]] = []
        for block in self.blocks:
            size = block.tensor.numel()
            lows.append(np.full(size, -np.inf) if block.lower is None else block.lower.reshape(-1))
            highs.append(np.full(size, np.inf) if block.upper is None else block.upper.reshape(-1))
        return np.concatenate(lows), np.concatenate(highs)

    def integers(self) -> NDArray[np.bool_]:
        """Coordinates of the flat vector that are whole numbers."""
        variables = [symbol.integer or symbol.boolean for symbol in self.variables]
        whole = variables + [False] * (len(self.blocks) - len(variables))
        sizes = [block.tensor.numel() for block in self.blocks]
        return np.repeat(np.array(whole, dtype=np.bool_), sizes)

    def project(self) -> None:
        """Clips bounded variables in place (no host synchronization)."""
        with torch.no_grad():
            for tensor, low, high in self._limits():
                tensor.clamp_(low, high)

    def _limits(self) -> list[tuple[Tensor, Tensor | None, Tensor | None]]:
        """Every bounded tensor with its bounds as tensors, made once."""
        if self._bounded is None:
            bounded = [b for b in self.blocks if b.lower is not None or b.upper is not None]
            self._bounded = [(b.tensor, _like(b.tensor, b.lower), _like(b.tensor, b.upper)) for b in bounded]
        return self._bounded

    # ---- snapshots
    def snapshot(self) -> dict[str, Tensor]:
        """Copies of all decisions and of the models' buffers, by name."""
        state = {block.name: block.tensor.detach().clone() for block in self.blocks}
        for model in self.program.models:
            for name, buffer in model.module.named_buffers():
                state[f"{model.name}.{name}"] = buffer.detach().clone()
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Writes a snapshot back, in place.

        Raises:
            ModelingError: E137 when the snapshot lacks a decision or has another shape.
        """
        with torch.no_grad():
            for block in self.blocks:
                value = state.get(block.name)
                if value is None or value.shape != block.tensor.shape:
                    raise ModelingError(
                        "E137",
                        f"the saved point has no {block.name!r} of this shape{suggest(block.name, state)}",
                    )
                block.tensor.copy_(value)
            for model in self.program.models:
                for name, buffer in model.module.named_buffers():
                    value = state.get(f"{model.name}.{name}")
                    if value is not None:
                        buffer.copy_(value)

    def write_back(self) -> None:
        """Gives the user's `Variable`s their values as NumPy arrays (models are trained in place)."""
        self._symmetrize()
        for symbol, tensor in self.variables.items():
            if symbol not in self.program.auxiliary:
                symbol.value = tensor.detach().cpu().numpy().copy()

    @contextmanager
    def precision(self, dtype: torch.dtype) -> Generator[None]:
        """Runs a block with the models in another floating type, and returns them to their own."""
        with precision(self.program, dtype):
            yield


@contextmanager
def precision(program: Program, dtype: torch.dtype) -> Generator[None]:
    """Runs a block with a program's models in another floating type, and returns them to their own."""
    modules = [model.module for model in program.models]
    before = [
        {name: t.dtype for name, t in [*m.named_parameters(), *m.named_buffers()] if t.is_floating_point()}
        for m in modules
    ]
    try:
        for module in modules:
            module.to(dtype)
        yield
    finally:
        for module, types in zip(modules, before, strict=True):
            tensors = dict([*module.named_parameters(), *module.named_buffers()])
            for name, original in types.items():
                tensors[name].data = tensors[name].data.to(original)
