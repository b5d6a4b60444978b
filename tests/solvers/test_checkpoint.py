"""Checkpoints: a run that is cut off and continued ends bit by bit where the uncut one ends."""

from __future__ import annotations

import copy
import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import constrain as cn
import constrain.solvers.primal_dual as training
from constrain import E, P, forall
from constrain.lowering.lower import lower
from constrain.runtime.decisions import Decisions
from constrain.runtime.evaluator import Evaluator
from constrain.solvers.checkpoint import Checkpoint, read, write
from constrain.solvers.primal_dual import PrimalDual
from constrain.solvers.progress import largest
from constrain.solvers.schemes import DualDescent, Penalty
from constrain.solvers.state import evaluator_state, restore, restore_evaluator, state


# ------------------------------------------------------------------------------------------- problems
def sample(rows=400):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 3, generator=g, dtype=torch.float64)
    y = (x[:, 0] + torch.randn(rows, generator=g, dtype=torch.float64) > 0).double()
    return cn.Data("sample", x=x, y=y, group=(torch.rand(rows, generator=g) < 0.1).long())


def network(seed=3):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(3, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1), torch.nn.Flatten(0)
    ).double()


def rates(bound=0.4, D=None):
    """Rates by group, a level, one multiplier per row."""
    D = sample() if D is None else D
    f = cn.Model(network(), "f")
    s = f(D.x)
    loss = F.binary_cross_entropy_with_logits(s, D.y, reduction="none")
    constraints = {
        "rate": P(s > 0, by=D.group) >= bound,
        "level": E(s * s) <= 0.3,
        "fit": forall(D, loss <= 3.0),
    }
    return cn.minimize(E(loss)).subject_to(**constraints)


def tails():
    """Thresholds, a variance, a slack, an objective that is a largest value."""
    D = sample()
    f = cn.Model(network(), "f")
    s = f(D.x)
    loss = F.binary_cross_entropy_with_logits(s, D.y, reduction="none")
    return cn.minimize(cn.max(E(loss, by=D.group))).subject_to(
        tail=cn.CVaR(loss, 0.9) <= 1.2,
        median=cn.Quantile(s, 0.5) <= 0.1,
        spread=cn.Var(s) <= 0.4,
        soft=(E(s) <= -0.1).relax(cost=cn.squared(10.0)),
    )


def functions():
    """A multiplier per row as a network with an optimizer of its own, stratified batches."""
    D = sample()
    f, lam = cn.Model(network(), "f"), cn.Model(network(5), "lam")
    loss = F.binary_cross_entropy_with_logits(f(D.x), D.y, reduction="none")
    problem = cn.minimize(E(loss)).subject_to(fit=forall(D, loss <= 1.0), gap=E(f(D.x), by=D.group) <= 0.1)
    return problem, {"multipliers": {"fit": lam(D.x)}, "sampling": "stratified"}


def points():
    """Fresh points of a continuous population."""
    t, u = cn.Uniform("t", 0.0, 1.0), cn.Model(network_of_one(), "u")
    return cn.minimize(E((u(t) - t) ** 2)).subject_to(level=E(u(t)) <= 0.4)


def network_of_one():
    torch.manual_seed(2)
    return torch.nn.Sequential(torch.nn.Linear(1, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1)).double()


def table():
    D = sample()
    return torch.utils.data.TensorDataset(*(torch.as_tensor(D.values(k)) for k in ("x", "y", "group")))


def dataset():
    """Rows of a dataset by position, along permutations."""
    return rates(D=cn.Data.from_dataset("sample", table(), ("x", "y", "group")))


def loader(generator=None):
    """Rows of a loader that shuffles, in batches of another size than those of the steps."""
    found = torch.utils.data.DataLoader(table(), batch_size=32, shuffle=True, generator=generator)
    D = cn.Data.from_loader("sample", found, ("x", "y", "group"))
    f = cn.Model(network(), "f")
    loss = F.binary_cross_entropy_with_logits(f(D.x), D.y, reduction="none")
    return cn.minimize(E(loss)).subject_to(gap=E(f(D.x), by=D.group) <= 0.1)


