"""Derivatives of solutions (implicit function theorem) and of optimal values (envelope theorem).

Both can be differentiated again: the derivative of a solution is then written with the matrix of the
optimality conditions as a function of the solution and the parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.func import grad, jacrev

from constrain.inner.kkt import System, assembled, first
from constrain.inner.linalg import linalg
from constrain.inner.products import Products, Symmetric

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from constrain.inner.functions import Functions
    from constrain.inner.program import Inner
    from constrain.inner.quadratic import Solved

__all__ = ["Solution", "Value", "gradients", "several"]


class Solution(torch.autograd.Function):
    """Parameters -> x (B, n), z (B, m), y (B, p).

    With K the matrix of the optimality conditions F(x, z, y; theta) = 0 and g the gradient in (x, z, y), the
    gradient in theta is that of -K^-1 g · F(theta): no Jacobian in theta is made.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        inner: Inner,
        batched: tuple[bool, ...],
        batch: int,
        found: list[Solved],
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        solved = inner.solve(parameters, batched, batch)
        found.append(solved)
        ctx.inner, ctx.batched, ctx.solved = inner, batched, solved
        ctx.set_materialize_grads(False)
        outputs = solved.x.clone(), solved.z.clone(), solved.y.clone()
        ctx.save_for_backward(*outputs, *parameters)
        return outputs

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:  # noqa: D102
        needed: Sequence[bool] = ctx.needs_input_grad[4:]
        if all(g is None for g in upstream):
            return (None,) * (4 + len(needed))
        inner, solved = ctx.inner, ctx.solved
        tensors: Sequence[Tensor] = ctx.saved_tensors
        given = [torch.zeros_like(t) if g is None else g for t, g in zip(tensors[:3], upstream, strict=True)]
        again = torch.is_grad_enabled()
        if any(several(g) for g in given):
            inner.warn(solved, solution=True)
            return (None, None, None, None, *_dense(ctx, tensors, needed, solved.system.solve(*given)))
        with torch.enable_grad():
            own = _leaves(tensors[3:], needed, again=again)
            points = [t if again else t.detach() for t in tensors[:3]]
            steps = _differentiable(ctx, points, own, given) if again else solved.system.solve(*given)
            inner.warn(solved, solution=True)
            total = -_product(inner.functions, ctx.batched, points, own, steps)
            grads = gradients(total, own, again=again)
        return (None, None, None, None, *grads)


