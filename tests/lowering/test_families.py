"""Constraints that are alike are the same one by one and by groups, lowered together and apart."""

import gc
import tracemalloc
from dataclasses import fields

import numpy as np
import pytest
import torch

import constrain as cn
from constrain import E, P, forall
from constrain.diagnostics import influence
from constrain.diagnostics.confidence import judge_sample
from constrain.errors import ConstrainError
from constrain.lowering.alike import alike
from constrain.lowering.lower import lower
from constrain.runtime.decisions import Decisions
from constrain.runtime.estimates import estimators
from constrain.runtime.evaluator import Evaluator

LEVELS, ROWS = 20, 400
RNG = np.random.default_rng(3)
CODE = RNG.permutation(np.arange(ROWS) % LEVELS)
X = RNG.normal(size=(ROWS, 3)) + 0.02 * CODE[:, None]
SEX = RNG.permutation(np.arange(ROWS) % 2)
KS = range(LEVELS)
ENDS = ("lower", "upper")


def data(rows=ROWS, levels=LEVELS):
    code = CODE if (rows, levels) == (ROWS, LEVELS) else np.arange(rows) % levels
    x = X if rows == ROWS else np.ones((rows, 3))
    text = np.array([f"level {c:02d}" for c in code])
    return cn.Data("sample", x=torch.tensor(x), code=code, text=text, sex=np.resize(SEX, rows))


def model(dtype=torch.float64):
    net = torch.nn.Sequential(torch.nn.Linear(3, 1, bias=True), torch.nn.Flatten(0)).to(dtype)
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[0.3, -0.2, 0.4]]))
        net[0].bias.fill_(0.1)
    return cn.Model(net, "f")


def build(constraints, dtype=torch.float64):
    D, f = data(), model(dtype)
    s = f(D.x)
    return cn.minimize(E((s - 1) ** 2)).subject_to(**constraints(D, s))


def run(lagrangian):
    """Values and gradients along a few steps on batches, then the multipliers."""
    D = lagrangian.evaluator.program.populations[0]
    tensors = lagrangian.evaluator.decisions.tensors
    found = []
    for first in (0, 150, 250):
        value = lagrangian(D.rows(torch.arange(first, first + 150)))
        gradients = torch.autograd.grad(value, tensors)
        found += [value.detach().reshape(1), *(g.reshape(-1) for g in gradients)]
        lagrangian.ascend()
    return torch.cat(found), lagrangian.multipliers()


# ------------------------------------------------------------------------------- one by one and by groups
GROUPS = {  # name: (one by one, by groups, the sides of a part)
    "means": (
        lambda D, s: {f"g{k}": E(s, given=D.code == k) <= 0.1 for k in KS},
        lambda D, s: {"g": E(s, by=D.code) <= 0.1}, ("",)),
    "texts, from below": (
        lambda D, s: {f"g{k}": E(s, given=D.text == f"level {k:02d}") >= 0.3 for k in KS},
        lambda D, s: {"g": E(s, by=D.text) >= 0.3}, ("",)),
    "rates": (
        lambda D, s: {f"g{k}": P(s > 0, given=D.code == k) <= 0.4 for k in KS},
        lambda D, s: {"g": P(s > 0, by=D.code) <= 0.4}, ("",)),
    "equalities": (
        lambda D, s: {f"g{k}": E(s, given=D.code == k) == 0.1 for k in KS},
        lambda D, s: {"g": E(s, by=D.code) == 0.1}, ("",)),
    "differences": (
        lambda D, s: {f"g{k}": abs(E(s, given=D.code == k) - E(s)) <= 0.05 for k in KS},
        lambda D, s: {"g": abs(E(s, by=D.code) - E(s)) <= 0.05}, (":upper", ":lower")),
    "squares": (
        lambda D, s: {f"g{k}": E(s, given=D.code == k) ** 2 <= 0.1 for k in KS},
        lambda D, s: {"g": E(s, by=D.code) ** 2 <= 0.1}, ("",)),
}  # fmt: skip


@pytest.mark.parametrize("name", GROUPS)
def test_one_by_one_is_by_groups(name):
    single, grouped, sides = GROUPS[name]
    many, one = (build(written).compile(seed=0) for written in (single, grouped))
    steps = {part.key: many.step(part) for part in many.parts}
    for part in one.parts:  # different averages, written one by one, are scaled apart
        side = part.key[1:]
        one.steps(part).copy_(torch.stack([steps[f"g{k}{side}"] for k in KS]))
    (a, own), (b, block) = run(many), run(one)
    torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)
    for side in sides:
        joined = torch.stack([own[f"g{k}{side}"] for k in KS])
        torch.testing.assert_close(joined, block[f"g{side}"], atol=1e-12, rtol=1e-10)


