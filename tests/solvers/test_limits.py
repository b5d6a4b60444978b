"""Options of schemes, rules and optimizers that make no sense are refused before anything runs."""

from __future__ import annotations

import pytest
import torch

import constrain as cn
from constrain import E
from constrain.errors import ModelingError
from constrain.solvers.schemes import DualDescent, Mirror, NuPI, Penalty, Switching, TiAda


def problem():
    D = cn.Data("sample", x=torch.linspace(-1.0, 1.0, 40, dtype=torch.float64))
    w = cn.Variable((), "w")
    return cn.minimize(E((D.x - w) ** 2)).subject_to(low=w >= 0.2)


RECORDS = {
    "Mirror(offset=0.0) is not a positive number": lambda: Mirror(0.0),
    "NuPI(gain=-1) is not a number >= 0": lambda: NuPI(-1),
    "NuPI(memory=1.5) is not a number in [0, 1)": lambda: NuPI(0.1, 1.5),
    "Penalty(largest=-1) is not a positive number": lambda: Penalty(largest=-1),
    "Penalty(looks=2.5) is not a whole number >= 1": lambda: Penalty(looks=2.5),  # type: ignore[arg-type]
    "DualDescent(inner_steps=0) is not a whole number >= 1": lambda: DualDescent(inner_steps=0),
    "Switching(memory='long') is not a number in [0, 1)": lambda: Switching(memory="long"),
    "TiAda(alpha=1.0) is not a number in [0, 1)": lambda: TiAda(alpha=1.0),
}


@pytest.mark.parametrize("text", RECORDS)
def test_records(text):
    with pytest.raises(ModelingError) as caught:
        RECORDS[text]()
    assert str(caught.value).startswith(f"[E141] {text}")


OPTIONS = {
    "scheduler='cosine' is not a function of the optimizer": {"scheduler": "cosine"},
    "what optimizer= makes is a NoneType, which is no optimizer of torch": {"optimizer": lambda t: None},
    "what optimizer= makes is a SparseAdam, which takes sparse gradients only": {
        "optimizer": torch.optim.SparseAdam
    },
    "what optimizer= makes is an LBFGS, which needs the loss as a function": {"optimizer": torch.optim.LBFGS},
}


@pytest.mark.parametrize("text", OPTIONS)
def test_options(text):
    with pytest.raises(ModelingError) as caught:
        problem().solve("lagrangian", epochs=2, progress=False, **OPTIONS[text])
    assert str(caught.value).startswith(f"[E141] {text}")


@pytest.mark.parametrize("options", [{"scheme": "alternating"}, {"dual": "nupi"}, {"graph": "off"}])
def test_who_asks_for_a_scheme_asks_for_training(options):
    assert problem().explain(**options).method == "lagrangian"
    found = problem().solve(progress=False, epochs=2, **options)
    assert "primal-dual" in found.provenance.solver or "descent" in found.provenance.solver


@pytest.mark.parametrize("name", ["RAdam", "ASGD"])
def test_optimizers_that_read_their_state_in_python_make_their_steps_there(name):
    def make(tensors):
        return getattr(torch.optim, name)(tensors, lr=0.01)

    found = problem().solve("lagrangian", epochs=60, optimizer=make, progress=False)
    assert f"({name}, " in found.provenance.solver
    assert "recorded" not in found.provenance.solver
    with pytest.raises(ModelingError, match="E207"):
        problem().solve("lagrangian", epochs=60, optimizer=make, graph="recorded", progress=False)
    lagrangian = problem().compile(seed=0)
    step = lagrangian.training_step(make(lagrangian.evaluator.decisions.tensors))
    rows = lagrangian.evaluator.program.populations[0].rows(torch.arange(2))
    assert all(bool(torch.isfinite(step(rows))) for _ in range(4))
