"""The event that a class has the largest score: its margin, its rate, its labels."""

from __future__ import annotations

import pytest
import torch

import constrain as cn
from constrain import P
from constrain.lowering.lower import lower
from constrain.runtime import surrogates
from constrain.runtime.decisions import Decisions
from constrain.runtime.evaluator import Evaluator

ROWS = 60
LABELS = torch.arange(ROWS) % 3
SCORES = torch.sin(torch.arange(ROWS * 3, dtype=torch.float64)).reshape(ROWS, 3)
SCORES[torch.arange(ROWS), LABELS] += 0.5
WIDTH = cn.surrogate.Sigmoid(scale=0.5)


class Classes:
    """Three classes, with scores that are right on most rows, and a shift per class as decisions."""

    def __init__(self, labels=LABELS):
        self.D = cn.Data("classes", z=SCORES, y=labels)
        self.shift = cn.Variable(3, "shift")
        self.shift.value = torch.zeros(3, dtype=torch.float64)
        self.scores = self.D.z + self.shift
        self.objective = cn.minimize(cn.sum_squares(self.shift))


def plain_margin(label):
    """Score of the label less the largest of the others, row by row."""
    return torch.stack(
        [z[k] - torch.cat([z[:k], z[k + 1 :]]).max() for z, k in zip(SCORES, label.tolist(), strict=True)]
    )


@pytest.mark.parametrize("label", [LABELS, torch.tensor(2)], ids=["column", "constant"])
def test_the_margin_of_a_class(label):
    found = surrogates.class_margin(SCORES, label if label.dim() else float(label))
    assert torch.equal(found, plain_margin(label.expand(ROWS)))
    assert torch.equal(found > 0, SCORES.argmax(-1) == label)


def test_rates_of_classes_have_exact_values_and_surrogates_of_the_margin():
    known = Classes()
    hit, miss = known.scores.argmax(-1) == known.D.y, known.scores.argmax(1) != known.D.y
    problem = known.objective.subject_to(
        recall=P(hit, by=known.D.y, surrogate=WIDTH) >= 0.9, miss=P(miss, surrogate=WIDTH) <= 0.1
    )
    program = lower(problem)
    decisions = Decisions(program, torch.device("cpu"), torch.float64)
    evaluator = Evaluator(program, decisions, dtype=torch.float64)
    right = (SCORES.argmax(-1) == LABELS).double()
    soft = torch.sigmoid(plain_margin(LABELS) / 0.5)
    for mode, value in (("exact", right), ("primal", soft)):
        recall, missed = evaluator.full(mode).residuals
        torch.testing.assert_close(recall, torch.stack([0.9 - value[k == LABELS].mean() for k in range(3)]))
        torch.testing.assert_close(missed, 1 - value.mean() - 0.1)


def test_recall_of_every_class_is_reached():
    known = Classes()
    hit = known.scores.argmax(-1) == known.D.y
    before = [float((SCORES[k == LABELS].argmax(-1) == k).double().mean()) for k in range(3)]
    wanted = min(before) + 0.1
    solution = known.objective.subject_to(
        worst=P(hit, given=known.D.y == before.index(min(before))) >= wanted
    ).solve(epochs=150, lr=0.05, seed=0, progress=False)
    assert solution.status == "feasible"
    assert solution["worst"].value >= wanted


@pytest.mark.parametrize("where", ["column", "constant"])
def test_labels_without_a_score_are_refused(where):
    known = Classes(LABELS + 1)
    label = known.D.y if where == "column" else 3
    problem = known.objective.subject_to(c=P(known.scores.argmax(-1) == label) >= 0.5)
    with pytest.raises(cn.ModelingError, match=r"go up to 3 while z \+ shift has 3 outputs"):
        problem.solve(epochs=1, progress=False)
