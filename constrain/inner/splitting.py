"""Large batches of quadratic programs without matrices: operator splitting, then one linear system.

    minimize  x·P x / 2 + q·x   subject to   G x <= h,  A x == b

The alternating direction method of multipliers in the form of OSQP (Stellato et al., Mathematical Programming
Computation 12 (2020) 637), whose linear systems are solved by conjugate gradients. It runs until its active
set passes the test of multipliers and slacks with the optimality conditions solved by MINRES. Where
curvatures differ by many orders, conjugate gradients take long; it can be told to give up then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from constrain.inner.kkt import places_of, repaired
from constrain.inner.products import Products, rows_of_length
from constrain.inner.quadratic import Solved

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from constrain.inner.functions import Functions

__all__ = ["split"]

_STAGES = (50, 50, 100, 200, 400, 800, 1600)
_REPAIRS = 6
_SIGMA = 1e-6
_CLOSE = 1e-2
_EQUAL = 10.0
_RELAX = 1.6
_NEAR = 1e-2
"""Residuals from which on the active set is tried, where the method may give up."""


@dataclass
class _Data:
    """A batch in units of its rows and of its objective; C = (G; A), low <= C x <= high.

    Attributes:
        forward: x -> (P x, C x).
        back: y -> C'y.
        q: (B, n).
        low: (B, m + p).
        high: (B, m + p).
        unit: (B, m + p) what rows of C were multiplied with.
        cost: (B, 1) what the objective was multiplied with.
        products: of the linear systems so far.
    """

    forward: Callable[[Tensor], tuple[Tensor, Tensor]]
    back: Callable[[Tensor], Tensor]
    q: Tensor
    low: Tensor
    high: Tensor
    unit: Tensor
    cost: Tensor
    products: int = 0


@dataclass
class _Point:
    """x (B, n), z = C x projected (B, m + p), multipliers y (B, m + p), and the last changes of x and y."""

    x: Tensor
    z: Tensor
    y: Tensor
    dx: Tensor
    dy: Tensor


def split(
    functions: Functions,
    parameters: Sequence[Tensor],
    batched: Sequence[bool],
    batch: int,
    *,
    limit: float = math.inf,
) -> tuple[Solved, dict[int, str]] | None:
    """Solves the batch.

    Args:
        functions: of the inner problem.
        parameters: float64, in the order of the problem's parameters.
        batched: whether each has an axis of rows in front.
        batch: number of rows.
        limit: products with P and C after which it gives up.

    Returns:
        The solutions, and for rows that have none the reason in words; None where it gave up.
    """
    device = parameters[0].device if parameters else torch.device("cpu")
    n, m, p = functions.size, functions.inequalities, functions.equalities
    zeros = [torch.zeros(batch, size, dtype=torch.float64, device=device) for size in (n, m, p)]
    free = torch.ones_like(zeros[1], dtype=torch.bool)
    products = Products(functions, (zeros[0], zeros[1], zeros[2]), free, parameters, batched)
    data = _data(products)
    length = data.q.shape[0], m + p
    empty = torch.zeros(length, dtype=torch.float64, device=device)
    point = _Point(zeros[0], empty, empty, zeros[0], empty)
    rho = torch.full((batch, 1), 0.1, dtype=torch.float64, device=device)
    answer: Solved | None = None
    proofs: dict[int, str] = {}
    for steps in _STAGES:
        point, rho, error = _run(data, point, rho, m, steps, limit)
        if data.products > limit:
            return None
        if limit < math.inf and float(error.max()) > _NEAR:
            continue
        proofs = _proofs(data, point)
        if proofs and answer is not None:  # the first steps can look like a direction without end
            break
        answer = _polished(functions, data, point, m, parameters, batched)
        if bool(answer.ok.all()):
            return answer, {}
        answer.ok = answer.ok | (error <= 1e-6)
    if answer is None or (limit < math.inf and not proofs):
        return None
    short = "the splitting method stopped short of its tolerance"
    left = {} if proofs else {i: short for i in places_of(~answer.ok)}
    return answer, {**left, **proofs}


def _data(products: Products) -> _Data:
    n, m, p = products.sizes
    q, below, equal = products.residual

    def padded(x: Tensor | None, w: Tensor | None) -> Tensor:
        rows = q.shape[0]
        left = q.new_zeros(rows, n) if x is None else x
        right = q.new_zeros(rows, m + p) if w is None else w
        return torch.cat([left, right], 1)

    lengths = rows_of_length(lambda v: products.whole(padded(v, None)), q)
    cost, unit = (
        _inverse(torch.maximum(lengths[:, :n], q.abs()).amax(1, keepdim=True)),
        _inverse(lengths[:, n:]),
    )

    def forward(v: Tensor) -> tuple[Tensor, Tensor]:
        found = products.whole(padded(v, None))
        return cost * found[:, :n], unit * found[:, n:]

    def back(w: Tensor) -> Tensor:
        return products.whole(padded(None, unit * w))[:, :n]

    high = -torch.cat([below, equal], 1)
    low = torch.cat([torch.full_like(below, -torch.inf), high[:, m:]], 1)
    return _Data(forward, back, cost * q, unit * low, unit * high, unit, cost)


def _inverse(size: Tensor) -> Tensor:
    return 1 / torch.where(size > 1e-12, size, 1.0)


def _run(
    data: _Data, point: _Point, rho: Tensor, m: int, steps: int, limit: float
) -> tuple[_Point, Tensor, Tensor]:
    """Some steps, and the penalty that fits them; the point, the penalty and the residuals."""
    x, z, y = point.x, point.z, point.y
    dx, dy = point.dx, point.dy
    strength = _strength(rho, z, m)
    diagonal = _diagonal(data, strength, x)
    for _ in range(steps):
        if data.products > limit:
            break
        rhs = _SIGMA * x - data.q + data.back(strength * z - y)

        def matrix(v: Tensor, strength: Tensor = strength) -> Tensor:
            data.products += 2
            bend, image = data.forward(v)
            return bend + _SIGMA * v + data.back(strength * image)

        ahead = _conjugate_gradients(matrix, rhs, x, diagonal)
        image = _RELAX * data.forward(ahead)[1] + (1 - _RELAX) * z
        new = torch.clamp(image + y / strength, data.low, data.high)
        dy = strength * (image - new)
        dx = _RELAX * (ahead - x)
        x, z, y = x + dx, new, y + dy
    primal, dual = _residuals(data, x, z, y)
    ratio = (primal / dual.clamp_min(1e-300)).clamp_min(1e-300).sqrt()
    change = torch.where((ratio > 3) | (ratio < 1 / 3), ratio.clamp(0.02, 50), 1.0)
    rho = (rho * change[:, None]).clamp(1e-6, 1e6)
    return _Point(x, z, y, dx, dy), rho, torch.maximum(primal, dual)


def _strength(rho: Tensor, z: Tensor, m: int) -> Tensor:
    """Penalties per constraint: equalities get more."""
    return torch.cat([rho.expand(-1, m), (_EQUAL * rho).expand(-1, z.shape[1] - m)], 1)


def _diagonal(data: _Data, strength: Tensor, like: Tensor) -> Tensor:
    """Estimate of the diagonal of P + C'RC by products with random signs."""
    generator = torch.Generator().manual_seed(1)
    total = torch.zeros_like(like)
    for _ in range(8):
        r = (2 * torch.randint(0, 2, like.shape, generator=generator) - 1).to(like)
        bend, image = data.forward(r)
        total = total + r * (bend + data.back(strength * image))
    found = total / 8
    floor = 1e-2 * found.abs().mean(-1, keepdim=True) + _SIGMA
    return torch.maximum(found, floor)


