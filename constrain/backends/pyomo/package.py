"""The pyomo package, untyped: its annotations are partial and strict checking would report every use."""

from typing import Any

import pyomo.contrib.fbbt.fbbt
import pyomo.core.expr.calculus.derivatives
import pyomo.core.expr.numeric_expr
import pyomo.core.expr.visitor
import pyomo.environ

__all__ = ["derivatives", "expression_bounds", "expressions", "identify_variables", "pyo"]

pyo: Any = pyomo.environ
expressions: Any = pyomo.core.expr.numeric_expr
derivatives: Any = pyomo.core.expr.calculus.derivatives
_fbbt: Any = pyomo.contrib.fbbt.fbbt
_visitor: Any = pyomo.core.expr.visitor
expression_bounds = _fbbt.compute_bounds_on_expr
identify_variables = _visitor.identify_variables
