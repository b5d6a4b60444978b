"""Fixed points z = F(z; parameters) per row of a batch, and their derivatives.

With J the derivative of F in z, that of the fixed point in a parameter is (I - J)^-1 dF (implicit function
theorem): one linear solve per gradient, however many steps the iteration took. Small maps have their J as a
matrix; large ones are only applied to vectors, and the systems are solved by GMRES.
"""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from constrain.errors import ModelingWarning, RouteError
from constrain.inner.gradients import gradients, several
from constrain.inner.iterate import anderson, newton
from constrain.inner.kkt import places_of
from constrain.inner.krylov import gmres, ritz_values
from constrain.inner.linalg import linalg
from constrain.language import nodes as n
from constrain.runtime.binding import as_array
from constrain.runtime.codegen import Tables, generate
from constrain.runtime.functional import call_with

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from constrain.language.symbols import Model

__all__ = ["SMALL", "Equation", "Root", "compiled_equation"]

SMALL = 128
"""Numbers of z up to which the derivative of F is made as a matrix."""
_ENOUGH = 1e-9
"""Change of an accepted fixed point, relative to its size."""


@dataclass(frozen=True)
class Equation:
    """`z == F(z, parameters)`.

    Attributes:
        unknown: z.
        image: F.
        models: trained models in F, whose weights are arguments.
    """

    unknown: n.VariableSymbol
    image: n.Node
    models: tuple[Model, ...]

    @property
    def parameters(self) -> tuple[n.ParameterSymbol, ...]:
        """Parameters of F, in order of appearance."""
        return tuple(dict.fromkeys(x.symbol for x in n.postorder(self.image) if isinstance(x, n.Knob)))


@lru_cache(maxsize=128)
def compiled_equation(equation: Equation) -> Root:
    """The compiled equation, kept."""
    return Root(equation)


