"""Layers that act in training mode: steps are taken with them, values are of the network without."""

from __future__ import annotations

import contextlib
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import constrain as cn
from constrain import E, P, forall
from constrain.diagnostics.mixture import Members
from constrain.driver.elastic import restored
from constrain.driver.setup import prepare
from constrain.lowering.lower import lower
from constrain.runtime.estimates import Estimator
from constrain.runtime.modes import Modes
from constrain.solvers.primal_dual import PrimalDual, Training
from constrain.solvers.training import IterateJudge


def sample(rows=240):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 3, generator=g, dtype=torch.float64)
    y = (x[:, 0] + 0.5 * torch.randn(rows, generator=g, dtype=torch.float64) > 0).double()
    return cn.Data("sample", x=x, y=y, group=(torch.rand(rows, generator=g) < 0.3).long())


def network(*layers, seed=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 6), *layers, nn.Tanh(), nn.Linear(6, 1), nn.Flatten(0)).double()


def noisy():
    return network(nn.BatchNorm1d(6), nn.Dropout(0.3))


def bounded(net, rate=0.4):
    D = sample()
    s = cn.Model(net, "f")(D.x)
    loss = F.binary_cross_entropy_with_logits(s, D.y, reduction="none")
    return cn.minimize(E(loss)).subject_to(
        rate=P(s > 0) <= rate, level=E(s, given=D.group == 1) <= -0.1, gap=abs(E(s, by=D.group) - E(s)) <= 0.3
    )


def prepared(problem):
    program = lower(problem)
    return prepare(program, device=torch.device("cpu"), dtype=torch.float64).evaluator


def weights(net):
    return [t.clone() for t in net.state_dict().values()]


def same(a, b):
    return len(a) == len(b) and all(map(torch.equal, a, b))


def flags(net):
    return [m.training for m in net.modules()]


class Scaled(nn.Module):
    """Training mode multiplies by a number: a gradient of it can be written down."""

    def forward(self, x):
        return 1.5 * x if self.training else x


# ------------------------------------------------------------------------------------- gradients of steps
def logistic(s, D):
    return F.binary_cross_entropy_with_logits(s, D.y, reduction="none")


TERMS = {
    "a mean": lambda D, s: E(logistic(s, D)),
    "a condition": lambda D, s: E(s, given=D.group == 1),
    "a variance": lambda D, s: cn.Var(s),
    "a ratio": lambda D, s: E(s * D.y) / (2 + E(s**2)),
    "an exponential": lambda D, s: torch.exp(E(s)),
}


def by_hand(name, slope, value, data):
    """phi'(averages of evaluation mode) times gradients of averages of training mode."""
    y, one = torch.as_tensor(data.values("y")), torch.as_tensor(data.values("group")) == 1

    def averages(s):
        return torch.stack([
            F.binary_cross_entropy_with_logits(s, y), s[one].mean(), s.mean(), (s * y).mean(), (s**2).mean()
        ])  # fmt: skip

    phi = {
        "a mean": lambda m: m[0], "a condition": lambda m: m[1], "a variance": lambda m: m[4] - m[2] ** 2,
        "a ratio": lambda m: m[3] / (2 + m[4]), "an exponential": lambda m: torch.exp(m[2]),
    }[name]  # fmt: skip
    at = averages(value).detach().requires_grad_(True)
    (weight,) = torch.autograd.grad(phi(at), at)
    return phi(at).item(), (weight * averages(slope)).sum()


@pytest.mark.parametrize("name", TERMS)
def test_slopes_are_of_evaluation_mode_and_rows_of_training_mode(name):
    net, D = network(Scaled()), sample()
    f = cn.Model(net, "f")
    estimator = Estimator(prepared(cn.minimize(TERMS[name](D, f(D.x)))))
    rows = {"sample": estimator.evaluator.populations[D].everything()}
    step, plain = estimator(rows, step=True), estimator(rows)
    assert torch.equal(step.terms.detach(), plain.terms.detach())
    x = torch.as_tensor(D.values("x"))
    slope = net(x)
    net.eval()
    value, scalar = by_hand(name, slope, net(x), D)
    parameters = list(net.parameters())
    expected = torch.autograd.grad(scalar, parameters)
    found = torch.autograd.grad(step.terms[0], parameters)
    assert step.terms[0].item() == pytest.approx(value, abs=1e-12)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-11)
    without = torch.autograd.grad(plain.terms[0], parameters)
    assert not torch.allclose(found[0], without[0], rtol=1e-3)


