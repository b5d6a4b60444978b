"""torch functions that know which leading axes are rows (or group levels).

Every function takes `lead`, a tuple with one entry per tensor argument: 1 when that argument carries a
leading axis of rows or levels, else 0. Axes in `axis` are negative, so they count within one row whatever
stands before it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from constrain.language.nodes import ArraySymbol

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "count_nonzero",
    "cross_entropy",
    "deviation",
    "einsum",
    "entr",
    "entropy_logits",
    "gradient",
    "huber",
    "index",
    "kl_div",
    "kl_logits",
    "l1_loss",
    "lambda_max",
    "lambda_min",
    "leaf",
    "linear",
    "log_softmax",
    "logsumexp",
    "logsumexp_levels",
    "matmul",
    "max",
    "max_levels",
    "mean",
    "mean_levels",
    "min",
    "min_levels",
    "mse_loss",
    "norm",
    "norm_levels",
    "nuclear_norm",
    "on_features",
    "pick_levels",
    "quad_form",
    "rel_entr",
    "released",
    "reshape",
    "softmax",
    "spectral_norm",
    "stack",
    "stacked",
    "sum",
    "sum_levels",
    "sum_squares",
    "sum_squares_levels",
    "symmetric_part",
    "take",
    "trace",
    "transpose",
    "variance",
]

Lead = tuple[int, ...]


def _common(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in their common dtype (matrix products do not promote by themselves)."""
    dtype = tensors[0].dtype
    for t in tensors[1:]:
        dtype = torch.promote_types(dtype, t.dtype)
    return tuple(t.to(dtype) for t in tensors)


def _tiny(t: Tensor) -> float:
    return torch.finfo(t.dtype).tiny


def _axes(x: Tensor, axis: tuple[int, ...] | None, lead: int) -> tuple[int, ...]:
    return tuple(range(lead, x.dim())) if axis is None else axis


# ------------------------------------------------------------------------------------------ products
def conditional(total: Tensor, share: Tensor) -> Tensor:
    """total / share, and 0 with slope 0 where the share is 0: an average over rows that follow the decisions.

    A model that accepts nobody on its way is no reason to stop; 0 is also what a precision without accepted
    rows (`zero_division`), or a false discovery rate without discoveries, is taken for.
    """
    empty = share == 0
    return torch.where(empty, torch.zeros_like(total), total / torch.where(empty, 1.0, share))


def matmul(a: Tensor, b: Tensor, *, lead: Lead) -> Tensor:
    """Row-wise `a @ b`; the row axis takes no part."""
    a, b = _common(a, b)
    vector_a, vector_b = a.dim() - lead[0] == 1, b.dim() - lead[1] == 1
    if lead[1] == 0 and not (lead[0] and vector_a and b.dim() > 2):
        return a @ b
    left = a.unsqueeze(-2) if vector_a else a
    right = b.unsqueeze(-1) if vector_b else b
    result = left @ right
    if vector_b:
        result = result.squeeze(-1)
    if vector_a:
        result = result.squeeze(-1 if vector_b else -2)
    return result


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, lead: Lead) -> Tensor:
    """x W' + b."""
    del lead
    x, weight = _common(x, weight)
    return F.linear(x, weight, bias)


def einsum(*operands: Tensor, equation: str, lead: Lead) -> Tensor:
    """Einstein sum over the axes of one row; the row axis is carried along under its own letter."""
    operands = _common(*operands)
    if not any(lead):
        return torch.einsum(equation, *operands)
    inputs, _, output = equation.replace(" ", "").partition("->")
    letter = next(c for c in "ZYXWVUzyxwvu" if c not in equation)
    terms = [letter * rows + term for rows, term in zip(lead, inputs.split(","), strict=True)]
    return torch.einsum(f"{','.join(terms)}->{letter}{output}", *operands)


