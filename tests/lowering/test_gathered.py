"""Conditions on several levels of one column become one sum by its levels, and nothing else changes."""

import numpy as np
import pandas as pd
import pytest
import torch

import constrain as cn
from constrain import E, P
from constrain.errors import DataError
from constrain.language import nodes as n
from constrain.lowering import rules
from constrain.lowering.lower import lower
from constrain.runtime.decisions import Decisions
from constrain.runtime.evaluator import Evaluator

ROWS = 120
RNG = np.random.default_rng(5)
X = RNG.normal(size=(ROWS, 3))
CODE = RNG.permutation(np.arange(ROWS) % 5)
TEXT = np.asarray(list("abcde"))[CODE]
LABEL = (X.sum(1) + RNG.normal(size=ROWS) > 0).astype(int)


def data(cls=cn.Data, **changed):
    columns = {"x": torch.tensor(X), "code": CODE, "text": TEXT, "y": LABEL, "flag": CODE > 2} | changed
    return cls("sample", **columns)


# name: (constraints of D, w; averages of the program beside the objective's none)
PROBLEMS = {
    "codes": (lambda D, s: {f"c{k}": E(s, given=D.code == k) <= 0.1 * k for k in (0, 1, 4)}, 1),
    "texts": (lambda D, s: {f"c{k}": E(s, D.text == k) >= -0.1 for k in "dba"}, 1),
    "flags": (lambda D, s: {"c0": E(s, D.flag == False) <= 0.1, "c1": E(s, D.flag == True) <= 0.2}, 1),  # noqa: E712
    "floats": (lambda D, s: {f"c{k}": E(s, D.code == float(k)) <= 0.1 for k in (1, 2)}, 1),
    "rates": (lambda D, s: {f"c{k}": P(s > 0, given=D.text == k) <= 0.5 for k in "abc"}, 1),
    "within a condition": (
        lambda D, s: {f"c{k}": P(s > 0, given=(D.y == 1) & (D.text == k)) >= 0.4 for k in "abc"}, 1),
    "two integrands": (
        lambda D, s: {f"c{k}": E(s, D.code == k) + E(s**2, D.code == k) <= 3 for k in (0, 1, 2)}, 2),
    "differences": (lambda D, s: {"c": abs(E(s, D.text == "a") - E(s, D.text == "b")) <= 0.05}, 1),
    "products": (
        lambda D, s: {f"c{k}": E(s, D.code == k) * P(D.code == k) <= 0.1 for k in (0, 3)}, 3),
    "a grid": (
        lambda D, s: {f"c{i}{k}": E(s, (D.code == i) & (D.y == k)) <= 1 for i in (0, 1, 2) for k in (0, 1)},
        2),
    "next to levels": (
        lambda D, s: {"all": E(s, by=D.code) <= 1, **{f"c{k}": E(s, D.code == k) <= 0.1 for k in (0, 1)}}, 2),
    "relaxed": (
        lambda D, s: {f"c{k}": (E(s, D.code == k) <= -1).relax(cost=cn.squared(1.0)) for k in (0, 1)}, 1),
    "vectors": (lambda D, s: {f"c{k}": E(D.x * s[..., None], D.code == k) <= 1 for k in (0, 1)}, 1),
}  # fmt: skip


def build(name, D=None):
    D = data() if D is None else D
    w = cn.Variable(3, "w")
    objective = cn.sum_squares(w - torch.tensor([0.8, -0.6, 0.4]))
    return cn.minimize(objective).subject_to(**PROBLEMS[name][0](D, D.x @ w))


def without_rule(monkeypatch):
    """Every average on its own."""
    monkeypatch.setattr("constrain.lowering.lower.alike", lambda _: [])
    monkeypatch.setattr(rules, "gathered", lambda *_: ({}, {}))


def evaluators(problem, monkeypatch, **options):
    """With the rule and without."""
    pair = []
    for apart in (False, True):
        with monkeypatch.context() as patch:
            if apart:
                without_rule(patch)
            program = lower(problem)
        decisions = Decisions(program, torch.device("cpu"), torch.float64)
        decisions.set(np.linspace(0.3, -0.2, len(decisions.get())))
        pair.append(Evaluator(program, decisions, dtype=torch.float64, chunk=50, **options))
    return pair


@pytest.mark.parametrize("name", PROBLEMS)
def test_one_average_in_place_of_many(name):
    program = lower(build(name))
    assert len(program.moments) == PROBLEMS[name][1]
    assert ("gather", "averages") in {(step.rule, step.target) for step in program.trace}


@pytest.mark.parametrize("name", PROBLEMS)
def test_values_and_gradients_are_those_of_the_conditions(name, monkeypatch):
    one, many = evaluators(build(name), monkeypatch)
    for mode in ("exact", "primal"):
        for a, b in zip(one.full(mode).residuals, many.full(mode).residuals, strict=True):
            torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)
    for a, b in zip(one.sides(), many.sides(), strict=True):
        torch.testing.assert_close(a, b)
    for i in range(len(one.program.parts)):
        (_, a), (_, b) = (e.pull([lambda outer, i=i: outer.residuals[i].sum()])[0] for e in (one, many))
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


ITEMS = [
    {"x": X[i], "code": int(CODE[i]), "text": str(TEXT[i]), "y": int(LABEL[i]), "flag": bool(CODE[i] > 2)}
    for i in range(ROWS)
]


def collate(items):
    return {name: [item[name] for item in items] for name in items[0]}


