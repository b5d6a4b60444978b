"""What is asked of one solve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from constrain.errors import ModelingError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from constrain.language.data import Data
    from constrain.solution import Solution
    from constrain.solvers.checkpoint import Checkpoint
    from constrain.solvers.progress import Round

__all__ = ["Request", "multipliers_of"]


@dataclass(frozen=True)
class Request:
    """What is asked of one solve, whatever the method.

    Attributes:
        data: replaces the samples of the problem (columns by name); one sample, or a mapping by name.
        holdout: data on which every constraint is judged as well, with intervals.
        params: values of parameters by name, for this solve.
        seed: of everything random; the same seed gives the same run.
        time_limit: in seconds.
        tolerance: of the judgment (scaled violation, stationarity, gap); None for the method's own. Methods
            on the full data stop at a hundredth of it.
        device: where to run; models are moved there. None for where the models are.
        progress: show a progress bar on standard error.
        polish: after minibatch training, continue on the full data with the multipliers that it found: the
            last layers and variables exactly where the problem is convex in them (CVXPY), then all decisions
            by Newton's method where that can take the problem; full-data methods need none.
        checkpoint: file in which the run is stored, and how often.
        resume: the checkpoint to continue from.
        callbacks: are called after every round of a method that has rounds; the run stops when one returns
            True.
    """

    data: Data | Mapping[str, Data] | None
    holdout: Data | Mapping[str, Data] | None
    params: Mapping[str, Any] | None
    seed: int
    time_limit: float | None
    tolerance: float | None
    device: Any
    progress: bool
    polish: bool = False
    checkpoint: Checkpoint | None = None
    resume: Path | None = None
    callbacks: tuple[Callable[[Round], Any], ...] = ()


def multipliers_of(start: Solution | Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The multipliers of a start, by part key (E141 for something else)."""
    found: Any = getattr(start, "multipliers", start)
    if found is not None and not hasattr(found, "keys"):
        raise ModelingError("E141", "start= takes a Solution or multipliers by part key")
    return cast("Mapping[str, Any] | None", found)
