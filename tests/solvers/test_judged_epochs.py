"""Epochs that are single steps on all rows are judged together, and nothing else changes by it."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import constrain as cn
from constrain import E
from constrain.solvers.checkpoint import Checkpoint
from constrain.solvers.training import epochs_together

ROWS = 120


def problem():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, 3, generator=g, dtype=torch.float64)
    y = (x[:, 0] + torch.randn(ROWS, generator=g, dtype=torch.float64) > 0).double()
    D = cn.Data("sample", x=x, y=y, group=["a" if i % 3 else "b" for i in range(ROWS)])
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Flatten(0)).double()
    score = cn.Model(net, "f")(D.x)
    loss = F.binary_cross_entropy_with_logits(score, D.y, reduction="none")
    gap = abs(E(score, given=D.group == "a") - E(score, given=D.group == "b"))
    return cn.minimize(E(loss) + 1e-3 * E(score**2)).subject_to(gap=gap <= 0.02), net


def solved(epochs, batch=ROWS, **options):
    p, net = problem()
    solution = p.solve("lagrangian", batch=batch, epochs=epochs, progress=False, **options)
    return solution, torch.cat([t.detach().reshape(-1) for t in net.parameters()]).numpy()


@pytest.mark.parametrize(
    ("epochs", "per_epoch", "together"),
    [(63, 1, 1), (64, 1, 2), (256, 1, 8), (9000, 1, 8), (9000, 3, 3), (9000, 8, 1), (1, 1, 1)],
)
def test_how_many(epochs, per_epoch, together):
    assert epochs_together(epochs, per_epoch) == together


@pytest.mark.parametrize(
    ("options", "every"),
    [({}, 3), ({"batch": 60}, 1), ({"gain": 0.3}, 1), ({"memory": 0.9}, 1), ({"scheme": "penalty"}, 1)],
)
def test_the_last_epoch_is_judged_whatever_the_number(options, every):
    solution, _ = solved(100, **options)
    epochs = [row["epoch"] for row in solution.history]
    assert epochs == sorted({*range(every, 101, every), 100})


def test_callbacks_hear_of_judged_epochs_and_runs_continue_bit_by_bit(tmp_path):
    whole, expected = solved(100)
    path, between, heard = tmp_path / "run.ckpt", tmp_path / "between.ckpt", []

    def stop(told):
        heard.append(told.done)
        if told.done == 30:  # the last one is of step 28, which is not judged
            shutil.copy(path, between)
        return told.done == 30

    solved(100, checkpoint=Checkpoint(path, steps=7), callback=stop)
    assert heard == list(range(3, 31, 3))
    for stored in (path, between):
        continued, found = solved(100, resume=stored)
        np.testing.assert_array_equal(found, expected)
        assert [dict(row) for row in continued.history] == [dict(row) for row in whole.history]


def test_the_optimum_is_reached():
    p, _ = problem()
    best = p.solve("newton", progress=False)
    found, _ = solved(600)
    assert found.objective == pytest.approx(best.objective, abs=2e-4)
    assert found["gap"].violation <= 1e-4
