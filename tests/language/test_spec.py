"""Problems as JSON and back: the law over every construct, declarations, and damaged documents."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import constrain as cn
from constrain import E, P, forall
from constrain.language import nodes as n
from constrain.language.spec import NODES, VERSION

numbers = torch.linspace(0.5, 1.5, 18, dtype=torch.float64).reshape(6, 3)
D = cn.Data("adult", x=numbers, y=numbers[:, 0], q=numbers[:, 1], c=[0, 1, 2] * 2, sex=["F", "M"] * 3)
f = cn.Model(nn.Sequential(nn.Linear(3, 1, dtype=torch.float64), nn.Flatten(0)), "f")
frozen = cn.Model(nn.Linear(3, 1, dtype=torch.float64), "reference", frozen=True)
w, t = cn.Variable(3, "w"), cn.Variable((), "t", nonneg=True, bounds=(None, 2.0))
k = cn.Variable((2, 2), "k", integer=True, bounds=(0, np.array([[1, 2], [3, 4]])))
eps = cn.Parameter("eps", 0.05)
tensor, array, rows = numbers[0], np.array([0.5, np.inf, 2.5]), [0.5, 1.5, 2.5]
large = torch.zeros(5000)


def mine(e):
    """A function that torch does not know."""
    if torch.overrides.has_torch_function_unary(e):
        return torch.overrides.handle_torch_function(mine, (e,), e)
    return e.abs()


stream = cn.Data.from_loader(
    "stream", DataLoader(TensorDataset(numbers, numbers[:, 0]), batch_size=2), columns=("x", "y")
)


def region_problem():
    x, z = (
        cn.Uniform("x", 0.0, 1.0),
        cn.Grid("z", torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.2, 0.3, 0.5])),
    )
    u = cn.Model(nn.Sequential(nn.Linear(1, 1, dtype=torch.float64), nn.Flatten(0)), "u")
    value = u(x[..., None])
    return cn.minimize(E(cn.diff(value, x, 1) ** 2) + E(z * t)).subject_to(left=forall(x, value >= 0))


CONSTRUCTS = {
    "statistics": lambda: cn.minimize(E(f(D.x)) / E(D.q)).subject_to(
        a=E(D.y * t, given=(D.q > 1) & ~(D.sex == "F")) <= eps,
        b=P((f(D.x) > 0) | (D.c == 1), by=(D.sex, D.c)) >= 0.1,
        c=abs(E(f(D.x), by=D.sex) - E(f(D.x))) <= 0.02,
        d=P(f(D.x) > 0, given=D.y <= 1, surrogate="hinge") == 0.5,
    ),
    "rows": lambda: cn.maximize(-cn.sum_squares(w) - cn.sum_squares(f)).subject_to(
        fit=forall(D, D.y * (D.x @ w) >= 1), some=forall(D.where(D.sex == "F"), cn.between(-1, f(D.x), D.q))
    ),
    "find": lambda: cn.find().subject_to(first=w >= 0, second=cn.between(0, cn.sum(w), math.inf)),
    "nothing": cn.find,
    "arrays": lambda: cn.minimize(cn.sum_squares(w - tensor) + w @ array + w @ cn.constant(rows)).subject_to(
        unnamed=w <= np.ones(3) * 2, series=w >= pd.Series([0.0, 1.0, 2.0]), ints=k <= np.eye(2, dtype=int)
    ),
    "numbers": lambda: cn.minimize(t * 1 + t * 1.0 + t * True + t * -0.0 + t * 10**30 + t * math.nan),
    "functions": lambda: cn.minimize(
        E(
            F.hardtanh(D.y * t, -2, 1)
            + mine(D.y)
            + torch.cumsum(D.x, -1, dtype=torch.float32)[..., 0]
            + torch.lerp(D.y, D.q, torch.tensor(0.5, dtype=torch.float64))
            + cn.sum(torch.flip(D.x, [-1]), axis=-1)
            + cn.norm(D.x @ torch.ones(3, 2, dtype=torch.float64), 1, axis=-1)
        )
    ),
    "indices": lambda: cn.minimize(
        cn.sum(k[[0, 1], 0:1]) + k[..., None][0, 1, 0] + cn.trace(k.T) + w.reshape(3, 1)[2, 0]
    ).subject_to(**{"two words": cn.where(tensor > 1, w, 0) <= 1, "class": cn.max(w) <= 2}),
    "indicators": lambda: cn.minimize(E(cn.indicator(f(D.x) > 0) * D.y) + E(frozen(D.x)[..., 0] * t)),
    "summaries": lambda: cn.minimize(cn.CVaR(f(D.x), 0.9) + cn.Var(D.y * t)).subject_to(
        rank=cn.Quantile(f(D.x), 0.5, given=D.q > 1) <= eps,
        tail=cn.CVaR(D.y * t, eps, by=D.sex) <= 2,
        corr=cn.Corr(f(D.x), D.y, by=D.sex) <= 0.5,
        surrogate=P(f(D.x) > 0, surrogate=cn.surrogate.Power(order=3.0)) <= 0.5,
    ),
    "relations": lambda: cn.minimize(t).subject_to(
        soft=(E(D.y * t) >= eps).relax(cost=cn.squared(2.0)), unit=(E(D.y * t) <= 2).scale(10.0)
    ),
    "regions": region_problem,
    "streams": lambda: cn.minimize(E((stream.y - t) ** 2)).subject_to(
        low=E(stream.y, given=stream.y > 1) <= t
    ),
    "divergences": lambda: cn.minimize(
        E(cn.kl(cn.distributions.Normal(f(D.x), 1.0), cn.distributions.Normal(D.y, 2.0)))
        + E(cn.entropy(logits=D.x * t))
    ),
    "large": lambda: cn.minimize(cn.sum(cn.Variable(5000, "many") * large)),
    "same names": lambda: cn.minimize(cn.Variable((), "v") + cn.Variable((), "v") * 2),
}


def again(problem, symbols=None):
    text = problem.to_json()
    json.loads(text, parse_constant=pytest.fail)  # NaN and Infinity are no JSON
    return cn.from_json(text, problem.symbols() if symbols is None else symbols)


@pytest.mark.semantics("S11")
@pytest.mark.parametrize("construct", CONSTRUCTS)
def test_a_problem_comes_back_equal(construct):
    problem = CONSTRUCTS[construct]()
    found = again(problem)
    assert found == problem
    assert hash(found) == hash(problem)
    assert repr(found) == repr(problem)
    assert list(found.constraints) == list(problem.constraints)


def test_the_constructs_above_have_every_node_that_users_can_write():
    roots = [root for make in CONSTRUCTS.values() for root in make().roots]
    found = {type(node).__name__ for node in n.postorder(*roots)}
    assert found == set(NODES) - MADE_BY_LOWERING


MADE_BY_LOWERING = {"Moment", "Codes", "Pinned"}


def test_declarations_are_rebuilt_without_symbols():
    problem = cn.minimize(cn.sum(w) * eps + cn.sum(k) + t).subject_to(a=w >= tensor, b=w <= array)
    found = again(problem, {})
    assert str(found) == str(problem)
    assert found != problem  # its variables are others
    by_name = {s.name: s for s in found.variables}
    assert by_name["t"].nonneg
    assert by_name["t"].bounds == (None, 2.0)
    assert by_name["k"].integer
    assert by_name["k"].bounds[0] == 0
    np.testing.assert_array_equal(by_name["k"].bounds[1], [[1, 2], [3, 4]])
    assert by_name["w"].shape == (3,)
    assert found.parameters[0].value == 0.05
    kinds = {type(x.symbol.value) for x in n.postorder(*found.roots) if isinstance(x, n.Array)}
    assert kinds == {torch.Tensor, np.ndarray}
    assert again(found, found.symbols()) == found


def test_a_rebuilt_problem_has_the_same_optimum():
    x = cn.Variable(2, "x", nonneg=True)
    cap = cn.Parameter("cap", 18.0)
    problem = cn.maximize(3 * x[0] + 5 * x[1]).subject_to(
        first=x[0] <= 4, second=2 * x[1] <= 12, third=x @ np.array([3.0, 2.0]) <= cap
    )
    solution = cn.from_json(problem.to_json()).solve(progress=False)
    assert float(solution.objective) == pytest.approx(36.0)
    assert float(solution["third"].multiplier) == pytest.approx(1.0)
    lower = cn.from_json(problem.to_json(), {"cap": 12.0}).solve(progress=False)
    assert float(lower.objective) == pytest.approx(30.0)


def test_modules_are_wrapped_and_other_data_can_be_bound():
    problem = cn.minimize(E(f(D.x) * D.y))
    net = nn.Sequential(nn.Linear(3, 1, dtype=torch.float64), nn.Flatten(0))
    other = cn.Data("test", x=numbers[:2], y=numbers[:2, 0])
    found = cn.from_json(problem.to_json(), {"f": net, "adult": other})
    assert found.models[0].module is net
    assert found.models[0].name == "f"
    assert found.populations == (other,)
    assert cn.from_json(problem.to_dict(), {"f": f, "adult": D}) == problem


def test_the_document_shares_what_is_shared_and_has_a_version():
    e = D.y
    for _ in range(200):
        e = e + e
    document = cn.minimize(E(e) * t).to_dict()
    assert document["version"] == VERSION
    assert len(document["nodes"]) == 204
    assert again(cn.minimize(E(e) * t)) == cn.minimize(E(e) * t)


def test_a_sum_of_ten_thousand_terms():
    total = sum([D.y * i for i in range(10_000)])
    problem = cn.minimize(E(total) * t)
    assert again(problem) == problem


def test_continuous_populations_are_rebuilt_from_their_declaration():
    problem = region_problem()
    found = again(problem, {"u": problem.models[0]})
    first, second = found.populations
    assert repr(first) == repr(problem.populations[0])
    assert second.law.weights.tolist() == pytest.approx([0.2, 0.3, 0.5])
    np.testing.assert_allclose(first.values("x"), problem.populations[0].values("x"))
    assert str(found) == str(problem)


def test_parameters_without_a_value_and_with_an_array():
    open_, many = cn.Parameter("open"), cn.Parameter("many", torch.ones(3))
    found = again(cn.minimize(cn.sum(w * many) * open_), {})
    by_name = {s.name: s for s in found.parameters}
    assert by_name["open"].value is None
    assert by_name["many"].value.tolist() == [1.0, 1.0, 1.0]


# ------------------------------------------------------------------------------------------- refusals
def refused(document, symbols=None):
    with pytest.raises(cn.ModelingError) as caught:
        cn.from_json(document, symbols)
    return str(caught.value)


def test_objects_that_only_the_user_has_are_asked_for_in_one_message():
    problem = cn.minimize(E(f(D.x) + mine(D.y)) + cn.sum(cn.Variable(5000, "many") * large))
    assert refused(problem.to_json()) == (
        "[E176] the document names objects that were not given: adult (data with x:(3,), y:(), q:(), c:(), "
        "sex:()), f (a model, was a Sequential), function_1 (a function), large (an array of shape (5000,))\n"
        '  write: cn.from_json(text, {"adult": ..., "f": ..., "function_1": ..., "large": ...})'
    )


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"adult": 3}, "the object given as 'adult' is a int, and a cn.Data is needed"),
        ({"adult": cn.Data("b", y=[1.0])}, "the object given as 'b' has no column 'x'"),
        (
            {"adult": cn.Data("b", x=[1.0], y=[1.0])},
            "the object given as 'adult' has 'x' of shape () per row, declared is (3,)",
        ),
        (
            {"f": cn.Model(f.module, "f", frozen=True)},
            "the object given as 'f' has frozen=True, declared is frozen=False",
        ),
        ({"t": 2.0}, "the object given as 't' is 2.0, and a Variable is needed"),
        ({"t": cn.Variable(3, "t")}, "the object given as 't' has shape (3,), declared is ()"),
        ({"eps": t}, "the object given as 'eps' is t, and a Parameter is needed"),
        ({"eps": [1.0, 2.0]}, "the object given as 'eps' has shape (2,), declared is ()"),
        ({"tensor": torch.ones(4)}, "the object given as 'tensor' has shape (4,), declared is (3,)"),
        ({"function_1": 3}, "the object given as 'function_1' is a int, and a function is needed"),
    ],
)
def test_objects_that_do_not_fit_their_declaration(given, why):
    problem = cn.minimize(E(f(D.x) * t + mine(D.y) * eps + D.x @ tensor))
    symbols = {**problem.symbols(), **given}
    assert refused(problem.to_json(), symbols) == f"[E178] {why}\n  write: the object of the first problem"


def test_a_model_that_is_no_module_is_refused_as_everywhere():
    assert "[E122] cn.Model wraps" in refused(cn.minimize(E(f(D.x))).to_json(), {"adult": D, "f": 3})


SMALL = cn.minimize(t).subject_to(a=t >= 1).to_dict()


def changed(**parts):
    return {**json.loads(json.dumps(SMALL)), **parts}


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ("{", "Expecting property name"),
        ("[1]", "its schema is not 'constrain.problem'"),
        ({"schema": "other"}, "its schema is not 'constrain.problem'"),
        (changed(version=2), "has version 2; this package reads 1"),
        ({"schema": "constrain.problem", "version": 1}, "it has no 'sense'"),
        (changed(sense="find"), "do not go together"),
        (changed(sense="improve"), "the sense 'improve'"),
        (changed(objective=9), "IndexError"),
        (changed(nodes=[{"node": "Tensor"}]), "a node of the unknown kind 'Tensor'"),
        (changed(nodes=[{"node": "Constant"}]), "TypeError"),
        (changed(nodes=[{"node": "Constant", "value": {"$import": "os"}}]), "the key '$import' is unknown"),
        (changed(nodes=[{"node": "Apply", "atom": "sine", "args": []}]), "no function 'sine'"),
        (changed(symbols={"t": {"kind": "tensor"}}), "E176"),
    ],
)
def test_damaged_documents(document, why):
    message = refused(document)
    assert message.startswith(("[E177]", "[E176]"))
    assert why in message


@pytest.mark.parametrize("path", ["os.system", "torch.load", "torch.hub.load", "torch.os.system", "torch.no"])
def test_a_document_runs_no_other_functions(path):
    entry = {"node": "Opaque", "path": path, "arguments": [], "keywords": []}
    assert "that expressions take" in refused(changed(nodes=[entry]))


@pytest.mark.parametrize("path", ["subprocess:Popen", "constrain._lazy:attribute", "os:path"])
def test_a_document_imports_no_other_records(path):
    entry = {"node": "Constant", "value": {"$object": path, "fields": {}}}
    assert "no record of this package" in refused(changed(nodes=[entry]))


@pytest.mark.parametrize("name", ["load", "nope", "nn"])
def test_a_document_reads_no_other_constants_of_torch(name):
    entry = {"node": "Constant", "value": {"$torch": name}}
    assert "torch has no constant" in refused(changed(nodes=[entry]))
