"""Continuous populations on a device: supports, quadrature weights and fresh draws.

Gauss-Legendre and Gauss-Hermite rules are those of NumPy (Golub & Welsch 1969); products of them in several
dimensions. Sobol points are scrambled (Owen 1998) with a fixed seed, so that a support is the same in every
run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from constrain.errors import DataError
from constrain.runtime.binding import Population
from constrain.runtime.columns import as_array
from constrain.runtime.rows import Rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from constrain.language.regions import Region

__all__ = ["RegionPopulation", "bind_region", "draw", "support"]

_SEED = 20250101


def support(region: Region) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Points (points,) or (points, d) and weights (points,) that sum to one; None for equal weights.

    Raises:
        DataError: E124 for a grid with values that are not finite.
    """
    law = region.law
    if law.kind == "grid":
        return _grid(region)
    low, high = np.array(law.first), np.array(law.second)
    if region.rule == "sobol":
        unit = _sobol(region.size[0], len(low))
        points = low + high * _quantile(unit) if law.kind == "normal" else low + (high - low) * unit
        return _shaped(region, points), None
    rules = [_rule(region, size) for size in region.size]
    axes = [
        m + s * x if law.kind == "normal" else m + (s - m) * (x + 1) / 2
        for m, s, (x, _) in zip(low, high, rules, strict=True)
    ]
    mesh = np.meshgrid(*axes, indexing="ij")
    points = np.stack([a.reshape(-1) for a in mesh], axis=-1)
    weights = np.ones(())
    for _, w in rules:
        weights = np.multiply.outer(weights, w)
    flat = weights.reshape(-1)
    return _shaped(region, points), flat / flat.sum()


def _rule(region: Region, size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points and weights on [-1, 1], or for the standard normal density."""
    if region.law.kind == "normal":
        return np.polynomial.hermite_e.hermegauss(size)
    if region.rule == "gauss":
        return np.polynomial.legendre.leggauss(size)
    weights = np.ones(size)
    weights[[0, -1]] = 0.5
    return np.linspace(-1.0, 1.0, size), weights


def _sobol(count: int, dims: int) -> NDArray[np.float64]:
    """Scrambled Sobol points in the open unit cube."""
    points = torch.quasirandom.SobolEngine(dims, scramble=True, seed=_SEED).draw(count, dtype=torch.float64)
    tiny = torch.finfo(torch.float64).eps
    return points.clamp(tiny, 1 - tiny).numpy()


def _quantile(probability: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the standard normal distribution."""
    found = cast("Tensor", torch.special.ndtri(torch.as_tensor(probability)))  # pyright: ignore[reportUnknownArgumentType]
    return found.numpy()


def _shaped(region: Region, points: NDArray[np.float64]) -> NDArray[np.float64]:
    return points.reshape(len(points), *region.row_shape(region.name)).astype(np.float64)


def _grid(region: Region) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    points = np.asarray(as_array(region.law.points), dtype=np.float64)
    if not np.isfinite(points).all():
        raise DataError("E124", f"a point of the grid {region.name!r} is not finite", fix="finite numbers")
    if region.law.weights is None:
        return points, None
    weights = np.asarray(as_array(region.law.weights), dtype=np.float64)
    return points, weights / weights.sum()


def draw(region: Region, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Independent draws: a float64 tensor (count,) or (count, d) on the CPU; see `Region.draw`."""
    law, shape = region.law, (count, *region.row_shape(region.name))
    if law.kind == "grid":
        points, weights = (torch.as_tensor(x) if x is not None else None for x in support(region))
        assert points is not None  # narrows the type
        share = torch.ones(len(points), dtype=torch.float64) if weights is None else weights
        return points[torch.multinomial(share, count, replacement=True, generator=generator)]
    low = torch.tensor(law.first, dtype=torch.float64)
    high = torch.tensor(law.second, dtype=torch.float64)
    size = (count, len(law.first))
    if law.kind == "normal":
        found = low + high * torch.randn(size, generator=generator, dtype=torch.float64)
    else:
        found = low + (high - low) * torch.rand(size, generator=generator, dtype=torch.float64)
    return found.reshape(shape)


class RegionPopulation(Population):
    """A region with its support as the rows: averages over all of them are quadrature.

    Training steps take fresh points, independent draws from the region's distribution; those of a grid take
    positions of the table.
    """

    @property
    def sampled(self) -> bool:
        """Whether averages over all rows have a sampling error: quadrature has none."""
        return False

    @property
    def boundless(self) -> bool:
        """Whether training steps draw points: not those of a grid."""
        return cast("Region", self.data).law.kind != "grid"

    @property
    def endless(self) -> bool:
        """Whether training steps take fresh points."""
        return self.boundless

    def fresh(self, count: int, generator: torch.Generator | None = None) -> Rows | None:
        """Independent draws, None for a grid."""
        if not self.endless:
            return None
        points = draw(cast("Region", self.data), count, generator)
        return Rows({self.data.name: points.to(device=self.device, dtype=self.dtype)}, count)

    def drawn(self, given: Any) -> Rows | None:
        """So many draws, or these points (count,) or (count, d); None for positions in the support."""
        if isinstance(given, int) and not isinstance(given, bool):
            return self.fresh(given)
        if not isinstance(given, Tensor) or not given.is_floating_point():
            return None
        points = given.to(device=self.device, dtype=self.dtype)
        return Rows({self.data.name: points}, points.shape[0])


def bind_region(region: Region, device: torch.device, dtype: torch.dtype) -> RegionPopulation:
    """The support on a device, with weights of mean one."""
    points, weights = support(region)
    column = torch.as_tensor(points).to(device=device, dtype=dtype)
    found = RegionPopulation(region, len(region), {region.name: column}, {}, device, dtype)
    if weights is not None:
        found.base = torch.as_tensor(weights * len(weights)).to(device=device, dtype=found.wide)
    return found