def refreshed():
    """Exact passes within the epochs, momentum and a second parameter group's worth of state."""
    return rates(), {"refresh": 5, "optimizer": lambda t: torch.optim.SGD(t, lr=0.05, momentum=0.9)}


def stairs(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.7)


CASES = {
    "rates": ("lagrangian", rates),
    "tails": ("lagrangian", tails),
    "functions": ("lagrangian", functions),
    "points": ("lagrangian", points),
    "dataset": ("lagrangian", dataset),
    "loader": ("lagrangian", loader),
    "loader with a generator": ("lagrangian", lambda: loader(torch.Generator().manual_seed(3))),
    "refreshed": ("lagrangian", refreshed),
    "recorded": ("lagrangian", lambda: (rates(), {"graph": "recorded"})),
    "recorded tails": ("lagrangian", lambda: (tails(), {"graph": "recorded"})),
    "recorded dataset": ("lagrangian", lambda: (dataset(), {"graph": "recorded"})),
    "penalties": ("augmented", rates),
    "extragradient": ("lagrangian", lambda: (rates(), {"scheme": "extragradient", "dual": "mirror"})),
    "alternating": ("lagrangian", lambda: (rates(), {"scheme": "alternating", "dual": "nupi"})),
    "optimistic": ("lagrangian", lambda: (rates(), {"scheme": "optimistic", "graph": "recorded"})),
    "growing": ("lagrangian", lambda: (rates(), {"scheme": Penalty(looks=3)})),
    "dual descent": ("lagrangian", lambda: (rates(), {"scheme": DualDescent(inner_steps=5)})),
    "switching": ("lagrangian", lambda: (rates(), {"scheme": "switching", "graph": "recorded"})),
    "tiada": ("lagrangian", lambda: (rates(), {"scheme": "tiada", "scheduler": stairs, "graph": "recorded"})),
    "cooper": ("cooper", rates),
    "cooper penalties": ("cooper", lambda: (rates(), {"formulation": "augmented", "scheme": "alternating"})),
}


class Cut(BaseException):
    """The end of a process, as far as a run can tell."""


def cut_after(rounds):
    def callback(told):
        if told.done == rounds:
            raise Cut

    return callback


def made(build):
    found = build()
    return found if isinstance(found, tuple) else (found, {})


def solved(method, build, **options):
    problem, own = made(build)
    solution = problem.solve(method, progress=False, epochs=6, batch=60, **own, **options)
    return solution, problem


def same(a, b):
    """Whether two solutions are equal bit by bit."""
    assert a.objective == b.objective
    assert a.history == b.history
    assert {k: v.tolist() for k, v in a.weights.items()} == {k: v.tolist() for k, v in b.weights.items()}
    assert all(np.array_equal(a.multipliers[k], b.multipliers[k]) for k in a.multipliers)
    assert a.status == b.status


# ------------------------------------------------------------------------------------------ continuing
@pytest.mark.parametrize("name", CASES)
def test_a_continued_run_ends_where_the_uncut_one_ends(name, tmp_path):
    method, build = CASES[name]
    path = tmp_path / "run.ckpt"
    whole, _ = solved(method, build)
    with pytest.raises(Cut):
        solved(method, build, checkpoint=Checkpoint(path, steps=3), callback=cut_after(4))
    torch.manual_seed(99)
    continued, _ = solved(method, build, resume=path)
    same(whole, continued)


def on_all_rows():
    D = sample()
    f = cn.Model(network(), "f")
    loss = F.binary_cross_entropy_with_logits(f(D.x), D.y, reduction="none")
    problem = cn.minimize(E(loss) + 0.01 * cn.sum_squares(f))
    soft = forall(D, loss <= 2.0).relax(cost=cn.linear(0.1))
    return problem.subject_to(
        gap=E(f(D.x), by=D.group) <= 0.1, soft=soft, median=cn.Quantile(f(D.x), 0.5) <= 0.2
    )


