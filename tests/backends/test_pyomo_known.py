"""Every known problem that Pyomo accepts, and the refusals of the others."""

import pytest

from constrain.testing import Tolerance, check, known_problems

pytest.importorskip("pyomo_pounce")

EXACT = Tolerance(value=1e-5, multiplier=1e-3, primal=1e-3)
"""Nonlinear solvers stop at KKT residuals of 1e-10, of which degenerate problems make more."""

NEAR = Tolerance(value=1e-3, multiplier=1e-3, primal=1e-3)
"""Next to an optimum without multipliers."""

ELSEWHERE = ("hs44", "hs57", "hs108")
"""Problems with several local optima, of which an interior point finds another one."""


@pytest.mark.parametrize("known", known_problems(), ids=lambda known: known.name)
def test_known_optimum_by_pyomo(known):
    if known.missing:
        pytest.skip(reason=known.missing)
    route = next(r for r in known.build().explain().routes if r.method == "pyomo")
    if not route.open:
        assert route.reason
        return
    if known.name in ELSEWHERE:
        solution = known.build().solve("pyomo", progress=False)
        assert solution.status.value == "stationary"
        return
    findings = check(known, "pyomo", expected=NEAR if known.outcome == "unqualified" else EXACT)
    assert not findings, "\n".join(map(str, findings))
