"""A declarative modeling language for constrained learning.

`import constrain as cn; from constrain import E, P, forall`. Importing it loads no torch, NumPy or solver.
"""

from constrain.errors import ConstrainError, DataError, ModelingError, NoDualsError, RouteError
from constrain.language.data import Data
from constrain.language.expr import Constraint, Expr
from constrain.language.functions import (
    abs,
    constant,
    count_nonzero,
    entr,
    exp,
    kl_div,
    log,
    logsumexp,
    max,
    maximum,
    mean,
    min,
    minimum,
    norm,
    quad_form,
    rel_entr,
    relu,
    sigmoid,
    softplus,
    sqrt,
    square,
    stack,
    sum,
    sum_squares,
    trace,
    where,
)
from constrain.language.problem import Problem, find, maximize, minimize
from constrain.language.statistics import E, P, between, forall, indicator
from constrain.language.symbols import Model, Parameter, Variable

__version__ = "0.1.0"
