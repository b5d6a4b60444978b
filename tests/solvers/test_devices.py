"""Whole runs on an accelerator: the steps of Python, recorded and compiled, end where those on the CPU do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import constrain as cn
from constrain import E, P, forall
from constrain.solvers.checkpoint import Checkpoint

without_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
CUDA = pytest.param("cuda", marks=[pytest.mark.cuda, without_gpu])
DEVICES = ["cpu", CUDA]
ROWS = 240


def columns():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, 3, generator=g, dtype=torch.float64)
    y = (x[:, 0] + 0.5 * torch.randn(ROWS, generator=g, dtype=torch.float64) > 0).double()
    return {"x": x, "y": y, "group": (torch.rand(ROWS, generator=g) < 0.3).long()}


def network(*layers, inputs=3, seed=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, 6), *layers, nn.Tanh(), nn.Linear(6, 1), nn.Flatten(0)).double()


def logistic(D, s):
    return E(F.binary_cross_entropy_with_logits(s, D.y, reduction="none"))


def rates(D, s):
    return {"rate": P(s > 0) <= 0.4, "level": E(s, given=D.group == 1) <= -0.1}


WRITTEN = {
    "rates": lambda D, s: cn.minimize(logistic(D, s)).subject_to(**rates(D, s)),
    "one by one": lambda D, s: cn.minimize(logistic(D, s)).subject_to(
        **{f"g{k}": E(s, given=D.group == k) <= 0.1 * k for k in (0, 1)}
    ),
    "groups": lambda D, s: cn.minimize(logistic(D, s)).subject_to(gap=abs(E(s, by=D.group) - E(s)) <= 0.2),
    "rows": lambda D, s: cn.minimize(logistic(D, s)).subject_to(each=forall(D, s <= 1.5)),
    "a tail": lambda D, s: cn.minimize(logistic(D, s)).subject_to(tail=cn.CVaR(s, 0.9) <= 1.0),
    "the largest": lambda D, s: cn.minimize(cn.max(E((s - D.y) ** 2, by=D.group))).subject_to(m=E(s) == 0.3),
}
"""Problems about a column `x`, labels `y`, groups, and scores."""

LAYERS = {"plain": (), "acting": (lambda: nn.BatchNorm1d(6), lambda: nn.Dropout(0.3))}


def solved(name, device, layers="plain", **options):
    """Weights on the CPU, and the solution, which is told where to run."""
    D = cn.Data("sample", **columns())
    net = network(*(make() for make in LAYERS[layers]))
    problem = WRITTEN[name](D, cn.Model(net, "f")(D.x))
    torch.manual_seed(11)
    found = problem.solve("lagrangian", batch=60, seed=1, device=device, progress=False, **options)
    assert all(t.device.type == device for t in net.state_dict().values())
    return [t.detach().cpu() for t in net.state_dict().values()], found


def distance(one, other):
    """Largest difference of weights and multipliers over 1 + their size, and relative of the objective."""
    (weights, a), (others, b) = one, other
    assert a.multipliers.keys() == b.multipliers.keys()
    pairs = [*zip(weights, others, strict=True), *((v, b.multipliers[k]) for k, v in a.multipliers.items())]
    found = [abs(a.objective - b.objective) / abs(b.objective)]
    for own, theirs in pairs:
        x, y = np.asarray(own, dtype=float), np.asarray(theirs, dtype=float)
        assert x.shape == y.shape
        found.append(np.max(np.abs(x - y) / (1 + np.abs(y)), initial=0.0))
    return np.max(found)  # NaN where one is


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("name", WRITTEN)
def test_the_run_of_the_cpu(name, device):
    """Batches and scales are drawn on the host, whatever the device."""
    there, here = (solved(name, where, epochs=5, graph="off") for where in (device, "cpu"))
    assert distance(there, here) <= 1e-7


@pytest.mark.parametrize(
    "graph", ["recorded", pytest.param("compiled", marks=[pytest.mark.cuda, without_gpu])]
)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("name", ["rates", "one by one", "rows"])
def test_recorded_and_compiled_steps_are_those_of_python(name, layers, device, graph):
    """Masks of dropout included; the optimizer of CUDA takes learning rates of single precision."""
    python = solved(name, device, layers, epochs=4, graph="off")
    other = solved(name, device, layers, epochs=4, graph=graph)
    assert f"{graph} step" in other[1].provenance.solver
    assert distance(other, python) <= (1e-9 if (graph, device) == ("recorded", "cpu") else 1e-6)


@pytest.mark.filterwarnings("ignore:.*deterministic")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("graph", ["off", "recorded"])
@pytest.mark.parametrize("name", ["rates", "groups", "rows", "a tail"])
def test_a_run_that_is_continued_is_the_uncut_one(name, device, graph, tmp_path):
    """Bit by bit, with dropout, from the middle of an epoch; sums on CUDA are in any order unless asked."""
    path, options = tmp_path / "run.ckpt", {"layers": "acting", "epochs": 6, "graph": graph}
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        whole = solved(name, device, **options)
        solved(name, device, **options, checkpoint=Checkpoint(path, steps=3), callback=lambda r: r.done == 3)
        resumed = solved(name, device, **options, resume=path)
    finally:
        torch.use_deterministic_algorithms(before)
    assert all(map(torch.equal, whole[0], resumed[0]))
    assert resumed[1].objective == whole[1].objective
    for key, value in whole[1].multipliers.items():
        np.testing.assert_array_equal(value, resumed[1].multipliers[key])


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize(
    "scheme", ["alternating", "extragradient", "optimistic", "penalty", "switching", "tiada"]
)
def test_schemes(scheme, device):
    there, here = (solved("rates", where, epochs=3, scheme=scheme) for where in (device, "cpu"))
    assert distance(there, here) <= 1e-6


@pytest.mark.parametrize("device", DEVICES)
def test_streams_and_reports(device):
    """What follows a training reads values back from the device."""
    source = torch.utils.data.TensorDataset(*columns().values())
    D = cn.Data.from_dataset("sample", source, ("x", "y", "group"), batch=60)
    net = network()
    problem = WRITTEN["rates"](D, cn.Model(net, "f")(D.x))
    found = problem.solve("lagrangian", epochs=5, seed=1, device=device, progress=False)
    assert "rate" in str(found.report())
    again = problem.evaluate()  # where the model is
    assert again.objective == pytest.approx(found.objective, rel=1e-9)


@pytest.mark.parametrize("device", DEVICES)
def test_multipliers_by_a_network(device):
    D = cn.Data("sample", **columns())
    problem = WRITTEN["rows"](D, cn.Model(network(), "f")(D.x))
    lam = cn.Model(network(seed=4), "lam")
    found = problem.solve(
        "lagrangian", batch=60, epochs=4, multipliers={"each": lam(D.x)}, device=device, progress=False
    )
    assert found["each"].multiplier.shape == (ROWS,)
    assert np.min(found["each"].multiplier) >= 0


# ---------------------------------------------------------------------------- models that live there
class Waves(nn.Module):
    """Fixed waves with a trainable last layer: affine in its weights."""

    def __init__(self, features, count=12):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.last = nn.Linear(count, 1).double()
        self.register_buffer("slopes", 2 * torch.randn(features, count, generator=g).double())

    def forward(self, x):
        return self.last(torch.sin(x @ self.slopes))


def regression(device, make=lambda: Waves(3), **columns_):
    torch.manual_seed(0)
    D = cn.Data("sample", **(columns() | columns_))
    return D, cn.Model(make().to(device), "f")


def quadratic(device):
    D, f = regression(device)
    s = f(D.x)[..., 0]
    return cn.minimize(E((s - D.y) ** 2) + 0.1 * cn.sum_squares(f)).subject_to(
        level=E(s, given=D.group == 1) <= 0.25, rows=forall(D, s <= 1.2)
    )


def absolute(device):
    D, f = regression(device)
    s = f(D.x)[..., 0]
    return cn.minimize(E(abs(s - D.y))).subject_to(level=E(s) == 0.3, rows=forall(D, s <= 1.2))


def frozen(device):
    """A network that stays as it is, inside of a problem about variables."""
    D, f = regression(device, lambda: network(seed=5))
    fixed, w = cn.Model(f.module, "f", frozen=True), cn.Variable(2, "w", bounds=(-2.0, 2.0))
    s = w[0] * fixed(D.x) + w[1] * D.x[..., 0]
    return cn.minimize(E((s - D.y) ** 2)).subject_to(level=E(s) <= 0.05)


def equation(device):
    torch.manual_seed(0)
    u, x = cn.Model(Waves(1, 20).to(device), "u"), cn.Uniform("x", 0.0, 1.0)
    residual = -cn.diff(u(x), x, 2) - torch.sin(np.pi * x)
    return cn.minimize(E(residual**2) + 1e-3 * cn.sum_squares(u)).subject_to(
        left=u(0.0) == 0, right=u(1.0) == 0
    )


def own_columns(device):
    """Columns and arrays that are on the device already."""
    own = {name: value.to(device) for name, value in columns().items()}
    D, w = cn.Data("sample", **own), cn.Variable(3, "w")
    target = torch.tensor([0.2, 0.1, 0.0], dtype=torch.float64, device=device)
    s = D.x @ w
    return cn.minimize(E((s - D.y) ** 2)).subject_to(
        near=cn.norm(w - target) <= 0.3, rate=E(s, by=D.group) <= 0.02
    )


def replies(device):
    """Each row has an inner problem, whose solution a network moves."""
    D, f = regression(device, lambda: nn.Linear(3, 1).double())
    x, price = cn.Variable(1, "reply", bounds=(0.0, 1.0)), cn.Parameter("price", shape=(1,))
    inner = cn.minimize(cn.sum_squares(x) - cn.sum(price * x))
    sold = cn.argmin(inner, x, at={price: f(D.x)})
    return cn.minimize(E((sold[..., 0] - D.y) ** 2) + 0.1 * cn.sum_squares(f))


ROUTES = {
    "auto": (quadratic, "auto"), "cvxpy": (quadratic, "cvxpy"), "absolute": (absolute, "cvxpy"),
    "pyomo": (absolute, "pyomo"), "frozen": (frozen, "cvxpy"), "equation": (equation, "auto"),
    "columns": (own_columns, "cvxpy"), "columns by newton": (own_columns, "newton"),
    "augmented": (quadratic, "augmented"), "newton": (quadratic, "newton"), "inner": (replies, "augmented"),
}  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ROUTES)
def test_every_route_takes_models_and_columns_where_they_are(name, device):
    """And leaves them there; values, reports and checks do the same."""
    make, method = ROUTES[name]
    problem = make(device)
    checked = problem.check()
    assert checked.ok, str(checked)
    found = problem.solve(method, progress=False)
    assert found.status.solved
    expected = make("cpu").solve(method, progress=False)
    assert found.objective == pytest.approx(expected.objective, rel=1e-5, abs=1e-8)
    assert {t.device.type for m in problem.models for t in m.module.parameters()} <= {device}
    assert problem.evaluate().objective == pytest.approx(found.objective, rel=1e-6, abs=1e-9)
    assert found.record.stationary
    assert "stationarity" in str(found.report())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", ["augmented", "newton"])
def test_methods_on_all_rows(method, device):
    x, y = columns()["x"], columns()["y"]
    D, w = cn.Data("sample", x=x, y=y), cn.Variable(3, "w")
    problem = cn.minimize(E((D.x @ w - D.y) ** 2)).subject_to(
        m=E(D.x @ w) <= -0.01, s=cn.sum_squares(w) <= 0.1
    )
    exact = problem.solve("cvxpy", progress=False).objective
    w.value = np.zeros(3)
    assert problem.solve(method, device=device, progress=False).objective == pytest.approx(exact, rel=1e-6)


# ------------------------------------------------------------------------------------ inner problems
FACTOR = torch.randn(4, 4, generator=torch.Generator().manual_seed(2)).double()
LINEAR = nn.Linear(4, 4).double()
KINDS = {
    "simplex": (lambda x, y: cn.sum_squares(x - y), lambda x: cn.sum(x) == 1, {"nonneg": True}),
    "box": (lambda x, y: cn.sum_squares(x - y), None, {"bounds": (-0.5, 0.5)}),
    "ball": (lambda x, y: cn.sum_squares(x - y), lambda x: cn.norm(x) <= 1, {}),
    "quadratic": (lambda x, y: cn.sum_squares(FACTOR @ x - y), lambda x: FACTOR @ x <= 0.4, {}),
    "cone": (lambda x, y: cn.norm(FACTOR @ x - y) + cn.sum_squares(x), lambda x: cn.sum(x) == 0, {}),
    "nonlinear": (lambda x, y: cn.sum(torch.exp(x)) - cn.sum(x * y) + cn.sum_squares(x), None, {}),
    "a model": (
        lambda x, y: cn.sum_squares(x - y) + cn.sum(x * cn.Model(LINEAR, "m", frozen=True)(y)),
        lambda x: cn.sum(x) == 1, {},
    ),
    "integers": (lambda x, y: cn.sum(x * y), lambda x: cn.sum(x) >= 3, {"bounds": (0, 2), "integer": True}),
}  # fmt: skip


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("name", KINDS)
def test_solutions_and_gradients_of_inner_problems(name, device):
    objective, constraint, kind = KINDS[name]
    torch.manual_seed(0)
    x, y = cn.Variable(4, "x", **kind), cn.Parameter("y", shape=4)
    problem = cn.minimize(objective(x, y))
    problem = problem if constraint is None else problem.subject_to(c=constraint(x))
    layer = cn.layer(problem, inputs=y, outputs="value" if name == "integers" else x)
    given = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).double()
    found = []
    for where in ("cpu", device, "cpu"):
        leaf = given.to(where).requires_grad_(True)
        value = layer(leaf)
        assert value.device.type == where
        (slope,) = torch.autograd.grad(value.square().sum(), leaf)
        found.append((value.detach().cpu(), slope.cpu()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found[0], found[2])


@pytest.mark.parametrize("device", [CUDA])
def test_fixed_points(device):
    z, b = cn.Variable(4, "z"), cn.Parameter("b", shape=4)
    cell = nn.Linear(4, 4).double().to(device)
    layer = cn.fixed_point(z == 0.3 * torch.tanh(cn.Model(cell, "cell")(z)) + b)
    given = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).double().to(device)
    leaf = given.requires_grad_(True)
    found = layer(leaf)
    assert found.device.type == device
    torch.testing.assert_close(found, 0.3 * torch.tanh(cell(found)) + leaf)
    found.square().sum().backward()
    assert torch.isfinite(leaf.grad).all()
    assert all(p.grad is not None for p in cell.parameters())
