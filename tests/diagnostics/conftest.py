"""A problem, compiled and placed at a point, without any solver."""

import numpy as np
import pytest
import torch

from constrain.diagnostics.judge import Facts, build_solution
from constrain.diagnostics.kkt import kkt
from constrain.lowering.lower import lower
from constrain.runtime.decisions import Decisions
from constrain.runtime.evaluator import Evaluator
from constrain.runtime.result import RawResult


class Placed:
    """A problem at the values that its variables and models have now."""

    def __init__(self, problem, dtype=torch.float64, chunk=37):
        self.program = lower(problem)
        self.decisions = Decisions(self.program, torch.device("cpu"), dtype)
        self.evaluator = Evaluator(self.program, self.decisions, dtype=dtype, chunk=chunk)

    def kkt(self, multipliers=None, tolerance=1e-6, **options):
        return kkt(self.evaluator, multipliers, tolerance, **options)

    def on(self, **data):
        return Evaluator(
            self.program, self.decisions, dtype=torch.float64, data=data, reference=self.evaluator, chunk=37
        )

    def solution(
        self,
        multipliers="fit",
        ending="converged",
        convex=False,
        holdout=None,
        bound=None,
        rows=None,
        **options,
    ):
        if multipliers == "fit":
            multipliers = self.kkt().fit
        raw = RawResult(ending, multipliers, "a test", message="made by hand", bound=bound)
        raw.history.extend(rows or ({"step": i, "objective": 1.0 / (i + 1)} for i in range(3)))
        facts = Facts(convex, "nonlinear", "placed by hand")
        return build_solution(
            self.program, self.evaluator, self.decisions, raw, facts=facts, holdout=holdout, seed=0, **options
        )


@pytest.fixture
def place():
    return Placed


@pytest.fixture
def rng():
    return np.random.default_rng(0)
