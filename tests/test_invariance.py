"""One law on all routes: units, order and copies of constraints change nothing but the prices' units."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import constrain as cn
from constrain import E, P, forall
from constrain.solvers.primal_dual import PrimalDual
from constrain.solvers.schemes import SCHEMES

ROWS = 96


def sample(name="d", seed=3):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, 3, generator=g, dtype=torch.float64)
    y = x @ torch.tensor([1.0, -0.5, 0.25], dtype=torch.float64) + 0.4
    y = y + 0.5 * torch.randn(ROWS, generator=g, dtype=torch.float64)
    return cn.Data(name, x=x, y=y, label=(y > 0).double(), g=["a", "b", "c"] * (ROWS // 3))


def model(*widths):
    torch.manual_seed(0)
    layers = [nn.Linear(3, w, dtype=torch.float64) for w in widths[:1]]
    last = nn.Linear(widths[0] if widths else 3, 1, dtype=torch.float64)
    return cn.Model(nn.Sequential(*(x for own in layers for x in (own, nn.Tanh())), last, nn.Flatten(0)), "f")


# A constraint is a function of the factor that both of its sides are multiplied with.
def most(e, bound):
    return lambda k: k * e <= k * bound


def least(e, bound):
    return lambda k: k * e >= k * bound


def equal(e, bound):
    return lambda k: k * e == k * bound


def near(e, bound):
    return lambda k: abs(k * e) <= k * bound


def lp():
    x = cn.Variable(3, "x", nonneg=True)
    x.value = np.ones(3)
    made = {
        "sum": most(x[0] + x[1] + x[2], 4.0),
        "two": most(x[0] + 3 * x[1], 6.0),
        "gap": most(x[0] - x[2], 2.0),
    }
    return -(3 * x[0] + 2.2 * x[1] + 0.9 * x[2]), made


def fit():
    """Averages: two sides of a gap, a level, and an equality."""
    D, f = sample(), model()
    s = f(D.x)
    gap = near(E(s, given=D.g == "a") - E(s, given=D.g == "b"), 0.1)
    return E((s - D.y) ** 2), {"gap": gap, "level": most(E(s), 0.3), "mean": equal(E(D.x[0] * s), 0.8)}


def levels():
    """Levels of one average, one by one, a bound on all of them, and a curved constraint."""
    D, f = sample(), model()
    s = f(D.x)
    made = {k: most(E(s, given=D.g == k), b) for k, b in (("a", 0.3), ("b", 0.1), ("c", 0.35))}
    more = {"all": most(E(s, by=D.g), 0.3), "curved": most(E(s) ** 2, 0.5)}
    return E((s - D.y) ** 2), {**made, **more}


def smooth():
    """A network."""
    D, f = sample(), model(4)
    s = f(D.x)
    loss = F.binary_cross_entropy_with_logits(s, D.label, reduction="none")
    gap = most(E(s, given=D.g == "b") - E(s), -0.1)
    return E(loss) + 0.02 * cn.sum_squares(f), {"gap": gap, "level": most(E(torch.sigmoid(s)), 0.5)}


def rates():
    D, f = sample(), model(4)
    s = f(D.x)
    loss = F.binary_cross_entropy_with_logits(s, D.label, reduction="none")
    gap = P(s > 0, given=D.g == "a") - P(s > 0, given=D.g == "b")
    return E(loss) + 0.02 * cn.sum_squares(f), {"share": most(P(s > 0), 0.2), "gap": most(gap, 0.0)}


def rows():
    D, f = sample(), model()
    s = f(D.x)
    return E((s - D.y) ** 2), {
        "cap": lambda k: forall(D, k * s <= k * 1.5),
        "floor": lambda k: forall(D, k * s >= -k * 1.5),
        "level": most(E(s), 0.3),
    }


def tail():
    D, f = sample(), model()
    s = f(D.x)
    return E((s - D.y) ** 2), {
        "tail": most(cn.CVaR((s - D.y) ** 2, 0.9), 1.2),
        "level": most(E(s), 0.2),
    }


def tilt():
    """Expectations over finite distributions, with an entropy."""
    r, g, h = np.random.default_rng(0).normal(size=(3, 6, 4))
    pi = cn.Variable((6, 4), "pi")
    pi.value = np.full((6, 4), 0.25)
    made = {
        "rows": equal(cn.sum(pi, axis=1), 1.0),
        "helpful": least(cn.sum(g * pi) / 6, 0.3),
        "harmless": least(cn.sum(h * pi) / 6, 0.25),
    }
    return -cn.sum(r * pi) / 6 - 0.1 * cn.sum(cn.entr(pi)), made


def samples():
    """Several samples, of which the constraints name the second and third."""
    D, B, C, f = sample(), sample("b", 5), sample("c", 6), model()
    made = {"b": most(E(f(B.x)), 0.3), "c": least(E(f(C.x), given=C.g == "a"), 0.4)}
    return E((f(D.x) - D.y) ** 2), made


def variables():
    """Several variables, which constraints name first; a gradient that is 0 at the start."""
    D, u, w, b = sample(), cn.Variable(2, "u"), cn.Variable((), "w"), cn.Variable((), "b")
    for v in (u, w, b):
        v.value = np.zeros(v.shape)
    s = D.x[0:2] @ u + w * D.x[2] + b
    made = {"size": most(cn.sum_squares(u), 0.8), "weight": least(w - b, 0.1), "level": most(E(s), 0.3)}
    return E((s - D.y) ** 2), made


SHORT = {"epochs": 8, "lr": 0.02, "warmup": 1, "graph": "off"}
ROUTES = {
    **{name: name for name in ("closed", "newton", "augmented", "cvxpy", "pyomo")},
    "batches": PrimalDual(batch=32, **SHORT),
    "all rows": PrimalDual(batch=ROWS, **SHORT),
    **{f"{name} scheme": PrimalDual(batch=32, scheme=name, **SHORT) for name in SCHEMES},
}
TRAINED = [name for name, route in ROUTES.items() if isinstance(route, PrimalDual)]
TABLE = [
    *((lp, route) for route in ("newton", "augmented", "cvxpy", "pyomo")),
    *((fit, route) for route in ("newton", "augmented", "cvxpy", "pyomo", *TRAINED)),
    *((levels, route) for route in ("newton", "augmented", "cvxpy", "batches", "all rows")),
    *((smooth, route) for route in ("newton", "augmented", "batches")),
    *((rates, route) for route in ("batches", "all rows")),
    *((rows, route) for route in ("newton", "augmented", "cvxpy", "batches")),
    *((tail, route) for route in ("cvxpy", "batches")),
    *((tilt, route) for route in ("closed", "newton", "augmented", "cvxpy", "pyomo")),
    *((samples, route) for route in ("newton", "batches")),
    *((variables, route) for route in ("newton", "augmented", "cvxpy", "batches", "all rows")),
]
IDLE = {"dual-descent scheme", "switching scheme"}
"""Schemes whose multipliers move too late for a short run."""
COUNTED = {"tiada scheme"}
"""Schemes whose steps depend on the sum over all multipliers, to which a copy adds."""
UNITS = {"units": (1e3, 1e-3), "other units": (1e-3, 1e3)}
"""Factors of the first and of the last constraint."""


def written(build, variant):
    objective, made = build()
    first, *_, last = made
    units = {name: 1.0 for name in made}
    units[first], units[last] = UNITS.get(variant, (1.0, 1.0))
    names = reversed(made) if variant == "reversed" else made
    relations = {name: made[name](units[name]) for name in names}
    if variant == "copied":
        relations["again"] = made[first](1.0)
    return cn.minimize(objective).subject_to(**relations), units


def solved(build, route, variant):
    """Decisions, objective, prices in the units of the plain problem, and iterations."""
    problem, units = written(build, variant)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = problem.solve(ROUTES[route], progress=False)
    prices = {name: unit * np.ravel(found[name].multiplier) for name, unit in units.items()}
    if variant == "copied":
        prices[next(iter(units))] += np.ravel(found["again"].multiplier)
    weights = [p.detach().numpy().ravel() for m in problem.models for p in m.module.parameters()]
    decisions = [np.ravel(found.variables[name]) for name in sorted(found.variables)]
    steps = found.provenance.iterations
    return np.concatenate(decisions + weights), found.objective, np.concatenate([*prices.values()]), steps


@pytest.mark.parametrize(("build", "route"), TABLE, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_units_order_and_copies_change_nothing(build, route):
    """Trained runs are the same step by step, up to rounding; the others within what solvers tolerate."""
    decisions, objective, prices, steps = solved(build, route, "plain")
    near = {"rtol": 0, "atol": 1e-7 if route in TRAINED else 2e-5}
    largest = np.abs(prices).max()
    assert largest > 1e-6 or route in IDLE
    for variant in (*UNITS, "reversed", *(["copied"] if route not in COUNTED else [])):
        other = solved(build, route, variant)
        np.testing.assert_allclose(other[0], decisions, err_msg=variant, **near)
        assert other[1] == pytest.approx(objective, rel=1e-6), variant
        np.testing.assert_allclose(other[2], prices, rtol=0, atol=near["atol"] * largest, err_msg=variant)
        assert steps / 2 <= other[3] <= 2 * steps, variant