# ------------------------------------------------------------------------------------- together and apart
budget, room = cn.Parameter("budget", value=0.2), cn.Variable((), "room")


def interleaved(D, s):
    found = {}
    for k in KS:
        found[f"low{k}"] = E(s, given=D.code == k) >= -1 - 0.1 * k
        found[f"high{k}"] = E(s, given=D.code == k) <= 1 + 0.1 * k
        if k % 7 == 0:
            found[f"other{k}"] = E(s**2, given=D.sex == 1) <= 3 + k
    return found


MIXED = {  # name: (constraints, families)
    "bounds that differ": (lambda D, s: {f"g{k}": E(s, D.code == k) <= 0.1 * k for k in KS}, 1),
    "interleaved with others": (interleaved, 2),
    "parameters": (lambda D, s: {f"g{k}": E(s, D.code == k) <= budget * (k + 1) for k in KS}, 1),
    "a decision in the bound": (
        lambda D, s: {"r": room <= 1.0} | {f"g{k}": E(s, D.code == k) - 0.01 * k <= room for k in KS}, 1),
    "units": (lambda D, s: {f"g{k}": (E(s, D.code == k) <= 0.1 * k).scale(10.0) for k in KS}, 1),
    "between": (lambda D, s: {f"g{k}": cn.between(-1, E(s, D.text == f"level {k:02d}"), k) for k in KS}, 1),
    "a grid": (
        lambda D, s: {f"g{k}{i}": E(s, (D.code == k) & (D.sex == i)) <= k for k in KS for i in (0, 1)}, 2),
    "two columns": (
        lambda D, s: {f"g{k}": E(s, D.code == k) <= 1 for k in KS}
        | {f"s{k}": E(s, D.sex == k) <= 1 for k in (0, 1)}, 1),
    "factors of both signs": (
        lambda D, s: {f"g{k}": (k - 9.5) * E(s, D.code == k) <= 1 + E(s) for k in KS}
        | {"all": E(s) <= 1}, 0),
    "roots and products": (
        lambda D, s: {
            f"g{k}": torch.sqrt(E(s**2, D.code == k) + 0.1 * k) * E(s, D.code == k) <= 3 for k in KS}, 1),
    "hinges": (
        lambda D, s: {f"g{k}": P(s > 0, D.code == k, surrogate="hinge") >= 0.1 + 0.01 * k for k in KS}, 1),
    "copies": (lambda D, s: {f"g{k}": E(s, D.sex == 1) <= 0.3 for k in KS}, 1),
    "next to rows": (
        lambda D, s: {f"g{k}": E(s, D.code == k) <= 0.1 * k for k in KS} | {"each": forall(D, s <= 3)}, 1),
    "relaxed next to others": (
        lambda D, s: {f"g{k}": E(s, D.code == k) <= 0.1 * k for k in KS}
        | {"soft": (E(s, D.sex == 0) <= -1).relax(cost=cn.squared(1.0))}, 1),
    "different integrands": (lambda D, s: {f"g{k}": E(s**2 + 0.1 * k, D.code == k) <= 3 for k in KS}, 0),
    "tails": (lambda D, s: {f"g{k}": cn.CVaR(s, 0.9, given=D.sex == k % 2) <= 3 + k for k in KS}, 0),
}  # fmt: skip


@pytest.fixture(params=MIXED)
def pair(request, monkeypatch):
    """A problem as it is, and a function that makes its constraints be lowered one by one."""
    written, families = MIXED[request.param]
    assert len(alike(build(written).constraints)) == families

    def apart():
        monkeypatch.setattr("constrain.lowering.lower.alike", lambda _: [])

    return written, apart


def evaluated(problem):
    program = lower(problem)
    decisions = Decisions(program, torch.device("cpu"), torch.float64)
    return Evaluator(program, decisions, dtype=torch.float64)