class Root:
    """An equation z = F(z) that is solved on batches.

    Attributes:
        size: number of entries of z.
        small: whether derivatives of F are made as matrices.
        evaluations: of F by Anderson's acceleration in the last call, an upper bound per row.
    """

    def __init__(self, equation: Equation) -> None:
        self.equation = equation
        self.shape = equation.unknown.shape
        self.size = math.prod(self.shape)
        self.small = self.size <= SMALL
        self.parameters = equation.parameters
        self.last: Tensor | None = None
        self._tables = Tables()
        self._generated = generate("image", self._tables, [(equation.image, "exact")])
        self._modules = {m: _plain(m) for m in self._tables.models}
        self._arrays: dict[torch.device, list[Tensor]] = {}

    def __deepcopy__(self, _memo: Any) -> Root:
        """Itself."""
        return self

    # ---- the map
    def image(self, z: Tensor, *theta: Tensor) -> Tensor:
        """F of one row, (n,) -> (n,); theta are the parameters, then the weights of each trained model."""
        tables = self._tables
        known = dict(zip(self.parameters, theta, strict=False))
        weights = dict(zip(self.equation.models, theta[len(self.parameters) :], strict=True))
        applied = [_applied(self._modules[m], m, weights.get(m)) for m in tables.models]
        flat = [weights[m] if m in weights else _weights(m) for m in tables.models]
        knobs = [known[symbol] for symbol in tables.parameters]
        arrays = self._arrays[z.device]
        variables = [z.reshape(self.shape)]

        def number(value: Any) -> Tensor:
            return torch.as_tensor(value, dtype=torch.float64)

        inputs: tuple[Any, ...] = ({}, variables, applied, flat, knobs, arrays, [], [])
        (found,) = self._generated.function(*inputs, torch.float64, number, None)
        return number(found).expand(self.shape).reshape(-1)

    def _place(self, device: torch.device) -> None:
        """Puts models and constants on a device; never inside of a transform of `torch.func`."""
        for model, module in self._modules.items():
            module.to(device)
            own = dict(model.module.named_buffers())
            for name, held in module.named_buffers():
                held.copy_(own[name])
        if device not in self._arrays:
            self._arrays[device] = [_constant(symbol, device) for symbol in self._tables.arrays]

    def batched(self, function: Callable[..., Any], batched: Sequence[bool]) -> Callable[..., Any]:
        """A function of one row (z, *theta) as one of a batch."""
        return vmap(function, in_dims=(0, *(0 if many else None for many in batched)))

    # ---- the fixed point
    def solve(self, theta: Sequence[Tensor], batched: Sequence[bool], batch: int) -> tuple[Tensor, Linear]:
        """Fixed points (B, n) and the linear map I - J there.

        Raises:
            RouteError: E193 (no fixed point found in a row).
        """
        device = theta[0].device if theta else torch.device("cpu")
        self._place(device)
        with torch.no_grad():
            step = self.batched(self.image, batched)

            def image(z: Tensor) -> Tensor:
                return cast("Tensor", step(z, *theta))

            start = self._start(batch, device, image)
            reach = (1e-5, 15) if self.small else (1e-12, 200)
            z, error = anderson(image, start, tolerance=reach[0], limit=reach[1])
            fell_short = not self.small and bool((error > _ENOUGH).any())
            if self.small or fell_short:
                z, error = newton(image, self._towards(theta, batched), z, tolerance=1e-14)
            self._refuse(error, theta, batched)
        self.last = z
        linear = Linear(self, z, theta, batched)
        if fell_short:
            linear.check()
        return z, linear

    def _start(self, batch: int, device: torch.device, image: Callable[[Tensor], Tensor]) -> Tensor:
        """The value of the variable; in a row where the fixed points of the last call are closer, those."""
        own = self.equation.unknown.value
        flat = torch.zeros(self.size) if own is None else torch.as_tensor(as_array(own).copy()).reshape(-1)
        start = flat.to(device=device, dtype=torch.float64).expand(batch, -1)
        last = self.last
        if last is None or len(last) != batch or last.device != device:
            return start
        nearer = _size(image(last) - last) < _size(image(start) - start)
        return torch.where(nearer[:, None], last, start)

    def _towards(
        self, theta: Sequence[Tensor], batched: Sequence[bool]
    ) -> Callable[[Tensor, Tensor], Tensor]:
        def step(z: Tensor, rest: Tensor) -> Tensor:
            return Linear(self, z, theta, batched).solve(rest, transposed=False)

        return step

    def _refuse(self, error: Tensor, theta: Sequence[Tensor], batched: Sequence[bool]) -> None:
        for i in places_of(~(error <= _ENOUGH)):
            bad = next(
                (s.name for s, t, many in zip(self.parameters, theta, batched, strict=False)
                 if not bool(torch.isfinite(t[i] if many else t).all())),
                None,
            )  # fmt: skip
            reason = f"|F(z) - z| is still {float(error[i]):.2g} of the size of z at the best point"
            raise RouteError(
                "E193",
                f"no fixed point was found in row {i} of the batch "
                f"({reason if bad is None else f'Parameter {bad!r} is infinite or NaN'})",
                at=self.equation.image.loc,
                fix="a map that contracts, such as 0.5 * z + 0.5 * F(z), or z.value = ..., a start near it",
            )


def _size(rows: Tensor) -> Tensor:
    return rows.nan_to_num(nan=torch.inf, posinf=torch.inf).abs().amax(-1)