def quad_form(x: Tensor, p: Tensor, *, lead: Lead) -> Tensor:
    """x' P x."""
    x, p = _common(x, p)
    return (matmul(x, p, lead=lead) * x).sum(-1)


def trace(x: Tensor, *, lead: Lead) -> Tensor:
    """Sum of the diagonal."""
    del lead
    return x.diagonal(dim1=-2, dim2=-1).sum(-1)


def symmetric_part(x: Tensor, *, lead: Lead) -> Tensor:
    """(x + x') / 2."""
    del lead
    return (x + x.mT) / 2


def _spectrum(function: Any, x: Tensor) -> Tensor:
    """Eigenvalues or singular values, by an untyped function of torch."""
    return cast("Tensor", function(x))


def lambda_max(x: Tensor, *, lead: Lead, slope: Any = None) -> Tensor:
    """The largest eigenvalue of the symmetric part.

    Where it is a multiple one it has no gradient but a set of slopes: V S V' with the eigenvectors V of the
    largest eigenvalue, S positive semidefinite of trace 1 (Overton, 1988). The value of `slope` is used where
    it is one of them.

    Args:
        x: (..., n, n).
        lead: see above.
        slope: a symbol whose value is an array (n, n), or None for that of one eigenvector.
    """
    found = _spectrum(torch.linalg.eigvalsh, symmetric_part(x, lead=lead))[..., -1]
    held = None if slope is None or x.dim() != 2 else slope.value
    if held is None:
        return found
    chosen = torch.as_tensor(held, dtype=x.dtype, device=x.device)
    value, at = found.detach(), x.detach()
    near = (value - (chosen * at).sum()).abs() <= 1e-6 * (1 + at.abs().amax())
    return torch.where(near, value + (chosen * (x - at)).sum(), found)


def lambda_min(x: Tensor, *, lead: Lead, slope: Any = None) -> Tensor:
    """The smallest eigenvalue of the symmetric part; `slope` as in `lambda_max`."""
    return -lambda_max(-x, lead=lead, slope=slope)


def spectral_norm(x: Tensor, *, lead: Lead) -> Tensor:
    """The largest singular value."""
    del lead
    return _spectrum(torch.linalg.svdvals, x)[..., 0]


def nuclear_norm(x: Tensor, *, lead: Lead) -> Tensor:
    """The sum of the singular values."""
    del lead
    return _spectrum(torch.linalg.svdvals, x).sum(-1)


# ---------------------------------------------------------------------------------------- elementwise
def entr(x: Tensor, *, lead: Lead) -> Tensor:
    """-x log x, with value 0 and a large finite slope at 0, so that a line search can start at a bound."""
    del lead
    value = -x * x.clamp(min=_tiny(x)).log()
    return torch.where(x < 0, torch.full_like(x, -math.inf), value)


def rel_entr(p: Tensor, q: Tensor, *, lead: Lead, fixed: bool = False) -> Tensor:
    """p log(p / q) with value 0 at p = 0.

    Where q is fixed it is infinite for q < 0, and for q = 0 where p is not, as in `scipy.special.rel_entr`;
    the slope in p at p = q = 0 is large and finite, as that of `entr`. Where q moves as well, values continue
    beyond the domain, so that a search can start at its rim.
    """
    del lead
    p, q = _common(p, q)
    value = p * (p.clamp(min=_tiny(p)).log() - q.clamp(min=_tiny(q)).log())
    if not fixed:
        return value
    value = torch.where(q > 0, value, -math.log(_tiny(p)) * p)
    return torch.where((q < 0) | ((q == 0) & (p != 0)), torch.full_like(value, math.inf), value)


def kl_div(p: Tensor, q: Tensor, *, lead: Lead, fixed: bool = False) -> Tensor:
    """p log(p / q) - p + q; `fixed` as in `rel_entr`."""
    return rel_entr(p, q, lead=lead, fixed=fixed) - p + q


