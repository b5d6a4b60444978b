"""Every atom has a form or a written refusal in every backend; Pyomo's forms equal the torch functions."""

import math

import numpy as np
import pytest
import torch

import constrain as cn
from constrain import E

pytest.importorskip("pyomo")

from constrain.backends.cvxpy.atoms import LOWERINGS as CVXPY
from constrain.backends.pyomo.atoms import LOWERINGS as PYOMO
from constrain.backends.pyomo.expressions import Lowerer
from constrain.backends.pyomo.package import pyo
from constrain.backends.pyomo.term import expression_of
from constrain.language import nodes as n
from constrain.language.atoms import ATOMS
from constrain.lowering.lower import lower
from constrain.runtime import rowwise
from constrain.runtime.constants import Constants
from constrain.symbolic.functions import ELEMENTWISE, STRUCTURAL

from .test_cvxpy_atoms import CASES as OF_CVXPY
from .test_cvxpy_atoms import D, c, eps, m, part, point_of, rows, w

AUXILIARY = {"abs", "l1_loss", "relu", "maximum", "minimum", "max", "min", "max_levels", "min_levels"}
"""Functions with kinks: a variable is pushed onto the value (tests/backends/test_pyomo.py)."""
AUXILIARY_ORDERS = {*AUXILIARY, "norm", "norm_levels"}
OWN = {
    "sigmoid": [lambda: torch.sigmoid(w), lambda: torch.sigmoid(rows)],
    "tanh": [lambda: torch.tanh(part)],
    "sin": [lambda: torch.sin(w)],
    "cos": [lambda: torch.cos(rows)],
    "silu": [lambda: torch.nn.functional.silu(w)],
    "softmax": [lambda: torch.softmax(m, -2), lambda: torch.softmax(c(D.x), -1)],
    "entropy_logits": [lambda: cn.entropy(logits=c(D.x)), lambda: cn.entropy(logits=m)],
    "kl_logits": [lambda: cn.kl(rows, w), lambda: cn.kl(w, rows)],
}
CASES = {**{atom: cases for atom, cases in OF_CVXPY.items() if atom in PYOMO}, **OWN}
BACKENDS = {"cvxpy": set(CVXPY), "pyomo": set(PYOMO), "sympy": set(ELEMENTWISE) | set(STRUCTURAL)}


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_atom_has_one_form_or_one_refusal(backend):
    names = {name for name, atom in ATOMS.items() if atom.declared is None}
    refused = {name for name in names if backend in ATOMS[name].refusals}
    assert BACKENDS[backend] | refused == names
    assert not BACKENDS[backend] & refused


def test_every_atom_has_a_torch_function():
    for name, atom in ATOMS.items():
        if atom.declared is None:
            home, _, function = atom.torch.rpartition(".")
            place = rowwise if home == "rowwise" else torch.nn.functional if "functional" in home else torch
            assert hasattr(place, function), name


def test_every_form_is_tested_here_or_by_its_optimum():
    assert set(CASES) | {"count_nonzero"} == set(PYOMO)


@pytest.mark.parametrize(
    ("atom", "place"),
    [(atom, i) for atom, cases in CASES.items() if atom not in AUXILIARY for i in range(len(cases))],
)
def test_a_form_equals_torch(atom, place):
    """At a random point; norms with kinks are left to the optimum of a problem."""
    expression = CASES[atom][place]()
    total = cn.sum(expression) if expression.type.levels is None else cn.sum(cn.sum(expression))
    program = lower(cn.minimize(E(total) if expression.type.random else total))
    point = point_of(np.random.default_rng(place))
    point |= {x: np.linspace(-1.0, 1.0, math.prod(x.shape)).reshape(x.shape) for x in program.auxiliary}
    lowerer = Lowerer(program, {}, {eps.symbol: 0.3}, pyo.ConcreteModel())
    node = program.moments[0].integrand.args[0] if expression.type.random else program.objective.args[0]
    if isinstance(node, n.Apply) and node.option("ord") == 3.0:
        with pytest.raises(cn.RouteError, match="no form of a norm of order 3"):
            lowerer.expression(node)
        return
    found = lowerer.expression(node)
    if lowerer.pieces.terms:  # a variable, whose value a solver finds
        assert any(isinstance(x, n.Apply) and x.atom in AUXILIARY_ORDERS for x in n.postorder(node)), atom
        return
    for symbol, terms in lowerer.variables.items():
        for term, value in zip(terms.reshape(-1), np.reshape(point[symbol], -1), strict=True):
            lowerer.space.variables[term.single].set_value(value, skip_validation=True)
    by_torch = Constants({}, {eps.symbol: 0.3}, point).array(node)
    by_pyomo = np.array([pyo.value(expression_of(x)) for x in found.reshape(-1)]).reshape(found.shape)
    assert by_pyomo.shape == by_torch.shape
    np.testing.assert_allclose(by_pyomo, by_torch, rtol=1e-9, atol=1e-10)
