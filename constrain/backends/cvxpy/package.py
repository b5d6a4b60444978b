"""The cvxpy package, untyped: its annotations are partial and strict checking would report every use."""

from typing import Any

import cvxpy

__all__ = ["cp"]

cp: Any = cvxpy
