"""Recorded steps are the steps that Python makes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import constrain as cn
from constrain import E, P, forall
from constrain.errors import ModelingError
from constrain.runtime.ascent import NuPI
from constrain.runtime.graph import TrainingStep
from constrain.solvers import primal_dual
from constrain.solvers.schemes import Penalty


def sample(rows=300):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 3, generator=g, dtype=torch.float64)
    y = (x[:, 0] + torch.randn(rows, generator=g, dtype=torch.float64) > 0).double()
    return cn.Data("sample", x=x, y=y, group=(torch.rand(rows, generator=g) < 0.1).long())


def network(seed=3, inputs=3):
    torch.manual_seed(seed)
    layers = (torch.nn.Linear(inputs, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1), torch.nn.Flatten(0))
    return torch.nn.Sequential(*layers).double()


def scored(net=None):
    D = sample()
    s = cn.Model(network() if net is None else net, "f")(D.x)
    return D, s, F.binary_cross_entropy_with_logits(s, D.y, reduction="none")


def groups(net=None):
    D, s, loss = scored(net)
    return cn.minimize(E(loss)).subject_to(
        **{f"g{k}": E(s, given=D.group == k) <= 0.1 for k in (0, 1)}, level=E(s * s) <= 0.3
    )


def rates():
    D, s, loss = scored()
    return cn.minimize(E(loss)).subject_to(rate=P(s > 0, by=D.group) >= 0.4, gap=abs(E(s)) <= 0.05)


def rows():
    D, _, loss = scored()
    return cn.minimize(E(loss)).subject_to(
        fit=forall(D, loss <= 1.0), some=forall(D.where(D.y > 0), loss >= 0.1)
    )


def curved():
    """Products (half batches), ratios (running averages), a variance."""
    D, s, loss = scored()
    return cn.minimize(E(loss)).subject_to(
        product=E(s) * E(s * D.y) <= 0.1, ratio=E(s * D.y) / E(s * s + 1.0) >= 0.05, spread=cn.Var(s) <= 0.2
    )


def tails():
    """Thresholds, a slack, an objective that is a largest value."""
    D, s, loss = scored()
    return cn.minimize(cn.max(E(loss, by=D.group))).subject_to(
        tail=cn.CVaR(loss, 0.9) <= 1.2,
        median=cn.Quantile(s, 0.5) <= 0.1,
        soft=(E(s) <= -0.1).relax(cost=cn.squared(10.0)),
    )


def bounded():
    """A variable in a box beside a model, an equality, a parameter."""
    D, s, loss = scored()
    b, level = cn.Variable((), "b", bounds=(-0.1, 0.05)), cn.Parameter("level", value=0.2)
    return cn.minimize(E(loss) + cn.square(b - 1.0)).subject_to(same=E(s) == b, much=E(s * D.y) <= level)


def points():
    """Fresh points of a continuous population."""
    t, u = cn.Uniform("t", 0.0, 1.0), cn.Model(network(2, 1), "u")
    return cn.minimize(E((u(t) - t) ** 2)).subject_to(level=E(u(t)) <= 0.4)


def stratified():
    D, s, loss = scored()
    return cn.minimize(E(loss)).subject_to(gap=E(s, by=D.group) <= 0.1), {"sampling": "stratified"}


def whole():
    """Batches of all rows."""
    return groups(), {"batch": 300}


def dataset():
    """Rows of a dataset, whose last batch is smaller."""
    D = sample()
    table = torch.utils.data.TensorDataset(*(torch.as_tensor(D.values(k)) for k in ("x", "y", "group")))
    S = cn.Data.from_dataset("sample", table, ("x", "y", "group"))
    s = cn.Model(network(), "f")(S.x)
    loss = F.binary_cross_entropy_with_logits(s, S.y, reduction="none")
    return cn.minimize(E(loss)).subject_to(gap=E(s, by=S.group) <= 0.1)


def augmented():
    return rates(), {"formulation": "augmented"}


def dual_first():
    return groups(), {"scheme": "dual-first"}


def alternating():
    return groups(), {"scheme": "alternating"}


def extragradient():
    return rows(), {"scheme": "extragradient"}


def optimistic():
    return bounded(), {"scheme": "optimistic"}


def tiada():
    return rows(), {"scheme": "tiada"}


def switching():
    D, s, loss = scored()
    return cn.minimize(E(loss)).subject_to(
        gap=E(s, by=D.group) <= 0.1, level=E(s) == 0.05, fit=forall(D, loss <= 1.0)
    ), {"scheme": "switching"}


def growing():
    return groups(), {"scheme": Penalty(looks=4, ascends=True)}


def mirror():
    return rates(), {"dual": "mirror"}


def nupi():
    return rows(), {"dual": "nupi"}


PROBLEMS = [
    groups, rates, rows, curved, tails, bounded, points, stratified, whole, dataset, augmented, dual_first,
    alternating, extragradient, optimistic, tiada, switching, growing, mirror, nupi,
]  # fmt: skip


def trained(build, graph, **options):
    found = build()
    problem, own = found if isinstance(found, tuple) else (found, {})
    settings = {"epochs": 6, "batch": 70, "progress": False, "seed": 1} | own | options
    return problem.solve("lagrangian", graph=graph, **settings)


def assert_agree(a, b, tolerance=1e-9):
    assert a.objective == pytest.approx(b.objective, rel=tolerance)
    for name, value in a.weights.items():
        np.testing.assert_allclose(value, b.weights[name], rtol=tolerance, atol=tolerance)
    for name, value in a.multipliers.items():
        np.testing.assert_allclose(value, b.multipliers[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("build", PROBLEMS)
def test_a_recorded_run_ends_where_python_ends(build):
    a, b = trained(build, "off"), trained(build, "recorded")
    assert "recorded step" in b.provenance.solver
    assert "recorded step" not in a.provenance.solver
    assert_agree(a, b)


OPTIMIZERS = {
    "Adam": lambda t: torch.optim.Adam(t, lr=0.01),
    "fused": lambda t: torch.optim.Adam(t, lr=0.01, fused=True),
    "amsgrad": lambda t: torch.optim.Adam(t, lr=0.01, amsgrad=True, weight_decay=0.01),
    "AdamW": lambda t: torch.optim.AdamW(t, lr=0.01),
    "SGD": lambda t: torch.optim.SGD(t, lr=0.05),
    "momentum": lambda t: torch.optim.SGD(t, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "RMSprop": lambda t: torch.optim.RMSprop(t, lr=0.01),
    "Adagrad": lambda t: torch.optim.Adagrad(t, lr=0.01),
    "NAdam": lambda t: torch.optim.NAdam(t, lr=0.01),
    "Adamax": lambda t: torch.optim.Adamax(t, lr=0.01),
    "Adadelta": lambda t: torch.optim.Adadelta(t, lr=0.1),
    "groups": lambda t: torch.optim.SGD([{"params": t[:2], "lr": 0.01}, {"params": t[2:]}], lr=0.05),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name):
    make = OPTIMIZERS[name]
    assert_agree(trained(groups, "off", optimizer=make), trained(groups, "recorded", optimizer=make), 1e-7)


# ------------------------------------------------------------------------------- what models do besides
class Around(torch.nn.Module):
    """A network with something around it."""

    def __init__(self):
        super().__init__()
        self.inner = network()


class Tied(Around):
    """One weight in two layers, one of them met under two names."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(3, 3, bias=False).double()
        self.second = torch.nn.Linear(3, 3, bias=False).double()
        self.second.weight = self.first.weight
        self.both = torch.nn.ModuleList([self.second, self.first])

    def forward(self, x):
        return self.inner(torch.tanh(self.second(self.both[1](x))))


