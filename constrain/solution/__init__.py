"""What a solve returns: the record of a solution, and how it is stored.

The record knows nothing of torch. What needs the problem (KKT diagnostics at a point, evaluation on other
data, reports) is computed by `constrain.diagnostics`, which is reached through `constrain._lazy`.
"""

from constrain.solution.answer import Evaluation, Solution
from constrain.solution.constraint import ConstraintResult, PartResult
from constrain.solution.loading import load
from constrain.solution.paths import ParametricPath, ParetoFront
from constrain.solution.records import KKT, Estimate, Number, Provenance, Sensitivity, Status, Warn
from constrain.solution.summary import Summary, summarize

__all__ = [
    "KKT",
    "ConstraintResult",
    "Estimate",
    "Evaluation",
    "Number",
    "ParametricPath",
    "ParetoFront",
    "PartResult",
    "Provenance",
    "Sensitivity",
    "Solution",
    "Status",
    "Summary",
    "Warn",
    "load",
    "summarize",
]
