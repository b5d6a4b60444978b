"""Columns of whole numbers as arguments of models: converted where a model takes floating numbers only."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import constrain as cn
from constrain import E

ROWS = 60
FRAME = {"age": np.arange(ROWS) % 7, "hours": np.arange(ROWS) % 5, "kind": np.arange(ROWS) % 3}
SOURCES = {
    "pandas": lambda: cn.Data.from_frame("D", pd.DataFrame(FRAME), x=["age", "hours"], kind="kind"),
    "polars": lambda: cn.Data.from_frame("D", pl.DataFrame(FRAME), x=["age", "hours"], kind="kind"),
    "numpy": lambda: cn.Data("D", x=np.c_[FRAME["age"], FRAME["hours"]], kind=FRAME["kind"]),
    "tensor": lambda: cn.Data("D", x=torch.tensor(np.c_[FRAME["age"], FRAME["hours"]]), kind=FRAME["kind"]),
    "list": lambda: cn.Data("D", x=np.c_[FRAME["age"], FRAME["hours"]].tolist(), kind=FRAME["kind"].tolist()),
}


def linear(inputs):
    return cn.Model(nn.Sequential(nn.Linear(inputs, 1), nn.Flatten(0)).double(), "f")


class Both(nn.Module):
    """Numbers into a linear layer, a kind into an embedding, or into a table that it indexes."""

    def __init__(self, how):
        super().__init__()
        self.how, self.table, self.out = how, nn.Embedding(3, 4), nn.Linear(6, 1)

    def forward(self, x, kind):
        if self.how == "embedding":
            code = self.table(kind)
        elif self.how == "index":
            code = self.table.weight[kind]
        else:
            code = F.one_hot(kind, 4).to(self.out.weight)
        return self.out(torch.cat([x, code], -1)).squeeze(-1)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("method", ["cvxpy", "newton", "lagrangian"])
def test_a_linear_model_takes_whole_numbers_on_every_route(source, method):
    D = SOURCES[source]()
    error = (linear(2)(D.x) - D.kind) ** 2
    options = {"epochs": 2} if method == "lagrangian" else {}
    solution = cn.minimize(E(error)).solve(method, progress=False, **options)
    A = np.c_[FRAME["age"], FRAME["hours"], np.ones(ROWS)]
    best = np.linalg.lstsq(A, FRAME["kind"].astype(float), rcond=None)[1][0] / ROWS
    assert solution.objective >= best - 1e-9
    if method != "lagrangian":
        assert solution.objective == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("how", ["embedding", "index", "one-hot"])
@pytest.mark.parametrize("source", ["pandas", "numpy"])
def test_each_argument_has_the_type_that_the_model_takes(how, source):
    D = SOURCES[source]()
    module = Both(how).double()
    f = cn.Model(module, "f")
    found = cn.minimize(E(f(D.x, D.kind))).evaluate().objective
    x = torch.tensor(np.c_[FRAME["age"], FRAME["hours"]], dtype=torch.float64)
    assert found == pytest.approx(float(module(x, torch.tensor(FRAME["kind"])).detach().mean()), rel=1e-9)


def test_one_hot_codes_and_single_columns_are_numbers():
    D = cn.Data("D", kind=FRAME["kind"], age=FRAME["age"])
    f, g = linear(3), cn.Model(nn.Linear(1, 1).double(), "g")
    loss = (f(F.one_hot(D.kind, 3)) + g(D.age[..., None])[..., 0] - D.age) ** 2
    assert cn.minimize(E(loss)).solve("newton", progress=False).objective == pytest.approx(0, abs=1e-9)


SECONDS = 1_700_000_000 + 7 * np.arange(200)
COUNTS = np.random.default_rng(0).integers(1, 1000, 200)
BYTES = np.random.default_rng(1).integers(0, 255, 200).astype(np.uint8)
NANOSECONDS = 10**9 * SECONDS  # products are larger than 64 bits hold
W = cn.Data("whole", t=SECONDS, ns=NANOSECONDS, i=COUNTS, u=torch.as_tensor(BYTES), b=(COUNTS > 500).tolist())
WRITTEN = {
    "D.t - 1.7e9": SECONDS - 1.7e9,
    "1.7e9 - D.t": 1.7e9 - SECONDS,
    "D.t / 86400 - 19675": SECONDS / 86400 - 19675,
    "D.t + 0.25 - 1.7e9": SECONDS + 0.25 - 1.7e9,
    "D.i * 0.1": COUNTS * 0.1,
    "D.i / 3": COUNTS / 3,
    "1 / D.i": 1 / COUNTS,
    "D.i / (D.i + 7)": COUNTS / (COUNTS + 7),
    "(D.u - 200) * D.u": (BYTES - 200.0) * BYTES,
    "D.b * 0.1 + (1 - D.b) * 0.3": np.where(COUNTS > 500, 0.1, 0.3),
    "cn.where(D.b, D.i, 0.3)": np.where(COUNTS > 500, COUNTS, 0.3),
    "cn.maximum(D.i, 250.1)": np.maximum(COUNTS, 250.1),
    "torch.sqrt(D.i)": np.sqrt(COUNTS),
    "torch.log(D.i)": np.log(COUNTS),
    "cn.softplus(D.i)": np.logaddexp(0, COUNTS),
    "torch.exp(-D.i / 500)": np.exp(-COUNTS / 500),
    "cn.mean(cn.stack(D.i, D.u))": (COUNTS + BYTES.astype(float)) / 2,
    "cn.norm(cn.stack(D.i, D.u))": np.hypot(COUNTS, BYTES),
    "D.ns * D.i / 1e18": NANOSECONDS * COUNTS.astype(float) / 1e18,
    "D.ns * D.ns / 1e36": (NANOSECONDS / 1e18) ** 2,
    "cn.square(D.ns) / 1e36": (NANOSECONDS / 1e18) ** 2,
    "D.ns * 10**9 / 1e27": NANOSECONDS / 1e18,
    "cn.sum_squares(cn.stack(D.ns, D.i)) / 1e36": (NANOSECONDS / 1e18) ** 2,
    "cn.indicator(D.t > 1.7e9)": SECONDS > 1.7e9,
    "cn.indicator(D.t <= 1700000700.5)": SECONDS <= 1700000700.5,
    "cn.indicator(1700000700.0 >= D.t)": SECONDS <= 1700000700,
    "cn.indicator(D.t == 1700000700.0)": SECONDS == 1700000700,
    "cn.indicator(D.t != 1700000700.0)": SECONDS != 1700000700,
    "cn.indicator(D.i == 500.5)": 0.0 * COUNTS,
}


@pytest.mark.parametrize("written", WRITTEN)
def test_whole_numbers_in_float64_lose_no_digit(written):
    """float32 is what torch makes of whole numbers and a Python number; the oracle is NumPy's float64."""
    expected = np.asarray(WRITTEN[written], dtype=np.float64).mean()
    term = cn.E(eval(written, {"cn": cn, "torch": torch, "D": W}))
    v = cn.Variable((), "v")
    np.testing.assert_allclose(cn.minimize(term + 0 * v).evaluate().objective, expected, rtol=1e-14)
    for method in ("newton", "cvxpy"):
        cn.minimize((v - term) ** 2).solve(method, progress=False)
        np.testing.assert_allclose(float(v.value), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "written", ["D.t - 1.7e9", "1.7e9 - D.t", *(w for w in WRITTEN if "indicator(" in w)]
)
def test_times_in_seconds_are_exact_beside_models_in_float32(written):
    expected = np.asarray(WRITTEN[written], dtype=np.float64).mean()
    f = cn.Model(torch.nn.Linear(1, 1), "f")
    e = eval(written, {"cn": cn, "D": W})
    found = cn.minimize(cn.E(e + 0 * f(W.b[..., None])[..., 0])).evaluate().objective
    np.testing.assert_allclose(found, expected, rtol=1e-6)