class Joined(Around):
    """Compiled by torch, in part."""

    def __init__(self):
        super().__init__()
        self.fast = torch.compile(self.inner, backend="aot_eager")

    def forward(self, x):
        return self.fast(x)


@pytest.mark.parametrize("model", [Tied, Joined])
def test_models(model):
    nets = [model(), model()]
    nets[1].load_state_dict(nets[0].state_dict())
    ends = []
    for net, graph in zip(nets, ("off", "recorded"), strict=True):
        ends.append(trained(lambda net=net: groups(net), graph))
        assert {t.device.type for t in net.parameters()} == {"cpu"}
    assert "recorded step" in ends[1].provenance.solver
    assert_agree(*ends)


def test_a_model_that_torch_has_compiled():
    net = network()
    a, b = (
        trained(lambda: groups(network()), "off"),
        trained(lambda: groups(torch.compile(net, backend="eager")), "recorded"),
    )
    np.testing.assert_allclose(a.objective, b.objective, rtol=1e-9)


class Counting(Around):
    """Multiplies by a number that is another one in each call."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, x):
        if x.requires_grad or torch.is_grad_enabled():
            self.calls.append(x.shape)
        return self.inner(x) * (1 + 0.01 * len(self.calls))


class Exported(Around):
    def forward(self, x):
        found = self.inner(x)
        return found + float(np.abs(x.detach().numpy()).max() > 1e9) if x.device.type == "cpu" else found


class Chosen(Around):
    def forward(self, x):
        found = self.inner(x)
        return found + 0 * found[found > 0].sum()


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Counting, "or changes from call to call"),
        (Exported, r"it reads the memory of a tensor \(numpy\)"),
        (Chosen, r"it depends on the values of a tensor \(aten.index.Tensor\)"),
    ],
)
def test_what_is_no_graph_is_seen(model, reason):
    with pytest.raises(ModelingError, match=f"E207.*{reason}"):
        trained(lambda: groups(model()), "recorded")


# ------------------------------------------------------------------------------------------- choosing
class Branching(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = network()

    def forward(self, x):
        found = self.inner(x)
        return found if found.shape[0] == 0 or float(found.sum()) < 1e9 else -found


class Replaced(NuPI):
    """A rule that puts a new tensor in the place of the one that it remembers."""

    def moved(self, past, move):
        past[move.name] = move.residual + past[move.name]
        return move.values + move.rate * move.steps * past[move.name]


def test_what_cannot_be_recorded_is_refused_when_asked_for_and_else_made_in_python(monkeypatch):
    def build():
        return groups(Branching())

    with pytest.raises(ModelingError, match=r"E207.*training step cannot be recorded.*\n.*graph=\"off\""):
        trained(build, "recorded")
    with pytest.raises(ModelingError, match="remembers more than tensors in place"):
        trained(groups, "recorded", scheme="dual-descent")
    with pytest.raises(ModelingError, match="remembers more than tensors that it changes in place"):
        trained(groups, "recorded", dual=Replaced())
    monkeypatch.setattr(primal_dual, "RECORDED_STEPS", 1)
    found = trained(build, "auto")
    assert "recorded" not in found.provenance.solver
    assert_agree(trained(build, "off"), found, 0.0)


def test_long_runs_are_recorded_by_themselves():
    assert "recorded step" in trained(groups, "auto", epochs=150).provenance.solver
    assert "recorded step" not in trained(groups, "auto", epochs=5).provenance.solver


@pytest.mark.parametrize("graph", ["fast", True])
def test_other_words_are_refused(graph):
    with pytest.raises(ModelingError, match="E141"):
        trained(groups, graph)


class Warmed(torch.nn.Module):
    """A temperature that its owner changes."""

    def __init__(self):
        super().__init__()
        self.inner, self.temperature = network(), 1.0

    def forward(self, x):
        return self.inner(x) / self.temperature


def test_attributes_of_modules_may_change_between_epochs():
    def warmed(graph):
        net = Warmed()

        def warmer(told):
            net.temperature = 1.0 + 0.1 * told.done

        return trained(lambda: groups(net), graph, callback=warmer)

    assert_agree(warmed("off"), warmed("recorded"))


def test_the_culprit_is_named_in_recorded_steps_too():
    x = torch.linspace(0.5, 1.5, 50, dtype=torch.float64)
    D, w = cn.Data("people", x=x), cn.Variable((), "w")
    problem = cn.minimize(cn.square(w - 3.0)).subject_to(root=E(cn.log(1.6 - D.x * w)) >= -9.0)
    solution = problem.solve("lagrangian", progress=False, epochs=200, lr=0.5, graph="recorded")
    assert solution.status == "diverged"
    assert "root" in solution.message
    assert np.isfinite(w.value)


# --------------------------------------------------------------------------------- loops of one's own
def looped(build, graph, change=None, steps=60, *, refreshed=True):
    problem = build()
    lagrangian = problem.compile(seed=0)
    net = lagrangian.evaluator.program.models[0].module
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 20, 0.5)
    step = None if graph is None else lagrangian.training_step(optimizer, graph)
    D = next(iter(lagrangian.evaluator.populations))
    order = torch.randperm(300, generator=torch.Generator().manual_seed(4)).repeat(20)
    losses: list[float] = []
    if refreshed:
        lagrangian.refresh()
    for k in range(steps):
        batch = D.rows(order[50 * k : 50 * k + (50 if k != 40 else 13)])
        if step is None:
            loss = lagrangian(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            lagrangian.ascend()
        else:
            loss = step(batch)
        schedule.step()
        losses.append(float(loss.detach()))
        if change is not None and k == steps // 2:
            change(lagrangian)
    return losses, {k: v.clone() for k, v in lagrangian.state_dict().items()}


def raised(lagrangian):
    (symbol,) = lagrangian.evaluator.program.parameters
    symbol.value = -0.1


@pytest.mark.parametrize("graph", ["off", "recorded"])
@pytest.mark.parametrize(
    ("build", "change"), [(groups, None), (rates, None), (rows, None), (tails, None), (bounded, raised)]
)
def test_a_loop_of_ones_own(build, change, graph):
    plain, state = looped(build, None, change)
    if build is bounded:  # what it leaves to its own loop, `training_step` projects
        return
    own, own_state = looped(build, graph, change)
    np.testing.assert_allclose(own, plain, rtol=1e-9)
    assert state.keys() == own_state.keys()
    for key, value in state.items():
        np.testing.assert_allclose(own_state[key], value, rtol=1e-8, atol=1e-10, err_msg=key)


@pytest.mark.parametrize("build", [groups, rates])
def test_a_loop_is_recorded_before_its_running_residuals_have_seen_all_data(build, monkeypatch):
    plain, state = looped(build, None, refreshed=False)
    steps = []
    step = TrainingStep._step
    monkeypatch.setattr(TrainingStep, "_step", lambda self, batch: steps.append(0) or step(self, batch))
    own, own_state = looped(build, "recorded", refreshed=False)
    assert len(steps) < 10  # the first, those that are compared, and the smaller batch
    np.testing.assert_allclose(own, plain, rtol=1e-9)
    for key, value in state.items():
        np.testing.assert_allclose(own_state[key], value, rtol=1e-8, atol=1e-10, err_msg=key)


def test_a_parameter_may_change_in_the_loop():
    def build():
        D, s, loss = scored()
        level = cn.Parameter("level", value=0.2)
        return cn.minimize(E(loss)).subject_to(much=E(s * D.y) <= level)

    plain, _ = looped(build, None, raised)
    still, _ = looped(build, None)
    own, _ = looped(build, "recorded", raised)
    np.testing.assert_allclose(own, plain, rtol=1e-9)
    assert not np.allclose(still, plain)


def test_a_loop_that_cannot_be_recorded_goes_on_in_python():
    plain, state = looped(lambda: groups(Branching()), None)
    own, own_state = looped(lambda: groups(Branching()), "auto")
    assert own == plain
    for key, value in state.items():
        assert torch.equal(own_state[key], value), key
    with pytest.raises(ModelingError, match=r"E207.*depends on the values"):
        looped(lambda: groups(Branching()), "recorded")


# --------------------------------------------------------------------- what a recorded step takes for granted
class Plain(torch.optim.Optimizer):
    """Gradient steps, by an option that is no learning rate; subclasses remember something in Python."""

    def __init__(self, tensors):
        super().__init__(tensors, {"speed": 0.05})
        self.count = 0

    def moved(self, p, _state, speed):
        p.add_(p.grad, alpha=-speed)

    @torch.no_grad()
    def step(self, _closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.moved(p, self.state[p], group["speed"])


class Slower(Plain):
    """A number in the state."""

    def moved(self, p, state, speed):
        state["count"] = state.get("count", 1000) + 1
        super().moved(p, state, 500 * speed / state["count"])


class Lookahead(Plain):
    """A number beside the state: every fifth step is another one."""

    def step(self, _closure=None):
        self.count += 1
        super().step()
        if self.count % 5 == 0:
            for p in self.param_groups[0]["params"]:
                p.data.mul_(0.9)


class Replacing(Plain):
    """New tensors in the place of those in the state."""

    def moved(self, p, state, speed):
        state["mean"] = 0.9 * state.get("mean", 0.0) + p.grad
        p.add_(state["mean"], alpha=-speed)


class Shifting(Plain):
    """Other memory in the place of the weights'."""

    def moved(self, p, _state, speed):
        p.data = p.data - speed * p.grad