def test_the_full_data_method_goes_on_at_the_next_inner_problem(tmp_path):
    path = tmp_path / "run.ckpt"
    options = {"progress": False, "outer": 4, "inner": 6, "second_order": False}
    whole = on_all_rows().solve("augmented", **options)
    with pytest.raises(Cut):
        on_all_rows().solve(
            "augmented", checkpoint=Checkpoint(path, steps=1), callback=cut_after(2), **options
        )
    assert read(path)["run"]["fields"]["1.outer"] == 1
    continued = on_all_rows().solve("augmented", resume=path, **options)
    same(whole, continued)


def well():
    w = cn.Variable(3, "w")
    w.value = np.array([0.0, 2.0, 0.5])
    f = cn.sum_squares(w) + w[0] ** 4 - 3 * w[0] ** 2  # a maximum in w[0] at the start
    return cn.minimize(f).subject_to(total=cn.sum(w[1:]) == 3, some=w[1] ** 2 <= 1), w


def test_a_run_that_leaves_a_saddle_goes_on_exactly(tmp_path):
    options = {"progress": False, "inner": 30}
    problem, w = well()
    whole = problem.solve("augmented", **options)
    assert abs(w.value[0]) == pytest.approx(1, abs=1e-6)
    for rounds in (3, 8, 13):
        path = tmp_path / f"{rounds}.ckpt"
        problem, _ = well()
        with pytest.raises(Cut):
            problem.solve(
                "augmented", checkpoint=Checkpoint(path, steps=1), callback=cut_at(rounds), **options
            )
        problem, w = well()
        continued = problem.solve("augmented", resume=path, **options)
        same(whole, continued)
        assert np.array_equal(whole.variables["w"], continued.variables["w"])


def cut_at(rounds):
    """As `cut_after`, by rounds that were told, whatever their numbers."""
    told = []

    def callback(_round):
        told.append(1)
        if len(told) == rounds:
            raise Cut

    return callback


@pytest.mark.parametrize("steps", [4, 5, 6, 7])  # 6 and a smaller one are a pass
def test_a_recorded_run_on_a_stream_goes_on_at_any_of_its_batches(steps, tmp_path):
    path = tmp_path / "run.ckpt"
    options = {"graph": "recorded", "epochs": 4}
    whole = dataset().solve("lagrangian", progress=False, batch=60, **options)
    assert "recorded step" in whole.provenance.solver
    with pytest.raises(Cut):
        dataset().solve(
            "lagrangian", progress=False, batch=60, checkpoint=Checkpoint(path, steps=steps),
            callback=cut_after(3), **options,
        )  # fmt: skip
    continued = dataset().solve("lagrangian", progress=False, batch=60, resume=path, **options)
    same(whole, continued)


def test_cut_again_and_again(tmp_path):
    path = tmp_path / "run.ckpt"
    whole, _ = solved("lagrangian", rates)
    for rounds in (1, 2, 4):
        with pytest.raises(Cut):
            solved(
                "lagrangian",
                rates,
                checkpoint=Checkpoint(path, steps=3),
                resume=True,
                callback=cut_after(rounds),
            )
    continued, _ = solved("lagrangian", rates, checkpoint=path, resume=True)
    same(whole, continued)
    again, _ = solved("lagrangian", rates, checkpoint=path, resume=True)  # nothing is left to do
    same(whole, again)


