"""Functions that a user declared (`cn.op`): how they are called, and whether they are what was declared.

The comparison runs on random points of the domain, in float64 with a fixed seed. It finds wrong declarations,
it does not prove right ones: a function that bends the other way on a tiny set passes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from constrain.errors import ModelingError
from constrain.language.atoms import ATOMS
from constrain.language.location import here

if TYPE_CHECKING:
    from collections.abc import Sequence

    from constrain.language.atoms import Atom, Declared
    from constrain.language.location import Location

__all__ = ["aligned_shapes", "call", "compare", "compare_lowering", "refuse"]

POINTS = 400
TOLERANCE = 1e-9
"""Relative slack of the inequalities: rounding of the function's own values."""
_SIZES = ({"first": 2, "step": 1}, {"first": 5, "step": -1})
"""Sizes of the axes in the two trials: of the first letter, and how they go on."""


# ---------------------------------------------------------------------------------------------- calling
def aligned_shapes(
    declared: Declared, shapes: Sequence[tuple[int, ...]], lead: Sequence[int]
) -> list[tuple[int, ...]]:
    """The shapes with ones put in, so that loop axes of one row stand under each other, rows in front.

    Args:
        declared: the function.
        shapes: of the arguments, with their axis of rows.
        lead: per argument 1 when it has an axis of rows or levels in front.
    """
    depths = [
        len(s) - has - len(core) for s, has, core in zip(shapes, lead, declared.core, strict=True)
    ]  # loop axes of one row
    most = max(depths)
    return [
        (*s[:has], *([1] * (most - depth) if has else ()), *s[has:])
        for s, has, depth in zip(shapes, lead, depths, strict=True)
    ]


def call(name: str, *args: Tensor, lead: Sequence[int], **options: Any) -> Tensor:
    """The torch function, its arguments expanded to one loop shape."""
    declared = ATOMS[name].declared
    assert declared is not None  # the code was generated for a declared function
    shapes = aligned_shapes(declared, [tuple(a.shape) for a in args], lead)
    loops = [s[: len(s) - len(core)] for s, core in zip(shapes, declared.core, strict=True)]
    loop = np.broadcast_shapes(*loops)
    given = [
        torch.broadcast_to(a.reshape(s), (*loop, *s[len(own) :]))
        for a, s, own in zip(args, shapes, loops, strict=True)
    ]
    return declared.function(*given, **options)


# -------------------------------------------------------------------------------------------- comparing
def refuse(name: str, why: str, fix: str, at: Location | None = None) -> ModelingError:
    """E204: the function is not what was declared."""
    return ModelingError("E204", f"cn.op({name!r}): {why}", at=at, fix=fix)


