"""Widths of surrogates fit the rows that a rate is about: units of a group's scores change nothing."""

import numpy as np
import pytest
import torch

import constrain as cn
from constrain import E, P
from constrain.lowering.lower import lower
from constrain.runtime import surrogates as functions
from constrain.runtime.decisions import Decisions
from constrain.runtime.evaluator import Evaluator

ROWS = 600
RATES = {
    "by": lambda D, b, s: [P(s > 0, by=D.g)],
    "conditions": lambda D, b, s: [P(s > 0, given=D.g == k) for k in range(3)],
    "given and by": lambda D, b, s: [P(s > 0, given=D.h == 1, by=D.g)],
    "nested": lambda D, b, s: [
        P(s > 0, given=D.g == 1),
        P(s > 0, given=(D.g == 1) & (D.h == 1)),
        P(s > 0, by=D.g),
    ],
    "all rows too": lambda D, b, s: [P(s > 0, by=D.g), P(s > 0)],
    "compound": lambda D, b, s: [P((s > 0) & (s < 2 * D.a), by=D.g)],
    "several entries": lambda D, b, s: [E(cn.indicator(D.m + D.v * b > 0), by=D.g)],
}
"""Rates by group `g`: of the data, a decision, and scores that depend on it."""


def sample(ratio, *, streamed=False):
    """Scores of group 1 in other units."""
    rng = np.random.default_rng(0)
    g, z, h = np.arange(ROWS) % 3, rng.normal(size=ROWS) + 0.3, rng.integers(0, 2, ROWS)
    a = np.where(g == 1, ratio, 1.0)
    columns = {"z": z, "g": g, "h": h, "a": a, "o": np.eye(3)[g]}
    columns |= {"m": np.outer(a, [1, 2]) * z[:, None], "v": np.outer(a, [1, 2])}
    if not streamed:
        return cn.Data("d", **columns)
    batches = [{k: v[i : i + 150] for k, v in columns.items()} for i in range(0, ROWS, 150)]
    return cn.Data.from_loader("d", batches)


def evaluated(rates, ratio, *, streamed=False):
    """Values and gradients of the surrogates."""
    D, b = sample(ratio, streamed=streamed), cn.Variable((), "b")
    written = {f"c{i}": rate <= 2.0 for i, rate in enumerate(rates(D, b, D.a * (D.z + b)))}
    program = lower(cn.minimize(b**2).subject_to(**written))
    decisions = Decisions(program, torch.device("cpu"), torch.float64)
    evaluator = Evaluator(program, decisions, dtype=torch.float64)
    count = len(program.parts)
    found = evaluator.pull([lambda o, i=i: o.residuals[i].square().sum() for i in range(count)])
    return [[value, *(float(g) for g in gradients)] for value, gradients in found]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("form", RATES)
def test_the_units_of_the_scores_of_a_group_change_nothing(form, streamed):
    expected = evaluated(RATES[form], 1.0)
    for ratio in (30.0, 0.01):
        np.testing.assert_allclose(evaluated(RATES[form], ratio, streamed=streamed), expected, rtol=1e-5)


def test_prices_do_not_depend_on_the_units_of_a_group():
    found = []
    for ratio in (1.0, 30.0):
        D, b = sample(ratio), cn.Variable(3, "b")
        p = cn.minimize(E((D.o @ b) ** 2)).subject_to(c=P(D.a * (D.z + D.o @ b) > 0, by=D.g) >= 0.8)
        solution = p.solve("lagrangian", epochs=3, batch=100, progress=False)
        found.append([*solution["c"].multiplier, solution.objective])
    np.testing.assert_allclose(*found, rtol=1e-5)


@pytest.mark.parametrize("shape", [(), (2,)])
def test_groups_measured_together_and_one_by_one(shape):
    rng = torch.Generator().manual_seed(0)
    levels = functions.FEW + 3
    codes = torch.randint(levels - 1, (400,), generator=rng)  # the last has no rows
    margin = torch.randn(400, *shape, generator=rng) * (1.0 + codes).reshape(-1, *(1 for _ in shape))
    counts = torch.bincount(codes, minlength=levels)
    found = functions.measured_by_level(margin, codes, levels)
    for level in range(levels - 1):
        torch.testing.assert_close(found[level], functions.measured(margin[codes == level]))
    whole = functions.measured(margin)
    own = functions.shrunk(found, counts, whole)
    torch.testing.assert_close(own[-1], whole)
    assert ((own - whole).abs() <= (found - whole).abs() + 1e-6)[:-1].all()
    few = functions.measured_by_level(margin[codes < 3], codes[codes < 3], 3)
    torch.testing.assert_close(few, found[:3])
