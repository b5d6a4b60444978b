"""Calls with arguments that a function does not have: what was meant, and what the function takes."""

import inspect

import pytest
import torch

import constrain as cn
from constrain import E, P, forall
from constrain.errors import ModelingError

D = cn.Data("d", x=torch.zeros(10, 2), y=torch.arange(10) % 2)
s = D.x[..., 0]
CALLS = [
    (lambda: cn.Variable(3, integers=True), "Variable() has no argument 'integers'; did you mean 'integer'?"),
    (lambda: cn.Variable(3, "w", lb=0), "no argument 'lb'; it is called 'bounds'"),
    (lambda: cn.CVaR(s, alpha=0.9), "CVaR() has no argument 'alpha'; it is called 'level'"),
    (lambda: cn.CVaR(s), "CVaR() is missing 1 required positional argument: 'level'"),
    (lambda: cn.Quantile(s, q=0.5), "write: Quantile(expr, level, given=None, by=None)"),
    (lambda: E(s, group=D.y), "E() has no argument 'group'; it is called 'by'"),
    (lambda: P(s > 0, where=D.y == 1), "P() has no argument 'where'; it is called 'given'"),
    (lambda: cn.sum(s, dim=0), "sum() has no argument 'dim'; it is called 'axis'"),
    (lambda: cn.Parameter("a", 1.0, (), 3), "Parameter() is given more arguments than it takes"),
    (lambda: cn.Uniform("x", low=0), "it is called 'lower'"),
    (lambda: forall(D, relations=s <= 1), "did you mean 'relation'?"),
    (lambda: (E(s) <= 1).relax(price=2), "it is called 'cost'"),
    (lambda: cn.Data.from_loader("d", [], column=()), "did you mean 'columns'?"),
    (lambda: cn.Model(torch.nn.Linear(2, 1), freeze=True), "it is called 'frozen'"),
    (lambda: cn.minimize(E(s)).kkt(orders=2), "did you mean 'order'?"),
]


@pytest.mark.parametrize(("call", "words"), CALLS)
def test_a_wrong_argument_names_the_right_one(call, words):
    with pytest.raises(TypeError) as raised:
        call()
    assert isinstance(raised.value, ModelingError)
    assert raised.value.code == "E141"
    assert words in str(raised.value)
    assert raised.value.__cause__ is None


def public():
    """Every function and class of the language that takes no keywords of the user's own."""
    for name in sorted(cn.__all__):
        value = getattr(cn, name)
        errors = inspect.isclass(value) and issubclass(value, BaseException)
        if not callable(value) or errors or name in ("Solution", "Status", "Expr", "Constraint", "Problem"):
            continue
        kinds = [p.kind for p in inspect.signature(value).parameters.values()]
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            yield name


@pytest.mark.parametrize("name", list(public()))
def test_every_public_function_says_what_it_takes(name):
    value = getattr(cn, name)
    with pytest.raises(ModelingError, match=rf"{name}\(\) has no argument 'nonsense'.*\n  write: {name}\("):
        value(nonsense=1)


def test_what_a_function_raises_itself_stays():
    """A TypeError from within is no wrong call, and signatures are those of the functions."""
    with pytest.raises(ModelingError, match="E117"):
        cn.Variable("three")
    assert str(inspect.signature(cn.squared)) == "(weight: 'Any' = 1.0) -> 'Cost'"
    assert list(inspect.signature(cn.Variable).parameters)[:2] == ["shape", "name"]