def _conjugate_gradients(
    matrix: Callable[[Tensor], Tensor], rhs: Tensor, start: Tensor, diagonal: Tensor
) -> Tensor:
    """The solution of matrix x = rhs to a part of the residual at the start, which falls with the steps."""
    x = start
    r = rhs - matrix(x)
    s = r / diagonal
    d = s
    now = (r * s).sum(-1, keepdim=True)
    target = _CLOSE**2 * now + 1e-26 * (rhs * rhs / diagonal).sum(-1, keepdim=True)
    for _ in range(200):
        active = now > target
        if not bool(active.any()):
            break
        image = matrix(d)
        length = torch.where(active, now / (d * image).sum(-1, keepdim=True).clamp_min(1e-300), 0.0)
        x, r = x + length * d, r - length * image
        s = r / diagonal
        after = (r * s).sum(-1, keepdim=True)
        d = s + after / now.clamp_min(1e-300) * d
        now = after
    return x


def _residuals(data: _Data, x: Tensor, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) how far C x is from z and how far the Lagrangian from stationary, relative to their terms."""
    (bend, image), pull = data.forward(x), data.back(y)
    primal = _largest(image - z) / (1e-3 + torch.maximum(_largest(image), _largest(z)))
    size = torch.maximum(torch.maximum(_largest(bend), _largest(pull)), _largest(data.q))
    return primal, _largest(bend + data.q + pull) / (1e-3 + size)


def _largest(v: Tensor) -> Tensor:
    return v.abs().amax(-1) if v.shape[1] else v.new_zeros(len(v))


@dataclass
class _Active:
    """The conditions with an active set at a point that solves them, or not.

    Attributes:
        point: x (B, n), z (B, m), y (B, p).
        slack: (B, m).
        repair: (B, m) a better guess of the active set.
        ok: (B,) whether the point is a solution.
        system: the conditions there.
    """

    point: tuple[Tensor, Tensor, Tensor]
    slack: Tensor
    repair: Tensor
    ok: Tensor
    system: Products


def _polished(
    functions: Functions,
    data: _Data,
    point: _Point,
    m: int,
    parameters: Sequence[Tensor],
    batched: Sequence[bool],
) -> Solved:
    """The solution of the conditions of the active set, repaired; `ok` where it passes the test."""
    y = point.y * data.unit / data.cost
    active = point.y[:, :m] > (data.high - data.forward(point.x)[1])[:, :m].clamp_min(0)
    size = 1 + _largest(data.q / data.cost)

    def solved(start: tuple[Tensor, Tensor, Tensor], active: Tensor) -> _Active:
        x, z, y = start[0], torch.where(active, start[1], 0.0), start[2]
        here = Products(functions, (x, z, y), active, parameters, batched)
        slope, below, equal = here.residual
        dx, dz, dy = here.solve(-slope, -below, -equal)
        found = x + dx, z + dz, y + dy
        there = Products(functions, found, active, parameters, batched)
        slope, below, equal = there.residual
        repair, same = repaired(active, found[1], -below)
        width = 1 + _largest(found[0])
        misses = torch.maximum(_largest(torch.where(active, below, 0.0)), _largest(equal)) / width
        ok = same & (torch.maximum(_largest(slope) / size, misses) <= 1e-8)
        return _Active(found, -below, repair, ok, there)

    answer = solved((point.x, y[:, :m].clamp_min(0), y[:, m:]), active)
    for _ in range(_REPAIRS):
        if bool(answer.ok.all()):
            break
        answer = solved(answer.point, answer.repair)
    x, z, y = answer.point
    return Solved(x, z.clamp_min(0), y, answer.slack, answer.system.active, answer.ok, 0, answer.system)


def _proofs(data: _Data, point: _Point) -> dict[int, str]:
    """Rows without a solution, and why: the changes of a diverging run converge to certificates."""
    dy, dx = point.dy, point.dx
    size = _largest(dy)
    support = torch.where(dy > 0, data.high, data.low)
    gain = torch.where(dy.abs() <= 1e-6 * size[:, None], 0.0, dy * support).sum(-1)
    infeasible = (size > 1e-8) & (_largest(data.back(dy)) <= 1e-4 * size) & (gain < -1e-3 * size)
    size = _largest(dx)
    bend, image = data.forward(dx)
    limit = 1e-4 * size[:, None]
    held = (image <= limit) & ((data.low == -torch.inf) | (image >= -limit))
    falls = (data.q * dx).sum(-1) < -1e-3 * size
    unbounded = (size > 1e-8) & falls & held.all(-1) & (_largest(bend) <= limit[:, 0])
    found = dict.fromkeys(places_of(unbounded), "unbounded: the objective decreases without end")
    words = "infeasible: multipliers grow along a direction that no point can meet"
    return {**found, **dict.fromkeys(places_of(infeasible), words)}