def huber(x: Tensor, *, delta: float, lead: Lead) -> Tensor:
    """x**2 / 2 within delta, linear beyond."""
    del lead
    return F.huber_loss(x, torch.zeros_like(x), reduction="none", delta=delta)


# --------------------------------------------------------------------------------------------- losses
def binary_cross_entropy_with_logits(logits: Tensor, target: Tensor, *, lead: Lead) -> Tensor:
    """log(1 + exp(s)) - y s for logits s and targets y in [0, 1]."""
    del lead
    logits, target = _broadcast((logits, target.to(logits.dtype)))
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def binary_cross_entropy(probability: Tensor, target: Tensor, *, lead: Lead) -> Tensor:
    """-y log p - (1 - y) log(1 - p)."""
    del lead
    probability, target = _broadcast((probability, target.to(probability.dtype)))
    return F.binary_cross_entropy(probability, target, reduction="none")


def cross_entropy(scores: Tensor, target: Tensor, *, lead: Lead) -> Tensor:
    """logsumexp(scores) - scores[target]; targets are class indices or distributions."""
    if target.dim() - lead[1] == 0:
        if not lead[0]:
            return F.cross_entropy(scores[None], target.long()[None], reduction="none")[0]
        return F.cross_entropy(scores, target.long(), reduction="none")
    return -(target * torch.log_softmax(scores, -1)).sum(-1)


def mse_loss(a: Tensor, b: Tensor, *, lead: Lead) -> Tensor:
    """(a - b)**2."""
    del lead
    return (a - b).square()


def l1_loss(a: Tensor, b: Tensor, *, lead: Lead) -> Tensor:
    """|a - b|."""
    del lead
    return (a - b).abs()


# ----------------------------------------------------------------------------------------- reductions
def sum(x: Tensor, *, axis: tuple[int, ...] | None, keepdims: bool, lead: Lead) -> Tensor:
    """Sum over axes of one row."""
    axes = _axes(x, axis, lead[0])
    return x.sum(axes, keepdim=keepdims) if axes else x


def mean(x: Tensor, *, axis: tuple[int, ...] | None, keepdims: bool, lead: Lead) -> Tensor:
    """Mean over axes of one row."""
    axes = _axes(x, axis, lead[0])
    return x.mean(axes, keepdim=keepdims) if axes else x


def max(x: Tensor, *, axis: tuple[int, ...] | None, keepdims: bool, lead: Lead) -> Tensor:
    """Largest entry."""
    axes = _axes(x, axis, lead[0])
    return x.amax(axes, keepdim=keepdims) if axes else x


def min(x: Tensor, *, axis: tuple[int, ...] | None, keepdims: bool, lead: Lead) -> Tensor:
    """Smallest entry."""
    axes = _axes(x, axis, lead[0])
    return x.amin(axes, keepdim=keepdims) if axes else x


def logsumexp(x: Tensor, *, axis: tuple[int, ...] | None, keepdims: bool, lead: Lead) -> Tensor:
    """log(sum(exp(x)))."""
    axes = _axes(x, axis, lead[0])
    return torch.logsumexp(x, axes, keepdim=keepdims) if axes else x


def norm(x: Tensor, *, ord: float, axis: tuple[int, ...] | None, keepdims: bool, lead: Lead) -> Tensor:
    """The `ord`-norm of the entries as one vector."""
    axes = _axes(x, axis, lead[0])
    if not axes:
        return x.abs()
    return cast("Tensor", torch.linalg.vector_norm(x, ord, axes, keepdim=keepdims))


def sum_squares(x: Tensor, *, axis: tuple[int, ...] | None, keepdims: bool, lead: Lead) -> Tensor:
    """Sum of squared entries."""
    return sum(x.square(), axis=axis, keepdims=keepdims, lead=lead)


def count_nonzero(x: Tensor, *, axis: tuple[int, ...] | None, keepdims: bool, lead: Lead) -> Tensor:
    """Number of entries that are not zero, in the dtype of the entries."""
    return sum((x != 0).to(x.dtype), axis=axis, keepdims=keepdims, lead=lead)


