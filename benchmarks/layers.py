"""Layers that solve a problem in every row: time of forward and backward, and the error of the gradient.

The program of the table: n variables, n inequalities, n / 5 equalities, shared matrices, one linear term per
row. The peers are measured in the same process where they can be imported (`pip install qpth proxsuite
cvxpylayers`), and left out with a note where they cannot.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

import constrain as cn

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Measured", "layers"]

SIZE, BATCH = 50, 32


@dataclass
class Measured:
    """One layer: median milliseconds of forward and backward, and the largest error of the gradient."""

    name: str
    milliseconds: float = float("nan")
    error: float = float("nan")
    note: str = ""

    def __str__(self) -> str:
        if self.note:
            return f"{self.name:<24} {self.note}"
        return f"{self.name:<24} {self.milliseconds:8.1f} ms   gradient off by {self.error:.0e}"


def program() -> dict[str, torch.Tensor]:
    """Matrices of the program, and the linear terms of the batch."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    root, G, A, inside = normal(SIZE, SIZE), normal(SIZE, SIZE), normal(SIZE // 5, SIZE), normal(SIZE)
    return {
        "P": root @ root.T / SIZE + 0.1 * torch.eye(SIZE, dtype=torch.float64),
        "G": G,
        "h": G @ inside + 0.5 * torch.rand(SIZE, generator=g, dtype=torch.float64),
        "A": A,
        "b": A @ inside,
        "q": 3 * normal(BATCH, SIZE),
        "upstream": normal(BATCH, SIZE),
    }


def ours(d: dict[str, torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The layer of this package."""
    x, q = cn.Variable(SIZE, "x"), cn.Parameter("q", shape=SIZE)
    objective = 0.5 * cn.quad_form(x, d["P"]) + q @ x
    return cn.layer(cn.minimize(objective).subject_to(below=d["G"] @ x <= d["h"], equal=d["A"] @ x == d["b"]))


def qpth(d: dict[str, torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The batched interior-point method of qpth."""
    from qpth.qp import QPFunction

    return lambda q: QPFunction(verbose=-1)(d["P"], q, d["G"], d["h"], d["A"], d["b"])


def proxqp(d: dict[str, torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The layer of ProxQP."""
    from proxsuite.torch.qplayer import QPFunction

    low = torch.full_like(d["h"], -1e20)
    return lambda q: QPFunction()(d["P"], q, d["A"], d["b"], d["G"], low, d["h"])[0]


def cvxpylayers(d: dict[str, torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """A layer of cvxpylayers with its default settings."""
    import cvxpy as cp
    from cvxpylayers.torch import CvxpyLayer

    x, q = cp.Variable(SIZE), cp.Parameter(SIZE)
    objective = 0.5 * cp.quad_form(x, cp.psd_wrap(d["P"].numpy())) + q @ x
    rules = [d["G"].numpy() @ x <= d["h"].numpy(), d["A"].numpy() @ x == d["b"].numpy()]
    layer = CvxpyLayer(cp.Problem(cp.Minimize(objective), rules), parameters=[q], variables=[x])
    return lambda t: layer(t)[0]


def _exact(d: dict[str, torch.Tensor]) -> torch.Tensor:
    """Gradient by the optimality conditions of each row, with the active set of Clarabel at 1e-11."""
    import cvxpy as cp

    found: list[torch.Tensor] = []
    for q, v in zip(d["q"], d["upstream"], strict=True):
        x = cp.Variable(SIZE)
        below = d["G"].numpy() @ x <= d["h"].numpy()
        objective = 0.5 * cp.quad_form(x, cp.psd_wrap(d["P"].numpy())) + q.numpy() @ x
        problem = cp.Problem(cp.Minimize(objective), [below, d["A"].numpy() @ x == d["b"].numpy()])
        problem.solve(solver="CLARABEL", tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
        slack = d["h"].numpy() - d["G"].numpy() @ x.value
        active = d["G"][torch.as_tensor(below.dual_value > slack)]
        rows = torch.cat([active, d["A"]])
        zero = torch.zeros(len(rows), len(rows), dtype=torch.float64)
        matrix = torch.cat([torch.cat([d["P"], rows.T], 1), torch.cat([rows, zero], 1)])
        rhs = torch.cat([v, torch.zeros(len(rows), dtype=torch.float64)])
        found.append(-torch.linalg.solve(matrix, rhs)[:SIZE])
    return torch.stack(found)


def _timed(work: Callable[[], torch.Tensor], rounds: int) -> tuple[float, torch.Tensor]:
    result = work()
    times: list[float] = []
    for _ in range(rounds):
        start = time.process_time()
        result = work()
        times.append(time.process_time() - start)
    return 1e3 * sorted(times)[len(times) // 2], result


def layers(rounds: int = 9) -> list[Measured]:
    """The quadratic program by every layer that is installed, then a capped simplex by its closed form."""
    d = program()
    exact = _exact(d)
    table: list[Measured] = []
    for make in (ours, qpth, proxqp, cvxpylayers):
        name = "constrain" if make is ours else make.__name__
        try:
            layer = make(d)
        except ImportError as error:
            table.append(Measured(name, note=f"not installed ({error.name})"))
            continue

        def work(layer: Callable[[torch.Tensor], torch.Tensor] = layer) -> torch.Tensor:
            q = d["q"].clone().requires_grad_(True)
            return torch.autograd.grad(layer(q), q, d["upstream"])[0]

        milliseconds, gradient = _timed(work, rounds if make is not cvxpylayers else 3)
        table.append(Measured(name, milliseconds, float((gradient - exact).abs().max())))
    return [*table, capped_simplex(rounds)]


def capped_simplex(rounds: int) -> Measured:
    """Projection of 256 rows of 50 entries onto 0 <= x <= 1, sum 5."""
    x, y = cn.Variable(SIZE, "x", bounds=(0, 1)), cn.Parameter("y", shape=SIZE)
    layer = cn.layer(cn.minimize(cn.sum_squares(x - y)).subject_to(total=cn.sum(x) == 5))
    t = torch.randn(256, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    upstream = torch.randn(256, SIZE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def work() -> torch.Tensor:
        y = t.clone().requires_grad_(True)
        return torch.autograd.grad(layer(y), y, upstream)[0]

    milliseconds, gradient = _timed(work, rounds)
    free = ((layer(t) > 0) & (layer(t) < 1)).double()
    mean = (upstream * free).sum(1, keepdim=True) / free.sum(1, keepdim=True)
    error = float((gradient - free * (upstream - mean)).abs().max())
    return Measured("capped simplex, 256 rows", milliseconds, error)