CHILD = """
import os, sys, time
import torch
import constrain as cn
from constrain import E, P
from constrain.solvers.checkpoint import Checkpoint

torch.set_num_threads(1)
folder = sys.argv[1]
g = torch.Generator().manual_seed(0)
x = torch.randn(600, 3, generator=g)
D = cn.Data("people", x=x, y=x[:, 0] + torch.randn(600, generator=g), group=(x[:, 1] > 1).long())
torch.manual_seed(1)
net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1), torch.nn.Flatten(0))
s = cn.Model(net, "f")(D.x)
problem = cn.minimize(E((s - D.y) ** 2)).subject_to(rate=P(s > 0, by=D.group) <= 0.5)
log = os.open(folder + "/steps", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
rounds = []
def told(round):
    os.write(log, f"{round.step}\\n".encode())
    rounds.append(round.step)
    if len(rounds) == 4 and sys.argv[2] == "to be killed":
        time.sleep(600)
solution = problem.solve(
    "lagrangian", epochs=12, batch=30, progress=False, resume=True, callback=told,
    checkpoint=Checkpoint(folder + "/run.ckpt", steps=5),
)
print(solution.objective.hex(), [float(v).hex() for v in solution["rate"].multiplier], len(solution.history))
print([v.tolist() for v in solution.weights.values()])
"""


def child(folder, end):
    folder.mkdir(exist_ok=True)
    return subprocess.Popen([sys.executable, "-c", CHILD, str(folder), end], stdout=subprocess.PIPE)


def last(path):
    found = path.read_text().split() if path.exists() else []
    return int(found[-1]) if found else 0


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path, monkeypatch, capfdbinary):
    """SIGKILL in real processes: nothing but the last interval is lost, and the end is the same."""
    chance, folder, path = random.Random(0), tmp_path / "cut", tmp_path / "cut" / "run.ckpt"
    for _ in range(2):
        before = path.stat().st_mtime_ns if path.exists() else 0
        process = child(folder, "to be killed")
        while process.poll() is None and not (path.exists() and path.stat().st_mtime_ns != before):
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.1))
        assert process.poll() is None, "a run that waits to be killed has ended"
        process.kill()
        process.communicate()
        stored = read(path)["run"]["objects"]["0.steps"]
        assert last(folder / "steps") - 5 <= stored
    found, _ = child(folder, "by itself").communicate()
    (tmp_path / "whole").mkdir()
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path / "whole"), "by itself"])
    exec(CHILD, {})
    expected = capfdbinary.readouterr().out
    assert found == expected
    assert expected


def test_a_write_that_is_cut_short_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "run.ckpt"
    write(path, {"value": torch.ones(3)})

    def failing(content, file):
        file.write(b"half of a file")
        raise OSError("no space left on the device")

    monkeypatch.setattr(torch, "save", failing)
    with pytest.raises(OSError, match="no space"):
        write(path, {"value": torch.zeros(3)})
    assert torch.equal(read(path)["value"], torch.ones(3))


