"""A network whose output conserves mass exactly: the Gaussian projection of ProbConserv as a layer.

A model of a conserved quantity predicts a mean μ and variances σ² on a grid, and its mass (the quadrature of
its output) is off. The projection in the metric of the covariance, minimize (u − μ)ᵀΣ⁻¹(u − μ) subject to
g·u = mass, moves uncertain entries most (Hansen et al., ICML 2023). Written as an inner problem it is a
layer, and it is trained through: the network fits profiles of a diffusing pulse, and every output has the
right mass.

The projection of four entries has a closed form, μ − Σg (g·μ − mass) / (g·Σg).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

import constrain as cn

TOLERANCE = {
    "projection": 1e-7,
    "gradient": 1e-10,
    "largest error of mass": 1e-6,
    "error below that of no layer": 0.0,
}
CELLS = 24


def conserving(weights):
    """The projection onto weights·u = mass as a layer (mean, root of the precision, mass) -> u."""
    size = len(weights)
    u, mean = cn.Variable(size, "u"), cn.Parameter("mean", shape=size)
    root, mass = cn.Parameter("root", shape=size), cn.Parameter("mass")
    problem = cn.minimize(0.5 * cn.sum_squares(root * (u - mean))).subject_to(mass=weights @ u == mass)
    return cn.layer(problem, inputs=[mean, root, mass], outputs=u)


def four_entries():
    """The projection of a mean (1, 2, .5, .3) with variances (.5, .2, 1, .1), and its Jacobian."""
    weights = torch.full((4,), 0.25, dtype=torch.float64)
    variance = torch.tensor([0.5, 0.2, 1.0, 0.1], dtype=torch.float64)
    layer = conserving(weights)
    mean = torch.tensor([1.0, 2.0, 0.5, 0.3], dtype=torch.float64)
    mass = torch.tensor(1.2, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda m: layer(m, variance**-0.5, mass), mean)
    gain = variance * weights / (weights @ (variance * weights))
    return layer(mean, variance**-0.5, mass), jacobian, torch.eye(4) - torch.outer(gain, weights)


class Profile(nn.Module):
    """Time and total mass -> profile on the grid, with the layer at its end or without."""

    def __init__(self, layer):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2 * CELLS))
        self.layer = layer

    def forward(self, inputs):
        """(B, 2) -> (B, CELLS)."""
        mean, root = self.net(inputs).split(CELLS, -1)
        if self.layer is None:
            return mean
        return self.layer(mean, 0.1 + nn.functional.softplus(root), inputs[:, 1])


def pulses(rows, generator):
    """Times and masses, and the profile of a diffusing pulse with that mass on the grid."""
    grid = (torch.arange(CELLS) + 0.5) / CELLS
    time, mass = 0.2 + torch.rand(rows, 1, generator=generator), 1 + torch.rand(rows, 1, generator=generator)
    shape = torch.exp(-((grid - 0.5) ** 2) / (0.04 * time))
    profile = mass * shape / shape.sum(1, keepdim=True) * CELLS
    return torch.cat([time, mass], 1), profile


def trained(layer):
    """Errors on new pulses after training: of the profile, and the largest one of its mass."""
    torch.manual_seed(0)
    model = Profile(layer)
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(300):
        inputs, wanted = pulses(64, generator)
        loss = nn.functional.mse_loss(model(inputs), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    inputs, wanted = pulses(500, generator)
    with torch.no_grad():
        found = model(inputs)
    mass = (found.mean(1) - inputs[:, 1]).abs().max()
    return math.sqrt(nn.functional.mse_loss(found, wanted).item()), mass.item()


def run():
    """The projection against its closed form, and two trained networks."""
    projected, jacobian, exact = four_entries()
    error, mass = trained(conserving(torch.full((CELLS,), 1 / CELLS)))
    plain, plain_mass = trained(None)
    print(
        f"with the layer: error {error:.4f}, mass off by {mass:.0e}; without: {plain:.4f}, {plain_mass:.0e}"
    )
    measured = {
        "projection": projected.numpy(),
        "gradient": jacobian.numpy(),
        "largest error of mass": mass,
        "error below that of no layer": float(error < plain),
    }
    reference = {
        "projection": np.array([1.2777778, 2.1111111, 1.0555556, 0.3555556]),
        "gradient": exact.numpy(),
        "largest error of mass": 0.0,
        "error below that of no layer": 1.0,
    }
    return measured, reference


if __name__ == "__main__":
    measured, reference = run()
    for name, value in measured.items():
        print(f"{name:30} {np.round(value, 6)}   reference {np.round(reference[name], 6)}")
