"""The derivatives A of an affine score per row, s = A theta + b, and the products that they take.

A has a block for each decision tensor. Blocks of the weights of a `Linear` layer are its inputs: they need no
backward pass for each weight and, for one score per row, no copy.
"""

from __future__ import annotations

from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import nn

from constrain.runtime.derivatives import jacobian

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from torch import Tensor

__all__ = ["RowSlopes", "columns", "linear_inputs", "slopes_of"]

_ROUNDING = 1e-10
"""Relative difference of two ways to compute a product that is rounding."""


class RowSlopes:
    """A, (rows, decisions), by blocks of columns.

    Args:
        blocks: one per decision tensor, (rows, entries) each; None where the score does not depend on it.
        widths: entries of the decision tensors.
    """

    def __init__(self, blocks: Sequence[Tensor | None], widths: Sequence[int]) -> None:
        ends = [sum(widths[:k]) for k in range(len(widths) + 1)]
        self.size = ends[-1]
        self.blocks = [(ends[k], ends[k + 1], b) for k, b in enumerate(blocks) if b is not None]
        self._weighted: Tensor | None = None

    def times(self, theta: Tensor) -> Tensor:
        """A theta, (rows,)."""
        pieces = [_product(block, theta[start:end]) for start, end, block in self.blocks]
        return torch.stack(pieces).sum(0) if len(pieces) > 1 else pieces[0]

    def pulled(self, weights: Tensor) -> Tensor:
        """The sums of weights times slopes over the rows: (..., rows) -> (..., decisions)."""
        found = weights.new_zeros((*weights.shape[:-1], self.size))
        for start, end, block in self.blocks:
            found[..., start:end] = _product(weights, block)
        return found

    def squared(self, weights: Tensor) -> Tensor:
        """A' diag(weights) A, (decisions, decisions)."""
        if weights.amin() < 0:
            return self.pulled_through(weights, self)
        roots = self._times_rows(weights.sqrt())
        return _product(roots.T, roots)

    def pulled_through(self, weights: Tensor, other: RowSlopes) -> Tensor:
        """A' diag(weights) B of another score of the same rows."""
        return other.pulled(self._times_rows(weights).T)

    def _times_rows(self, weights: Tensor) -> Tensor:
        """diag(weights) A; valid until the next call."""
        if self._weighted is None:
            self._weighted = weights.new_zeros((len(weights), self.size))
        for start, end, block in self.blocks:
            torch.mul(block, weights[:, None], out=self._weighted[:, start:end])
        return self._weighted


def _product(left: Tensor, right: Tensor) -> Tensor:
    """The matrix product; on the CPU NumPy's, which takes half of the work for B' B."""
    if left.device.type != "cpu":
        return left @ right
    return torch.from_numpy(left.numpy() @ right.numpy())


# ------------------------------------------------------------------------------------------ finding
@contextmanager
def linear_inputs(modules: Sequence[nn.Module]) -> Generator[dict[nn.Linear, list[tuple[Tensor, Tensor]]]]:
    """The inputs and outputs of the `Linear` layers of these modules in each call within the block."""
    found: dict[nn.Linear, list[tuple[Tensor, Tensor]]] = {}

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(layer, nn.Linear):
            found.setdefault(layer, []).append((inputs[0], output))

    layers = {layer for module in modules for layer in module.modules() if isinstance(layer, nn.Linear)}
    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def slopes_of(
    score: Tensor,
    tensors: Sequence[Tensor],
    inputs: dict[nn.Linear, list[tuple[Tensor, Tensor]]],
    check: Callable[[], None],
) -> RowSlopes:
    """The slopes of a score.

    Args:
        score: (rows,), with its graph, affine in the tensors, each entry a function of its own row.
        tensors: the decisions.
        inputs: of layers that the score goes through (`linear_inputs`).
        check: called now and then; it may raise to stop.
    """
    widths = [t.numel() for t in tensors]
    known = _of_layers(score, inputs)
    blocks = [known.get(id(t)) for t in tensors]
    rest = [t for t in tensors if id(t) not in known]
    if rest:
        own = iter(_differentiated(score, rest, check))
        blocks = [next(own) if block is None else block for block in blocks]
    found = RowSlopes(blocks, widths)
    if known and not _agrees(found, score, tensors):
        return RowSlopes(_differentiated(score, tensors, check), widths)
    return found


def _of_layers(score: Tensor, inputs: dict[nn.Linear, list[tuple[Tensor, Tensor]]]) -> dict[int, Tensor]:
    """Blocks of the weights of layers that are called once, by the `id` of the weight.

    Right where rows are passed one by one and weights enter nowhere else, which is checked afterwards.
    """
    found: dict[int, Tensor] = {}
    for layer, calls in inputs.items():
        x, output = calls[0]
        rows = len(score)
        if len(calls) > 1 or x.requires_grad or x.dim() != 2 or len(x) != rows or not output.requires_grad:
            continue
        (above,) = _gradients(score, [output], torch.ones_like(score))
        if above is None:
            continue
        if layer.weight.requires_grad:
            alone = layer.out_features == 1 and bool((above == 1).all())
            found[id(layer.weight)] = x if alone else (above[:, :, None] * x[:, None, :]).reshape(rows, -1)
        found.update((id(t), above) for name, t in layer.named_parameters() if name == "bias")
    return found


def _agrees(found: RowSlopes, score: Tensor, tensors: Sequence[Tensor]) -> bool:
    """Whether random weights of the rows pull the same out of the score and out of its slopes."""
    weights = torch.randn(len(score), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = weights.to(score)
    pulled = torch.autograd.grad(score, tensors, weights, retain_graph=True, materialize_grads=True)
    expected, own = torch.cat([g.reshape(-1) for g in pulled]), found.pulled(weights)
    return bool((own - expected).abs().max() <= _ROUNDING * (1 + expected.abs().max()))


def _differentiated(
    score: Tensor, tensors: Sequence[Tensor], check: Callable[[], None]
) -> list[Tensor | None]:
    """The blocks by differentiation: pulled back with unknown weights, differentiated in these."""
    weights = torch.ones_like(score).requires_grad_(True)
    pulled = _gradients(score, tensors, weights, create_graph=True)
    used = [(t, g) for t, g in zip(tensors, pulled, strict=True) if g is not None and g.requires_grad]
    if not used:
        return [None] * len(tensors)
    flat = torch.cat([g.reshape(-1) for _, g in used])
    whole = jacobian(flat, [weights], len(score), check).T
    pieces = columns(whole, [t for t, _ in used])
    found = {id(t): piece.contiguous() for (t, _), piece in zip(used, pieces, strict=True)}
    return [found.get(id(t)) for t in tensors]


def _gradients(
    values: Tensor, tensors: Sequence[Tensor], weights: Tensor, *, create_graph: bool = False
) -> tuple[Tensor | None, ...]:
    """Gradients of weighted sums of values; None of tensors that they do not use."""
    return torch.autograd.grad(
        values, tensors, weights, create_graph=create_graph, retain_graph=True, allow_unused=True
    )


def columns(matrix: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The columns that belong to each of some tensors, all entries one after the other."""
    ends = [sum(t.numel() for t in tensors[:k]) for k in range(len(tensors) + 1)]
    return [matrix[:, start:end] for start, end in pairwise(ends)]
