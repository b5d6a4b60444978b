"""Continuous populations: coordinates that are drawn at random, or averaged over by quadrature.

    x = cn.Uniform("x", 0.0, 1.0)
    z = cn.Box("z", [0.0, 0.0], [1.0, 2.0])          # two coordinates, z[..., 0] and z[..., 1]

What a constructor returns is an expression, to be used like a column: `E(u(x)**2)`,
`forall(x, u(x) >= 0)`. Its population is a `Region`: a `Data` whose one column is the coordinate and whose
rows are the points of a support. Averages over all rows of a region are weighted sums over the support:
quadrature.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, cast

from constrain._lazy import attribute
from constrain.errors import ModelingError
from constrain.language import nodes as n
from constrain.language.data import Data, Subset, static_shape
from constrain.language.expr import Expr
from constrain.language.keywords import keywords
from constrain.language.location import here
from constrain.language.symbols import checked_name

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Box", "Coordinate", "Grid", "Law", "Normal", "Region", "Rule", "Uniform"]

Rule: TypeAlias = Literal["gauss", "trapezoid", "sobol", "points"]
_RULES = {"uniform": ("gauss", "trapezoid", "sobol"), "normal": ("gauss", "sobol"), "grid": ("points",)}
_PER_AXIS = {1: 64, 2: 32}
"""Default number of Gauss points per axis; in more dimensions Sobol points."""
_NORMAL_AXIS = 32
_SOBOL = 4096
_LARGEST = {"gauss": 1024, "trapezoid": 1_000_000, "sobol": 2**24}
_LARGEST_HERMITE = 180
"""Beyond it the weights of Gauss-Hermite quadrature underflow."""


@dataclass(frozen=True)
class Law:
    """The distribution of a coordinate, its components independent.

    Attributes:
        kind: `uniform` (first: lower ends, second: upper ends), `normal` (first: means, second: standard
            deviations) or `grid` (points with weights).
        first: one number per component.
        second: one number per component.
        points: array-like (points,) or (points, d) of a grid.
        weights: array-like (points,) of a grid; None for equal ones.
    """

    kind: Literal["uniform", "normal", "grid"]
    first: tuple[float, ...] = ()
    second: tuple[float, ...] = ()
    points: Any = None
    weights: Any = None


class _Support:
    """Stands for the support points, whose shape is known before they are computed."""

    dtype = "float64"

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape


class Region(Data):
    """A continuous population with a support of weighted points.

    Made by `Uniform`, `Normal`, `Box` and `Grid`. `len(region)` is the number of support points; `values` are
    the points, computed when they are first asked for; `weights` are their weights.

    Args:
        name: of the population and of its one column.
        law: how the coordinate is distributed.
        row_shape: `()` for a scalar coordinate, `(d,)` for a vector.
        rule: of the support.
        size: points per axis of the support; in all for `sobol` and `points`.
    """

    def __init__(
        self, name: str, law: Law, row_shape: tuple[int, ...], rule: Rule, size: tuple[int, ...]
    ) -> None:
        self.law = law
        self.rule: Rule = rule
        self.size = size
        self._computed: tuple[Any, Any] | None = None
        count = math.prod(size)
        super().__init__(name, **{name: _Support((count, *row_shape))})

    @property
    def coordinate(self) -> Coordinate:
        """The expression that stands for a point of the region."""
        return Coordinate(self)

    @property
    def weights(self) -> Any:
        """The weights of the support points, an array (points,) that sums to one; None when all are equal."""
        return self._support()[1]

    def values(self, column: str) -> Any:
        """The support points: an array (points,) or (points, d) in float64."""
        del column  # there is only one
        return self._support()[0]

    def draw(self, count: int, generator: Any = None) -> Any:
        """Independent draws from the region's distribution.

        Args:
            count: how many.
            generator: a `torch.Generator`; left out, torch's global one.

        Returns:
            A float64 tensor (count,) or (count, d) on the CPU.
        """
        return attribute("constrain.runtime.regions:draw")(self, count, generator)

    def _support(self) -> tuple[Any, Any]:
        if self._computed is None:
            self._computed = attribute("constrain.runtime.regions:support")(self)
        return cast("tuple[Any, Any]", self._computed)

    def __repr__(self) -> str:
        points = f"{len(self)} points"
        if self.law.kind == "grid":
            return f"<Grid {self.name} with {points}>"
        ends = zip(self.law.first, self.law.second, strict=True)
        shown = " x ".join(f"({a:g}, {b:g})" for a, b in ends)
        return f"<Region {self.name}, {self.law.kind} {shown}, with {points} ({self.rule})>"


class Coordinate(Expr):
    """A point of a continuous population: an expression, like a column of a sample.

    Attributes:
        region: the population.
    """

    __slots__ = ("region",)

    region: Region

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Self:
        """An expression of this class: `Expr` chooses another one for what it records."""
        return object.__new__(cls)

    def __init__(self, region: Region) -> None:
        object.__setattr__(self, "region", region)
        super().__init__(n.Column(region, region.name, loc=here()))

    def where(self, event: Expr) -> Subset:
        """The part of the region where an event holds, for `forall`."""
        return self.region.where(event)


class Uniform(Coordinate):
    """A scalar coordinate, uniform on an interval.

    Args:
        name: how reports call it.
        lower: left end.
        upper: right end.
        size: number of support points (64).
        rule: of the support: `"gauss"` (Gauss-Legendre; exact for polynomials of degree 2 size - 1),
            `"trapezoid"` (with both ends) or `"sobol"` (scrambled Sobol points of equal weight).

    Raises:
        ModelingError: E117 (name), E163 (empty or infinite interval, unknown rule, size).
    """

    __slots__ = ()

    @keywords
    def __init__(
        self,
        name: str,
        lower: float = 0.0,
        upper: float = 1.0,
        *,
        size: int | None = None,
        rule: Rule | None = None,
    ) -> None:
        checked = checked_name(name, "Uniform", 'cn.Uniform("x", 0.0, 1.0)')
        law = Law("uniform", _numbers(lower, "lower", 1), _numbers(upper, "upper", 1))
        _check_interval(law, f"Uniform {checked!r}")
        super().__init__(_region(checked, law, (), size, rule))


class Box(Coordinate):
    """A vector coordinate, uniform on a box; its components are `z[..., i]`.

    Args:
        name: how reports call it.
        lower: one left end per component.
        upper: one right end per component.
        size: support points per axis (a number, or one per axis), for `"sobol"` in all.
        rule: `"gauss"` (the default in one and two dimensions, 64 and 32 points per axis), `"trapezoid"` or
            `"sobol"` (the default in more dimensions, 4096 points).

    Raises:
        ModelingError: E117 (name), E163 (ends that do not make a box, unknown rule, size).
    """

    __slots__ = ()

    @keywords
    def __init__(
        self,
        name: str,
        lower: Sequence[float],
        upper: Sequence[float],
        *,
        size: int | Sequence[int] | None = None,
        rule: Rule | None = None,
    ) -> None:
        checked = checked_name(name, "Box", 'cn.Box("z", [0.0, 0.0], [1.0, 1.0])')
        law = Law("uniform", _numbers(lower, "lower"), _numbers(upper, "upper"))
        if not static_shape(lower) or len(law.first) != len(law.second):
            raise _invalid(
                f"Box {checked!r} has {len(law.first)} lower and {len(law.second)} upper ends",
                f'cn.Box("{checked}", [0.0, 0.0], [1.0, 1.0]), one of each per component',
            )
        _check_interval(law, f"Box {checked!r}")
        super().__init__(_region(checked, law, (len(law.first),), size, rule))


class Normal(Coordinate):
    """A normally distributed coordinate: a scalar, or a vector of independent components.

    Args:
        name: how reports call it.
        mean: a number, or one per component.
        std: standard deviation, a number, or one per component.
        size: support points per axis (32), for `"sobol"` in all.
        rule: `"gauss"` (Gauss-Hermite, the default in one and two dimensions) or `"sobol"`.

    Raises:
        ModelingError: E117 (name), E163 (a deviation that is not positive, unknown rule, size).
    """

    __slots__ = ()

    @keywords
    def __init__(
        self,
        name: str,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        *,
        size: int | Sequence[int] | None = None,
        rule: Rule | None = None,
    ) -> None:
        checked = checked_name(name, "Normal", 'cn.Normal("x", 0.0, 1.0)')
        means, stds = _numbers(mean, "mean"), _numbers(std, "std")
        count = max(len(means), len(stds))
        means = means * count if len(means) == 1 else means
        stds = stds * count if len(stds) == 1 else stds
        if len(means) != len(stds):
            raise _invalid(
                f"Normal {checked!r} has {len(means)} means and {len(stds)} deviations", "one per component"
            )
        if any(s <= 0 for s in stds):
            raise _invalid(f"Normal {checked!r} has the standard deviation {min(stds):g}", "std > 0")
        scalar = not static_shape(mean) and not static_shape(std)
        law = Law("normal", means, stds)
        super().__init__(_region(checked, law, () if scalar else (count,), size, rule))


class Grid(Coordinate):
    """A coordinate on given points: a fixed support, a boundary, a mesh.

    Averages weigh the points by `weights`, which are divided by their sum. A derivative at a point is that of
    an expression on a grid of this point: `b = cn.Grid("b", [0.0])`, `E(cn.diff(u(b), b)) == 0`.

    Args:
        name: how reports call it.
        points: array-like (points,), or (points, d) for a vector coordinate.
        weights: array-like (points,), nonnegative; equal when left out. With `axes` also `"trapezoid"`.
        axes: in the place of `points`: one increasing list of numbers per component, whose product is the
            grid, the last component running fastest. One list makes a scalar coordinate.

    Raises:
        ModelingError: E117 (name), E163 (shapes that do not fit, negative weights, decreasing axes).
    """

    __slots__ = ()

    @keywords
    def __init__(
        self,
        name: str,
        points: Any = None,
        weights: Any = None,
        *,
        axes: Sequence[Sequence[float]] | None = None,
    ) -> None:
        checked = checked_name(name, "Grid", 'cn.Grid("x", [0.0, 0.5, 1.0])')
        if (points is None) == (axes is None):
            raise _invalid(f"Grid {checked!r} needs either points or axes", 'cn.Grid("x", [0.0, 0.5, 1.0])')
        if axes is not None:
            points, weights = _product([_numbers(a, "axes") for a in axes], weights, checked)
        shape = static_shape(points)
        if not shape or len(shape) > 2 or 0 in shape:
            raise _invalid(
                f"the points of Grid {checked!r} have shape {shape or ()}",
                "one number per point, or one row of d numbers per point",
            )
        count, row_shape = len(points), shape[1:]
        if isinstance(weights, str) or (weights is not None and static_shape(weights) != shape[:1]):
            raise _invalid(
                f"Grid {checked!r} has {count} points and the weights {_described(weights)}",
                "one nonnegative number per point",
            )
        if weights is not None:
            given = _numbers(weights, "weights")
            if min(given) < 0 or sum(given) <= 0:
                raise _invalid(
                    f"Grid {checked!r} has weights with minimum {min(given):g} and sum {sum(given):g}",
                    "nonnegative numbers with a positive sum",
                )
        law = Law("grid", points=points, weights=weights)
        super().__init__(Region(checked, law, row_shape, "points", (count,)))


# ------------------------------------------------------------------------------------------- checking
def _invalid(message: str, fix: str) -> ModelingError:
    return ModelingError("E163", message, at=here(), fix=fix)


def _described(value: Any) -> str:
    return repr(value) if isinstance(value, str) else f"of shape {static_shape(value)}"


def _numbers(value: Any, what: str, count: int | None = None) -> tuple[float, ...]:
    """Finite numbers out of a number or a list of them."""
    items: list[Any] = [value] if not static_shape(value) else list(value)
    try:
        found = tuple(float(v) for v in items)
    except (TypeError, ValueError):
        found = ()
    if not found or not all(math.isfinite(v) for v in found) or count not in (None, len(found)):
        wanted = "a finite number" if count == 1 else "finite numbers, one per component"
        raise _invalid(f"{what} is {value!r:.60}", wanted)
    return found


def _check_interval(law: Law, what: str) -> None:
    for a, b in zip(law.first, law.second, strict=True):
        if a >= b:
            raise _invalid(f"{what} reaches from {a:g} to {b:g}", "lower < upper")


def _region(name: str, law: Law, row_shape: tuple[int, ...], size: Any, rule: Rule | None) -> Region:
    """The region with its support, by default Gauss points in one and two dimensions and Sobol beyond."""
    dims = len(law.first)
    chosen: Rule = rule if rule is not None else ("gauss" if dims <= 2 else "sobol")
    if chosen not in _RULES[law.kind]:
        raise _invalid(
            f"no rule for the support of a {law.kind} coordinate is called {rule!r}",
            " or ".join(f'rule="{r}"' for r in _RULES[law.kind]),
        )
    axes = 1 if chosen == "sobol" else dims
    usual = _SOBOL if chosen == "sobol" else _NORMAL_AXIS if law.kind == "normal" else _PER_AXIS.get(dims, 16)
    sizes = (usual,) * axes if size is None else _sizes(size, axes)
    largest = _LARGEST_HERMITE if (law.kind, chosen) == ("normal", "gauss") else _LARGEST[chosen]
    least = 2 if chosen == "trapezoid" else 1
    if not all(least <= s <= largest for s in sizes) or math.prod(sizes) > _LARGEST["sobol"]:
        raise _invalid(
            f"a support of {' x '.join(map(str, sizes))} points with rule {chosen!r}",
            f"size from {least} to {largest} per axis, at most {_LARGEST['sobol']} points in all",
        )
    return Region(name, law, row_shape, chosen, sizes)


def _sizes(size: Any, axes: int) -> tuple[int, ...]:
    items: list[Any] = list(size) if static_shape(size) else [size] * axes
    if len(items) != axes or not all(isinstance(s, int) and not isinstance(s, bool) for s in items):
        raise _invalid(
            f"size is {size!r:.60}", f"an integer, or {axes} of them" if axes > 1 else "an integer"
        )
    return tuple(items)


def _product(axes: list[tuple[float, ...]], weights: Any, name: str) -> tuple[list[Any], Any]:
    """The points of a product of axes, and their weights: given, or those of the trapezoid rule."""
    for axis in axes:
        if any(b <= a for a, b in pairwise(axis)):
            raise _invalid(f"an axis of Grid {name!r} does not increase", "numbers in increasing order")
    points: list[Any] = [()]
    found = [1.0]
    for axis in axes:
        points = [(*p, v) for p in points for v in axis]
        own = _trapezoid(axis)
        found = [w * v for w in found for v in own]
    trapezoid = isinstance(weights, str) and weights == "trapezoid"
    scalar = len(axes) == 1
    return [p[0] for p in points] if scalar else [list(p) for p in points], found if trapezoid else weights


def _trapezoid(axis: tuple[float, ...]) -> list[float]:
    """Half the length of the intervals on both sides of each point."""
    if len(axis) == 1:
        return [1.0]
    steps = [0.0, *(b - a for a, b in pairwise(axis)), 0.0]
    return [(a + b) / 2 for a, b in pairwise(steps)]