SOURCES = {
    "table": data,
    "dataset": lambda: cn.Data.from_dataset("sample", ITEMS, batch=30, collate=collate),
    "loader": lambda: cn.Data.from_loader(
        "sample", torch.utils.data.DataLoader(ITEMS, batch_size=30, collate_fn=collate)
    ),
}


@pytest.mark.parametrize("name", ["codes", "texts", "flags", "within a condition", "products"])
@pytest.mark.parametrize("source", SOURCES)
def test_batches_estimate_the_same(name, source, monkeypatch):
    """Rows by position, rows that are given, and streams, with the same numbers as one mask per condition."""
    found = []
    for apart in (False, True):
        if apart:
            without_rule(monkeypatch)
        D = SOURCES[source]()
        lagrangian = build(name, D).compile(dtype=torch.float64, seed=0)
        weights = lagrangian.evaluator.decisions
        weights.set(np.asarray([0.3, 0.1, -0.2]))
        own = []
        given, placed = collate(ITEMS[10:40]), range(10, 40)
        for rows in (given,) if source == "loader" else (given, placed):
            value = lagrangian(D.rows(rows))
            (gradient,) = torch.autograd.grad(value, list(weights.variables.values()))
            own += [value.detach().reshape(1), gradient]
        found.append(torch.cat(own))
    torch.testing.assert_close(found[0], found[1], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", ["codes", "texts", "differences"])
@pytest.mark.parametrize("method", ["cvxpy", "augmented"])
def test_solutions_are_the_same(name, method, monkeypatch):
    one = build(name).solve(method, progress=False)
    without_rule(monkeypatch)
    many = build(name).solve(method, progress=False)
    assert one.objective == pytest.approx(many.objective, abs=1e-6)
    assert str(one).splitlines()[4].split()[:6] == str(many).splitlines()[4].split()[:6]
    for constraint in many.names:
        a, b = one[constraint], many[constraint]
        assert a.text == b.text
        assert a.multiplier == pytest.approx(b.multiplier, abs=1e-4)
        assert (a.train.lower, a.train.upper) == pytest.approx((b.train.lower, b.train.upper), abs=1e-4)


def test_rates_keep_the_interval_of_a_rate(monkeypatch):
    """That of Wilson, with the rows of the own level."""
    one, many = evaluators(build("rates"), monkeypatch)
    assert [str(part.residual) for part in one.program.parts] == [
        str(part.residual) for part in many.program.parts
    ]
    found = []
    for apart in (False, True):
        if apart:
            without_rule(monkeypatch)
        solution = build("rates").solve("lagrangian", epochs=2, seed=0, progress=False)
        own = [solution[c].train for c in ("ca", "cb", "cc")]
        found.append([(e.lower, e.upper) for e in own])
    np.testing.assert_allclose(found[0], found[1], atol=1e-9)


# --------------------------------------------------------------------------------- levels without rows
def test_a_level_without_rows_is_named_with_its_condition():
    D, w = data(), cn.Variable(3, "w")
    p = cn.minimize(cn.sum_squares(w)).subject_to(
        a=E(D.x @ w, D.code == 1) <= 1,
        b=E(D.x @ w, D.code == 7) <= 1,
    )
    with pytest.raises(
        DataError, match=r"\[E124\] no row of 'sample' satisfies the condition code = 7"
    ) as error:
        p.solve(progress=False)
    assert "D.code == 7" in str(error.value.at.describe())


def test_levels_that_no_condition_names_are_asked_nothing_of():
    """Levels that only their type declares, new levels of a hold-out, and a hold-out without a level."""
    declared = pd.Categorical(TEXT, categories=["z", *"abcde"])
    problem = build("texts", data(text=pd.Series(declared)))
    solution = problem.solve("cvxpy", progress=False)
    later = data(text=np.where(TEXT == "b", "c", TEXT))
    assert np.isnan(solution.evaluate(later)["cb"].value)
    codes = build("codes").solve("cvxpy", progress=False)
    held = codes.evaluate(data(code=np.where(CODE == 3, 9, CODE)))
    assert held["c1"].value == pytest.approx(codes["c1"].value, abs=1e-9)


@pytest.mark.parametrize(
    ("relation", "code", "words"),
    [
        (lambda D, s: E(s, D.text == "zz") <= 1, "E106", "no level 'zz'"),
        (lambda D, s: E(s, D.code == "a") <= 1, "E106", "is numeric and is compared with the text 'a'"),
        (lambda D, s: E(s, D.text == 1) <= 1, "E147", "used as a number"),
    ],
)
def test_wrong_levels_are_refused_where_they_are_written(relation, code, words):
    D, w = data(), cn.Variable(3, "w")
    s = D.x @ w
    relations = {"a": E(s, D.text == "a") <= 1, "b": E(s, D.code == 1) <= 1, "c": relation(D, s)}
    with pytest.raises(DataError, match=rf"\[{code}\].*{words}"):
        cn.minimize(cn.sum_squares(w)).subject_to(**relations).solve(progress=False)


def test_what_stays_as_it_is():
    """One condition, conditions that are no equalities, conditions that move, and levels of a vector."""
    D, w = data(), cn.Variable(3, "w")
    s = D.x @ w
    p = cn.minimize(cn.sum_squares(w)).subject_to(
        a=E(s, D.code == 1) <= 1,
        b=E(s**2, D.code == 2) <= 1,
        c=E(s, D.code <= 1) <= 1,
        d=E(s, D.x[..., 0] == 0.25) <= 1,
        e=E(s, (s == 0) & (D.x[..., 0] > 0)) <= 1,
        f=E(s, D.code == 0.5) <= 1,
    )
    assert not any(isinstance(x, n.Among) for x in n.postorder(*lower(p).roots))
