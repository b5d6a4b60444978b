"""A declarative modeling language for constrained learning.

`import constrain as cn; from constrain import E, P, forall`. Importing it loads no torch, NumPy or solver.
"""

from typing import TYPE_CHECKING

from constrain._lazy import attribute
from constrain.errors import (
    ConstrainError,
    DataError,
    ModelingError,
    ModelingWarning,
    NoDualsError,
    RouteError,
)
from constrain.language import distributions
from constrain.language import surrogates as surrogate
from constrain.language.calculus import diff, div, grad, hessian, jacobian, laplacian, weak
from constrain.language.data import Data, suggest
from constrain.language.distributions import entropy, kl
from constrain.language.elsewhere import written_here
from constrain.language.expr import Constraint, Expr
from constrain.language.functions import (
    abs,
    constant,
    count_nonzero,
    entr,
    exp,
    kl_div,
    lambda_max,
    lambda_min,
    log,
    log_det,
    logsumexp,
    max,
    maximum,
    mean,
    min,
    minimum,
    norm,
    nuclear_norm,
    quad_form,
    rel_entr,
    relu,
    sigmoid,
    softplus,
    spectral_norm,
    sqrt,
    square,
    stack,
    sum,
    sum_squares,
    trace,
    where,
)
from constrain.language.inner import argmin, fixed_point, layer, value
from constrain.language.ops import op
from constrain.language.problem import Problem, find, from_json, maximize, minimize
from constrain.language.regions import Box, Grid, Normal, Uniform
from constrain.language.relations import linear, squared
from constrain.language.statistics import E, P, between, forall, indicator
from constrain.language.summaries import Corr, Cov, CVaR, Quantile, Var
from constrain.language.symbols import Model, Parameter, Variable

if TYPE_CHECKING:
    from constrain.driver.imports import from_cvxpy, from_pyomo, from_sympy
    from constrain.solution import Solution, Status, load

__version__ = "0.1.0"

__all__ = [
    "Box",
    "CVaR",
    "ConstrainError",
    "Constraint",
    "Corr",
    "Cov",
    "Data",
    "DataError",
    "E",
    "Expr",
    "Grid",
    "Model",
    "ModelingError",
    "ModelingWarning",
    "NoDualsError",
    "Normal",
    "P",
    "Parameter",
    "Problem",
    "Quantile",
    "RouteError",
    "Solution",
    "Status",
    "Uniform",
    "Var",
    "Variable",
    "__version__",
    "abs",
    "argmin",
    "between",
    "constant",
    "count_nonzero",
    "diff",
    "distributions",
    "div",
    "entr",
    "entropy",
    "exp",
    "find",
    "fixed_point",
    "forall",
    "from_cvxpy",
    "from_json",
    "from_pyomo",
    "from_sympy",
    "grad",
    "hessian",
    "indicator",
    "jacobian",
    "kl",
    "kl_div",
    "lambda_max",
    "lambda_min",
    "laplacian",
    "layer",
    "linear",
    "load",
    "log",
    "log_det",
    "logsumexp",
    "max",
    "maximize",
    "maximum",
    "mean",
    "min",
    "minimize",
    "minimum",
    "norm",
    "nuclear_norm",
    "op",
    "quad_form",
    "rel_entr",
    "relu",
    "sigmoid",
    "softplus",
    "spectral_norm",
    "sqrt",
    "square",
    "squared",
    "stack",
    "sum",
    "sum_squares",
    "surrogate",
    "trace",
    "value",
    "weak",
    "where",
]


def __getattr__(name: str) -> object:
    """What needs NumPy or torch is imported when it is asked for: solutions, and the ways in."""
    if name in ("load", "Solution", "Status"):
        return attribute(f"constrain.solution:{name}")
    if name in ("from_cvxpy", "from_pyomo", "from_sympy"):
        return attribute(f"constrain.driver.imports:{name}")
    close = written_here(name) or suggest(name, __all__) or suggest(name.lower(), __all__)
    raise AttributeError(f"module 'constrain' has no attribute {name!r}{close}")