def test_together_is_apart(pair):
    """Forms, estimators, values, sides and gradients."""
    written, apart = pair
    one = evaluated(build(written))
    apart()
    many = evaluated(build(written))
    shown = [
        [(f.name, str(f.relation), str(f.lhs), [(p.key, p.kind, str(p.residual), p.scale) for p in f.parts])
         for f in e.program.forms] for e in (one, many)
    ]  # fmt: skip
    assert shown[0] == shown[1]
    assert estimators(one.program) == estimators(many.program)
    steps = [sorted((s.rule, s.target, s.formula) for s in e.program.trace) for e in (one, many)]
    assert steps[0] == steps[1]
    assert len(one.program.trace) == len(steps[0])
    assert len(one.program.parts) == len(many.program.parts) == len(list(one.program.parts))
    for mode in ("exact", "primal"):
        for a, b in zip(one.full(mode).residuals, many.full(mode).residuals, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)
    for a, b in zip(one.sides(), many.sides(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)
    averaged = [i for i, part in enumerate(one.program.parts) if part.rows is None]

    def total(outer):
        return sum((k + 1) * outer.residuals[i].sum() for k, i in enumerate(averaged))

    (_, a), (_, b) = (e.pull([total])[0] for e in (one, many))
    torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


def test_steps_and_state_are_those_apart(pair):
    """Estimates and multipliers from the same state, and the state by the names of the constraints."""
    written, apart = pair
    one = build(written).compile(seed=0)
    apart()
    many = build(written).compile(seed=0)
    many.load_state_dict(one.state_dict())  # scales are measured by families
    many.pace.copy_(one.pace)
    many.limits.copy_(one.limits)
    (a, own), (b, other) = run(one), run(many)
    torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)
    assert list(own) == list(other)
    torch.testing.assert_close(own, other, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(dict(one.state_dict()), dict(many.state_dict()), atol=1e-10, rtol=1e-10)


def test_solutions_are_those_apart(monkeypatch):
    written, _ = MIXED["interleaved with others"]
    found = []
    for apart in (False, True):
        if apart:
            monkeypatch.setattr("constrain.lowering.lower.alike", lambda _: [])
        found.append(build(written).solve("augmented", progress=False))
    assert found[0].objective == pytest.approx(found[1].objective, abs=1e-8)
    assert found[0].names == found[1].names
    for name in found[0].names:
        a, b = (solution[name] for solution in found)
        assert (a.text, a.train.verdict) == (b.text, b.train.verdict)
        assert a.multiplier == pytest.approx(b.multiplier, abs=1e-5)


def test_bounds_are_exact_in_single_precision():
    """Numbers of a family are those of formulas: not rounded to the type of the model."""
    p = build(lambda D, s: {f"g{k}": 0.0 * E(s, D.code == k) <= 0.1 + 0.1 * k for k in KS}, torch.float32)
    outer = p.compile().evaluator.full("exact")
    assert [float(r) for r in outer.residuals] == [0.0 - (0.1 + 0.1 * k) for k in KS]


def test_an_estimator_for_one_member():
    written, _ = MIXED["roots and products"]
    lagrangian = build(written).compile(estimator={"g3": "batch"})
    kinds = dict(
        zip(["objective", *(p.key for p in lagrangian.parts)], lagrangian.estimator.kinds, strict=True)
    )
    assert (kinds["g3"], kinds["g4"]) == ("batch", "running")


@pytest.mark.parametrize(
    ("relation", "code", "words"),
    [
        (
            lambda D, s: E(s, D.code == 99) <= 1,
            "E124",
            "no row of 'sample' satisfies the condition code = 99",
        ),
        (lambda D, s: E(s, D.code == 4) <= float("inf"), "E138", "'odd' is inf"),
        (lambda D, s: E(torch.sigmoid(s), D.code == 4) <= -0.5, "E172", "'odd'.* cannot hold"),
    ],
)
def test_what_is_wrong_with_one_member_names_it(relation, code, words):
    def written(D, s):
        rest = {f"g{k}": E(s, D.code == k) <= 1 for k in KS}
        if code == "E172":
            rest = {f"g{k}": E(torch.sigmoid(s), D.code == k) <= 0.9 for k in KS}
        return rest | {"odd": relation(D, s)}

    with pytest.raises(ConstrainError, match=rf"(?s)\[{code}\].*{words}"):
        build(written).compile()


def test_intervals_are_those_of_the_rows(monkeypatch):
    """Standard errors of many: by sums over the rows of each cell, dense and sparse, and row by row."""
    p = build(
        lambda D, s: (
            {f"g{k}": abs(E(s, D.code == k) - E(s)) <= 0.1 * k for k in KS}
            | {"pairs": E(D.x[..., :2] * s[..., None], by=D.sex)[..., 1] ** 2 <= 1.0}
        )
    )
    monkeypatch.setattr("constrain.lowering.lower.alike", lambda _: [])
    found = []
    for scalars, dense in ((10_000, 10), (7, 10_000), (7, 0)):
        monkeypatch.setattr(influence, "SCALARS", scalars)
        monkeypatch.setattr(influence, "DENSE", dense)
        judged = p.evaluate()
        found.append(
            np.concatenate([np.ravel(getattr(judged[c], end)) for c in judged.names for end in ENDS])
        )
    np.testing.assert_allclose(found[1], found[0], rtol=1e-10)
    np.testing.assert_allclose(found[2], found[0], rtol=1e-10)


JUDGED = {name: written for name, (written, *_) in (GROUPS | MIXED).items()} | {
    "rates against all": lambda D, s: {
        f"g{k}": abs(P(s > 0, given=D.code == k) - P(s > 0, given=D.code == 3)) <= 0.1 for k in KS if k != 3
    },
    "a group and a part of it": lambda D, s: {
        f"g{k}": E(s, (D.code == k) & (D.sex == 1)) - E(s, D.code == k) * E(s**2, D.sex == 0) <= 0.1
        for k in KS
    },
}


@pytest.mark.parametrize("name", JUDGED)
def test_judgments_are_those_apart(name, monkeypatch):
    """Every number and word that is said about a constraint, also on other data where levels have no rows."""
    kept = CODE[:60] != 5
    text = np.array([f"level {c:02d}" for c in CODE[:60][kept]])
    x = torch.tensor(X[:60][kept])
    fewer = cn.Data("sample", x=x, code=CODE[:60][kept], sex=SEX[:60][kept], text=text)
    bounded = {"g4": (-40.0, 60.0)} if name == "means" else None
    found = []
    for _ in range(2):
        e = evaluated(build(JUDGED[name]))
        other = Evaluator(
            e.program, e.decisions, dtype=torch.float64, data={"sample": fewer}, reference=e, chunk=7
        )
        found.append([judge_sample(own, bounded=bounded) for own in (e, other)])
        monkeypatch.setattr("constrain.lowering.lower.alike", lambda _: [])
    for one, many in zip(*found, strict=True):
        assert list(one.estimates) == list(many.estimates)
        np.testing.assert_allclose(
            [one.objective, one.lower, one.upper], [many.objective, many.lower, many.upper], rtol=1e-10
        )
        for key, a in one.estimates.items():
            b = many.estimates[key]
            for field in fields(a):
                own, theirs = getattr(a, field.name), getattr(b, field.name)
                if field.name in ("verdict", "verdicts", "labels"):
                    assert own == theirs, (key, field.name)
                elif own is not None or theirs is not None:
                    np.testing.assert_allclose(own, theirs, rtol=1e-9, atol=1e-12, err_msg=field.name)


def scales_of(written, least, monkeypatch):
    """What is measured of the steps of multipliers, with families from `least` constraints on."""
    monkeypatch.setattr("constrain.lowering.alike.LEAST", least)
    lagrangian = build(written).compile(seed=0)
    lagrangian.calibrate(torch.Generator().manual_seed(1), batches=4)  # depends on the first one
    return lagrangian


ALONE = {  # constraints of different units, by the unit of the k-th
    "differences": lambda D, s, u: {
        f"g{k}": u(k) * abs(E(s, given=D.code == k) - E(s)) <= u(k) * 0.05 for k in KS},
    "averages and a decision": lambda D, s, u: {
        f"g{k}": u(k) * E(s, given=D.code == k) <= u(k) * room for k in KS} | {"r": room <= 1.0},
    "curved": lambda D, s, u: {f"g{k}": u(k) * E(s, given=D.code == k) ** 2 <= u(k) * 0.1 for k in KS},
    "copies": lambda D, s, u: {f"g{k}": u(k) * E(s, given=D.sex == 1) <= u(k) * 0.3 for k in KS},
    "levels of one average": lambda D, s, u: {
        f"g{k}": u(k) * E(s, given=D.code == k) <= u(k) * 0.1 for k in KS},
    "rates": lambda D, s, u: {
        f"g{k}": u(k) * (P(s > 0, given=D.code == k) - P(s > 0)) <= u(k) * 0.1 for k in KS},
    "no data": lambda D, s, u: {f"g{k}": u(k) * room <= u(k) * (1 + k) for k in KS},
}  # fmt: skip


@pytest.mark.parametrize("name", ALONE)
def test_scales_are_those_apart_in_any_units(name, monkeypatch):
    """Steps and units of violations of a family: as if there were none, and in proportion to the units."""

    def units(k):
        return 1.0 if k < 17 else 1000.0

    def written(unit):
        return lambda D, s: ALONE[name](D, s, unit)

    one, many = (scales_of(written(units), least, monkeypatch) for least in (16, 10**9))
    assert [len(e.evaluator.program.forms.families) for e in (one, many)] == [1, 0]
    for key in ("scales", "limits", "spread", "most"):
        torch.testing.assert_close(getattr(one, key), getattr(many, key), atol=0, rtol=1e-12)
    assert one.spreads == pytest.approx(many.spreads, rel=1e-12)
    same = scales_of(written(lambda _: 1.0), 16, monkeypatch)
    for a, b in zip(one.parts, same.parts, strict=True):
        unit = units(int(a.constraint[1:])) if a.constraint != "r" else 1.0
        assert one.spreads[a.key] == pytest.approx(unit * same.spreads[b.key], rel=1e-9)
        assert float(one.step(a)) * unit**2 == pytest.approx(float(same.step(b)), rel=1e-9)


def test_slopes_of_more_than_are_measured_one_by_one(monkeypatch):
    """Then the random combinations have units of the entries: these cancel, and slopes are close to apart."""
    monkeypatch.setattr("constrain.runtime.steps.MOST_SLOPES", 5)

    def written(unit):
        return lambda D, s: {
            f"g{k}": unit(k) * (E(s, given=D.code == k) - E(s)) <= unit(k) * 0.05 for k in KS
        }

    mixed, same = written(lambda k: 10.0 ** (k % 7)), written(lambda _: 1.0)
    found, equal, apart = (
        scales_of(w, least, monkeypatch).units for w, least in ((mixed, 16), (same, 16), (same, 10**9))
    )
    units = torch.tensor([10.0 ** (k % 7) for k in KS], dtype=torch.float64)
    torch.testing.assert_close(found * units, equal, atol=0, rtol=1e-9)
    assert 0.2 < float((equal / apart).min()) < float((equal / apart).max()) < 3


def test_families_of_different_units_are_trained_as_apart(monkeypatch):
    """Differences of averages, of which some are in other units: the optimum by CVXPY, and the same apart."""
    x = X + np.linspace(-1, 1, LEVELS)[CODE][:, None] * np.array([1.0, 0, 0])
    y = x @ np.array([1.0, -1.0, 0.5]) + np.random.default_rng(1).normal(size=ROWS)
    D, w = cn.Data("rows", x=torch.tensor(x), y=torch.tensor(y), g=CODE), cn.Variable(3, "w")
    s, unit = D.x @ w, [1.0] * 17 + [1000.0] * 3
    gaps = {k: unit[k] * (E(s, given=D.g == k) - E(s)) for k in KS}
    bounds = {f"c{k}": gap <= 0.3 * unit[k] for k, gap in gaps.items()}
    bounds |= {f"d{k}": -gap <= 0.3 * unit[k] for k, gap in gaps.items()}
    problem = cn.minimize(E((s - D.y) ** 2)).subject_to(**bounds)
    exact = problem.solve("cvxpy", progress=False).objective
    found = []
    for least in (16, 10**9):
        monkeypatch.setattr("constrain.lowering.alike.LEAST", least)
        w.value = np.zeros(3)
        solution = problem.solve("lagrangian", epochs=100, lr=0.1, seed=0, progress=False)
        assert solution.status == "feasible"
        found.append(solution.objective)
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert exact - 1e-4 < found[0] < exact * 1.02


# ------------------------------------------------------------------------------------------------- memory
def held(count):
    """Bytes for each constraint: of `count` of them as written, and what their compiled form adds."""
    D, f = data(4 * count, count), model()
    s = f(D.x)
    gc.collect()
    tracemalloc.start(1)
    problem = cn.minimize(E(s**2)).subject_to(
        **{f"g{k}": E(s, D.code == k) <= 0.01 * k for k in range(count)}
    )
    gc.collect()
    written = tracemalloc.get_traced_memory()[0]
    lagrangian = problem.compile()
    lagrangian(D.rows(torch.arange(100))).backward()
    lagrangian.ascend()
    lagrangian.refresh()
    gc.collect()
    both = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(lagrangian.parts) == count
    return written / count, (both - written) / count


def test_many_constraints_take_little_memory():
    """As written: five nodes of 64 to 80 bytes, the name and two numbers. A form of each would take 4000."""
    run(build(GROUPS["means"][0]).compile())  # what is loaded on first use
    written, compiled = held(1000)
    assert written < 640
    assert compiled < 360
