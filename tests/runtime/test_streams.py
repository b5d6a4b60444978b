"""Streams: the same numbers as a table, in the memory of a batch, or a refusal that says why."""

from __future__ import annotations

import random
import re
import tracemalloc

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset

import constrain as cn
from constrain import E, P, forall
from constrain.driver.setup import floating_type, prepare
from constrain.language.streams import RandomState
from constrain.lowering.lower import lower
from constrain.runtime.averages import averages
from constrain.runtime.decisions import precision
from constrain.solvers.augmented import AugmentedLagrangian
from constrain.solvers.sampling import BatchSampler

ROWS = 203  # the last batch is smaller, whatever the batch
NAMES = ("x", "y", "s", "k")
CPU = torch.device("cpu")


def columns(rows=ROWS, seed=0):
    """Columns of each kind: vectors, numbers, texts, integers."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    y = (x.sum(1) + torch.randn(rows, generator=generator, dtype=torch.float64) > 0).double()
    return {"x": x, "y": y, "s": ["a" if i % 3 else "b" for i in range(rows)], "k": torch.arange(rows) % 4}


class Rows(Dataset):
    """Rows of some columns by position, as tuples."""

    def __init__(self, **values):
        self.values = values

    def __len__(self):
        return len(next(iter(self.values.values())))

    def __getitem__(self, i):
        return tuple(v[i] for v in self.values.values())


class Batches:
    """Batches of some columns, made by a function of the columns of a batch; starts again on every pass."""

    def __init__(self, make, size=64, **values):
        self.make = make
        self.size = size
        self.values = values

    def __iter__(self):
        for a in range(0, len(self.values["y"]), self.size):
            yield self.make({name: v[a : a + self.size] for name, v in self.values.items()})


def table(**values):
    return cn.Data("train", **(values or columns()))


SOURCES = {
    "loader": lambda v: cn.Data.from_loader("train", DataLoader(Rows(**v), batch_size=64), NAMES),
    "shuffled loader": lambda v: cn.Data.from_loader(
        "train", DataLoader(Rows(**v), batch_size=50, shuffle=True), NAMES
    ),
    "dataset": lambda v: cn.Data.from_dataset("train", Rows(**v), NAMES, batch=64),
    "dictionaries": lambda v: cn.Data.from_loader("train", Batches(lambda b: b, **v)),
    "arrays": lambda v: cn.Data.from_loader(
        "train", Batches(lambda b: {n: np.asarray(c) for n, c in b.items()}, **v)
    ),
    "lists": lambda v: cn.Data.from_loader(
        "train", Batches(lambda b: {n: c if n == "s" else c.tolist() for n, c in b.items()}, **v)
    ),
    "one batch": lambda v: cn.Data.from_loader("train", [tuple(v.values())], NAMES),
    "single rows": lambda v: cn.Data.from_loader("train", DataLoader(Rows(**v), batch_size=1), NAMES),
}


def problem(D):
    """Every kind of moment: plain, conditional, grouped by texts, by numbers and by both; ratios, squares."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0)).double()
    score = cn.Model(net, "f")(D.x)
    bce = F.binary_cross_entropy_with_logits(score, D.y, reduction="none")
    return cn.minimize(E(bce) + 0.1 * E(score) ** 2).subject_to(
        parity=abs(E(torch.sigmoid(score), by=D.s) - E(torch.sigmoid(score))) <= 0.02,
        recall=P(score > 0, given=(D.y == 1) & (D.s == "b")) >= 0.6,
        level=E(score * D.k, by=D.k) <= 3.0,
        both=P(score > 0, given=D.y > 0, by=(D.s, D.k)) / P(score > 0) <= 3.0,
    )


def evaluator(p, **options):
    program = lower(p)
    with precision(program, torch.float64):
        return prepare(program, device=CPU, dtype=floating_type(program), **options).evaluator


def everything(setup):
    """Exact values, primal values, and gradients of the objective and of all residuals."""
    functions = [lambda o: o.objective]
    count = len(setup.program.parts)
    functions += [lambda o, i=i: (o.residuals[i] * torch.arange(1.0, 1 + o.residuals[i].numel())).sum()
                  for i in range(count)]  # fmt: skip
    found = setup.pull(functions)
    outer = setup.full("exact")
    values = [outer.objective, *outer.residuals, torch.tensor([v for v, _ in found])]
    return values + [torch.cat([g.reshape(-1) for g in gradient]) for _, gradient in found]


# --------------------------------------------------------------------------------------------- parity
@pytest.mark.parametrize("source", SOURCES)
def test_values_and_gradients_are_those_of_the_table(source):
    expected = everything(evaluator(problem(table())))
    found = everything(evaluator(problem(SOURCES[source](columns()))))
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("source", SOURCES)
def test_counts_and_levels_are_those_of_the_table(source):
    D = SOURCES[source](columns())
    (a,), (b,) = (evaluator(problem(data)).populations.values() for data in (table(), D))
    assert (a.rows, a.levels) == (b.rows, b.levels) == (ROWS, {"s": ["a", "b"]})
    for one, other in zip(a.strata.values(), b.strata.values(), strict=True):
        assert one.levels == other.levels
        torch.testing.assert_close(one.counts, other.counts)
    assert D.levels("s", "k") == table().levels("s", "k")
    assert len(D) == ROWS


