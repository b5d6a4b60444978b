"""Torch functions that rearrange or add entries, written with products and sums of the table.

`torch.cat`, `diff`, `cumsum`, `diag`, `diagonal`, `outer` and `flatten` are linear in the entries of
variables, so that every backend takes them. Rows of data but for `diff`, and large arrays, stay with torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from constrain._lazy import loaded
from constrain.language.data import as_list
from constrain.language.expr import Expr, apply, as_expr
from constrain.language.torch_rules import NotInTable, Rule, axes_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["LINEAR"]

LARGEST = 3000
"""Longest axis that is written with a dense matrix of zeros and ones."""


def _own(value: Any, *ranks: int) -> Expr:
    """An expression without rows or levels, of a known shape with one of these numbers of axes."""
    e: Expr = as_expr(value)
    if e.type.lead or e.shape is None or len(e.shape) not in ranks or max(e.shape, default=1) > LARGEST:
        raise NotInTable
    return e


def _shape(e: Expr) -> tuple[int, ...]:
    assert e.shape is not None  # `_own` looked
    return e.shape


def _eye(size: int) -> Any:
    torch = loaded("torch")
    assert torch is not None  # its function was called
    return torch.eye(size, dtype=torch.float64)


def _diff(
    input: Any,  # torch's name
    n: int = 1,
    dim: int = -1,
    prepend: Any = None,
    append: Any = None,
) -> Expr:
    e: Expr = as_expr(input)
    axis = axes_of(e, dim, "diff")
    if prepend is not None or append is not None or e.shape is None or axis is None or n < 1:
        raise NotInTable
    rest = (slice(None),) * (-1 - axis[0])
    for _ in range(n):
        e = e[(..., slice(1, None), *rest)] - e[(..., slice(None, -1), *rest)]
    return e


def _cumsum(input: Any, dim: int, *, dtype: Any = None) -> Expr:
    e = _own(input, 1, 2)
    axis = axes_of(e, dim, "cumsum")
    if dtype is not None or axis is None:
        raise NotInTable
    before = _eye(_shape(e)[axis[0]]).cumsum(0)  # ones on and below the diagonal
    return apply("matmul", e, before.T) if axis[0] == -1 else apply("matmul", before, e)


def _flatten(input: Any, start_dim: int = 0, end_dim: int = -1) -> Expr:
    e = _own(input, 1, 2, 3, 4)
    if start_dim != 0 or end_dim not in (-1, len(_shape(e)) - 1):
        raise NotInTable
    return e.reshape(-1)


def _outer(input: Any, vec2: Any) -> Expr:
    a, b = _own(input, 1), _own(vec2, 1)
    return a[:, None] * b[None, :]


def _diagonal(input: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Expr:
    e = _own(input, 2)
    rows, columns = _shape(e)
    if offset != 0 or rows != columns or {dim1 % 2, dim2 % 2} != {0, 1}:
        raise NotInTable
    return apply("sum", e * _eye(rows), axis=(-1,), keepdims=False)


def _diag(input: Any, diagonal: int = 0) -> Expr:
    e = _own(input, 1, 2)
    if len(_shape(e)) == 2:
        return _diagonal(e, diagonal)
    if diagonal != 0:
        raise NotInTable
    return e[:, None] * _eye(_shape(e)[0])


def _cat(tensors: Any, dim: int = 0) -> Expr:
    parts = [_own(part, 1, 2) for part in as_list(tensors)]
    rank = len(_shape(parts[0])) if parts else 0
    if not parts or any(len(_shape(part)) != rank for part in parts) or not -rank <= dim < rank:
        raise NotInTable
    axis = dim % rank
    sizes = [_shape(part)[axis] for part in parts]
    if sum(sizes) > LARGEST:
        raise NotInTable
    return _placed(parts, sizes, columns=axis == 1)


def _placed(parts: Sequence[Expr], sizes: Sequence[int], *, columns: bool) -> Expr:
    """Each part times columns of an identity, which put its entries in their place; added up."""
    places = _eye(sum(sizes)).split(list(sizes), dim=1)
    found: Expr | None = None
    for part, place in zip(parts, places, strict=True):
        own = apply("matmul", part, place.T) if columns else apply("matmul", place, part)
        found = own if found is None else found + own
    assert found is not None  # there is a part
    return found


def _hstack(tensors: Any) -> Expr:
    parts = as_list(tensors)
    first: Expr = as_expr(parts[0])
    return _cat(parts, 0 if len(first.shape or ()) == 1 else 1)


def _vstack(tensors: Any) -> Expr:
    parts = [_own(part, 1, 2) for part in as_list(tensors)]
    return _cat([part[None, :] if len(_shape(part)) == 1 else part for part in parts], 0)


LINEAR: dict[str, Rule] = {
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    "hstack": _hstack,
    **dict.fromkeys(("vstack", "row_stack"), _vstack),
    "diff": _diff,
    "cumsum": _cumsum,
    **dict.fromkeys(("flatten", "ravel"), _flatten),
    **dict.fromkeys(("outer", "ger"), _outer),
    "diagonal": _diagonal,
    "diag": _diag,
}
"""Rules by the name of the torch function, as in `torch_rules.RULES`."""
