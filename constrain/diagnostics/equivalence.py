"""Equality constraints tested for equivalence: is the value within a stated distance of the bound?

An interval that covers the bound of an equality proves nothing; the word is `compatible`. With a stated
distance the claim |value - bound| < distance can be tested: it is accepted (`holds`) when both one-sided
tests reject at the level, which is when the interval of twice the level lies within the distance.

Source: Schuirmann (1987), J. Pharmacokinetics and Biopharmaceutics 15: two one-sided tests (TOST); levels are
shared among all entries that are tested (Bonferroni).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from constrain.diagnostics.confidence import overall
from constrain.errors import ModelingError
from constrain.language.data import suggest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from constrain.solution.records import Estimate

__all__ = ["tested_for_equivalence"]


def tested_for_equivalence(
    estimates: Mapping[str, Estimate], within: Mapping[str, float]
) -> dict[str, Estimate]:
    """The estimates, with `holds` for the equalities that are shown to lie within these distances.

    Args:
        estimates: per constraint.
        within: distances by name of the equality, in its own units.

    Raises:
        ModelingError: E139 for a name that is no constraint on a statistic; E141 for a distance that is not
            positive.
    """
    for name, distance in within.items():
        if name not in estimates or estimates[name].share is not None:
            hint = suggest(name, estimates)
            raise ModelingError("E139", f"there is no constraint {name!r} to test for equivalence{hint}")
        if not distance > 0:
            raise ModelingError(
                "E141",
                f"within[{name!r}]={distance} is no positive distance",
                fix=f"within={{{name!r}: 0.01}}",
            )
    count = sum(max(1, len(estimates[name].verdicts)) for name in within)
    return {name: _tested(e, within[name], count) if name in within else e for name, e in estimates.items()}


def _tested(e: Estimate, distance: float, count: int) -> Estimate:
    if isinstance(e.bound, tuple):
        raise ModelingError(
            "E141", "a range needs no test of equivalence: its verdict is that of both of its bounds"
        )
    freedom = max(e.smallest - 1, 1)
    half = np.asarray(e.half_width, dtype=np.float64)
    error: NDArray[np.float64] = half / float(stats.t.ppf(0.5 + e.confidence / 2, freedom))
    needed = float(stats.t.ppf(1 - (1 - e.confidence) / count, freedom))
    apart = np.abs(np.asarray(e.value, dtype=np.float64) - np.asarray(e.bound, dtype=np.float64))
    inside = np.ravel(apart + needed * error < distance)
    words = tuple(
        "holds" if near and word in ("compatible", "violated") else word
        for word, near in zip(e.verdicts, inside.tolist(), strict=True)
    )
    return replace(e, verdicts=words, verdict=overall(words))
