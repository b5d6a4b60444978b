"""What derive() writes is what the program computes, over the table of known problems."""

import numpy as np
import pytest
import sympy as sp

from constrain.symbolic.derivation import written_out
from constrain.testing import known_problem, known_problems

TABLE = [known for known in known_problems() if known.missing is None]


@pytest.mark.parametrize("known", TABLE, ids=lambda known: known.name)
def test_lagrangian_and_gradient_are_those_of_autograd(known, check_agrees):
    check_agrees(known.build())


@pytest.mark.parametrize("name", ["hs43", "hs71", "hydro", "pde-control-3", "tilt", "maxent"])
def test_numbers_in_the_place_of_data_change_nothing(name):
    """The system of `solve()`, entry by entry, against the Lagrangian with symbols."""
    derivation = known_problem(name).build().derive(written_out=0)
    system = written_out(derivation.program)
    entries = sorted(system.lagrangian.free_symbols, key=str)
    entries = [e for e in entries if not isinstance(e, sp.IndexedBase)]
    rng = np.random.default_rng(0)
    small = {e: rng.uniform(0.2, 0.8) for e in entries if isinstance(e, sp.Indexed) or e.is_Symbol}
    values = dict(derivation.constants())
    for symbol in derivation.symbols.values():
        own = [e for e in small if isinstance(e, sp.Indexed) and str(e.base) == str(symbol)]
        if symbol in values:
            continue
        if not own:
            values[symbol] = next((v for e, v in small.items() if str(e) == str(symbol)), 0.0)
            continue
        shape = np.max([[int(i) for i in e.indices] for e in own], axis=0) + 1
        values[symbol] = np.zeros(shape)
        for e in own:
            values[symbol][tuple(map(int, e.indices))] = small[e]
    whole = sp.lambdify(list(values), derivation.lagrangian, modules=["scipy", "numpy"])(*values.values())
    assert float(sp.N(system.lagrangian.xreplace(small))) == pytest.approx(float(whole), rel=1e-10)
