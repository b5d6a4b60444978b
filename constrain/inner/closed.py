"""Inner problems whose solution is a formula: separable ones with one linear constraint, and balls.

Solutions are written in plain torch, so that autograd differentiates the formula itself.

- `Separable`: weights·(x - y)^2 under lower <= x <= upper and at most one of a·x <= b, a·x == b. Boxes,
  half-spaces, the simplex, the capped simplex, weighted budgets. The multiplier of the constraint is the zero
  of a piecewise linear monotone function. Newton's method within a bracket finds its piece in a few steps;
  where it does not, a search among the 2n breakpoints does (Kiwiel, Math. Program. 112 (2008) 473). On its
  piece the multiplier is a formula.
- `Ball`: |x - y|^2 under |x - c| <= r in the norm of order 2 or 1, or |x - c|^2 <= r. The norm of order 1 is
  the simplex with signs (Duchi et al., ICML 2008).

`knapsack`, `ball` and `affine_set` are the formulas; problems that are solved on their own use them, too
(`constrain.solvers.nearest`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import grad, jacrev

from constrain.inner.linalg import linalg
from constrain.inner.polynomial import degree, terms
from constrain.language import nodes as n

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from constrain.inner.functions import Functions
    from constrain.inner.structure import Structure, Term

__all__ = ["Ball", "Closed", "Separable", "affine_set", "ball", "closed_form", "knapsack"]

NEWTON = 12
"""Newton steps for the multiplier of a budget before the breakpoints are searched."""


@dataclass
class Closed:
    """What a formula gives for a batch.

    Attributes:
        x: (B, n).
        multipliers: (B, size) by key of a constraint part.
        feasible: (B,).
        kinked: (B,) whether the solution has a kink in the parameters there.
    """

    x: Tensor
    multipliers: dict[str, Tensor]
    feasible: Tensor
    kinked: Tensor


def knapsack(
    p: Tensor,
    q: Tensor,
    a: Tensor,
    b: Tensor,
    lower: Tensor,
    upper: Tensor,
    *,
    equality: bool,
    still: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """minimize sum(p x^2 / 2 + q x) subject to a·x <= b (or == b), lower <= x <= upper; exact gradients.

    Args:
        p: (n,) or (B, n), positive.
        q: (B, n).
        a: (B or 1, n).
        b: (B,).
        lower: (n,) or (B, n), -inf where open.
        upper: (n,) or (B, n), inf where open.
        equality: whether the constraint is an equality.
        still: whether a and b are constants. Where every entry is at a bound, as in the choice of k among n,
            the solution does not change with q then, for multipliers in an interval; its middle is returned.

    Returns:
        x (B, n), the multiplier of the constraint (B,), whether a point exists (B,), whether there is a kink
        (B,).
    """
    with torch.no_grad():
        nu, feasible = _multiplier(p, q, a, b, lower, upper, equality=equality)
        binding = torch.ones_like(feasible) if equality else nu > 0
        loose = (-q - nu[:, None] * a) / p
        free = (loose > lower) & (loose < upper)
        weights = torch.where(free, a * a / p, torch.zeros_like(q)).sum(-1)
        solvable = binding & (weights > 0)
        edge = torch.minimum((loose - lower).abs(), (loose - upper).abs()).amin(-1)
        at = torch.where(loose <= lower, lower.expand_as(q), upper.expand_as(q))
        fixed = torch.where(free, torch.zeros_like(q), at)
        scale = 1 + q.abs().amax(-1)
        kinked = (edge <= 1e-9 * scale) | (binding & ~solvable)
        if still:
            left, right = _interval(loose, p, q, a, lower, upper)
            left = left if equality else left.clamp_min(0.0)
            resting = binding & ~solvable & (right - left > 1e-9 * scale)
            kinked = kinked & ~resting
            middle = resting & torch.isfinite(left) & torch.isfinite(right)
            nu = torch.where(middle, (left + right) / 2, nu)
        if not equality:
            kinked = kinked | (
                ~binding & ((b - (a * loose.clamp(lower, upper)).sum(-1)).abs() <= 1e-9 * scale)
            )
    flat = torch.where(free, a * q / p, torch.zeros_like(q)).sum(-1)
    total = torch.where(free, a * a / p, torch.zeros_like(q)).sum(-1)
    exact = ((a * fixed).sum(-1) - flat - b) / torch.where(solvable, total, torch.ones_like(total))
    multiplier = torch.where(solvable, exact, nu)
    inside = (-q - multiplier[:, None] * a) / p
    return torch.where(free, inside, fixed), multiplier, feasible, kinked


def _interval(
    loose: Tensor, p: Tensor, q: Tensor, a: Tensor, lower: Tensor, upper: Tensor
) -> tuple[Tensor, Tensor]:
    """Between which multipliers (B,) entries that are at a bound stay there."""
    safe = torch.where(a == 0, torch.ones_like(a), a)
    leaves_low, leaves_high = -(q + p * lower) / safe, -(q + p * upper) / safe
    low, high, up, down = loose <= lower, loose >= upper, a > 0, a < 0
    none = torch.full_like(q, torch.inf)
    right = torch.where(high & up, leaves_high, torch.where(low & down, leaves_low, none))
    left = torch.where(low & up, leaves_low, torch.where(high & down, leaves_high, -none))
    return left.amax(-1), right.amin(-1)


def _multiplier(
    p: Tensor, q: Tensor, a: Tensor, b: Tensor, lower: Tensor, upper: Tensor, *, equality: bool
) -> tuple[Tensor, Tensor]:
    """The multiplier (B,) up to the interval between two breakpoints, and whether a point exists (B,)."""
    nu, found = _newton(p, q, a, b, lower, upper)
    if not bool(found.all()):
        rest = (~found).nonzero()[:, 0]
        own = [v[rest] if v.dim() == 2 and len(v) > 1 else v for v in (p, a, lower, upper)]
        nu = nu.index_copy(0, rest, _searched(own[0], q[rest], own[1], b[rest], own[2], own[3]))
    missed = (_used(nu, p, q, a, lower, upper) - b).abs() > 1e-8 * (1 + b.abs())
    if equality:
        return nu, ~missed
    idle = _used(torch.zeros_like(nu), p, q, a, lower, upper) <= b
    return torch.where(idle, torch.zeros_like(nu), nu), idle | ~missed


def _used(nu: Tensor, p: Tensor, q: Tensor, a: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """a·x (B,) of the minimizer at a multiplier: piecewise linear, nonincreasing."""
    return (a * ((-q - nu[:, None] * a) / p).clamp(lower, upper)).sum(-1)


def _newton(
    p: Tensor, q: Tensor, a: Tensor, b: Tensor, lower: Tensor, upper: Tensor
) -> tuple[Tensor, Tensor]:
    """The multiplier (B,) by Newton's method within a bracket, and whether its piece was found (B,)."""
    slopes, start, turn = a * a / p, -a * q / p, a / p
    nu = (start.sum(-1) - b) / slopes.sum(-1).clamp_min(1e-300)
    left, right = torch.full_like(nu, -torch.inf), torch.full_like(nu, torch.inf)
    found = torch.zeros_like(nu, dtype=torch.bool)
    base = -q / p
    for _ in range(NEWTON):
        loose = base - nu[:, None] * turn
        x = loose.clamp(lower, upper)
        off = (a * x).sum(-1) - b
        slope = torch.where(x == loose, slopes, 0.0).sum(-1)
        left, right = torch.where(off >= 0, nu, left), torch.where(off <= 0, nu, right)
        step = nu + off / slope
        # off its piece by rounding only: the piece is that of the zero
        found = found | ((slope > 0) & ((step - nu).abs() <= 1e-14 * (1 + nu.abs())))
        if bool(found.all()):
            break
        inside = (step > left) & (step < right) & (slope > 0)
        middle = torch.where(torch.isfinite(left) & torch.isfinite(right), (left + right) / 2, nu)
        nu = torch.where(found, nu, torch.where(inside, step, middle))
    return nu, found