class _Trial:
    """A declared function on random points."""

    def __init__(self, atom: Atom) -> None:
        assert atom.declared is not None  # only these are compared
        self.atom = atom
        self.declared = atom.declared
        self.generator = torch.Generator().manual_seed(0)
        self.at = here()

    def refuse(self, why: str, fix: str) -> ModelingError:
        return refuse(self.atom.name, why, fix, self.at)

    def sizes(self, trial: int) -> dict[str, int]:
        """A size per letter, different ones within a trial and between the two."""
        letters = dict.fromkeys(x for axes in self.declared.core for x in axes)
        start, step = _SIZES[trial]["first"], _SIZES[trial]["step"]
        return {x: int(x) if x.isdigit() else max(start + k * step, 1) for k, x in enumerate(letters)}

    def uniform(self, shape: tuple[int, ...], low: float, high: float) -> Tensor:
        """Random numbers between two ends; where one is infinite, of three scales."""
        plain = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        if math.isfinite(low) and math.isfinite(high):
            return low + (high - low) * plain
        scale = 10.0 ** torch.randint(-1, 2, shape[:1], generator=self.generator).double()
        spread = scale.reshape(-1, *([1] * (len(shape) - 1)))
        if math.isfinite(low):
            return low + spread * plain
        if math.isfinite(high):
            return high - spread * plain
        return spread * torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def points(self, trial: int = 0, count: int = POINTS) -> list[Tensor]:
        """Arguments with `count` applications each."""
        sizes = self.sizes(trial)
        return [
            self.uniform((count, *(sizes[x] for x in axes)), *interval)
            for axes, interval in zip(self.declared.core, self.declared.domain, strict=True)
        ]

    def value(self, args: Sequence[Tensor]) -> Tensor:
        """The function; refused when it cannot be applied, or is not finite on its domain."""
        try:
            found: Any = self.declared.function(*args)
        except Exception as error:
            raise self.refuse(
                f"the torch function raises {type(error).__name__} on arguments of shape "
                f"{' and '.join(str(tuple(a.shape)) for a in args)}: {error}",
                "a function whose arguments have loop axes in front of those of shape=",
            ) from error
        if not isinstance(found, Tensor):
            raise self.refuse(f"the torch function returns a {type(found).__name__}", "a function of tensors")
        return found

    def at_point(self, args: Sequence[Tensor], k: int) -> str:
        """One application's arguments in a message."""
        return ", ".join(_number(a[k]) for a in args)


def _number(x: Tensor) -> str:
    listed = [f"{v:.4g}" for v in cast("list[float]", x.detach().reshape(-1).tolist())]
    text = ", ".join(listed[:4]) + (", ..." if len(listed) > 4 else "")
    return text if x.ndim == 0 else f"[{text}]"


def compare(atom: Atom, sign: str) -> None:
    """Compares a declaration with its torch function.

    Args:
        atom: the record.
        sign: that was declared.

    Raises:
        ModelingError: E204 with the points at which they differ.
    """
    trial = _Trial(atom)
    _shapes(trial)
    _rows(trial)
    _finite_and_signed(trial, sign)
    _monotone(trial)
    _curved(trial)
    _gradients(trial)
    if trial.declared.smooth:
        _kinks(trial)


def _shapes(trial: _Trial) -> None:
    for k in range(2):
        for loop in ((7,), (2, 3)):
            args = [a.reshape(*loop, *a.shape[1:]) for a in trial.points(k, math.prod(loop))]
            found = tuple(trial.value(args).shape)
            sizes = trial.sizes(k)
            expected = (*loop, *(int(x) if x.isdigit() else sizes[x] for x in trial.declared.output))
            if found != expected:
                raise trial.refuse(
                    f"arguments of shape {' and '.join(str(tuple(a.shape)) for a in args)} give {found}, "
                    f"declared is {expected}",
                    "a function over the last axes (dim=-1), with any axes in front; or another shape=",
                )


def _rows(trial: _Trial) -> None:
    args = trial.points(count=7)
    whole = trial.value(args)
    alone = torch.cat([trial.value([a[i : i + 1] for a in args]) for i in range(7)])
    if not torch.allclose(whole, alone, rtol=1e-6, atol=1e-9, equal_nan=True):
        raise trial.refuse(
            "its value at one row depends on the other rows",
            "reductions over the axes of shape= alone (dim=-1)",
        )


def _finite_and_signed(trial: _Trial, sign: str) -> None:
    args = trial.points()
    values = trial.value(args).reshape(POINTS, -1)
    bad = (~torch.isfinite(values)).any(1)
    if bool(bad.any()):
        k = int(bad.nonzero()[0])
        raise trial.refuse(
            f"it is not finite at {trial.at_point(args, k)}", "domain=(0, None), the numbers it is defined on"
        )
    wrong = {"nonneg": values < -TOLERANCE, "nonpos": values > TOLERANCE}.get(sign)
    if wrong is not None and bool(wrong.any()):
        k = int(wrong.any(1).nonzero()[0])
        raise trial.refuse(
            f"sign={sign!r}, but it is {_number(values[k])} at {trial.at_point(args, k)}", 'sign="any"'
        )