class Value(torch.autograd.Function):
    """Parameters and the solution -> optimal value (B,); its gradient is that of the Lagrangian."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, inner: Inner, batched: tuple[bool, ...], solved: Solved, *tensors: Tensor
    ) -> Tensor:
        ctx.inner, ctx.batched, ctx.solved = inner, batched, solved
        ctx.save_for_backward(*tensors)
        functions = inner.functions
        value: Tensor = functions.batch(functions.objective, batched)(tensors[0], *tensors[3:])
        return value

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:  # noqa: D102
        ctx.inner.warn(ctx.solved, solution=False)
        functions: Functions = ctx.inner.functions
        tensors: Sequence[Tensor] = ctx.saved_tensors
        again = torch.is_grad_enabled()
        if several(upstream[0]):
            return (None,) * 6 + _each_row(ctx, tensors, upstream[0])
        with torch.enable_grad():
            own = _leaves(tensors[3:], ctx.needs_input_grad[6:], again=again)
            x, z, y = (t if again else t.detach() for t in tensors[:3])
            value, below, equal = functions.batch(functions.everything, ctx.batched)(x, *own)
            each = value + (z * below).sum(1) + (first(y, equal.shape[1]) * equal).sum(1)
            grads = gradients((each * upstream[0]).sum(), own, again=again)
        return (None, None, None, None, None, None, *grads)


def several(t: Tensor) -> bool:
    """Whether a gradient is several at once: `torch.autograd.grad(..., is_grads_batched=True)`."""
    functorch: Any = vars(torch._C).get("_functorch")  # pyright: ignore[reportPrivateUsage]
    known = getattr(functorch, "is_legacy_batchedtensor", None)
    return known is not None and bool(known(t))


def _dense(
    ctx: Any, tensors: Sequence[Tensor], needed: Sequence[bool], steps: Sequence[Tensor]
) -> list[Tensor | None]:
    """-steps · F(theta) with the Jacobian of F: autograd cannot run inside of batched derivatives."""
    functions: Functions = ctx.inner.functions
    p = functions.equalities

    def conditions(x: Tensor, z: Tensor, y: Tensor, *theta: Tensor) -> Tensor:
        below, equal = functions.residuals(x, *theta)
        return torch.cat([grad(functions.lagrangian)(x, z, y, *theta), below, equal])

    wanted = tuple(3 + i for i, need in enumerate(needed) if need)
    x, z, y = tensors[:3]
    jacobian = functions.batch(jacrev(conditions, argnums=wanted), ctx.batched, 3)
    found = iter(jacobian(x, z, first(y, p), *tensors[3:]))
    direction = torch.cat([steps[0], steps[1], first(steps[2], p)], 1)
    grads: list[Tensor | None] = []
    for t, need, many in zip(tensors[3:], needed, ctx.batched, strict=True):
        if not need:
            grads.append(None)
            continue
        slopes: Tensor = next(found)
        flat = slopes.reshape(*direction.shape, -1)
        moved = -(direction[..., None] * flat).sum(1)
        grads.append((moved if many else moved.sum(0)).reshape(t.shape))
    return grads


def _each_row(ctx: Any, tensors: Sequence[Tensor], upstream: Tensor) -> tuple[Tensor | None, ...]:
    """upstream · value(theta) with the gradient of every row: autograd does not see batched gradients."""
    functions: Functions = ctx.inner.functions
    x, z, y = (t.detach() for t in tensors[:3])
    wide = [
        t if many else t.expand(len(x), *t.shape) for t, many in zip(tensors[3:], ctx.batched, strict=True)
    ]
    with torch.enable_grad():
        own = _leaves(wide, ctx.needs_input_grad[6:], again=False)
        value, below, equal = functions.batch(functions.everything, [True] * len(own))(x, *own)
        total = value.sum() + (z * below).sum() + (first(y, equal.shape[1]) * equal).sum()
        slopes = gradients(total, own, again=False)
    found: list[Tensor | None] = []
    for slope, many in zip(slopes, ctx.batched, strict=True):
        if slope is None:
            found.append(None)
            continue
        product = slope * upstream.reshape(-1, *(1 for _ in range(slope.dim() - 1)))
        found.append(product if many else product.sum(0))
    return tuple(found)


def _leaves(parameters: Sequence[Tensor], needed: Sequence[bool], *, again: bool) -> list[Tensor]:
    """The parameters as what derivatives are taken in, at a fixed solution.

    Where these are differentiated again they are copies: the solution depends on the parameters themselves,
    and no partial derivative runs through it.
    """
    return [
        t.clone() if again and t.requires_grad else t.detach().requires_grad_(need)
        for t, need in zip(parameters, needed, strict=True)
    ]


def gradients(total: Tensor, own: Sequence[Tensor], *, again: bool) -> list[Tensor | None]:
    """Of a sum in the tensors that require one, zeros where it does not depend on them; None for others."""
    wanted = [t for t in own if t.requires_grad]
    if not wanted or not total.requires_grad:
        return [torch.zeros_like(t) if t.requires_grad else None for t in own]
    found = iter(torch.autograd.grad(total, wanted, create_graph=again, materialize_grads=True))
    return [next(found) if t.requires_grad else None for t in own]


def _product(
    functions: Functions,
    batched: Sequence[bool],
    points: Sequence[Tensor],
    own: Sequence[Tensor],
    steps: Sequence[Tensor],
) -> Tensor:
    """steps · F(theta), F the optimality conditions at fixed points."""
    u, w, v = steps
    x, z, y = points
    x = x.clone() if x.requires_grad else x.detach().requires_grad_(True)
    value, below, equal = functions.batch(functions.everything, batched)(x, *own)
    p = equal.shape[1]  # equalities that fix integers stand behind these and hold no parameter
    lagrangian = value.sum() + (z * below).sum() + (first(y, p) * equal).sum()
    (slope,) = torch.autograd.grad(lagrangian, x, create_graph=True)
    return (slope * u).sum() + (w * below).sum() + (first(v, p) * equal).sum()


def _differentiable(
    ctx: Any, points: Sequence[Tensor], own: Sequence[Tensor], given: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """K^-1 g with a graph to the points and the parameters."""
    functions: Functions = ctx.inner.functions
    system: System | Products = ctx.solved.system
    if isinstance(system, Products):
        found = cast("Tensor", Symmetric.apply(system, torch.cat(list(given), 1), *points, *own))
        return system.split(found)
    n, p, k = functions.size, functions.equalities, system.index.shape[1]
    x, z, y = points
    below, equal = functions.slopes(ctx.batched)(x, *own)
    fixing = system.matrix[:, n + k + p :, :n]
    equal = torch.cat([equal.expand(len(x), -1, -1), fixing], 1)
    curved: Callable[..., Tensor] = functions.curvature(ctx.batched)
    curvature = curved(x, z, first(y, p), *own)
    matrix = assembled(curvature, below, equal, system.index, system.valid)
    rhs = torch.cat([given[0], given[1].gather(1, system.index) * system.valid, given[2]], 1)[..., None]
    singular = bool(system.singular.any())
    solution: Tensor = (
        linalg.pinv(matrix, rtol=1e-10, hermitian=True) @ rhs if singular else linalg.solve(matrix, rhs)
    )
    found = solution[..., 0]
    active = found[:, n : n + k] * system.valid
    return first(found, n), torch.zeros_like(z).scatter_add(1, system.index, active), found[:, n + k :]
