"""Rates on all rows are counts over counts, to the last digit, in both precisions, of tables and streams."""

import numpy as np
import pytest
import torch

import constrain as cn
from constrain import E, P
from constrain.lowering.lower import lower
from constrain.runtime.decisions import Decisions
from constrain.runtime.evaluator import Evaluator

ROWS = 1003
rng = np.random.default_rng(0)
X, G = rng.normal(size=(ROWS, 3)).astype(np.float32), rng.integers(0, 3, ROWS)
H = np.where(rng.random(ROWS) < 0.1, "a", "b")
POSITIVE, SELECTED = X[:, 0] > 0, X[:, 1] > 0.3

SOURCES = {
    "table": lambda: cn.Data("d", x=X, g=G, h=H),
    "stream": lambda: cn.Data.from_loader(
        "d", [{"x": X[i : i + 100], "g": G[i : i + 100], "h": H[i : i + 100]} for i in range(0, ROWS, 100)]
    ),
}
RATES = {
    "plain": (lambda D, s: P(s > 0), [np.ones(ROWS, dtype=bool)]),
    "given": (lambda D, s: P(s > 0, given=D.x[..., 1] > 0.3), [SELECTED]),
    "by a column": (lambda D, s: P(s > 0, by=D.g), [k == G for k in range(3)]),
    "by two": (
        lambda D, s: P(s > 0, by=(D.g, D.h)),
        [(k == G) & (level == H) for k in range(3) for level in "ab"],
    ),
    "given and by": (
        lambda D, s: P(s > 0, given=D.x[..., 1] > 0.3, by=D.h),
        [SELECTED & (level == H) for level in "ab"],
    ),
    "of all rows": (lambda D, s: P(s**2 >= 0, by=D.g), None),
}
"""Per rate: how it is written, given the scores, and by level the rows that it is over; None: it is 1."""


def evaluator(problem, dtype, chunk):
    program = lower(problem)
    decisions = Decisions(program, torch.device("cpu"), dtype)
    return Evaluator(program, decisions, dtype=dtype, chunk=chunk)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("rate", RATES)
def test_a_rate_on_all_rows_is_a_count_over_a_count(rate, source, dtype):
    write, rows = RATES[rate]
    D, w = SOURCES[source](), cn.Variable(3, "w")
    w.value = np.array([1.0, 0.0, 0.0])
    problem = cn.minimize(E((D.x @ w) ** 2)).subject_to(c=write(D, D.x @ w) <= 2.0)
    expected = [1.0] * 3 if rows is None else [(POSITIVE & own).sum() / own.sum() for own in rows]
    for chunk in (100, 5000):
        own = evaluator(problem, dtype, chunk)
        ((found, _),) = own.sides()
        assert found.dtype is torch.float64
        assert found.reshape(-1).tolist() == expected


def test_quadrature_of_a_float32_program_has_the_weights_of_float64():
    r, w = cn.Uniform("r", 0, 1, size=20), cn.Variable((), "w")
    own = evaluator(cn.minimize((w - 1) ** 2).subject_to(c=P(r + w > -9) <= 2.0), torch.float32, 5000)
    ((found, _),) = own.sides()
    assert float(found) == pytest.approx(1.0, abs=1e-15)
