"""Poisson's equation on the unit square with a known solution, by two kinds of models.

-Δu = 2π² sin(πx) sin(πy) with u = 0 on the boundary has the solution u = sin(πx) sin(πy).

* A tanh network: minimize the average of the squared residual over the square (Gauss-Legendre quadrature)
  subject to u = 0 at Gauss points of each side, one constraint and one multiplier per point.
* Waves with random directions and a trainable last layer: the residual is affine in the decisions, so that
  the same problem is certified as a convex quadratic program and solved to a proven optimum.
* The energy |∇u|²/2 - f u in the place of the residual: the multipliers are the fluxes through the boundary
  points, and all of them together are the integral of f, which is 8.
"""

from __future__ import annotations

import math

import torch

import constrain as cn
from constrain import E, forall

TOLERANCE = {"network: relative error": 1e-2, "waves: relative error": 1e-4, "energy: total flux": 1e-3}


class Waves(torch.nn.Module):
    """Sines of random directions, and a linear layer."""

    def __init__(self, count):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("slopes", 3 * torch.randn(2, count, generator=generator).double())
        self.register_buffer("phases", 2 * math.pi * torch.rand(count, generator=generator).double())
        self.last = torch.nn.Linear(count, 1).double()

    def forward(self, z):
        """(rows, 2) -> (rows, 1)."""
        return self.last(torch.sin(z @ self.slopes + self.phases))


def network():
    """Return a tanh network of two hidden layers."""
    torch.manual_seed(0)
    linear, tanh = torch.nn.Linear, torch.nn.Tanh
    return torch.nn.Sequential(linear(2, 10), tanh(), linear(10, 10), tanh(), linear(10, 1)).double()


def problem(module, form, size, sides):
    """Return the problem: `size` quadrature points per axis, `sides` points per side."""
    u = cn.Model(module, "u")
    z, s = cn.Box("z", [0.0, 0.0], [1.0, 1.0], size=size), cn.Uniform("s", 0.0, 1.0, size=sides)
    x, y = z[..., 0], z[..., 1]
    f = 2 * math.pi**2 * torch.sin(math.pi * x) * torch.sin(math.pi * y)
    value = u(x, y)
    objective = {
        "residual": (cn.laplacian(value, z) + f) ** 2,
        "energy": cn.sum_squares(cn.grad(value, z)) / 2 - f * value,
    }[form]
    return cn.minimize(E(objective)).subject_to(
        south=forall(s, u(s, 0.0) == 0),
        north=forall(s, u(s, 1.0) == 0),
        west=forall(s, u(0.0, s) == 0),
        east=forall(s, u(1.0, s) == 0),
    )


def error(module):
    """Relative error of a model in the mean square, on a grid of 101 x 101 points."""
    axis = torch.linspace(0.0, 1.0, 101, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    exact = torch.sin(math.pi * points[:, 0]) * torch.sin(math.pi * points[:, 1])
    with torch.no_grad():
        return float((module(points)[:, 0] - exact).norm() / exact.norm())


def run():
    """Solve with both models and compare with the closed form."""
    net, waves = network(), Waves(200)
    problem(net, "residual", 8, 8).solve(tolerance=1.0, progress=False)
    problem(waves, "residual", 16, 16).solve(progress=False)
    accurate = error(waves)
    solution = problem(waves, "energy", 16, 16).solve(progress=False)
    sides = ("south", "north", "west", "east")
    measured = {
        "network: relative error": error(net),
        "waves: relative error": accurate,
        "energy: total flux": sum(float(solution[side].multiplier.sum()) for side in sides),
    }
    return measured, {"network: relative error": 0.0, "waves: relative error": 0.0, "energy: total flux": 8.0}


if __name__ == "__main__":
    measured, reference = run()
    for name, value in measured.items():
        print(f"{name:25} {value:.3e}   reference {reference[name]}")