def softmax(x: Tensor, *, axis: tuple[int, ...], lead: Lead) -> Tensor:
    """exp(x) / sum(exp(x)) along one axis."""
    del lead
    return torch.softmax(x, axis[0])


def log_softmax(x: Tensor, *, axis: tuple[int, ...], lead: Lead) -> Tensor:
    """x - logsumexp(x) along one axis."""
    del lead
    return torch.log_softmax(x, axis[0])


def max_levels(x: Tensor, *, lead: Lead) -> Tensor:
    """Largest over the group levels."""
    del lead
    return x.amax(0)


def min_levels(x: Tensor, *, lead: Lead) -> Tensor:
    """Smallest over the group levels."""
    del lead
    return x.amin(0)


def sum_levels(x: Tensor, *, lead: Lead) -> Tensor:
    """Sum over the group levels."""
    del lead
    return x.sum(0)


def mean_levels(x: Tensor, *, lead: Lead) -> Tensor:
    """Mean over the group levels, each with the same weight."""
    del lead
    return x.mean(0)


def pick_levels(x: Tensor, *, place: int | ArraySymbol, lead: Lead) -> Tensor:
    """The entry of one group level, or of several in an array of their places."""
    del lead
    return x[place] if isinstance(place, int) else x[torch.as_tensor(place.value, device=x.device)]


def logsumexp_levels(x: Tensor, *, lead: Lead) -> Tensor:
    """log(sum(exp(x))) over the group levels."""
    del lead
    return torch.logsumexp(x, 0)


def norm_levels(x: Tensor, *, ord: float, lead: Lead) -> Tensor:
    """The `ord`-norm over the group levels, per entry."""
    del lead
    return cast("Tensor", torch.linalg.vector_norm(x, ord, 0))


def sum_squares_levels(x: Tensor, *, lead: Lead) -> Tensor:
    """Sum of squares over the group levels."""
    del lead
    return x.square().sum(0)


# ------------------------------------------------------------------------------------ variance, entropy
def variance(second: Tensor, first: Tensor, *, lead: Lead) -> Tensor:
    """E[g^2] - E[g]^2, out of the two averages.

    Careful when g was centered near its mean before it was averaged; then nothing large cancels.
    """
    del lead
    return second - first.square()


def deviation(second: Tensor, first: Tensor, *, lead: Lead) -> Tensor:
    """The square root of the variance; its slope at 0 is 0."""
    found = variance(second, first, lead=lead)
    return found.clamp(min=_tiny(found)).sqrt()


def entropy_logits(x: Tensor, *, lead: Lead) -> Tensor:
    """Entropy of softmax(x) over the last axis, in nats; logits of -inf have probability 0."""
    del lead
    log_p = torch.log_softmax(x, -1)
    return -(log_p.exp() * log_p.clamp(min=torch.finfo(x.dtype).min)).sum(-1)


def kl_logits(p: Tensor, q: Tensor, *, lead: Lead) -> Tensor:
    """KL(softmax(p) || softmax(q)) over the last axis, in nats; logits of -inf have probability 0."""
    del lead
    p, q = _common(p, q)
    log_p, log_q = torch.log_softmax(p, -1), torch.log_softmax(q, -1)
    ratio = torch.where(torch.isneginf(log_p), torch.zeros_like(log_p), log_p - log_q)
    return (log_p.exp() * ratio).sum(-1)


# ------------------------------------------------------------------------------------------ structure
def take(x: Tensor, codes: Tensor, *, lead: Lead) -> Tensor:
    """Entry `codes` of the first axis of x, row by row."""
    del lead
    return x[codes]