def _searched(p: Tensor, q: Tensor, a: Tensor, b: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """The multiplier (B,) by a search among the sorted breakpoints."""

    def total(nu: Tensor) -> Tensor:
        return _used(nu, p, q, a, lower, upper)

    safe = torch.where(a == 0, torch.ones_like(a), a)
    ends = torch.cat([-(q + p * lower) / safe, -(q + p * upper) / safe], -1)
    usable = torch.isfinite(ends) & (a != 0).expand_as(q).repeat(1, 2)
    points = torch.where(usable, ends, torch.full_like(ends, torch.inf)).sort(-1).values
    count = usable.sum(-1)
    left, right = torch.full_like(count, -1), count.clone()  # total(points[left]) >= b > total(points[right])
    for _ in range(int(points.shape[1]).bit_length() + 1):
        middle = (left + right).div(2, rounding_mode="floor")
        inner = (right - left) > 1
        at = points.gather(1, middle.clamp(0, points.shape[1] - 1)[:, None])[:, 0]
        high = total(torch.where(inner, at, torch.zeros_like(at))) >= b
        left = torch.where(inner & high, middle, left)
        right = torch.where(inner & ~high, middle, right)
    first = points.gather(1, left.clamp_min(0)[:, None])[:, 0]
    last = points.gather(1, right.clamp_max(points.shape[1] - 1)[:, None])[:, 0]
    none = count == 0
    first, last = torch.where(none, -torch.ones_like(b), first), torch.where(none, torch.ones_like(b), last)
    first = torch.where((left < 0) & ~none, last - 1 - last.abs(), first)
    last = torch.where((right >= count) & ~none, first + 1 + first.abs(), last)
    # on the interval the function is linear: the intersection with b
    at_first, at_last = total(first), total(last)
    slope = (at_last - at_first) / (last - first)
    flat = slope.abs() <= 1e-14 * (1 + at_first.abs())
    return torch.where(
        flat, (first + last) / 2, first + (b - at_first) / torch.where(flat, -torch.ones_like(slope), slope)
    )


def ball(y: Tensor, center: Tensor, radius: Tensor, *, order: float) -> tuple[Tensor, Tensor, Tensor]:
    """minimize |x - y|^2 / 2 subject to |x - center| <= radius in the norm of this order; exact gradients.

    Args:
        y: (B, n).
        center: (B, n).
        radius: (B,), not negative.
        order: 2 or 1.

    Returns:
        x (B, n), the multiplier of the constraint (B,), whether there is a kink (B,).
    """
    if order == 1.0:
        none = torch.zeros_like(y[0])
        size, price, _, kinked = knapsack(
            torch.ones_like(none), -(y - center).abs(), torch.ones_like(y[:1]), radius, none,
            none + torch.inf, equality=False,
        )  # fmt: skip
        return center + torch.sign(y - center) * size, price, kinked
    distance: Tensor = linalg.vector_norm(y - center, dim=-1)
    outside = distance > radius
    factor = torch.where(outside, radius / torch.where(outside, distance, torch.ones_like(distance)), 1.0)
    price = torch.where(outside, distance - radius, torch.zeros_like(distance))
    kinked = (distance - radius).abs() <= 1e-9 * (1 + distance)
    return center + factor[:, None] * (y - center), price, kinked


def affine_set(p: Tensor, q: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """minimize sum(p x^2 / 2 + q x) subject to a x == b.

    Args:
        p: (n,) positive.
        q: (B, n).
        a: (B or 1, k, n); rows may depend on each other.
        b: (B, k).

    Returns:
        x (B, n), the multipliers of least norm (B, k), whether a point exists (B,).
    """
    scaled = a / p.sqrt()
    y = -(linalg.pinv(scaled @ scaled.mT, hermitian=True) @ (b + (a @ (q / p)[..., None])[..., 0])[..., None])
    x = -(q + (a.mT @ y)[..., 0]) / p
    missed = ((a @ x[..., None])[..., 0] - b).abs().amax(-1)
    return x, y[..., 0], missed <= 1e-8 * (1 + b.abs().amax(-1))


class Separable:
    """Diagonal curvature, bounds, and at most one linear constraint."""

    def __init__(self, functions: Functions, weights: Tensor, piece: Term | None, *, equality: bool) -> None:
        self.functions = functions
        self.weights = weights
        self.piece = piece
        self.key = key = None if piece is None else piece.key
        self.equality = equality
        self._fixed: dict[tuple[int, torch.device], Tensor] = {}
        lower = torch.as_tensor(functions.low)
        self.name = "box" if key is None else "box and budget"
        if (
            key is not None
            and not torch.isfinite(lower).any()
            and not torch.isfinite(torch.as_tensor(functions.high)).any()
        ):
            self.name = "half-space" if not equality else "hyperplane"

    def __call__(self, parameters: Sequence[Tensor], batched: Sequence[bool], batch: int) -> Closed:
        """The solution of a batch; the arguments of `Inner.solutions`."""
        functions = self.functions
        weights = self.weights.to(parameters[0].device) if parameters else self.weights
        zero = weights.new_zeros(batch, functions.size)
        q = functions.batch(grad(functions.objective), batched)(zero, *parameters)
        low, high = (torch.as_tensor(v, device=q.device) for v in (functions.low, functions.high))
        if self.key is None:
            loose = -q / weights
            edge = torch.minimum((loose - low).abs(), (loose - high).abs()).amin(-1)
            kinked = edge <= 1e-9 * (1 + q.abs().amax(-1))
            return Closed(loose.clamp(low, high), {}, torch.ones_like(kinked), kinked)

        b = -self._coefficients(0, self._residual, parameters, batched, zero)
        a = self._coefficients(1, grad(self._residual), parameters, batched, zero)
        x, multiplier, feasible, kinked = knapsack(
            weights,
            q,
            a,
            b,
            low,
            high,
            equality=self.equality,
            still=not (self._moved(0) or self._moved(1)),
        )
        return Closed(x, {self.key: multiplier[:, None]}, feasible, kinked)

    def _residual(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """Of the constraint, in one row."""
        below, equal = self.functions.residuals(x, *parameters)
        return (equal if self.equality else below)[0]

    def _moved(self, degree: int) -> bool:
        """Whether parameters move the coefficients of one degree of the constraint."""
        assert self.piece is not None  # there is a constraint
        return self.piece.terms is None or self.piece.terms.get(degree, False)

    def _coefficients(
        self,
        degree: int,
        function: Callable[..., Tensor],
        parameters: Sequence[Tensor],
        batched: Sequence[bool],
        zero: Tensor,
    ) -> Tensor:
        """Coefficients of one degree of the constraint; those that no parameter moves are kept."""
        key = degree, zero.device
        if self._moved(degree):
            return self.functions.batch(function, batched)(zero, *parameters)
        if key not in self._fixed:
            one = [t[0] if many else t for t, many in zip(parameters, batched, strict=True)]
            with torch.no_grad():
                self._fixed[key] = function(zero[0], *one).detach()[None]
        return self._fixed[key].expand(len(zero), *self._fixed[key].shape[1:])


class Ball:
    """The projection onto a ball."""

    def __init__(
        self, functions: Functions, curve: float, scale: float, key: str, power: int, order: float
    ) -> None:
        self.functions = functions
        self.curve, self.scale, self.key, self.power, self.order = curve, scale, key, power, order
        self.name = f"ball in the norm of order {order:g}"
        self.parts: Callable[..., list[Tensor]]

    def __call__(self, parameters: Sequence[Tensor], batched: Sequence[bool], batch: int) -> Closed:
        """The solution of a batch; the arguments of `Inner.solutions`."""
        functions = self.functions
        device = parameters[0].device if parameters else None
        zero = torch.zeros(batch, functions.size, dtype=torch.float64, device=device)
        q = functions.batch(grad(functions.objective), batched)(zero, *parameters)
        q = q[:, : functions.own]

        def sides(x: Tensor, *theta: Tensor) -> tuple[Tensor, Tensor]:
            offset, radius = self.parts(x, theta)
            return offset.reshape(-1), radius.reshape(())

        offset, radius = functions.batch(sides, batched)(zero, *parameters)
        center = -offset / self.scale
        feasible = radius >= 0
        bound = radius.clamp_min(0).sqrt() if self.power == 2 else radius
        reach = bound / abs(self.scale)
        x, price, kinked = ball(-q / self.curve, center, reach, order=self.order)
        price = self.curve * price / abs(self.scale)
        if self.power == 2:
            active = price > 0
            price = price / torch.where(active, 2 * abs(self.scale) * reach, torch.ones_like(reach))
        x = torch.cat([x, zero[:, functions.own :]], 1)
        return Closed(x, {self.key: price[:, None]}, feasible, kinked)


# ---------------------------------------------------------------------------------------- recognition
def closed_form(structure: Structure, functions: Functions) -> Separable | Ball | None:
    """The formula for an inner problem, None when none is known."""
    known = structure.terms
    if (
        known is None
        or known.get(2, True)
        or (structure.corners and not _one_norm(structure))
        or structure.integer
    ):
        return None
    zero = torch.zeros(functions.size, dtype=torch.float64)
    some = [torch.ones(symbol.shape, dtype=torch.float64) for symbol in functions.parameters]
    if structure.corners:
        return _ball(structure, functions, zero, some)
    P = jacrev(grad(functions.objective))(zero, *some)
    weights = P.diagonal()
    if not bool((weights > 0).all()) or bool((P - torch.diag(weights)).any()):
        return None
    pieces = [*structure.inequalities, *structure.equalities]
    if len(pieces) > 1 or any(term.size != 1 for term in pieces):
        return None
    if not pieces or degree(pieces[0].terms) == 1:
        piece = pieces[0] if pieces else None
        return Separable(functions, weights, piece, equality=bool(structure.equalities))
    return _ball(structure, functions, zero, some)


def _one_norm(structure: Structure) -> bool:
    """Whether the only corner is that of a norm of order one, which is the only constraint."""
    parts = structure.program.parts
    return len(parts) == 1 and _norm(parts[0].residual, 1.0) is not None and len(structure.corners) == 1


def _norm(residual: n.Node, order: float) -> tuple[n.Node, n.Node, int] | None:
    """The argument, the bound and the power of `norm(e) - r` or `sum_squares(e) - r`; None for others."""
    match residual:
        case n.Apply(atom="sub", args=(n.Apply(atom=atom, args=(e, *_)) as size, bound)):
            whole = size.option("axis") is None and degree(terms(bound)) == 0 and degree(terms(e)) == 1
            if atom == "norm" and whole and float(size.option("ord", 2.0)) == order:
                return e, bound, 1
            return (e, bound, 2) if atom == "sum_squares" and whole and order == 2.0 else None
        case _:
            return None


def _ball(structure: Structure, functions: Functions, zero: Tensor, some: Sequence[Tensor]) -> Ball | None:
    parts = structure.program.parts
    own = functions.own
    free = not (
        torch.isfinite(torch.as_tensor(functions.low)).any()
        or torch.isfinite(torch.as_tensor(functions.high)).any()
    )
    order = 1.0 if structure.corners else 2.0
    found = _norm(parts[0].residual, order) if len(parts) == 1 and parts[0].kind == "<=" and free else None
    if found is None or len(structure.program.variables) != 1:
        return None
    argument, bound, power = found
    P = jacrev(grad(functions.objective))(zero, *some)[:own, :own]
    inside = functions.of(argument)

    def offset(x: Tensor) -> Tensor:
        return inside(x, some)[0].reshape(-1)

    slope: Tensor = jacrev(offset)(zero)[:, :own]
    moving = terms(argument)
    eye = torch.eye(own, dtype=torch.float64)
    if moving is None or moving.get(1, True) or slope.shape != eye.shape:
        return None
    scale, curve = float(slope[0, 0]), float(P[0, 0])
    if scale == 0 or not torch.equal(slope, scale * eye) or not torch.equal(P, curve * eye):
        return None
    ball = Ball(functions, curve, scale, parts[0].key, power, order)
    ball.parts = functions.of(argument, bound)
    return ball
