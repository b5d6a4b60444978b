"""The pyomo package, untyped: its annotations are partial and strict checking would report every use."""

from typing import Any

import pyomo.contrib.fbbt.fbbt
import pyomo.core.expr.calculus.derivatives
import pyomo.core.expr.numeric_expr
import pyomo.core.expr.visitor
import pyomo.environ
import pyomo.repn

__all__ = ["derivatives", "expression_bounds", "expressions", "identify_variables", "pyo", "repn", "visitor"]

pyo: Any = pyomo.environ
expressions: Any = pyomo.core.expr.numeric_expr
derivatives: Any = pyomo.core.expr.calculus.derivatives
_fbbt: Any = pyomo.contrib.fbbt.fbbt
visitor: Any = pyomo.core.expr.visitor
repn: Any = pyomo.repn
expression_bounds = _fbbt.compute_bounds_on_expr
identify_variables = visitor.identify_variables