# ------------------------------------------------------------------------------------------------ I - J
class Linear:
    """I - J at a point, J the derivative of F: a matrix per row, or a map.

    Attributes:
        checked: whether it is known that F is a contraction there or that a warning was given.
    """

    def __init__(self, root: Root, z: Tensor, theta: Sequence[Tensor], batched: Sequence[bool]) -> None:
        self.root = root
        self.z = z.detach()
        self.theta = [t.detach() for t in theta]
        self.batched = list(batched)
        self.checked = False
        self.matrix: Tensor | None = None
        if root.small:
            slope = root.batched(jacrev(root.image), batched)(self.z, *self.theta)
            self.matrix = torch.eye(root.size, dtype=slope.dtype, device=slope.device) - slope
            lu, pivots, _ = cast("tuple[Tensor, Tensor, Tensor]", linalg.lu_factor_ex(self.matrix))
            pivot = lu.diagonal(dim1=-2, dim2=-1).abs()
            self.singular = ~(pivot.amin(-1) > 1e-11 * pivot.amax(-1))
            self.lu = lu, pivots

    def solve(self, rhs: Tensor, *, transposed: bool) -> Tensor:
        """(I - J) t = rhs or its transpose, (B, n); of least norm where there is no inverse."""
        if self.matrix is None:
            maps = self._maps()
            found = gmres(lambda v: v - maps[transposed](v), rhs)
            self.singular = found.error > 1e-7
            return found.x
        found = linalg.lu_solve(*self.lu, rhs[..., None], adjoint=transposed)
        if bool(self.singular.any()):
            rows = self.singular.nonzero()[:, 0]
            inverse: Tensor = linalg.pinv(self.matrix[rows], rtol=1e-10)
            found = found.index_copy(0, rows, (inverse.mT if transposed else inverse) @ rhs[rows, :, None])
        return cast("Tensor", found[..., 0])

    def _maps(self) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """v -> J v and v -> J' v, from one evaluation of F."""
        with torch.enable_grad():
            z = self.z.clone().requires_grad_(True)
            image = self.root.batched(self.root.image, self.batched)(z, *self.theta)
            if not image.requires_grad:
                return torch.zeros_like, torch.zeros_like
            dual = torch.zeros_like(z).requires_grad_(True)
            (pulled,) = torch.autograd.grad(image, z, dual, create_graph=True)

        def forward(v: Tensor) -> Tensor:
            return torch.autograd.grad(pulled, dual, v, retain_graph=True, materialize_grads=True)[0]

        def backward(v: Tensor) -> Tensor:
            return torch.autograd.grad(image, z, v, retain_graph=True)[0]

        return (forward if pulled.requires_grad else torch.zeros_like), backward

    # ---- what is said about it
    def check(self) -> None:
        """W224 where F is no contraction at its fixed point, W221 where that is not isolated; once."""
        if self.checked:
            return
        self.checked = True
        radius = self.radius()
        rows = places_of(radius >= 1)
        if rows:
            worst = float(radius.max())
            warnings.warn(
                ModelingWarning(
                    "W224",
                    f"the map is no contraction at its fixed point in {_listed(rows)}: its derivative has "
                    f"the spectral radius {worst:.3g}; the point was found by Newton's method, an iteration "
                    "of the map would leave it, and there may be others",
                    fix="smaller weights of z in the map, or a start near the point that is wanted: z.value",
                ),
                stacklevel=2,
            )

    def warn_singular(self) -> None:
        """W221 where I - J has no inverse."""
        rows = places_of(self.singular)
        if rows:
            warnings.warn(
                ModelingWarning(
                    "W221",
                    f"the fixed point is not isolated in {_listed(rows)}: its gradient is one of many",
                    fix="a map whose derivative in z does not have the eigenvalue 1",
                ),
                stacklevel=2,
            )

    def radius(self) -> Tensor:
        """(B,) spectral radius of J: exact for matrices that norms do not settle, an estimate for maps."""
        if self.matrix is None:
            generator = torch.Generator().manual_seed(0)
            start = torch.randn(self.z.shape, generator=generator, dtype=self.z.dtype).to(self.z.device)
            return ritz_values(self._maps()[0], start).abs().amax(-1)
        J = torch.eye(self.root.size, dtype=self.z.dtype, device=self.z.device) - self.matrix
        eighth = J @ J
        eighth = eighth @ eighth
        eighth = eighth @ eighth
        above = eighth.abs().sum(-1).amax(-1) ** 0.125  # a norm of J^8: at least the radius to the eighth
        rows = (~(above < 1)).nonzero()[:, 0]
        if not len(rows):
            return above
        values: Tensor = linalg.eigvals(J[rows])
        return above.index_copy(0, rows, values.abs().amax(-1))


def _listed(rows: Sequence[int]) -> str:
    shown = ", ".join(map(str, rows[:5]))
    return f"row {shown}" if len(rows) == 1 else f"rows {shown}{' …' if len(rows) > 5 else ''}"


