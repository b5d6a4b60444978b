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
