"""SciPy's trust-region method for constraints as a solver: smooth problems of a few hundred decisions."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import Bounds, NonlinearConstraint, minimize

from constrain.runtime.derivatives import linearize
from constrain.runtime.result import RawResult


@dataclass(frozen=True)
class TrustConstr:
    """Fields are the options of `problem.solve("trust-constr", ...)`."""

    tolerance: float = 1e-8
    barrier: float = 1e-7
    iterations: int = 3000

    name = "trust-constr"
    minibatch = False

    def solve(
        self,
        evaluator: Any,
        *,
        progress: Any,  # noqa: ARG002  # a bar, for methods that know how far they are
        multipliers: Any = None,  # noqa: ARG002  # to start from; this method has no place for them
        time_limit: float | None = None,
    ) -> RawResult:
        """Moves the decisions of the evaluator; returns how it ended, with multipliers by part."""
        began = time.perf_counter()
        decisions, parts = evaluator.decisions, evaluator.program.parts

        def at(x):
            decisions.set(x)
            return linearize(evaluator)

        def curvature(x, weights=None):
            """Second derivatives of the objective, or of a combination of residuals."""
            decisions.set(x)
            if weights is None:
                return evaluator.hessian(lambda outer: outer.objective).numpy()
            return evaluator.hessian(
                lambda outer: torch.cat([r.reshape(-1) for r in outer.residuals]) @ torch.as_tensor(weights)
            ).numpy()

        first = at(decisions.get())
        shapes = [tuple(r.shape) for r in evaluator.full("primal").residuals]  # no constraints per row here
        equal = np.repeat([p.kind == "==" for p in parts], [int(np.prod(s)) for s in shapes])
        low, high = decisions.bounds()
        rows = NonlinearConstraint(
            lambda x: at(x).residuals.numpy(),
            np.where(equal, 0.0, -np.inf),
            0.0,
            jac=lambda x: at(x).jacobian.numpy(),
            hess=curvature,
        )
        found = minimize(
            lambda x: float(at(x).objective),
            decisions.get(),
            jac=lambda x: at(x).gradient.numpy(),
            hess=curvature,
            method="trust-constr",
            bounds=Bounds(low, high, keep_feasible=False),
            constraints=[rows] if first.residuals.numel() else [],
            callback=lambda *_: time_limit is not None and time.perf_counter() - began > time_limit,
            options={
                "gtol": self.tolerance,
                "xtol": 1e-14,
                "initial_barrier_parameter": self.barrier,
                "maxiter": self.iterations,
            },
        )
        decisions.set(found.x)
        ends = np.cumsum([0, *(int(np.prod(s)) for s in shapes)])
        flat = found.v[0] if first.residuals.numel() else np.zeros(0)
        return RawResult(
            "converged" if found.status in (1, 2) else "limit",
            {p.key: flat[ends[k] : ends[k + 1]].reshape(shapes[k]) for k, p in enumerate(parts)},
            "SciPy trust-constr",
            seconds=time.perf_counter() - began,
            iterations=int(found.nit),
            message=found.message,
        )