def test_a_row_of_its_own_multiplier():
    """Multipliers and penalties of rows are of evaluation mode, their gradients of training mode."""
    net, D = network(Scaled()), sample(6)
    s = cn.Model(net, "f")(D.x)
    lagrangian = cn.minimize(E(s**2)).subject_to(fit=forall(D, s >= 0.1)).compile(gain=0.0)
    lagrangian.table(lagrangian.parts[0]).copy_(torch.arange(6.0))
    loss = lagrangian(D.rows(range(6)))
    x = torch.as_tensor(D.values("x"))
    slope = net(x)
    net.eval()
    value = net(x)
    per_row = torch.arange(6.0, dtype=torch.float64)
    assert loss.item() == pytest.approx((value**2 + per_row * (0.1 - value)).mean().item())
    expected = torch.autograd.grad((slope**2 - per_row * slope).mean(), list(net.parameters()))
    loss.backward()
    assert all(torch.allclose(p.grad, g) for p, g in zip(net.parameters(), expected, strict=True))


P_DROP = 0.4


def ridge(x, y, level):
    """The minimizer of the expected loss of a linear model with dropout on its inputs, with E(f) = level.

    The masks have variance p / (1 - p), so that the loss is |y - X w|^2 / n + p / (1 - p) sum w_j^2 E x_j^2
    (Wager, Wang and Liang, Dropout training as adaptive regularization, 2013).
    """
    n = len(x)
    hessian = 2 * (x.T @ x / n + P_DROP / (1 - P_DROP) * torch.diag((x**2).mean(0)))
    mean = x.mean(0)
    system = torch.zeros(4, 4, dtype=x.dtype)
    system[:3, :3], system[:3, 3], system[3, :3] = hessian, mean, mean
    right = torch.cat([2 * x.T @ y / n, torch.tensor([level], dtype=x.dtype)])
    solved = torch.linalg.solve(system, right)
    return solved[:3], float(solved[3])