def adam(tensors):
    return torch.optim.Adam(tensors, lr=0.01)


class Listed(Warmed):
    """Keeps what it has seen, and counts."""

    def __init__(self):
        super().__init__()
        self.calls, self.seen = [0], ()

    def forward(self, x):
        found = super().forward(x) * (1 + 1e-4 * (len(self.calls) % 7))
        self.calls.append(len(x))
        self.seen = (found.detach(), x)
        return found


def frozen_first(k, net, optimizer):
    net[0].weight.requires_grad_(k >= 5)


def two_groups(k, net, optimizer):
    if k == 0:
        optimizer.param_groups[0]["params"] = list(net[2].parameters())
    if k == 5:
        optimizer.add_param_group({"params": list(net[0].parameters())})


def two_optimizers(k, net, optimizer):
    first = list(net[0].parameters())
    if k == 0:
        optimizer.param_groups[0]["params"] = list(net[2].parameters())
        return
    torch.optim.SGD(first, lr=0.05).step()
    if k % 3:
        for p in first:
            p.grad = None


def loaded(k, net, optimizer):
    if k == 4:
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    if k == 8:
        net[0].weight.data = net[0].weight.data * 0.5


def hooked(k, net, optimizer):
    if k == 5:
        net[1].register_forward_hook(lambda module, given, found: found * 0.9)


