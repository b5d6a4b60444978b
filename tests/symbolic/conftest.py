"""The oracle of the symbolic side: autograd on the compiled program."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sympy")

import sympy as sp
import torch

from constrain.driver.setup import prepare
from constrain.language import nodes as n
from constrain.runtime.derivatives import pull
from constrain.symbolic.outputs import ModelOutput

SCALAR = {"Heaviside": lambda x, *_: float(x > 0)}
MODULES = [SCALAR, "scipy", "numpy"]


# ------------------------------------------------------------------------------------------ autograd's side
class Reference:
    """The Lagrangian of a program at a random point, by autograd on the compiled program."""

    def __init__(self, program, seed=0):
        setup = prepare(program, device=torch.device("cpu"), dtype=torch.float64)
        rng = np.random.default_rng(seed)
        decisions = setup.decisions
        low, high = decisions.bounds()
        low, high = np.maximum(low, -2.0), np.minimum(high, np.maximum(low, -2.0) + 4.0)
        start = np.where((low > -2) | (low == 0), low + (high - low) * rng.uniform(0.2, 0.8, low.shape), 0.0)
        start = np.where(start == 0.0, decisions.get() + 0.1 * rng.normal(size=low.shape), start)
        decisions.set(start)
        self.program, self.variables = program, decisions.variables
        self.modules = {m.name: m.module for m in program.models}
        self.multipliers = {}

        def multiplier(part, residual):
            if part.key not in self.multipliers:
                self.multipliers[part.key] = torch.as_tensor(rng.uniform(0.1, 1.0, tuple(residual.shape)))
            return self.multipliers[part.key]

        def lagrangian(outer):
            total = outer.objective
            for part, residual in zip(program.parts, outer.residuals, strict=True):
                if residual is not None:
                    total = total + (multiplier(part, residual) * residual).sum()
            return total

        def rows(i, residual, _index):
            return (multiplier(program.parts[i], residual) * residual).sum()

        setup.evaluator.chunk = 10**9  # one chunk: multipliers per row are made for all rows at once
        ((self.value, gradients),) = pull(setup.evaluator, [lagrangian], rows)
        self.gradients = {id(t): g.numpy() for t, g in zip(decisions.tensors, gradients, strict=True)}

    def gradient(self, symbol):
        return self.gradients[id(self.variables[symbol])]


def array(tensor):
    return tensor.detach().numpy()


def values_of(derivation, reference):
    """Every symbol's value: constants, decisions, multipliers; multipliers of bounds are zero."""
    found = dict(derivation.constants())
    for key, symbol in derivation.names.items:
        if isinstance(key, n.VariableSymbol):
            found[symbol] = array(reference.variables[key])
        elif isinstance(key, str):
            found[symbol] = array(reference.multipliers[key])
        elif isinstance(key, tuple) and isinstance(key[0], n.VariableSymbol):
            found[symbol] = np.zeros(key[0].shape)
        elif hasattr(key, "module"):
            found[symbol] = np.concatenate([array(p).reshape(-1) for p in key.module.parameters()])
    return found


def affine_in(derivation, expr):
    """The expression with the formula of linear models in the place of `f(x; theta)`."""
    models = {m.name: m.module for m in derivation.program.models}

    def formula(output):
        name, arguments, theta, component, orders = output.args
        layer = next(m for m in models[str(name)].modules() if isinstance(m, torch.nn.Linear))
        (row,), (base,) = arguments.args, theta.args
        (out,) = component.args or (sp.S.Zero,)
        size = layer.in_features
        terms = [(out * size + k, row.base[(*row.indices, k)]) for k in range(size)]
        terms += [(layer.out_features * size + out, sp.S.One)] if layer.bias is not None else []
        if not orders.args:
            return sp.Add(*(base[k] * x for k, x in terms))
        (entry,) = orders.args
        return sp.Add(*(sp.KroneckerDelta(entry.indices[0], k) * x for k, x in terms))

    return expr.replace(lambda e: isinstance(e, ModelOutput), formula)


def compiled(derivation, values, *free):
    def function(expr):
        found = affine_in(derivation, expr)
        if found.has(sp.floor):
            found = found.doit()  # NumPy's floor is a float, which is no index
        return sp.lambdify(
            [*values, *free], found, modules=[{"Heaviside": lambda x, *_: float(x > 0)}, "scipy", "numpy"]
        )

    return function


def residuals(derivation, values, reference):
    """(gradient by SymPy, gradient by autograd) of every decision."""
    pairs = []
    for symbol in derivation.program.variables:
        name = str(derivation.names.base(symbol, symbol.name, len(symbol.shape)))
        pairs.append((name, reference.gradient(symbol)))
    for model in derivation.program.models:
        tensors = [p for p in model.module.parameters() if id(p) in reference.gradients]
        flat = np.concatenate([reference.gradients[id(p)].reshape(-1) for p in tensors])
        pairs.append((f"theta_{model.name}", flat))
    for name, expected in pairs:
        for condition in derivation.stationarity:
            base, _, inside = condition.name.partition("[")
            if base != name:
                continue
            symbols = [symbol for symbol, _ in condition.ranges]
            function = compiled(derivation, values, *symbols)(condition.relation.lhs)
            place = [p.strip() for p in inside.rstrip("]").split(",")] if inside else []
            every = list(np.ndindex(tuple(size for _, size in condition.ranges)))
            for chosen in every[:: max(1, len(every) // 40)]:
                at = dict(zip(map(str, symbols), chosen, strict=True))
                index = tuple(at[p] if p in at else int(p) for p in place)
                yield condition.name, float(function(*values.values(), *chosen)), float(expected[index])


def _agrees(problem, seed=0, **options):
    derivation = problem.derive(**options)
    reference = Reference(derivation.program, seed)
    values = values_of(derivation, reference)
    lagrangian = compiled(derivation, values)(derivation.lagrangian)(*values.values())
    scale = max(1.0, abs(reference.value))
    assert float(lagrangian) == pytest.approx(reference.value, rel=1e-10, abs=1e-10 * scale)
    found = list(residuals(derivation, values, reference))
    written = sum(np.prod([s for _, s in c.ranges], dtype=int) for c in derivation.stationarity)
    assert written == sum(g.size for g in reference.gradients.values())
    largest = max(1.0, *(abs(b) for _, _, b in found))
    for name, ours, theirs in found:
        assert ours == pytest.approx(theirs, rel=1e-10, abs=1e-10 * largest), name


@pytest.fixture
def check_agrees():
    """Asserts that Lagrangian and gradient of `problem.derive(**options)` are those of autograd."""
    return _agrees