def test_dropout_of_a_linear_model_is_ridge_regression():
    """The closed form of the expectation over masks, under a constraint that the deployed model meets."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(256, 3, generator=g, dtype=torch.float64) + 0.5
    y = x @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    D = cn.Data("sample", x=x, y=y)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Dropout(P_DROP), nn.Linear(3, 1, bias=False), nn.Flatten(0)).double()
    s = cn.Model(net, "f")(D.x)
    problem = cn.minimize(E((s - D.y) ** 2)).subject_to(level=E(s) == 0.3)
    solution = problem.solve("lagrangian", batch=256, epochs=400, lr=0.1, progress=False)
    expected, price = ridge(x, y, 0.3)
    without = torch.linalg.lstsq(x, y).solution
    found = net[1].weight.detach()[0]
    assert (found - expected).norm() < 0.05
    assert (found - without).norm() > 0.8
    assert abs(solution["level"].value - 0.3) < 1e-3
    assert solution.multipliers["level"] == pytest.approx(price, abs=0.05)


# ----------------------------------------------------------------------------------- nothing that acts
def trained(make, **options):
    net = make()
    torch.manual_seed(7)
    bounded(net).solve("lagrangian", epochs=3, progress=False, **options)
    return weights(net), torch.get_rng_state()


def frozen_norm():
    net = network(nn.BatchNorm1d(6), nn.Dropout(0.0))
    with torch.no_grad():
        net[1].running_mean.fill_(0.2)
        net[1].running_var.fill_(1.7)
    net[1].eval()
    return net


@pytest.mark.parametrize("graph", ["off", "recorded"])
@pytest.mark.parametrize("make", [network, frozen_norm])
def test_networks_without_such_layers_are_left_alone(make, graph):
    """Weights, buffers and random numbers are the same bits as in evaluation mode, with as many calls."""
    calls = []

    def counted():
        net = make()
        net.register_forward_hook(lambda *_: calls[-1].append(1))
        return net

    calls.append([])
    fresh, numbers = trained(counted, graph=graph)
    calls.append([])
    other, expected = trained(lambda: counted().eval(), graph=graph)
    assert same(fresh, other)
    assert torch.equal(numbers, expected)
    assert len(calls[0]) - len(calls[1]) <= 4  # the modes are tried once, each of them in one pass


# ---------------------------------------------------------------------------------------- whole solves
def test_constraints_hold_for_the_network_that_is_used():
    net = noisy()
    net[2].register_buffer("unused", torch.zeros(2))
    solution = bounded(net).solve(epochs=30, progress=False)
    assert solution.status is cn.Status.FEASIBLE
    assert all(flags(net))
    net.eval()
    s, D = net(torch.as_tensor(sample().values("x"))).detach(), sample()
    assert solution["rate"].value == float((s > 0).double().mean()) <= 0.4
    one = torch.as_tensor(D.values("group")) == 1
    assert solution["level"].value == pytest.approx(float(s[one].mean()), abs=1e-12)
    assert float(s[one].mean()) <= -0.1 + 1e-2
    assert solution.record.acting == "batch normalization and dropout of f"


def test_buffers_move_once_per_step():
    net = noisy()
    method = PrimalDual(epochs=2, batch=60)
    solution = bounded(net).solve(method, progress=False)
    assert solution.provenance.iterations == 8
    assert int(net[1].num_batches_tracked) <= 8  # of the iterate that is kept
    D, twice = sample(), noisy()
    s = cn.Model(twice, "f")(D.x)
    lagrangian = cn.minimize(E(s**2)).subject_to(a=E(s) <= 1, b=P(s > 0) <= 0.9, c=cn.Var(s) <= 3).compile()
    before = int(twice[1].num_batches_tracked)
    step = lagrangian.training_step(torch.optim.SGD(twice.parameters(), lr=0.01))
    for i in range(4):
        step(D.rows(range(40 * i, 40 * i + 40)))
    assert (before, int(twice[1].num_batches_tracked)) == (0, 4)
    x = torch.as_tensor(D.values("x"))
    assert twice[1].running_mean.abs().max() > 0
    assert torch.isfinite(twice(x)).all()


@pytest.mark.parametrize("scheme", ["alternating", "dual-first", "extragradient", "optimistic", "switching"])
def test_schemes(scheme):
    net = noisy()
    bounded(net).solve(epochs=2, batch=60, scheme=scheme, progress=False)
    assert all(flags(net))
    assert 0 < int(net[1].num_batches_tracked) <= (16 if scheme == "extragradient" else 8)


SCHEMES = {
    "simultaneous": {}, "alternating": {"scheme": "alternating"}, "augmented": {"formulation": "augmented"}
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMES)
def test_recorded_steps_draw_the_same_masks(name):
    found = {}
    for graph in ("off", "recorded"):
        net = noisy()
        torch.manual_seed(11)
        solution = bounded(net).solve(
            "lagrangian", epochs=5, batch=60, graph=graph, progress=False, **SCHEMES[name]
        )
        found[graph] = weights(net), torch.get_rng_state(), solution.multipliers
        assert ("recorded step" in solution.provenance.solver) is (graph == "recorded")
    (a, numbers, own), (b, others, theirs) = found.values()
    assert torch.equal(numbers, others)
    assert all(torch.allclose(x, y, rtol=1e-9, atol=1e-12) for x, y in zip(a, b, strict=True))
    assert all(np.allclose(own[key], theirs[key], rtol=1e-9, atol=1e-12) for key in own)


def test_a_run_that_is_continued_is_the_uncut_one(tmp_path):
    """Buffers and the random numbers of masks are part of a checkpoint."""

    def run(net, **options):
        torch.manual_seed(5)
        return bounded(net).solve("lagrangian", epochs=6, batch=60, progress=False, **options)

    whole = noisy()
    solution = run(whole)
    numbers = torch.get_rng_state()
    path = tmp_path / "run.ckpt"
    run(noisy(), checkpoint=path, callback=lambda r: r.done == 3)
    cut = noisy()
    resumed = run(cut, resume=path)
    assert same(weights(cut), weights(whole))
    assert torch.equal(torch.get_rng_state(), numbers)
    assert resumed.objective == solution.objective
    assert all(np.array_equal(resumed.multipliers[k], solution.multipliers[k]) for k in solution.multipliers)


# ------------------------------------------------------------------------------------------------ flags
class Stopping(nn.Module):
    """Stops the run in the call of this number."""

    def __init__(self, at, training):
        super().__init__()
        self.count, self.at, self.wanted = 0, at, training

    def forward(self, x):
        self.count += self.training is self.wanted
        if self.count == self.at:
            raise KeyboardInterrupt
        return x


@pytest.mark.parametrize(("at", "training"), [(30, False), (12, True)])
def test_flags_are_put_back_when_a_run_is_stopped(at, training):
    net = network(nn.BatchNorm1d(6), nn.Dropout(0.3), Stopping(at, training))
    net[1].eval()
    before = flags(net)
    with contextlib.suppress(KeyboardInterrupt):  # outside of the steps
        bounded(net).solve("lagrangian", epochs=8, batch=60, graph="off", progress=False)
    assert net[3].count >= at
    assert flags(net) == before
    assert before.count(False) == 1
    assert int(net[1].num_batches_tracked) == 0


def test_each_submodule_keeps_its_own_flag():
    net = network(nn.BatchNorm1d(6), nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.2)), nn.Dropout(0.5))
    net[2].eval()
    net[2][1].train()
    before = flags(net)
    solution = bounded(net).solve(epochs=2, progress=False)
    solution.evaluate(sample())
    solution.kkt(order=2)
    bounded(net).check()
    assert flags(net) == before
    assert int(net[1].num_batches_tracked) > 0 == int(net[2][0].num_batches_tracked)
    assert torch.equal(net[2][0].running_var, torch.ones(6))


def test_values_do_not_move_anything():
    net = noisy()
    problem, before = bounded(net), weights(net)
    torch.manual_seed(1)
    numbers = torch.get_rng_state()
    first = problem.evaluate()
    problem.check()
    problem.explain()
    second = problem.kkt()
    lagrangian = problem.compile()
    (D,) = lagrangian.evaluator.populations
    lagrangian.estimate(D.rows(range(50)))
    assert same(weights(net), before)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert all(flags(net))
    net.eval()
    assert problem.evaluate().objective == first.objective
    assert problem.kkt().stationarity == second.stationarity


@pytest.mark.parametrize("method", ["augmented", "newton"])
def test_methods_on_all_rows_do_without(method):
    D, found = sample(), []
    for mode in (True, False):
        torch.manual_seed(0)
        net = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.3), nn.Linear(3, 1), nn.Flatten(0))
        s = cn.Model(net.double().train(mode), "f")(D.x)
        problem = cn.minimize(E((s - D.y) ** 2)).subject_to(level=E(s) <= 0.2)
        solution = problem.solve(method, progress=False)
        found.append(weights(net))
        said = "without batch normalization and dropout of f" in solution.provenance.route
        assert said is mode
        assert flags(net) == [mode] * 5
    assert same(*found)


# ------------------------------------------------------------------------------------ what acts, in words
class Shaky(nn.Module):
    """A module of the user's."""

    def forward(self, x):
        return x + torch.randn_like(x) if self.training else x