def _slack(*values: Tensor) -> Tensor:
    """What rounding may do to an inequality between these values."""
    size = torch.stack([v.abs() for v in values]).amax(0)
    return TOLERANCE * (1.0 + size)


def _monotone(trial: _Trial) -> None:
    for place, kind in enumerate(trial.atom.monotone):
        if kind == "none":
            continue
        low, high = trial.declared.domain[place]
        halves = ((1, max(low, 0.0), high), (-1, low, min(high, 0.0))) if kind == "by-sign" else None
        for direction, start, end in halves or (({"up": 1, "down": -1}[kind], low, high),):
            if not start < end:
                continue
            args = trial.points()
            shape = tuple(args[place].shape)
            first, second = trial.uniform(shape, start, end), trial.uniform(shape, start, end)
            args[place] = torch.minimum(first, second)
            more = [torch.maximum(first, second) if i == place else a for i, a in enumerate(args)]
            before, after = trial.value(args), trial.value(more)
            wrong = (direction * (before - after) > _slack(before, after)).reshape(POINTS, -1).any(1)
            if bool(wrong.any()):
                k = int(wrong.nonzero()[0])
                word = {"up": "increasing", "down": "decreasing"}.get(kind, kind)
                raise trial.refuse(
                    f"monotone={word!r}, but it goes from {_number(before[k])} to {_number(after[k])} "
                    f"between {trial.at_point(args, k)} and {trial.at_point(more, k)}",
                    'monotone="none"',
                )


def _curved(trial: _Trial) -> None:
    """The inequality of Jensen on random segments, at their midpoints and at random places of them."""
    curvature = trial.atom.curvature
    if curvature == "none":
        return
    first, second = trial.points(), trial.points()
    a, b = trial.value(first), trial.value(second)
    for random in (False, True):
        share = torch.full((POINTS,), 0.5, dtype=torch.float64)
        if random:
            share = torch.rand(POINTS, generator=trial.generator, dtype=torch.float64)
        between = [_mixed(x, y, share) for x, y in zip(first, second, strict=True)]
        gap = trial.value(between) - _mixed(a, b, share)  # at most 0 where convex
        high = {"convex": gap, "concave": -gap, "affine": gap.abs()}[curvature]
        wrong = (high > _slack(a, b)).reshape(POINTS, -1).any(1)
        if bool(wrong.any()):
            k = int(wrong.nonzero()[0])
            raise trial.refuse(
                f"curvature={curvature!r}, but between {trial.at_point(first, k)} and "
                f"{trial.at_point(second, k)} its value at {trial.at_point(between, k)} is "
                f"{_number(trial.value(between)[k])} and the chord is at {_number(_mixed(a, b, share)[k])}",
                'curvature="none", or a smaller domain=',
            )


def _mixed(x: Tensor, y: Tensor, share: Tensor) -> Tensor:
    weight = share.reshape(-1, *([1] * (x.ndim - 1)))
    return weight * x + (1 - weight) * y


def _gradients(trial: _Trial) -> None:
    """Gradients exist and agree with central differences, at nearly all points (the others have kinks)."""
    args = [a.requires_grad_(True) for a in trial.points()]
    value = trial.value(args)
    if not value.requires_grad:
        raise trial.refuse(
            "torch records no gradient of it",
            "torch operations alone: no .detach(), .item(), NumPy or argmax",
        )
    slopes = torch.autograd.grad(value.sum(), args, allow_unused=True, materialize_grads=True)
    steps = [1e-6 * torch.randn(a.shape, generator=trial.generator, dtype=torch.float64) for a in args]
    with torch.no_grad():
        up = trial.value([a + d for a, d in zip(args, steps, strict=True)])
        down = trial.value([a - d for a, d in zip(args, steps, strict=True)])
    differences = (up - down).reshape(POINTS, -1).sum(1) / 2
    products = torch.cat([(g * d).reshape(POINTS, -1) for g, d in zip(slopes, steps, strict=True)], 1)
    told, size = products.sum(1), products.abs().sum(1)
    rounding = 1e-14 * (1.0 + value.detach().abs().reshape(POINTS, -1).sum(1))
    wrong = (differences - told).abs() > 1e-3 * size + rounding
    wrong &= torch.isfinite(differences)
    if int(wrong.sum()) > POINTS // 20:
        k = int(wrong.nonzero()[0])
        raise trial.refuse(
            f"its gradient is not its slope: at {trial.at_point(args, k)} torch says "
            f"{_number(told[k] / 1e-6)} in a direction in which differences give "
            f"{_number(differences[k] / 1e-6)}",
            "a backward that is the derivative of forward",
        )


