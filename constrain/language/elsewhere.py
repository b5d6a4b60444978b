"""What functions of CVXPY, NumPy and torch are called here, for those who look for them in `constrain`."""

from __future__ import annotations

__all__ = ["written_here"]

_WRITTEN = {
    "Minimize": "cn.minimize(cost).subject_to(name=...)",
    "Maximize": "cn.maximize(gain).subject_to(name=...)",
    "Constant": "cn.constant(array)",
    "multiply": "a * b",
    "matmul": "a @ b",
    "dot": "a @ b",
    "power": "x ** p",
    "norm1": "cn.norm(x, 1)",
    "norm2": "cn.norm(x)",
    "norm_inf": "cn.norm(x, float('inf'))",
    "normNuc": "cn.nuclear_norm(X)",
    "sigma_max": "cn.spectral_norm(X)",
    "log_sum_exp": "cn.logsumexp(x)",
    "logistic": "cn.softplus(x)",
    "pos": "cn.relu(x)",
    "neg": "cn.relu(-x)",
    "inv_pos": "1 / x",
    "huber": '2 * torch.nn.functional.huber_loss(x, 0 * x, reduction="none", delta=M)',
    "tv": "cn.sum(abs(torch.diff(x)))",
    "hstack": "torch.hstack([x, y])",
    "vstack": "torch.vstack([x, y]), or cn.stack(x, y) for a new axis",
    "bmat": "torch.vstack of torch.hstack",
    "vec": "x.reshape(-1)",
    "reshape": "x.reshape(2, 3)",
    "transpose": "x.T",
    "std": "cn.sqrt(cn.Var(e)) over rows of data",
    "var": "cn.Var(e) over rows of data",
    "quantile": "cn.Quantile(e, level) over rows of data",
}
_TORCH = frozenset(
    (
        *("sin", "cos", "tan", "tanh", "sinh", "cosh", "arctan", "atan", "asin", "acos", "erf", "log1p"),
        *("diag", "diagonal", "cumsum", "cat", "concatenate", "outer", "kron", "prod", "sign"),
        *("round", "clamp", "clip", "softmax", "log_softmax", "flatten", "einsum", "log2", "log10", "exp2"),
        *("expm1", "floor", "det"),
    )
)


def written_here(name: str) -> str:
    """`; write a * b`, or nothing where the name means nothing known."""
    if name in _WRITTEN:
        return f"; write {_WRITTEN[name]}"
    if name in _TORCH:
        return f"; write torch.{name}(x): torch functions of expressions are recorded"
    return ""
