"""The function log cosh, a smooth relative of the absolute value."""

from __future__ import annotations

import math

import torch

import constrain as cn


def log_cosh(x: torch.Tensor) -> torch.Tensor:
    """`log(cosh(x))`, without overflow: the exponential of a large number is never formed."""
    return torch.logaddexp(x, -x) - math.log(2.0)


def cone(x):
    """The same as a sum of exponential cones: log(e^x + e^-x) = x + log(1 + e^(-2x))."""
    import cvxpy as cp  # noqa: PLC0415  # for those who solve with cvxpy

    return x + cp.logistic(-2.0 * x) - math.log(2.0)


demo_log_cosh = cn.op(
    "demo_log_cosh",
    torch=log_cosh,
    shape="()->()",
    curvature="convex",
    monotone="by-sign",
    sign="nonneg",
    smooth=True,
    cvxpy=cone,
    latex=r"\log\cosh",
)
