"""Problems whose optimum is known, and the conformance checks that every solver and backend has to pass."""

from constrain.testing.conformance import Finding, check, compare, refusal
from constrain.testing.known import CONVEX, EXACT, FULL_DATA, NO_DATA, KnownProblem, Tolerance
from constrain.testing.learning import adult_convex
from constrain.testing.table import known_problem, known_problems

__all__ = [
    "CONVEX",
    "EXACT",
    "FULL_DATA",
    "NO_DATA",
    "Finding",
    "KnownProblem",
    "Tolerance",
    "adult_convex",
    "check",
    "compare",
    "known_problem",
    "known_problems",
    "refusal",
]