# --------------------------------------------------------------------------------------------- autograd
class Fixed(torch.autograd.Function):
    """Parameters and weights -> fixed points (B, n)."""

    @staticmethod
    def forward(ctx: Any, root: Root, batched: tuple[bool, ...], batch: int, *theta: Tensor) -> Tensor:
        z, linear = root.solve(theta, batched, batch)
        ctx.root, ctx.batched, ctx.linear = root, batched, linear
        found = z.clone()
        ctx.save_for_backward(found, *theta)
        return found

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        root, linear = ctx.root, ctx.linear
        saved: Sequence[Tensor] = ctx.saved_tensors
        z, *theta = saved
        again = torch.is_grad_enabled()
        linear.check()
        if several(upstream[0]):
            return (None, None, None, *_dense(ctx, z, theta, linear.solve(upstream[0], transposed=True)))
        if again:
            steps = cast("Tensor", Adjoint.apply(linear, upstream[0], z, *theta))
        else:
            steps = linear.solve(upstream[0], transposed=True)
        linear.warn_singular()
        with torch.enable_grad():
            own = [t.clone() if again and t.requires_grad else t.detach().requires_grad_(need)
                   for t, need in zip(theta, ctx.needs_input_grad[3:], strict=True)]  # fmt: skip
            image = root.batched(root.image, ctx.batched)(z if again else z.detach(), *own)
            total = (image * steps).sum()
            grads = gradients(total, own, again=again)
        return (None, None, None, *grads)


def _dense(ctx: Any, z: Tensor, theta: Sequence[Tensor], steps: Tensor) -> list[Tensor | None]:
    """steps · F(theta) with the Jacobian of F: autograd cannot run inside of batched derivatives."""
    needed: Sequence[bool] = ctx.needs_input_grad[3:]
    wanted = tuple(1 + i for i, need in enumerate(needed) if need)
    found = iter(ctx.root.batched(jacrev(ctx.root.image, argnums=wanted), ctx.batched)(z, *theta))
    grads: list[Tensor | None] = []
    for t, need, many in zip(theta, needed, ctx.batched, strict=True):
        if not need:
            grads.append(None)
            continue
        slopes: Tensor = next(found)
        moved = (steps[..., None] * slopes.reshape(*steps.shape, -1)).sum(1)
        grads.append((moved if many else moved.sum(0)).reshape(t.shape))
    return grads


class Adjoint(torch.autograd.Function):
    """The solution u of (I - J)' u = g, as a function of g, the fixed point and the parameters."""

    @staticmethod
    def forward(ctx: Any, linear: Linear, g: Tensor, *points: Tensor) -> Tensor:
        found = linear.solve(g, transposed=True)
        ctx.linear = linear
        ctx.save_for_backward(found, *points)
        return found

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        linear: Linear = ctx.linear
        saved: Sequence[Tensor] = ctx.saved_tensors
        u, *points = saved
        t = linear.solve(upstream[0], transposed=False)
        with torch.enable_grad():  # d(u' J t) in the point and the parameters
            z, *own = [p.detach().requires_grad_(p.requires_grad) for p in points]
            z.requires_grad_(True)
            image = linear.root.batched(linear.root.image, linear.batched)(z, *own)
            (pulled,) = torch.autograd.grad((image * u).sum(), z, create_graph=True)
            grads = gradients((pulled * t).sum(), [z, *own], again=False)
        return (None, t, *grads)


# ------------------------------------------------------------------------------------------------ models
def _plain(model: Model) -> torch.nn.Module:
    """A copy in float64 that holds what is not trained, as in evaluation mode."""
    return copy.deepcopy(model.module).double().requires_grad_(False).eval()


def _weights(model: Model) -> Tensor:
    trained = [p.reshape(-1).to(torch.float64) for p in model.module.parameters() if p.requires_grad]
    return torch.cat(trained) if trained else torch.zeros(0, dtype=torch.float64)


def _applied(module: torch.nn.Module, model: Model, flat: Tensor | None) -> Callable[..., Tensor]:
    """The model as a function; with the weights of a flat vector where it is trained."""
    if flat is None:
        return module
    named: dict[str, Tensor] = {}
    start = 0
    for name, p in model.module.named_parameters():
        if p.requires_grad:
            named[name] = flat[start : start + p.numel()].reshape(p.shape)
            start += p.numel()

    def apply(*args: Tensor) -> Tensor:
        return cast("Tensor", call_with(module, named, args))

    return apply


def _constant(symbol: n.ArraySymbol, device: torch.device) -> Tensor:
    given = symbol.value
    value = given if isinstance(given, Tensor) else torch.as_tensor(as_array(given).copy())
    kind = torch.float64 if value.is_floating_point() else value.dtype
    return value.detach().to(device=device, dtype=kind)
