"""What full-data methods write into the history of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SHOWN_ENTRIES", "entries_of"]

SHOWN_ENTRIES = 16
"""Entries of a part up to which each one is recorded."""


def entries_of(key: str, residual: NDArray[Any], multiplier: NDArray[Any]) -> dict[str, float]:
    """`residual:KEY` and `multiplier:KEY` of a small part; with several entries `[i]` follows the key.

    Args:
        key: of the part, such as `parity:upper`.
        residual: of the program as written.
        multiplier: of the same number of entries.
    """
    numbers, prices = np.ravel(residual), np.ravel(multiplier)
    if not 0 < prices.size <= SHOWN_ENTRIES:
        return {}
    names = [key] if prices.size == 1 else [f"{key}[{i}]" for i in range(prices.size)]
    found: dict[str, float] = {}
    for name, number, price in zip(names, numbers.tolist(), prices.tolist(), strict=True):
        found |= {f"residual:{name}": number, f"multiplier:{name}": price}
    return found