def test_a_loader_as_a_hold_out_and_a_table_as_that_of_a_loader():
    later = columns(150, seed=1)
    as_table = cn.Data("later", **later)
    as_stream = cn.Data.from_loader("later", DataLoader(Rows(**later), batch_size=32, shuffle=True), NAMES)
    for D in (table(), SOURCES["shuffled loader"](columns())):
        method = AugmentedLagrangian(outer=2, inner=5, second_order=False)
        solution = problem(D).solve(method=method, holdout=as_stream, progress=False)
        found = [solution.evaluate(sample) for sample in (as_table, as_stream)]
        assert found[0].objective == pytest.approx(found[1].objective, rel=1e-12)
        assert solution.holdout.objective == pytest.approx(found[0].objective, rel=1e-12)
        for key, estimate in found[0].estimates.items():
            other = found[1].estimates[key]
            for field in ("value", "lower", "upper", "violation"):
                np.testing.assert_allclose(getattr(estimate, field), getattr(other, field), rtol=1e-9)
            assert (estimate.verdicts, estimate.smallest) == (other.verdicts, other.smallest)


def test_a_later_table_lacks_a_level_or_has_a_new_one():
    solution = problem(SOURCES["loader"](columns())).solve(
        method=AugmentedLagrangian(outer=1, inner=2, second_order=False), progress=False
    )
    later = columns(60, seed=2)
    only = [i for i in range(60) if later["s"][i] == "a"]
    part = cn.Data.from_loader(
        "later", [{n: [v[i] for i in only] if n == "s" else v[only] for n, v in later.items()}]
    )
    assert np.isnan(np.ravel(solution.evaluate(part).estimates["parity"].value)).any()
    for new in (
        SOURCES["loader"](later | {"s": ["c"] * 60}),
        cn.Data("train", **(later | {"s": ["c"] * 60})),
    ):
        with pytest.raises(cn.DataError, match=r"\[E135\] train\.s has the level 'c'"):
            solution.evaluate(new)
    with pytest.raises(cn.DataError, match=r"\[E169\] train\.s holds numbers"):
        solution.evaluate(SOURCES["loader"](later | {"s": torch.zeros(60)}))
    with pytest.raises(cn.DataError, match=r"\[E169\] train\.x has rows of shape \(4,\)"):
        solution.evaluate(SOURCES["loader"](later | {"x": torch.zeros(60, 4)}))
    with pytest.raises(cn.DataError, match=r"\[E106\] data 'later' has no column 'k'"):
        solution.evaluate(cn.Data.from_loader("later", [{n: v for n, v in later.items() if n != "k"}]))


# ------------------------------------------------------------------------------------------- training
def regression(D):
    """A convex problem whose optimum the routes agree on."""
    w, b = cn.Variable(3, "w"), cn.Variable((), "b")
    score = D.x @ w + b
    return cn.minimize(E((score - D.y) ** 2) + 1e-3 * cn.sum_squares(w)).subject_to(
        parity=abs(E(score, by=D.s) - E(score)) <= 0.002, low=E(score, given=D.k == 0) <= 0.4
    )


def rates(D):
    """Rates of groups, whose gradients are those of surrogates."""
    w, b = cn.Variable(3, "w"), cn.Variable((), "b")
    score = D.x @ w + b
    return cn.minimize(E((score - D.y) ** 2)).subject_to(
        parity=abs(P(score > 0.5, by=D.s) - P(score > 0.5)) <= 0.02,
        recall=P(score > 0.5, given=D.y == 1) >= 0.8,
    )


def test_full_passes_reach_the_optimum_that_cvxpy_proves():
    exact = regression(table()).solve(method="cvxpy", progress=False)
    method = AugmentedLagrangian(inner=30)
    found = regression(SOURCES["shuffled loader"](columns())).solve(method=method, progress=False)
    assert found.objective == pytest.approx(exact.objective, rel=1e-6)
    for name in ("parity", "low"):
        np.testing.assert_allclose(found[name].multiplier, exact[name].multiplier, rtol=1e-3, atol=1e-4)
    assert found.kkt().stationarity < 1e-4


@pytest.mark.parametrize(("write", "seed"), [("regression", 3), ("regression", 9), ("rates", 3)])
def test_training_on_a_dataset_is_training_on_the_table(write, seed):
    written = {"regression": regression, "rates": rates}[write]
    runs = [
        written(D).solve(
            method="lagrangian", epochs=4, batch=32, seed=seed, sampling="shuffle", progress=False
        )
        for D in (table(), cn.Data.from_dataset("train", Rows(**columns()), NAMES, batch=32))
    ]
    assert runs[0].objective == pytest.approx(runs[1].objective, rel=1e-12)
    for name in runs[0].names:
        np.testing.assert_allclose(runs[0][name].multiplier, runs[1][name].multiplier, rtol=1e-12)