def equal(a, b):
    """Whether nested data is the same, bit by bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


STEP = {"0.lagrangian.seen.batches", "0.lagrangian.seen.estimate", "0.sampler.last"}
"""What a step makes anew."""


def test_snapshots_are_copies():
    """A stored state does not change when the run goes on, and can be put back more than once."""
    evaluator = _evaluator(rates())
    method = training.Training(PrimalDual(), evaluator)
    method.prepare(None)
    before = state(method), evaluator_state(evaluator)
    frozen = copy.deepcopy(before)
    method.epoch(0)
    assert equal(before, frozen)
    after = state(method), evaluator_state(evaluator)
    assert not equal(before, after)
    for _ in range(2):
        restore(before[0], method)
        restore_evaluator(before[1], evaluator)
        found = state(method)
        assert set(frozen[0]) - set(found) <= STEP
        assert all(equal(found[key], frozen[0][key]) for key in found)
        assert equal(evaluator_state(evaluator), frozen[1])
        method.epoch(0)
        assert equal((state(method), evaluator_state(evaluator)), after)
    assert equal(before, frozen)


def _evaluator(problem):
    program = lower(problem)
    decisions = Decisions(program, torch.device("cpu"), torch.float64)
    return Evaluator(program, decisions, dtype=torch.float64)


# -------------------------------------------------------------------------------------------- refusals
@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("stored") / "run.ckpt"
    rates().solve("lagrangian", progress=False, epochs=1, batch=60, checkpoint=path)
    return path


def other_data():
    D = sample()
    x = D.values("x").clone()
    x[7, 1] += 1e-9
    return rates(D=cn.Data("sample", x=x, y=D.values("y"), group=D.values("group")))


REFUSED = {
    "a bound": (lambda: rates(0.4000001), {}, "constraint 'rate' was [0-9a-f]{16} and is"),
    "data": (other_data, {}, "data 'sample' was 400 rows, sha256 [0-9a-f]{16} and is 400 rows"),
    "an option": (rates, {"lr": 0.01}, r"option 'lr' was None and is 0\.01"),
    "a seed": (rates, {"seed": 1}, "option 'seed' was 0 and is 1"),
    "a constraint": (
        lambda: rates().subject_to(more=cn.sum_squares(cn.Variable(2, "z")) <= 1.0),
        {},
        r"constraint 'more' is not in the checkpoint; .*decision 'z' is not in the checkpoint",
    ),
    "a method": (rates, {"method": "cooper"}, "method was PrimalDual and is CooperSolver"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_changed_problem_is_refused(what, stored):
    build, options, text = REFUSED[what]
    method = options.get("method", "lagrangian")
    own = {k: v for k, v in options.items() if k != "method"}
    with pytest.raises(cn.ModelingError, match=f"E186.*belongs to another problem: .*{text}"):
        build().solve(method, progress=False, **{"epochs": 1, "batch": 60, "resume": stored, **own})


def test_files_that_are_no_checkpoints(tmp_path):
    path = tmp_path / "run.ckpt"
    path.write_bytes(b"something else")
    with pytest.raises(cn.ModelingError, match=r"E185.*is no checkpoint of a run"):
        rates().solve("lagrangian", progress=False, resume=path)
    torch.save({"schema": 99}, path)
    with pytest.raises(cn.ModelingError, match=r"E185.*has layout 99"):
        rates().solve("lagrangian", progress=False, resume=path)
    torch.save({"schema": 1, "run": Malicious()}, path)
    with pytest.raises(cn.ModelingError, match=r"E185"):
        rates().solve("lagrangian", progress=False, resume=path)
    assert not (tmp_path / "run").exists()
    with pytest.raises(cn.ModelingError, match=r"E185.*there is no checkpoint"):
        rates().solve("lagrangian", progress=False, resume=tmp_path / "missing.ckpt")
    with pytest.raises(cn.ModelingError, match=r"E187.*'newton' has nothing to store on the way"):
        cn.minimize(cn.sum_squares(cn.Variable(2, "w"))).solve("newton", progress=False, checkpoint=path)


class Malicious:
    """What unpickling would run."""

    def __reduce__(self):
        return os.mkdir, ("run",)


# --------------------------------------------------------------------------------------------- signals
def test_sigterm_stores_the_run_and_returns_the_best_iterate(tmp_path):
    path = tmp_path / "run.ckpt"
    whole, _ = solved("lagrangian", rates)
    before = signal.getsignal(signal.SIGTERM)

    def ending(told):
        if told.done == 3:
            signal.raise_signal(signal.SIGTERM)

    ended, _ = solved("lagrangian", rates, checkpoint=path, callback=ending)
    assert "stopped by SIGTERM" in ended.message
    assert len(ended.history) == 3
    assert signal.getsignal(signal.SIGTERM) is before
    continued, _ = solved("lagrangian", rates, resume=path)
    same(whole, continued)


def test_a_callback_is_told_every_epoch_and_stops_the_run():
    told = []
    solution, _ = solved("lagrangian", rates, callback=[told.append, lambda r: r.done == 3])
    assert "stopped by a callback" in solution.message
    assert [r.done for r in told] == [1, 2, 3]
    assert [dict(r.row) for r in told] == solution.history
    assert told[-1].multipliers["level"] == solution.history[-1]["multiplier:level"]
    with pytest.raises(TypeError):
        told[0].row["objective"] = 0.0
    with pytest.raises(AttributeError):
        told[0].objective = 0.0


@pytest.mark.parametrize("method", ["augmented", "newton"])
def test_callbacks_of_methods_on_all_rows(method):
    w = cn.Variable(2, "w")
    problem = cn.minimize(cn.sum(cn.exp(w)) + cn.sum_squares(w)).subject_to(c=cn.sum_squares(w - 1.0) <= 0.5)
    told = []
    problem.solve(method, progress=False, callback=told.append)
    assert told
    ended = problem.solve(method, progress=False, callback=lambda r: True)
    assert "stopped" in ended.message


# ------------------------------------------------------------------------------------------ not finite
def touching(where):
    """sqrt(x w^2), whose gradient in w is NaN in the one row with x = 0."""
    x = torch.rand(300, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    x[17, 0] = 0.0
    D, w = cn.Data("people", x=x), cn.Variable(2, "w")
    w.value = [1.0, 1.0]
    term = E(cn.sqrt(D.x[..., 0] * w[0] ** 2))
    if where == "objective":
        return cn.minimize(term + cn.sum_squares(w - 2.0)).subject_to(c=E(D.x @ w) <= 1.0), w
    return cn.minimize(cn.sum_squares(w - 2.0)).subject_to(c=E(D.x @ w) <= 5.0, root=term <= 1.0), w


@pytest.mark.parametrize("method", ["lagrangian", "cooper"])
@pytest.mark.parametrize(("where", "name"), [("objective", "the objective"), ("constraint", "root")])
def test_the_row_term_and_decision_of_a_gradient_that_is_not_finite(method, where, name):
    problem, w = touching(where)
    solution = problem.solve(method, progress=False, epochs=3)
    assert solution.status == "diverged"
    assert f"the gradient of {name} (row 17 of people); it reaches w" in solution.message
    assert re.search(r"not finite in step \d+ \(epoch 1\)", solution.message)
    assert np.isfinite(w.value).all()
    assert all(np.isfinite(v).all() for v in solution.multipliers.values())


def test_steps_that_are_too_long_end_at_the_last_good_state():
    D, w = cn.Data("people", x=torch.ones(50, 1)), cn.Variable((), "w")
    problem = cn.minimize(-w).subject_to(rows=forall(D, cn.exp(D.x[..., 0] * w) <= 5.0))
    solution = problem.solve(
        "lagrangian", progress=False, epochs=5, optimizer=lambda t: torch.optim.SGD(t, lr=1e3)
    )
    assert solution.status == "diverged"
    assert "rows (rows " in solution.message
    assert np.isfinite(w.value).all()


def test_a_constraint_that_is_nan_on_other_rows_than_the_batches():
    """An exact residual of NaN was once no violation, since NaN is not larger than zero."""
    D, w = cn.Data("people", x=torch.linspace(0.5, 1.5, 50, dtype=torch.float64)), cn.Variable((), "w")
    problem = cn.minimize(cn.square(w - 3.0)).subject_to(root=E(cn.log(1.6 - D.x * w)) >= -9.0)
    solution = problem.solve("lagrangian", progress=False, epochs=200, lr=0.5)
    assert solution.status == "diverged"
    assert "root" in solution.message
    assert np.isfinite(w.value)


def test_the_bar_shows_the_largest_multipliers():
    row = {
        "objective": 1.0,
        "multiplier:a": 0.0,
        "multiplier:b[1]": -2.0,
        "multiplier:c": 0.5,
        "residual:a": 9.0,
    }
    assert largest(row) == "b[1] -2  c 0.5"
