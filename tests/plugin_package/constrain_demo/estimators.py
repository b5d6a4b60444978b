"""An estimator of terms from a batch: the function of its means, less the bias to second order."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor


def second_order(
    phi: Callable[[Sequence[Tensor]], list[Tensor]], means: Sequence[Tensor], running: Sequence[Tensor]
) -> list[Tensor]:
    """Values of the terms from batch means and running averages.

    Writes phi(u + d) with d = m - u; the average of phi(u + d) and phi(u - d) is phi(u) + phi''(u) d^2 / 2 up
    to third order, whose second part is the bias of phi(m).
    """
    mirrored = [2 * u - m for u, m in zip(running, means, strict=True)]
    center, plain, other = phi(running), phi(means), phi(mirrored)
    return [p - ((p + o) / 2 - c) for c, p, o in zip(center, plain, other, strict=True)]
