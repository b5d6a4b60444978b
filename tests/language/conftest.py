"""A population, its symbols, and an evaluator of recorded expressions that is independent of the compiler."""

from __future__ import annotations

import operator
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import constrain as cn
from constrain.language import nodes as n
from constrain.language.atoms import ATOMS
from constrain.language.types import type_of
from constrain.runtime import rowwise

INFIX = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "pow": operator.pow,
}
COMPARE = {
    **{"<=": operator.le, ">=": operator.ge, "<": operator.lt},
    **{">": operator.gt, "==": operator.eq, "!=": operator.ne},
}


def _function(path):
    found = {"torch": torch, "rowwise": rowwise}[path.split(".")[0]]
    for part in path.split(".")[1:]:
        found = getattr(found, part)
    return found


def _tensor(value):
    return value if isinstance(value, torch.Tensor) else torch.as_tensor(value, dtype=torch.float64)


def _apply(node, values):
    if node.atom in INFIX:
        return INFIX[node.atom](*values)
    path = ATOMS[node.atom].torch
    options = dict(node.options)
    if path.startswith("rowwise."):
        options["lead"] = tuple(type_of(a).lead for a in node.args)
    return _function(path)(*map(_tensor, values), **options)


def _value(node, values, variables):
    match node:
        case n.Constant(value=value):
            return value
        case n.Array(symbol=symbol):
            return torch.as_tensor(symbol.value)
        case n.Column(data=data, name=name):
            return torch.as_tensor(data.values(name))
        case n.Decision(symbol=symbol) | n.Knob(symbol=symbol):
            return variables[symbol.name]
        case n.Call(model=model):
            return model.module(*values)
        case n.Apply():
            return _apply(node, values)
        case n.Opaque(function=function, arguments=arguments, keywords=keywords):
            given = iter(values)
            args = [next(given) if isinstance(a, n.Node) else a for a in arguments]
            named = {k: next(given) if isinstance(v, n.Node) else v for k, v in keywords}
            return function(*args, **named)
        case n.Comparison(op=op):
            return COMPARE[op](*values)
        case n.Logic(op="not"):
            return ~values[0]
        case n.Logic(op=op):
            return values[0] & values[1] if op == "and" else values[0] | values[1]
        case _:
            raise AssertionError(type(node))


@pytest.fixture
def evaluate():
    """The value of a recorded expression on the columns of its data, with the rows first."""

    def run(expr, **variables):
        return n.fold(expr.node, lambda node, values: _value(node, values, variables))

    return run


@pytest.fixture
def space():
    """Names of a small problem in float64: a population `D`, variables, a parameter, models and arrays."""
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64) + 0.5

    D = cn.Data(
        "adult",
        x=numbers(5, 3),
        z=numbers(5, 3),
        y=numbers(5),
        q=numbers(5),
        m=numbers(5, 3, 3),
        label=torch.tensor([0, 1, 2, 1, 0]),
        sex=["F", "M", "F", "M", "F"],
    )
    f = cn.Model(nn.Sequential(nn.Linear(3, 1, dtype=torch.float64), nn.Flatten(0)), "f")
    g = cn.Model(nn.Linear(3, 1, dtype=torch.float64), "g")
    return SimpleNamespace(
        D=D,
        f=f,
        g=g,
        w=cn.Variable(3, "w"),
        t=cn.Variable((), "t"),
        M=cn.Variable((3, 3), "M"),
        eps=cn.Parameter("eps", 0.1),
        v=numbers(3),
        A=numbers(3, 3),
        V=numbers(3).numpy(),
    )