class Rarely(nn.Module):
    """Draws, and nearly never changes anything."""

    def forward(self, x):
        if self.training and torch.rand(()) < 1e-9:
            return 2 * x
        return x


class Counting(nn.Module):
    """Changes a buffer only."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.seen += 1
        return x


ACTING = {
    "dropout": (lambda: nn.Dropout(0.1), "dropout of f acts"),
    "alpha dropout": (lambda: nn.AlphaDropout(0.1), "dropout of f acts"),
    "batch norm": (lambda: nn.BatchNorm1d(6), "batch normalization of f acts"),
    "batch norm by average": (lambda: nn.BatchNorm1d(6, momentum=None), "batch normalization of f acts"),
    "random slopes": (nn.RReLU, "RReLU of f acts"),
    "spectral norm": (
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6)),
        "spectral normalization of f acts",
    ),
    "a module of the user's": (Shaky, "Shaky of f acts"),
    "one that draws only": (Rarely, "Rarely of f acts"),
    "one that counts only": (Counting, "Counting of f acts"),
    "a kept rate of 1": (lambda: nn.Dropout(0.0), ""),
    "layer norm": (lambda: nn.LayerNorm(6), ""),
    "instance norm": (lambda: nn.Sequential(nn.Unflatten(1, (2, 3)), nn.InstanceNorm1d(2), nn.Flatten()), ""),
    "instance norm that learns": (
        lambda: nn.Sequential(
            nn.Unflatten(1, (2, 3)), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten()
        ),
        "instance normalization of f acts",
    ),
    "attention": (
        lambda: nn.Sequential(
            nn.Unflatten(1, (2, 3)), nn.TransformerEncoderLayer(3, 1, 4, 0.1, batch_first=True), nn.Flatten()
        ),
        "dropout of f acts",
    ),
}


@pytest.mark.parametrize("name", ACTING)
def test_what_acts_is_found_by_trying(name):
    make, said = ACTING[name]
    net = network(make())
    problem = bounded(net)
    numbers, before = torch.get_rng_state(), weights(net)
    notes = [finding.message for finding in problem.check().findings if finding.code == "W227"]
    assert bool(notes) is bool(said)
    assert all(note.startswith(f"{said} in training steps; values and multipliers") for note in notes)
    assert (said in str(problem.explain())) if said else ("in training steps" not in str(problem.explain()))
    assert torch.equal(torch.get_rng_state(), numbers)
    assert same(weights(net), before)
    bounded(net).solve(epochs=1, progress=False)
    assert all(flags(net))


def test_a_continuous_population():
    """Points are fresh in every step, and a network with such layers is trained on batches of them."""
    torch.manual_seed(0)
    X, net = (
        cn.Uniform("x", 0, 1),
        nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 1)),
    )
    u = cn.Model(net.double(), "u")
    v, origin = u(X), torch.zeros(1, 1, dtype=torch.float64)
    problem = cn.minimize(E((cn.diff(v, X, 1) + v) ** 2)).subject_to(start=cn.sum(u(origin)) == 1)
    explained = problem.explain()
    assert (explained.method, "dropout of u" in explained.reason) == ("lagrangian", True)
    solution = problem.solve("lagrangian", batch=64, epochs=3, progress=False)
    assert all(flags(net))
    net.eval()
    assert solution["start"].value == pytest.approx(net(origin).item(), abs=1e-12)
    assert cn.minimize(E(v**2)).explain().method == "augmented"


def test_the_report_names_the_reason():
    net, D = network(nn.Dropout(0.3)), sample()
    s = cn.Model(net, "f")(D.x)
    problem = cn.minimize(E((s - D.y) ** 2)).subject_to(level=E(s) <= 0.2)
    solution = problem.solve(epochs=2, progress=False)
    assert "dropout of f acts in training steps; values and multipliers" in solution.provenance.route
    assert "training steps had dropout of f, values have not" in solution["level"].uncertified
    assert "training steps had dropout of f" in str(solution.kkt())
    net.eval()
    assert problem.kkt().acting == ""


# ---------------------------------------------------------------------------------------- special modules
def test_frozen_models_and_models_without_rows_are_in_evaluation_mode():
    teacher, net, D = noisy(), network(nn.Dropout(0.5)), sample()
    f, t = cn.Model(net, "f"), cn.Model(teacher, "t", frozen=True)
    before, origin = weights(teacher), torch.zeros(1, 3, dtype=torch.float64)
    problem = cn.minimize(E((f(D.x) - t(D.x)) ** 2)).subject_to(
        origin=cn.sum(f(origin)) == 0.25, level=E(t(D.x)) <= 9
    )
    solution = problem.solve(epochs=30, progress=False)
    assert same(weights(teacher), before)
    net.eval(), teacher.eval()
    x = torch.as_tensor(D.values("x"))
    assert solution["level"].value == pytest.approx(teacher(x).mean().item(), abs=1e-12)
    assert solution["origin"].value == pytest.approx(net(origin).item(), abs=1e-12)


def test_a_norm_in_two_models_and_a_network_that_is_compiled():
    D, norm = sample(), nn.BatchNorm1d(4, affine=False)
    nets = [nn.Sequential(nn.Linear(3, 4), norm, nn.Linear(4, 1), nn.Flatten(0)).double() for _ in range(2)]
    f, g = (cn.Model(net, name) for net, name in zip(nets, "fg", strict=True))
    problem = cn.minimize(E((f(D.x) - D.y) ** 2)).subject_to(alike=E(f(D.x) - g(D.x)) == 0)
    step = problem.compile().training_step(torch.optim.SGD([*nets[0].parameters(), *nets[1].parameters()]))
    for _ in range(4):
        step(D.rows(range(60)))
    assert int(norm.num_batches_tracked) == 8
    assert norm.training
    net = noisy()
    compiled = torch.compile(net, backend="eager")
    bounded(compiled).solve(epochs=2, batch=60, progress=False)
    assert all(flags(net))
    assert compiled.training
    assert 0 < int(net[1].num_batches_tracked) <= 8


def test_batches_that_a_layer_cannot_take():
    net = network(nn.BatchNorm1d(6))
    problem = bounded(net)
    said = r"\[E122\] batch normalization of f cannot take a training step on a batch of 1 row: .*more than 1"
    with pytest.raises(cn.ModelingError, match=said) as caught:
        problem.solve("lagrangian", batch=1, epochs=1, progress=False)
    assert "batch= of two rows or more" in str(caught.value.fix)
    assert int(net[1].num_batches_tracked) == 0
    assert all(flags(net))
    D = sample()
    s = cn.Model(net, "f")(D.x)
    lagrangian = cn.minimize(E(s**2)).compile()
    with pytest.raises(cn.ModelingError, match=said):
        lagrangian(D.rows([3]))
    assert all(flags(net))


def test_multipliers_are_no_random_numbers():
    D, net = sample(), network(nn.Dropout(0.2))
    lam = cn.Model(network(nn.BatchNorm1d(6), seed=5), "lam")
    loss = logistic(cn.Model(net, "f")(D.x), D)
    problem = cn.minimize(E(loss)).subject_to(fit=forall(D, loss <= 1.0))
    with pytest.raises(cn.ModelingError, match=r"\[E122\] batch normalization of lam changes the multip"):
        problem.solve(epochs=1, multipliers={"fit": lam(D.x)}, progress=False)
    lam.module.eval()
    problem.solve(epochs=1, multipliers={"fit": lam(D.x)}, progress=False)
    assert all(flags(net))
    assert not any(flags(lam.module))


def test_modes_that_change_in_a_loop_of_ones_own():
    net, D = network(nn.Dropout(0.5)), sample()
    s = cn.Model(net, "f")(D.x)
    lagrangian = cn.minimize(E(s**2)).subject_to(level=E(s) <= 0).compile()
    step = lagrangian.training_step(torch.optim.SGD(net.parameters(), lr=0.0), graph="recorded")
    drawn = []
    for training, _ in itertools.product((True, False, True), range(4)):
        net.train(training)
        before = torch.get_rng_state()
        step(D.rows(range(60)))
        drawn.append(not torch.equal(torch.get_rng_state(), before))
    assert drawn == [True] * 4 + [False] * 4 + [True] * 4


def test_trying_changes_nothing():
    """Attributes in Python, gradients and generators included."""

    class Remembering(nn.Module):
        def __init__(self):
            super().__init__()
            self.seen, self.numbers = [], torch.Generator().manual_seed(1)

        def forward(self, x):
            self.seen.append(len(x))
            self.last = x
            return x + torch.rand(x.shape, generator=self.numbers, dtype=x.dtype) if self.training else x

    net = network(Remembering())
    modes, state = Modes([cn.Model(net, "f")]), net[1].numbers.get_state()
    x = torch.ones(4, 3, dtype=torch.float64)

    def values(training):
        if training:
            return [net(x)]
        with modes.evaluation():
            return [net(x)]

    assert modes.acts(values)
    assert net[1].seen == []
    assert not hasattr(net[1], "last")
    assert torch.equal(net[1].numbers.get_state(), state)
    assert all(flags(net))


def test_late_iterates_are_averaged_with_their_statistics():
    """Mean weights with the running statistics of the last iterate would be of no network."""
    net = noisy()
    evaluator = prepared(bounded(net))
    judge, seen = IterateJudge(evaluator, 3, 1e-3), []
    method = Training(PrimalDual(epochs=3, batch=60), evaluator)
    method.prepare(None)
    for epoch in range(3):
        method.epoch(epoch)
        judge.judge(epoch, method)
        if epoch == 2:
            seen.append(evaluator.decisions.snapshot())
    average = judge.late_average(seen[0])
    assert torch.equal(average["f.1.running_var"], seen[0]["f.1.running_var"])
    assert "f.1.num_batches_tracked" not in average
    assert not torch.equal(average["f.1.running_var"], torch.ones(6))


def test_members_of_a_mixture_are_in_evaluation_mode():
    net = noisy()
    members = Members(bounded(net).solve(epochs=2, progress=False).live)
    with members.at(members.attached.decisions.snapshot()):
        assert not any(flags(net))
    assert all(flags(net))


def test_a_stream_whose_last_batch_has_one_row():
    x = torch.as_tensor(sample().values("x"))[:61]

    class Loader:
        def __iter__(self):
            return ({"x": x[i : i + 20]} for i in range(0, 61, 20))

    D, net = cn.Data.from_loader("stream", Loader()), noisy()
    s = cn.Model(net, "f")(D.x)
    solution = cn.minimize(E((s - 1) ** 2)).subject_to(level=E(s) <= 0.2).solve(epochs=3, progress=False)
    assert solution.provenance.iterations >= 9
    assert all(flags(net))
    net.eval()
    assert solution["level"].value == pytest.approx(net(x).mean().item(), abs=1e-12)


def test_flags_are_put_back_after_a_search_for_conflicts():
    net = noisy()
    net[1].eval()
    before = flags(net)
    with restored(bounded(net)):
        net.train()
    assert flags(net) == before


# ------------------------------------------------------------------------------------- what acts later on
class Delayed(nn.Module):
    """Dropout that begins after some steps."""

    def __init__(self):
        super().__init__()
        self.steps = 0

    def forward(self, x):
        self.steps += self.training
        return F.dropout(x, 0.5) if self.training and self.steps > 10 else x


@pytest.mark.parametrize("make", [Delayed, lambda: nn.Dropout(0.0)])
@pytest.mark.parametrize("graph", ["auto", "off"])
def test_layers_that_begin_to_act_during_the_training(make, graph):
    """Values are of evaluation mode: those that are reported are those of the network."""
    net = network(make())

    def raise_rate(told):
        net[1].p = 0.5

    with pytest.MonkeyPatch.context() as patch:
        seen = []
        patch.setattr(Estimator, "_of_step", lambda *a, own=Estimator._of_step: seen.append(1) or own(*a))
        solution = bounded(net).solve(
            epochs=8, lr=0.05, batch=24, progress=False, graph=graph, callback=raise_rate
        )
    assert seen
    x = torch.as_tensor(sample().values("x"))
    with torch.no_grad():
        assert float((net.eval()(x) > 0).double().mean()) == pytest.approx(solution["rate"].value, abs=1e-12)


@pytest.mark.parametrize("sizes", [(24,), (10, 12, 14, 16, 18, 20)])
def test_steps_that_a_recording_leaves_to_python_count_once(sizes):
    """Weights that are frozen and released, and more sizes of batches than are recorded: as without."""
    found = []
    for graph in ("recorded", "off"):
        net = network()
        lagrangian = bounded(net).compile()
        (D,) = lagrangian.evaluator.populations
        step = lagrangian.training_step(torch.optim.Adam(net.parameters(), lr=0.02), graph=graph)
        for k in range(24):
            net[0].weight.requires_grad_(len(sizes) > 1 or not 8 <= k < 14)
            step(D.rows(torch.arange(sizes[k % len(sizes)]) + k))
        found.append([*weights(net), lagrangian.running.clone(), lagrangian.evaluator.scales.clone()])
    assert same(*found)