def cycled(k, net, optimizer):
    optimizer.param_groups[0]["betas"] = (0.9 - 1e-4 * k, 0.999)


def warmed_up(k, net, optimizer):
    net.temperature = 1.0 + 0.02 * (k // 5)


def untouched(k, net, optimizer):
    pass


CHANGES = [
    (network, adam, change) for change in (frozen_first, two_groups, two_optimizers, loaded, hooked, cycled)
]
CHANGES += [(network, make, untouched) for make in (Plain, Slower, Lookahead, Replacing, Shifting)]
CHANGES += [(Warmed, adam, warmed_up), (Listed, adam, untouched)]


@pytest.mark.parametrize(("model", "make", "change"), CHANGES)
def test_a_loop_ends_where_python_ends_whatever_changes_beside_tensors(model, make, change):
    ends = []
    order = torch.randperm(300, generator=torch.Generator().manual_seed(4)).repeat(3)
    for graph in ("off", "auto"):
        problem = groups(model())
        lagrangian = problem.compile(seed=0)
        net = lagrangian.evaluator.program.models[0].module
        optimizer = make(list(net.parameters()))
        step = lagrangian.training_step(optimizer, graph)
        D = next(iter(lagrangian.evaluator.populations))
        for k in range(14):
            change(k, net, optimizer)
            step(D.rows(order[50 * k : 50 * k + 50]))
        state = {**net.state_dict(), **lagrangian.state_dict()}
        ends.append((state, getattr(net, "calls", None)))
    (expected, calls), (found, own_calls) = ends
    assert calls == own_calls
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-12, msg=key)


def test_steps_are_not_recorded_again_and_again():
    lagrangian = groups(Warmed()).compile(seed=0)
    net = lagrangian.evaluator.program.models[0].module
    step = lagrangian.training_step(adam(net.parameters()))
    D = next(iter(lagrangian.evaluator.populations))
    for k in range(40):
        net.temperature = 1.0 + 0.001 * k
        step(D.rows(torch.arange(50)))
    assert step.graph is None


def test_words_of_the_loop():
    lagrangian = groups().compile()
    optimizer = torch.optim.SGD(lagrangian.evaluator.decisions.tensors, lr=0.1)
    with pytest.raises(ModelingError, match=r"E141.*no graph is called 'fast'"):
        lagrangian.training_step(optimizer, "fast")
    with pytest.raises(ModelingError, match=r"E141.*is a list, which is no optimizer of torch"):
        lagrangian.training_step([])


# -------------------------------------------------------------------------------------------- compiled
@pytest.mark.slow
@pytest.mark.parametrize("build", [groups, rows])
def test_a_compiled_run_ends_where_python_ends(build):
    a, b = trained(build, "off"), trained(build, "compiled")
    assert "compiled step" in b.provenance.solver
    assert_agree(a, b, 1e-6)
