"""A boundary value problem with a known solution, by a small network, in three forms.

-u'' = π² sin(πx) on (0, 1) with u(0) = u(1) = 0 has the solution u = sin(πx).

* The residual as the objective: minimize the average of r², r = -u'' - π² sin(πx), subject to the boundary
  values. The average is Gauss-Legendre quadrature.
* The weak form: r has no component along the first eight sine modes. These are eight equalities with a
  multiplier each. (`E(r**2) == 0` would say as much, but its gradient vanishes wherever it holds.)
* The energy: minimize the average of u'²/2 - π² sin(πx) u. Its multipliers have a meaning: what a change
  of a boundary value costs is the flux there, u'(0) = -u'(1) = π.
"""

from __future__ import annotations

import math
from functools import cache

import torch

import constrain as cn
from constrain import E

TOLERANCE = 2e-3


def setting():
    """Return a coordinate, a network as a function u, and the source term."""
    torch.manual_seed(0)
    layers = torch.nn.Linear(1, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)
    x = cn.Uniform("x", 0.0, 1.0)
    return x, cn.Model(torch.nn.Sequential(*layers).double(), "u"), math.pi**2 * torch.sin(math.pi * x)


def error(u):
    """Largest error of the network on 501 points."""
    points = torch.linspace(0.0, 1.0, 501, dtype=torch.float64)
    with torch.no_grad():
        return float((u.module(points[:, None])[:, 0] - torch.sin(math.pi * points)).abs().max())


def residual_form():
    """Minimize the mean squared residual."""
    x, u, f = setting()
    r = -cn.diff(u(x), x, 2) - f
    problem = cn.minimize(E(r**2)).subject_to(left=u(0.0) == 0, right=u(1.0) == 0)
    return problem.solve(tolerance=1e-3, progress=False), error(u)


def weak_form():
    """Find a function whose residual is orthogonal to eight test functions."""
    x, u, f = setting()
    r = -cn.diff(u(x), x, 2) - f
    problem = cn.find().subject_to(equation=cn.weak(r, tests=8) == 0, left=u(0.0) == 0, right=u(1.0) == 0)
    return problem.solve(tolerance=1e-3, progress=False), error(u)


@cache
def energy_form():
    """Minimize the energy; the multipliers are the fluxes."""
    x, u, f = setting()
    energy = cn.diff(u(x), x) ** 2 / 2 - f * u(x)
    problem = cn.minimize(E(energy)).subject_to(left=u(0.0) == 0, right=u(1.0) == 0)
    return problem.solve(tolerance=1e-3, progress=False), error(u)


def run():
    """Solve all three and compare with sin(πx) and with the fluxes."""
    _, by_residual = residual_form()
    _, by_weak_form = weak_form()
    solution, by_energy = energy_form()
    measured = {
        "residual: largest error": by_residual,
        "weak form: largest error": by_weak_form,
        "energy: largest error": by_energy,
        "energy: flux at 0": float(solution["left"].multiplier),
        "energy: flux at 1": float(solution["right"].multiplier),
    }
    errors = dict.fromkeys(list(measured)[:3], 0.0)
    return measured, {**errors, "energy: flux at 0": math.pi, "energy: flux at 1": math.pi}


if __name__ == "__main__":
    measured, reference = run()
    for name, value in measured.items():
        print(f"{name:26} {value:.2e}   reference {reference[name]:.6f}")
    print(energy_form()[0])