class Read(Rows):
    """Rows that count how often they are read."""

    def __init__(self, **values):
        super().__init__(**values)
        self.count = 0

    def __getitem__(self, i):
        self.count += 1
        return super().__getitem__(i)


def passes(write, epochs):
    """How many passes over a dataset a run makes."""
    rows = Read(**columns(96))
    D = cn.Data.from_dataset("train", rows, NAMES, batch=32)
    write(D).solve(method="lagrangian", epochs=epochs, seed=3, progress=False)
    return rows.count / 96


@pytest.mark.parametrize(("write", "others"), [("regression", 14), ("rowwise", 14)])
def test_an_epoch_is_two_passes_and_what_one_came_to_is_not_read_again(write, others):
    """One for its steps, one for its judgment and all that follows; a few for what is before and after."""
    run = {"regression": regression, "rowwise": rowwise}[write]
    assert passes(run, 3) <= 2 * 3 + others
    assert passes(run, 6) <= 2 * 6 + others


def test_what_a_pass_came_to_is_read_again_after_every_change():
    """Of decisions, of weights of models in other ways than steps, of parameters, and of thresholds."""
    limit = cn.Parameter("limit", 0.0)
    D = SOURCES["dataset"](columns())
    own = torch.nn.Linear(3, 1).double()
    w, score = cn.Variable((), "w"), cn.Model(nn.Sequential(own, nn.Flatten(0)), "f")(D.x)
    setup = evaluator(
        cn.minimize(E(score * w)).subject_to(
            rate=P(score > 0, given=D.y > limit) <= 1.0, tail=cn.CVaR(score, 0.8) <= 9.0
        )
    )
    assert setup.known is not None
    changes = (
        lambda: setup.decisions.variables[w.symbol].data.add_(1.0),
        lambda: own.weight.data.mul_(-1.0),
        lambda: setup.set_parameters({"limit": -1.0}),
        setup.refresh_scales,
        lambda: None,
    )
    for change in changes:
        change()
        found = setup.moments("exact"), setup.moments("primal")
        again = averages(setup, "exact"), averages(setup, "primal")
        torch.testing.assert_close(found, again, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("method", ["lagrangian", "cooper"])
def test_training_on_a_loader_reaches_the_optimum(method):
    def written(D):
        w, b = cn.Variable(3, "w"), cn.Variable((), "b")
        score = D.x @ w + b
        return cn.minimize(E((score - D.y) ** 2)).subject_to(low=E(score, given=D.k == 0) <= 0.3)

    exact = written(table()).solve(method="cvxpy", progress=False)
    D = SOURCES["shuffled loader"](columns())
    found = written(D).solve(method=method, epochs=60, batch=20, progress=False)
    assert found.objective == pytest.approx(exact.objective, rel=0.01)
    assert found["low"].multiplier == pytest.approx(exact["low"].multiplier, rel=0.5)
    short = [written(D).solve(method=method, epochs=2, batch=50, progress=False) for _ in range(2)]
    assert short[0].objective == short[1].objective  # seed= decides, not the state of torch


def rowwise(D):
    """A constraint on some rows."""
    w = cn.Variable(3, "w")
    chosen = D.where(D.s == "b")
    return cn.minimize(E((D.x @ w - D.y) ** 2)).subject_to(top=forall(chosen, D.x @ w <= 0.5))


def test_constraints_per_row_of_a_dataset():
    exact = rowwise(table()).solve(method="cvxpy", progress=False)
    D = SOURCES["dataset"](columns())
    found = rowwise(D).solve(method=AugmentedLagrangian(inner=30), progress=False)
    assert found.objective == pytest.approx(exact.objective, rel=1e-5)
    np.testing.assert_allclose(found["top"].multiplier, exact["top"].multiplier, atol=1e-4)
    trained = rowwise(D).solve(method="lagrangian", epochs=5, batch=50, sampling="shuffle", progress=False)
    same = rowwise(table()).solve(method="lagrangian", epochs=5, batch=50, sampling="shuffle", progress=False)
    np.testing.assert_allclose(trained["top"].multiplier, same["top"].multiplier, rtol=1e-9)
    with pytest.raises(
        cn.DataError, match=r"\[E166\] forall\(train, \.\.\.\) .*\n  write: cn\.Data\.from_dataset"
    ):
        rowwise(SOURCES["loader"](columns()))


def test_an_own_loop_feeds_the_batches_of_its_loader():
    D = SOURCES["loader"](columns())
    lagrangian = regression(D).compile()
    whole = lagrangian.estimate({"train": slice(0, ROWS)})
    loader = DataLoader(Rows(**columns()), batch_size=ROWS)
    for x, y, s, k in loader:
        batch = D.rows({"x": x, "y": y, "s": s, "k": k})
        found = lagrangian.estimate(batch)
        torch.testing.assert_close(found.exact.objective, whole.exact.objective)
        lagrangian(batch).backward()
        lagrangian.ascend()
    with pytest.raises(cn.DataError, match=r"\[E166\] rows by position: the loader of 'train' does not say"):
        D.rows([1, 2])
    rows = SOURCES["dataset"](columns()).rows([5, 1])
    assert lagrangian.estimate({"train": rows.index} if D.positions else batch).exact.objective.isfinite()


def test_rows_of_a_dataset_by_position():
    D = SOURCES["dataset"](columns())
    inside = regression(table()).compile()
    outside = regression(D).compile()
    for index in ([7, 3, 3, 100], slice(0, 6), slice(10, 30), torch.tensor([1, 0])):
        a, b = (lagrangian.estimate({"train": index}) for lagrangian in (inside, outside))
        torch.testing.assert_close(a.exact.objective, b.exact.objective)


def population(D):
    (found,) = evaluator(regression(D)).populations.values()
    return found


def test_training_batches_have_the_size_that_is_asked_for_and_start_over():
    generator = torch.Generator().manual_seed(0)
    for source in ("loader", "shuffled loader", "single rows", "one batch", "dataset"):
        own = population(SOURCES[source](columns()))
        batches = [own.fresh(40, generator) for _ in range(11)]
        assert {rows.count for rows in batches} == {40}
        met = torch.cat([rows.columns["x"][:, 0] for rows in batches[:5]])
        assert len(met.unique()) == 200  # every row at most once per pass
        assert all(set(rows.columns) == {"x", "y", "s", "k", "#s"} for rows in batches)
        values = columns()["x"][:, 0]
        assert set(torch.cat([rows.columns["x"][:, 0] for rows in batches]).tolist()) <= set(values.tolist())
        if source == "dataset":
            assert all(torch.equal(values[rows.index], rows.columns["x"][:, 0]) for rows in batches)
        else:
            assert all(rows.index is None for rows in batches)
        assert own.fresh(ROWS, generator).whole
        assert own.fresh(10 * ROWS, generator).count == ROWS


def test_a_loader_shuffles_training_batches_and_the_seed_decides_how():
    def first(seed):
        own = population(SOURCES["shuffled loader"](columns()))
        generator = torch.Generator().manual_seed(seed)
        return torch.cat([own.fresh(50, generator).columns["x"][:, 0] for _ in range(8)])

    torch.manual_seed(1)
    one = first(0)
    torch.manual_seed(2)
    assert torch.equal(one, first(0))
    assert not torch.equal(one, first(1))
    assert not torch.equal(one[:200], one[200:])
    fixed = torch.cat(
        [population(SOURCES["loader"](columns())).fresh(50).columns["x"][:, 0] for _ in range(1)]
    )
    assert torch.equal(fixed, columns()["x"][:50, 0])


without_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")


@pytest.mark.parametrize("device", ["meta", pytest.param("cuda", marks=[pytest.mark.cuda, without_gpu])])
def test_a_step_stays_on_the_device(device):
    for source in ("shuffled loader", "dataset"):
        lagrangian = problem(SOURCES[source](columns())).compile(device=device)
        (own,) = lagrangian.evaluator.populations.values()
        rows = own.fresh(40, torch.Generator())
        assert {c.device.type for c in rows.columns.values()} == {device}
        loss = lagrangian({"train": rows})
        loss.backward()
        lagrangian.ascend()
        assert loss.device.type == device
        assert all(m.device.type == device for m in lagrangian.evaluator.moments())


def test_the_size_of_training_batches_is_that_of_the_source_unless_it_is_given():
    for source, size in (("loader", 64), ("shuffled loader", 50), ("dataset", 64), ("single rows", 1)):
        setup = evaluator(regression(SOURCES[source](columns())))
        assert BatchSampler(setup, None, torch.Generator()).sizes == {"train": size}
        assert BatchSampler(setup, 16, torch.Generator()).sizes == {"train": 16}


# -------------------------------------------------------------------------------- reading does no harm
def test_reading_leaves_the_random_numbers_of_the_program_alone():
    values = columns()
    own = torch.Generator().manual_seed(7)
    loaders = [
        DataLoader(Rows(**values), batch_size=50, shuffle=True),
        DataLoader(Rows(**values), batch_size=50, shuffle=True, generator=own),
    ]
    states = [torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist(), own.get_state()]  # noqa: NPY002
    for loader in loaders:
        setup = evaluator(regression(cn.Data.from_loader("train", loader, NAMES)))
        setup.moments()
        setup.refresh_scales()
    after = [torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist(), own.get_state()]  # noqa: NPY002
    assert torch.equal(states[0], after[0])
    assert states[1:3] == after[1:3]
    assert torch.equal(states[3], after[3])


def test_full_passes_read_the_rows_in_one_order():
    D = SOURCES["shuffled loader"](columns())
    passes = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        passes.append(torch.cat([b["x"] for b in D.batches()]))
        next(iter(D.batches()))  # one that is not read to its end
    assert torch.equal(*passes)
    assert not torch.equal(passes[0], columns()["x"])


def test_random_transforms_are_drawn_once():
    class Noisy(Rows):
        def __getitem__(self, i):
            x, *rest = super().__getitem__(i)
            noise = random.random() + torch.rand(()) + np.random.rand()  # noqa: NPY002
            return (x + noise, *rest)

    D = cn.Data.from_loader("train", DataLoader(Noisy(**columns()), batch_size=50, shuffle=True), NAMES)
    setup = evaluator(problem(D))
    assert torch.equal(setup.full().objective, setup.full().objective)
    own = population(D)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([own.fresh(50, generator).columns["x"] for _ in range(8)])
    assert len(drawn[:, 0].unique()) == 400  # training meets other ones every time


def test_random_state_without_other_packages(monkeypatch):
    monkeypatch.setattr("constrain.language.streams.loaded", lambda name: None)
    before = random.getstate()
    state = RandomState(3)
    with state:
        first = random.random()
    with state:
        second = random.random()
    assert random.getstate() == before
    expected = random.Random(3)
    assert (first, second) == (expected.random(), expected.random())


class Counted:
    """Batches of arrays that are made when they are read, and that know how many of them are alive."""

    def __init__(self, rows, size, width):
        self.rows, self.size, self.width = rows, size, width

    def __iter__(self):
        generator = np.random.default_rng(0)
        for _ in range(0, self.rows, self.size):
            x = generator.standard_normal((self.size, self.width))
            yield {"x": x, "y": x.sum(1), "s": ["a", "b"] * (self.size // 2)}


def test_memory_is_that_of_some_batches():
    rows, size, width = 40_000, 500, 100  # 32 MB in all, 0.4 MB a batch
    D = cn.Data.from_loader("train", Counted(rows, size, width), rows=rows)
    w = cn.Variable(width, "w")
    p = cn.minimize(E((D.x @ w - D.y) ** 2)).subject_to(c=E(D.x @ w, by=D.s) <= 0.5, d=P(D.x @ w > 0) <= 0.9)
    program = lower(p)
    with precision(program, torch.float64):
        tracemalloc.start()
        setup = prepare(program, device=CPU, dtype=torch.float64).evaluator
        bound = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        setup.pull([lambda o: o.objective])
        passes = tracemalloc.get_traced_memory()[1] - tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
    assert passes < 8 * size * width * 8  # a few batches
    assert bound < 100e6  # with the rows that are kept for an impression, at most 64 MB of them


def test_an_impression_of_a_large_sample_keeps_evenly_spread_rows(monkeypatch):
    monkeypatch.setattr("constrain.runtime.streams.KEPT_ROWS", 50)
    D = SOURCES["dataset"](columns())
    own = population(D)
    kept = own.spread(1000)
    assert kept.count == 41  # every fifth row
    values = columns()["x"]
    torch.testing.assert_close(kept.columns["x"], values[::5])
    torch.testing.assert_close(own.spread(20).columns["x"], values[::5][::2])
    some = own.some(30, torch.Generator().manual_seed(0))
    torch.testing.assert_close(some.columns["x"], values[some.index])
    monkeypatch.setattr("constrain.runtime.streams.KEPT_ROWS", 10**6)
    monkeypatch.setattr("constrain.runtime.streams.KEPT_BYTES", 40 * 8 * 6)
    assert 20 < population(D).spread(1000).count <= 41


# -------------------------------------------------------------------------------------------- frames
def test_a_parquet_file_that_is_never_in_memory(tmp_path):
    values = columns()
    frame = pa.table(
        {"x0": values["x"][:, 0].numpy(), "x1": values["x"][:, 1].numpy(), "x2": values["x"][:, 2].numpy(),
         "y": values["y"].numpy(), "k": values["k"].numpy(), "s": pa.array(values["s"]).dictionary_encode()}
    )  # fmt: skip
    pq.write_table(frame, tmp_path / "train.parquet")

    class Batches:
        def __iter__(self):
            return pq.ParquetFile(tmp_path / "train.parquet").iter_batches(50)

    roles = {"x": ["x0", "x1", "x2"], "y": "y", "k": "k", "s": "s"}
    D = cn.Data.from_loader("train", Batches(), roles)
    assert D.row_shape("x") == (3,)
    found, expected = evaluator(regression(D)).full(), evaluator(regression(table())).full()
    torch.testing.assert_close(found.objective, expected.objective, rtol=1e-12, atol=0)
    assert D.levels("s") == ("b", "a")  # as the dictionary of the file says


def test_batches_of_frames_with_levels_and_types_that_vary():
    pieces = [
        pd.DataFrame({"v": [1, 2], "s": pd.Categorical(["hi", "lo"], ["lo", "hi"]), "t": ["u", "v"]}),
        pd.DataFrame({"v": [0.5], "s": pd.Categorical(["lo"], ["lo", "hi"]), "t": ["a"]}),
    ]
    D = cn.Data.from_loader("d", pieces)
    assert (D.levels("s"), D.levels("t"), D.levels("t", "s")) == (
        ("lo", "hi"),
        ("a", "u", "v"),
        (("a", "lo"), ("u", "hi"), ("v", "lo")),
    )
    w = cn.Variable((), "w")
    problem = cn.minimize((w - E(D.v)) ** 2).subject_to(c=E(D.v, by=(D.t, D.s)) + w <= 9)
    solution = problem.solve("augmented", progress=False)
    assert w.value == pytest.approx(3.5 / 3, rel=1e-5)
    assert list(solution["c"].levels) == [("a", "lo"), ("u", "hi"), ("v", "lo")]
    polars = [pl.from_pandas(piece.drop(columns="s")) for piece in pieces]
    assert cn.Data.from_loader("d", polars, ("v", "t")).levels("v") == (0.5, 1.0, 2.0)


# -------------------------------------------------------------------------------------------- torch
class Endless(IterableDataset):
    def __iter__(self):
        return zip(*columns().values(), strict=True)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_iterable_datasets_and_workers():
    expected = evaluator(regression(table())).full().objective
    for D in (
        cn.Data.from_loader("train", DataLoader(Endless(), batch_size=64), NAMES),
        cn.Data.from_dataset("train", Rows(**columns()), NAMES, batch=64, workers=1),
        cn.Data.from_loader("train", DataLoader(Rows(**columns()), batch_size=64, num_workers=1), NAMES),
    ):
        assert D.positions == (D.source.rows() == ROWS and "dataset" in vars(D.source))
        torch.testing.assert_close(evaluator(regression(D)).full().objective, expected, rtol=1e-12, atol=0)


def test_a_tensor_dataset_and_a_collate_function():
    values = columns()
    D = cn.Data.from_dataset("d", TensorDataset(values["x"], values["k"]), (None, "k"))
    assert D.columns == ("k",)
    assert len(D) == ROWS
    assert D.levels("k") == (0, 1, 2, 3)

    def padded(rows):
        return {"z": torch.stack([F.pad(r, (0, 3 - len(r))) for r in rows])}

    ragged = cn.Data.from_dataset("d", [torch.ones(1 + i % 3) for i in range(9)], collate=padded)
    assert ragged.row_shape("z") == (3,)
    w = cn.Variable(3, "w")
    cn.minimize(E(cn.sum((ragged.z - w) ** 2, axis=-1))).solve("augmented", progress=False)
    assert w.value == pytest.approx([1.0, 2 / 3, 1 / 3], rel=1e-5)
    plain = cn.Data.from_dataset("d", [1.0, 2.0, 4.0], ("v",))
    assert plain.levels("v") == (1.0, 2.0, 4.0)
    assert cn.Data.from_loader("d", [["b", "a"], ["c"]], ("t",)).levels("t") == ("a", "b", "c")


# ------------------------------------------------------------------------------------------ analysis
def test_nothing_is_certified_from_the_first_batch():
    v = np.array([1.0, 1.0, -5.0, -5.0])
    w = cn.Variable((), "w")
    stream = cn.Data.from_loader("d", [{"v": v[:2]}, {"v": v[2:]}])
    whole = cn.Data("d", v=v[:2])
    assert cn.minimize(E(whole.v * w**2)).explain().facts.convex
    found = cn.minimize(E(stream.v * w**2)).explain()
    assert not found.facts.convex
    limit = cn.minimize(w**2).subject_to(c=E(stream.v * w**2) <= -1)  # out of reach only for positive values
    assert limit.solve(method="augmented", progress=False) is not None


def test_the_route_through_a_cone_program_needs_a_table():
    routes = {r.method: r for r in regression(SOURCES["loader"](columns())).explain().routes}
    assert not routes["cvxpy"].open
    assert routes["cvxpy"].reason == "the sample train streams from a loader: there is no table"
    assert routes["augmented"].open
    assert routes["lagrangian"].open
    with pytest.raises(cn.RouteError, match="streams from a loader"):
        regression(SOURCES["loader"](columns())).solve(method="cvxpy", progress=False)


def test_a_stream_says_what_it_holds_and_is_printed_by_its_name():
    D = SOURCES["dictionaries"](columns())
    assert (
        repr(D)
        == "<Stream train with rows not counted yet, read in batches: x:(3,), y:(), s:(), k:() per row>"
    )
    assert len(D) == ROWS
    assert f"with {ROWS} rows" in repr(D)
    p = regression(D)
    assert eval(repr(p), p.symbols()) == p
    assert "by s" in str(p)
    quick = AugmentedLagrangian(outer=1, inner=2)
    assert p.solve(method=quick, progress=False).provenance.data["train:train"]["rows"] == ROWS


# ------------------------------------------------------------------------------------------- refusals
def loader(**options):
    return DataLoader(Rows(**columns()), **({"batch_size": 50} | options))


REFUSED = {
    "a generator": (lambda: ((b for b in [1]), NAMES), "is a generator: it can be iterated over once"),
    "no iterable": (lambda: (3, NAMES), "is a int, which yields no batches"),
    "replacement": (
        lambda: (loader(sampler=RandomSampler(range(ROWS), replacement=True)), NAMES),
        "draws rows with replacement",
    ),
    "a part": (
        lambda: (loader(sampler=RandomSampler(range(ROWS), num_samples=100)), NAMES),
        f"draws 100 of {ROWS} rows, other ones in each pass",
    ),
    "drop_last": (lambda: (loader(drop_last=True), NAMES), f"drops the last 3 of {ROWS} rows of each pass"),
    "no names": (lambda: (loader(), ()), "has 4 entries and no names for them"),
    "too few names": (lambda: (loader(), ("x", "y")), "has 4 entries, and columns= 2 names"),
    "keys of tuples": (lambda: (loader(), {"x": "a"}), "are no dictionaries"),
    "an unknown key": (lambda: ([{"u": [1.0]}], {"x": "v"}), "has no entry 'v' for the column 'x'"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_loaders_that_are_no_sample(kind):
    make, message = REFUSED[kind]
    source, names = make()
    with pytest.raises(cn.DataError, match=rf"^\[E170\] .*{re.escape(message)}.*\n  write: "):
        cn.Data.from_loader("train", source, names)


def test_a_last_batch_that_is_dropped_but_is_none():
    assert len(cn.Data.from_loader("train", loader(batch_size=29, drop_last=True), NAMES)) == ROWS


def test_datasets_that_are_no_sample():
    for dataset in (Endless(), iter([1.0]), {1.0, 2.0}):
        with pytest.raises(cn.DataError, match=r"\[E170\] the dataset of 'd' is a .* without positions"):
            cn.Data.from_dataset("d", dataset, ("v",))
    for empty in (
        lambda: cn.Data.from_dataset("d", [], ("v",)),
        lambda: cn.Data.from_loader("d", [], ("v",)),
    ):
        with pytest.raises(cn.DataError, match=r"\[E124\] data 'd' has no rows"):
            empty()


CHANGED = {
    "fewer columns": ([{"v": [1.0], "u": [1.0]}, {"v": [1.0]}], "no entry 'u'"),
    "other rows": ([{"v": [[1.0]]}, {"v": [[1.0, 2.0]]}], r"batch 1 of 'd' has shape (1, 2) for 'v'"),
    "other lengths": (
        [{"v": [1.0], "u": [1.0]}, {"v": [1.0], "u": [1.0, 2.0]}],
        "differ in length: v 1, u 2",
    ),
}


@pytest.mark.parametrize("kind", CHANGED)
def test_batches_of_another_structure(kind):
    batches, message = CHANGED[kind]
    D = cn.Data.from_loader("d", batches, {c: c for c in batches[0]})
    w = cn.Variable((), "w")
    with pytest.raises(cn.DataError, match=rf"\[E170\] .*{re.escape(message)}"):
        cn.minimize(E(D.v * w) ** 2).solve(progress=False)


def test_missing_and_mixed_values_are_counted_over_all_batches():
    w = cn.Variable((), "w")
    x = [[1.0, None], [2.0, 3.0], [None, float("inf"), None]]
    D = cn.Data.from_loader(
        "d", [{"x": np.array(b, dtype=float), "s": ["a", None, "b"][: len(b)]} for b in x]
    )
    with pytest.raises(cn.DataError) as caught:
        cn.minimize(E(D.x * w) ** 2 + E(w * D.x, given=D.s == "a")).solve(progress=False)
    assert str(caught.value).splitlines()[0] == (
        "[E124] columns of 'd' have missing or infinite values: s 3 (rows 1, 3, 5), x 4 (rows 1, 4, 5, …)"
    )
    mixed = cn.Data.from_loader("d", [{"x": [1.0]}, {"x": ["a"]}])
    with pytest.raises(
        cn.DataError, match=r"\[E168\] d\.x holds texts in some batches and numbers in others"
    ):
        cn.minimize(E(mixed.x * w) ** 2).solve(progress=False)


class Changing:
    """Batches that differ from pass to pass."""

    def __init__(self, change):
        self.change = change
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        for i in range(4):
            yield from self.change(self.passes, i)


CHANGES = {
    "fewer rows": (
        lambda p, i: [{"v": [1.0, 2.0]}] if i < 3 or p == 2 else [],
        "gave 6 rows, the first one 8",
    ),
    "other values": (
        lambda p, i: [{"v": [1.0, 2.0 + (p > 3)]}],
        "gave other values of 'v' than the first one",
    ),
    "other texts": (
        lambda p, i: [{"v": [1.0, 2.0], "t": ["a", "ab"[p > 3]]}],
        "gave other rows than the first one: d.t has the level 'b'",
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_pass_that_differs_from_the_first_is_refused(kind):
    change, message = CHANGES[kind]
    D = cn.Data.from_loader("d", Changing(change))
    w = cn.Variable((), "w")
    value = E(D.v * w, given=D.t == "a") if "t" in D.columns else E(D.v * w)
    with pytest.raises(cn.DataError, match=rf"\[E171\] a pass over 'd' .*{re.escape(message)}.*\n  write: "):
        cn.minimize((value - 1) ** 2).solve(progress=False)


def test_a_number_of_rows_that_is_not_that_of_a_pass():
    D = cn.Data.from_loader("d", [{"v": [1.0, 2.0]}], rows=3)
    w = cn.Variable((), "w")
    with pytest.raises(cn.DataError, match=r"\[E171\] a pass over 'd' gave 2 rows, and 3 were expected"):
        cn.minimize(E(D.v * w) ** 2).solve(progress=False)


def test_what_needs_the_rows_in_memory():
    D = SOURCES["loader"](columns())
    for use in (lambda: D.values("x"), lambda: D.split(0.3), lambda: population(D).take(torch.tensor([100]))):
        with pytest.raises(cn.DataError, match=r"\[E166\]"):
            use()
    with pytest.raises(cn.DataError, match="random_split"):
        SOURCES["dataset"](columns()).split(0.5)


def test_empty_groups_and_conditions_are_named():
    D = SOURCES["loader"](columns())
    w = cn.Variable((), "w")
    for given, message in (
        (D.s == "z", r"\[E106\] train\.s has no level 'z'"),
        (D.k > 9, r"\[E124\] no row of 'train'"),
    ):
        with pytest.raises(cn.DataError, match=message):
            cn.minimize(E(D.y * w, given=given) ** 2).solve(progress=False)
    with pytest.raises(cn.DataError, match=r"\[E124\] the group s='b' of 'train' has no row for"):
        cn.minimize(w).subject_to(c=E(D.y, given=D.s == "a", by=D.s) <= w).solve(
            method="augmented", progress=False
        )


def test_parameters_in_conditions_are_counted_again():
    values = columns()
    limit = cn.Parameter("limit", 0.0)
    found = []
    for D in (table(), SOURCES["dataset"](values)):
        w = cn.Variable((), "w")
        setup = evaluator(cn.minimize((cn.sum(E(D.y, given=D.x[..., 0] > limit, by=D.s)) - w) ** 2))
        setup.set_parameters({"limit": 0.7})
        found.append(setup.full().objective)
    torch.testing.assert_close(*found)


def test_thresholds_of_tails_are_those_of_the_table():
    found = []
    for D in (table(), SOURCES["shuffled loader"](columns())):
        w = cn.Variable(3, "w")
        loss = (D.x @ w - D.y) ** 2
        p = cn.minimize(cn.CVaR(loss, 0.8)).subject_to(
            q=cn.Quantile(loss, 0.5) <= 2.0, v=cn.Var(D.x @ w - D.y, by=D.s) <= 3.0
        )
        setup = evaluator(p)
        setup.decisions.set(np.linspace(0.1, 0.4, setup.decisions.size))
        setup.refresh_scales()
        found.append(setup.full())
    torch.testing.assert_close(found[0].objective, found[1].objective, rtol=1e-12, atol=0)
    for a, b in zip(found[0].residuals, found[1].residuals, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------------------------------ the order of rows
@pytest.mark.parametrize(
    ("ordered", "shuffle", "told"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_a_loader_that_is_sorted_is_warned_of(ordered, shuffle, told, recwarn):
    """By its first batch, when training takes its batches (W217); full passes need no order."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 3, generator=generator)
    y = (torch.arange(1000) >= 500).float()
    y = y if ordered else y[torch.randperm(1000, generator=generator)]
    loader = DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=50, shuffle=shuffle)
    D = cn.Data.from_loader("sorted", loader, ["x", "y"])
    f = cn.Model(torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Flatten(0)), "f")
    problem = cn.minimize(E((f(D.x) - D.y) ** 2)).subject_to(c=E(f(D.x), given=D.y == 1) <= 2)
    problem.solve("augmented", progress=False, time_limit=1)
    assert not [w for w in recwarn if "W217" in str(w.message)]
    problem.solve("lagrangian", epochs=1, progress=False)
    assert len([w for w in recwarn if "[W217] the loader of 'sorted' is ordered" in str(w.message)]) == told


def test_explain_says_how_batches_of_a_stream_come():
    D = SOURCES["loader"](columns())
    f = cn.Model(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)), "f")
    text = str(cn.minimize(E(f(D.x).squeeze(-1) ** 2)).explain())
    assert (
        "batches of train are read in the order of its loader: they are not stratified by its groups" in text
    )


class Tempered(nn.Module):
    """A linear score whose temperature is a number, and an offset in a tensor that is no buffer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1).double()
        self.temperature = 1.0
        self.settings = {"offsets": [torch.zeros((), dtype=torch.float64)]}
        self.settings["own"] = self.settings  # nothing that a loop could not end in

    def forward(self, x):
        return self.layer(x)[:, 0] / self.temperature + self.settings["offsets"][0]


def test_what_is_remembered_of_a_pass_follows_what_a_model_holds_beside_its_parameters():
    """A temperature that a callback lowers: a stream has the values that a table has."""
    values, found = {n: columns()[n] for n in ("x", "y")}, {}
    for kind in ("table", "stream"):
        torch.manual_seed(0)
        module = Tempered()
        D = table(**values) if kind == "table" else cn.Data.from_dataset("train", Rows(**values), ("x", "y"))
        problem = cn.minimize(E((cn.Model(module, "f")(D.x) - D.y) ** 2))
        evaluator = prepare(lower(problem), device=CPU, dtype=torch.float64).evaluator
        found[kind] = [float(evaluator.full().objective)]
        module.temperature = 0.5
        found[kind].append(float(evaluator.full().objective))
        module.settings["offsets"][0] += 1.0
        found[kind] += [float(evaluator.full().objective), float(evaluator.full().objective)]
    assert found["stream"] == pytest.approx(found["table"], rel=1e-12)
    assert len(set(found["table"])) == 3
