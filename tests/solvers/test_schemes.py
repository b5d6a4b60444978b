"""Every scheme of training on problems with known optima, on the bilinear saddle, and in other units."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import constrain as cn
from constrain import E, ModelingError, forall
from constrain.driver.setup import lowered, prepare
from constrain.runtime.ascent import Move
from constrain.solvers.primal_dual import PrimalDual, Training
from constrain.solvers.schemes import Mirror, NuPI, Scheme


def sample(rows: int = 128) -> cn.Data:
    g = torch.Generator().manual_seed(3)
    x = torch.randn(rows, 3, generator=g, dtype=torch.float64)
    return cn.Data("d", x=x, y=x[:, 0] - 0.5 * x[:, 1] + 0.4)


def linear() -> cn.Model:
    torch.manual_seed(0)
    return cn.Model(nn.Sequential(nn.Linear(3, 1, dtype=torch.float64), nn.Flatten(0)), "f")


def regression() -> cn.Problem:
    D, f = sample(), linear()
    return cn.minimize(E((f(D.x) - D.y) ** 2)).subject_to(mean=E(f(D.x)) <= 0.3)


# ------------------------------------------------------------------------------- the bilinear saddle
def saddle() -> cn.Problem:
    """min_w max_l w + l (w - 1), with the saddle at w = 1, l = -1: no curvature on either side."""
    D = cn.Data("d", x=np.ones(64))
    w = cn.Variable((), "w")
    w.value = 0.5
    return cn.minimize(E(D.x * w)).subject_to(c=E(D.x * w) == 1)


def gradient(tensors):
    return torch.optim.SGD(tensors, lr=0.1)


def constant(optimizer):
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def distances(scheme: Scheme | str, steps: int = 400) -> list[float]:
    """Distance to the saddle after every step, with one step size for both sides."""
    evaluator = prepare(lowered(saddle(), None), device=torch.device("cpu"), dtype=torch.float64).evaluator
    settings = PrimalDual(
        scheme=scheme, optimizer=gradient, scheduler=constant, batch=64, warmup=0, rate=0.1, gain=0.0
    )
    training = Training(settings, evaluator)
    training.prepare(None)
    found: list[float] = []
    for _ in range(steps):
        training._pace()
        training.state = training.scheme.step(training, training.state)
        found.append(math.hypot(training.tensors[0].item() - 1, training.multipliers()["c"].item() + 1))
    return found


def test_the_bilinear_saddle() -> None:
    """Together: a spiral outwards, sqrt(1 + lr^2) per step. In turn: a circle. Anticipating: inwards."""
    out = distances("simultaneous")
    rates = np.array(out[1:]) / np.array(out[:-1])
    np.testing.assert_allclose(rates, math.sqrt(1 + 0.1**2), rtol=1e-9)
    for order in ("alternating", "dual-first"):
        circle = distances(order)
        assert 0.9 * circle[0] < min(circle[-70:]) <= max(circle[-70:]) < 1.1 * circle[0]
    inwards = distances("extragradient")
    rates = np.array(inwards[1:]) / np.array(inwards[:-1])
    np.testing.assert_allclose(rates, math.sqrt(1 - 0.1**2 + 0.1**4), rtol=1e-9)
    assert distances("optimistic")[-1] < 0.2 * distances("optimistic")[0]


@pytest.mark.parametrize(
    ("scheme", "right"), [("simultaneous", False), ("extragradient", True), ("optimistic", True)]
)
def test_the_word_for_how_the_saddle_ends(scheme: str, right: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = saddle().solve(
            "lagrangian", scheme=scheme, optimizer=gradient, scheduler=constant, batch=8, epochs=150,
            rate=0.1, gain=0.0, progress=False,
        )  # fmt: skip
    cycles = "C303" in {warning.code for warning in found.warnings}
    assert (found.status.value == "optimal", cycles) == ((True, False) if right else (False, True))
    if right:
        assert float(found["c"].multiplier) == pytest.approx(-1.0, abs=0.01)


# ------------------------------------------------------------------------------- schedules and refusals
def test_a_schedule_of_the_user_sets_the_learning_rate_of_every_step() -> None:
    seen: list[float] = []

    class Watching(torch.optim.SGD):
        def step(self, closure=None):
            seen.append(self.param_groups[0]["lr"])
            return super().step(closure)

    found = regression().solve(
        "lagrangian",
        optimizer=lambda tensors: Watching(tensors, lr=0.08),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.5),
        batch=32,
        epochs=3,
        graph="off",
        progress=False,
    )
    assert found.history[-1]["step"] == 12
    assert seen == [0.08] * 5 + [0.04] * 5 + [0.02] * 2


def plateau(optimizer):
    return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)


def learned() -> dict:
    D, f = sample(24), linear()
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 1, dtype=torch.float64), nn.Flatten(0))
    lam = cn.Model(net, "lam")
    problem = cn.minimize(E((f(D.x) - D.y) ** 2)).subject_to(fit=forall(D, f(D.x) <= 2.0))
    return {"problem": problem, "multipliers": {"fit": lam(D.x)}}


def relaxed() -> dict:
    D, f = sample(), linear()
    soft = (E(f(D.x)) <= 0.1).relax(cost=cn.squared(1.0))
    return {"problem": cn.minimize(E((f(D.x) - D.y) ** 2)).subject_to(soft=soft)}


REFUSALS = {
    "name": ({"scheme": "extra"}, "E141: no scheme is called 'extra'"),
    "rule": ({"dual": "newton"}, "E141: no rule of the multipliers is called 'newton'"),
    "plateau": ({"scheduler": plateau}, "E141: scheduler= makes a ReduceLROnPlateau, which needs a value"),
    "no schedule": ({"scheduler": lambda o: 3}, "E141: scheduler= makes a int, which is no schedule"),
    "two rules": (
        {"scheme": "optimistic", "dual": "mirror"},
        "E208: the scheme 'optimistic gradient' moves multipliers by a rule of its own, not by dual='mirror'",
    ),
    "memory": ({"memory": 1.0}, "E141: memory=1.0 is not a decay in [0, 1)"),
    "gain": ({"dual": "mirror", "gain": 0.5}, "E208: dual='mirror' has no gain="),
    "penalty": (
        {"scheme": "switching", "formulation": "augmented"},
        "E208: the scheme 'switching subgradient' has no multipliers for a penalty or gain to act on",
    ),
    "network": (
        {"scheme": "tiada", **learned()},
        "E208: the scheme 'TiAda' has no step for a model that gives the multipliers of 'fit'",
    ),
    "relaxed": (
        {"scheme": "penalty", **relaxed()},
        "E208: the scheme 'quadratic penalty' has no multipliers that relaxed constraints could move",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_a_scheme_cannot_take_is_said_before_training(name: str) -> None:
    asked, message = REFUSALS[name]
    asked = dict(asked)
    problem = asked.pop("problem", None) or regression()
    with pytest.raises(ModelingError) as caught:
        problem.solve("lagrangian", epochs=2, progress=False, **asked)
    assert str(caught.value).startswith(message.replace(message[:5], f"[{message[:4]}]", 1))


@pytest.mark.parametrize("scheme", ["alternating", "dual-first", "extragradient"])
def test_a_network_of_multipliers_works_where_the_scheme_moves_any(scheme: str) -> None:
    asked = learned()
    found = asked["problem"].solve(
        "lagrangian", scheme=scheme, multipliers=asked["multipliers"], epochs=30, lr=0.02, progress=False
    )
    assert found.status.solved


# ---------------------------------------------------------------------------------------------- rules
def test_the_recursive_rule_is_the_absolute_one_where_nothing_is_projected() -> None:
    """nuPI without projection: multiplier_0 + step (rate sum of e + gain xi)."""
    rule, past = NuPI(gain=0.4, memory=0.9), {}
    values = torch.zeros(3, dtype=torch.float64)
    errors = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    steps, rate = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64), 0.05
    rule.start(past, "all", values)
    smooth = torch.zeros_like(values)
    for error in errors:
        values = rule.moved(past, Move("all", values, error, steps, rate))
        smooth = 0.9 * smooth + 0.1 * error
    torch.testing.assert_close(values, steps * (rate * errors.sum(0) + 0.4 * smooth))


def test_mirror_steps() -> None:
    """Far above the offset a factor exp(step); far below an additive step; weights by a softmax."""
    change, unit = torch.tensor([0.3, -0.3], dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    large = torch.tensor([1e6, 1e6], dtype=torch.float64)
    moved = Mirror().moved({}, Move("all", large, change, unit, 1.0, unit))
    torch.testing.assert_close(moved, large * torch.exp(change))
    small = 1e-4 * unit
    moved = Mirror().moved({}, Move("all", small, 1e-4 * change, unit, 1.0, unit))
    torch.testing.assert_close(moved, small + 1e-4 * change, rtol=1e-6, atol=0)
    weights, places = torch.tensor([0.25, 0.75], dtype=torch.float64), torch.arange(2)
    moved = Mirror().moved({}, Move("all", weights, change, unit, 1.0, unit, None, (places,)))
    torch.testing.assert_close(moved, torch.softmax(weights.log() + change, 0))


# ---------------------------------------------------------------------------------------------- cycles
def test_cycles_are_damped_where_the_rule_is_left_to_the_library() -> None:
    """A linear program, whose descent-ascent has nothing to damp it but the rule of the multipliers."""

    def trained(**asked):
        g = np.random.default_rng(0)
        D = cn.Data("d", x=1 + 0.1 * g.normal(size=256))
        w = cn.Variable(2, "w", bounds=(-2.0, 2.0))
        w.value = np.zeros(2)
        problem = cn.minimize(E(D.x * w[0] + 2 * D.x * w[1])).subject_to(a=E(D.x) * (w[0] + w[1]) >= 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return problem.solve("lagrangian", batch=32, epochs=100, progress=False, optimizer=adam, **asked)

    def adam(tensors):
        return torch.optim.Adam(tensors, lr=0.1)

    own, asked = trained(), trained(gain=0.3)
    assert "violations came back in cycles: gain 0.6, memory 0.8, rate" in own.message
    assert "cycles" not in asked.message
    assert abs(float(own.objective)) < 0.2 * abs(float(asked.objective) - 0.0) + 0.01