def _length(vectors: Tensor) -> Tensor:
    return torch.sqrt((vectors**2).sum(1))


def _kinks(trial: _Trial) -> None:
    """Looks for a jump of the gradient on random segments; bisection keeps the half that jumps more."""
    first, second = trial.points(), trial.points()
    low = torch.zeros(POINTS, dtype=torch.float64)
    high = torch.ones(POINTS, dtype=torch.float64)

    def slope(share: Tensor) -> Tensor:
        args = [_mixed(y, x, share).requires_grad_(True) for x, y in zip(first, second, strict=True)]
        found = torch.autograd.grad(trial.value(args).sum(), args, allow_unused=True, materialize_grads=True)
        return torch.cat([g.reshape(POINTS, -1) for g in found], 1)

    at_low, at_high = slope(low), slope(high)
    whole = _length(at_high - at_low)
    for _ in range(45):
        middle = (low + high) / 2
        at_middle = slope(middle)
        left = (_length(at_middle - at_low) >= _length(at_high - at_middle)).unsqueeze(1)
        low, high = torch.where(left[:, 0], low, middle), torch.where(left[:, 0], middle, high)
        at_low, at_high = torch.where(left, at_low, at_middle), torch.where(left, at_middle, at_high)
    jump = _length(at_high - at_low)
    wrong = jump > 1e-3 * whole + 1e-9
    if bool(wrong.any()):
        k = int(wrong.nonzero()[0])
        place = [_mixed(y, x, low) for x, y in zip(first, second, strict=True)]
        raise trial.refuse(
            f"smooth=True, but its gradient jumps at {trial.at_point(place, k)}", "smooth=False"
        )


# --------------------------------------------------------------------------------------------- lowerings
def compare_lowering(name: str, backend: str, evaluate: Any, options: dict[str, Any]) -> None:
    """Compares a lowering with the torch function at a few points.

    Args:
        name: of the declared function.
        backend: whose lowering it is.
        evaluate: arguments as arrays with one loop axis to the value of the lowering, as an array.
        options: of the application at hand.

    Raises:
        ModelingError: E204 when the values differ, or the lowering cannot be evaluated.
    """
    trial = _Trial(ATOMS[name])
    args = trial.points(count=5)
    wanted = trial.declared.function(*args, **options).detach().numpy()
    found = np.asarray(evaluate([a.numpy() for a in args]), dtype=np.float64)
    if found.shape != wanted.shape:
        raise refuse(
            name, f"the {backend} lowering gives shape {found.shape} where torch gives {wanted.shape}",
            f"a {backend}= with the axes of the torch function",
        )  # fmt: skip
    error = np.abs(found - wanted).reshape(5, -1).max(1)
    k = int(np.argmax(error))
    if not error[k] <= 1e-6 * (1.0 + np.abs(wanted).max()):
        raise refuse(
            name,
            f"the {backend} lowering is {_number(torch.as_tensor(found[k]))} at {trial.at_point(args, k)}, "
            f"and torch gives {_number(torch.as_tensor(wanted[k]))}",
            f"a {backend}= that is the same function",
        )