def index(x: Tensor, *, key: tuple[Any, ...], lead: Lead) -> Tensor:
    """`x[key]` within one row."""
    decoded: list[Any] = [slice(None)] * lead[0]
    for k in key:
        if k == "...":
            decoded.append(Ellipsis)
        elif isinstance(k, tuple):
            kind, *rest = cast("tuple[Any, ...]", k)
            decoded.append(slice(*rest) if kind == "slice" else list(rest[0]))
        else:
            decoded.append(k)
    return x[tuple(decoded)]


def reshape(x: Tensor, *, shape: tuple[int, ...], lead: Lead) -> Tensor:
    """The same entries of one row in another shape."""
    return x.reshape((*x.shape[: lead[0]], *shape))


def transpose(x: Tensor, *, lead: Lead) -> Tensor:
    """Axes of one row in reverse order."""
    order = (*range(lead[0]), *reversed(range(lead[0], x.dim())))
    return x.permute(order)


def stack(*parts: Tensor, lead: Lead) -> Tensor:
    """Parts as entries of a new first axis of one row."""
    leading = 1 if any(lead) else 0
    if not leading:
        return torch.stack(_broadcast(parts), 0)
    rows = next(p.shape[0] for p, has in zip(parts, lead, strict=True) if has)
    full = [p if has else p.expand(rows, *p.shape) for p, has in zip(parts, lead, strict=True)]
    return torch.stack(_broadcast(full), 1)


def _broadcast(tensors: Sequence[Tensor]) -> list[Tensor]:
    first = tensors[0].shape
    if all([t.shape == first for t in tensors]):  # a list is quicker than a generator for so few
        return list(tensors)
    return list(cast("tuple[Tensor, ...]", torch.broadcast_tensors(*tensors)))


# ------------------------------------------------------------------------------------- models, calculus
def on_features(module: Callable[..., Tensor], *numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """A model on numbers per row (or per point) as its features; an output axis of length one is dropped.

    Args:
        module: takes (rows, features).
        numbers: each (rows,), (points,) or (), in any dtype.
        dtype: of the features.

    Returns:
        (rows, ...) without the feature axis of length one; without the axis of rows when all numbers are ().
    """
    result = module(stacked(*numbers, dtype=dtype))
    if result.dim() == 2 and result.shape[-1] == 1:
        result = result.squeeze(-1)
    return result[0] if all(x.dim() == 0 for x in numbers) else result


def stacked(*numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers per row as (rows, features); numbers without rows as one row."""
    found = torch.stack(_broadcast([x.to(dtype) for x in numbers]), -1)
    return found[None] if found.dim() == 1 else found


def leaf(column: Tensor) -> Tensor:
    """A column as a leaf that derivatives can be taken by."""
    return column.detach().requires_grad_(True)


def gradient(y: Tensor, x: Tensor, *, graph: bool) -> Tensor:
    """The derivative of each row of `y` with respect to the same row of `x`.

    Reverse mode: the sum over rows of one entry of `y` has, row by row, the derivatives as its gradient. Its
    cost is one backward pass per entry of a row of `y`. (Forward mode was two to seven times slower for
    second derivatives of small networks.)

    Args:
        y: (rows, *a).
        x: (rows, *b), a leaf or computed.
        graph: whether the derivative is differentiated again.

    Returns:
        (rows, *a, *b); zeros where `y` does not depend on `x`.
    """
    if not y.requires_grad:
        return y.new_zeros((*y.shape, *x.shape[1:]))
    entries = y.reshape(y.shape[0], -1).unbind(1)
    found = [_derivative(entry, x, graph=graph) for entry in entries]
    if y.dim() == 1:
        return found[0]
    return torch.stack(found, 1).reshape(*y.shape, *x.shape[1:])


def _derivative(y: Tensor, x: Tensor, *, graph: bool) -> Tensor:
    (found,) = torch.autograd.grad(
        y.sum(), x, create_graph=graph, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return found


def released(values: list[Any], *, graph: bool) -> list[Any]:
    """Outputs of a function that recorded gradients: detached when gradients were off where it was called."""
    return values if graph else [v.detach() if isinstance(v, Tensor) else v for v in values]
