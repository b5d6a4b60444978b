"""Mixtures of iterates: a decision drawn at random from a few of them, with weights of a linear program.

Where a problem is not convex, drawing one of several decisions can hold every constraint on average at a
better objective than any single one that holds them (Cotter, Gupta, Jiang, Srebro, Sridharan, Wang, Woodworth
and You, "Training well-generalizing classifiers for fairness metrics and other data-dependent constraints",
ICML 2019; "shrinking" in Cotter, Jiang and Sridharan, "Two-player games for efficient non-convex constrained
optimization", ALT 2019). Averages over rows mix: those of the mixture are the weighted means of those of its
members. So where objective and constraints are affine in averages, the best weights are a linear program, and
a vertex of it has at most one member more than there are constraints.

`Candidates` keeps iterates of a run within a bound on memory; `best_weights` is the linear program.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from scipy.optimize import linprog  # pyright: ignore[reportUnknownVariableType]

from constrain.language import nodes as n
from constrain.lowering.degree import degree
from constrain.lowering.lower import EPIGRAPH

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from constrain.lowering.program import Program
    from constrain.runtime.decisions import Decisions

__all__ = ["Candidate", "Candidates", "Mixing", "best_weights", "not_mixed"]

Floats: TypeAlias = "NDArray[np.float64]"

MOST, BYTES = 64, 32_000_000
"""Most iterates that are kept, and most memory for them."""
LEAST = 4
"""Iterates that have to fit into the memory for any to be kept."""
ENTRIES = 5_000
"""Most entries of constraints."""
NOTHING = 1e-9
"""Weights below this are none."""


def not_mixed(program: Program) -> str:
    """Why a mixture of decisions is no solution of a linear program; empty where it is.

    A statistic that is not affine in averages, such as a variance, a quotient or a tail, is not the weighted
    mean of those of the members.
    """
    per_row = next((part.constraint for part in program.judged.parts if part.rows is not None), None)
    if per_row is not None:
        return f"{per_row} holds for every row, and a draw would have to satisfy it with each member"
    named = {"the objective": program.objective} | {part.constraint: part.residual for part in program.parts}
    bent = [target for tail in program.tails for target in tail.targets]
    bent += [name for name, root in named.items() if degree(root) not in (0, 1)]
    if bent:
        return f"{bent[0]} is not affine in averages: of a mixture it is not the mean of those of its members"
    hidden = [symbol.name for symbol in program.auxiliary if symbol.name != EPIGRAPH]
    if hidden:
        return f"{hidden[0]} is a decision of the compiler for one decision"
    if _worst(program) and not isinstance(program.objective, n.Decision):
        return "the objective is more than a largest value"
    return ""


def _worst(program: Program) -> bool:
    """Whether a largest value is minimized, by a bound on all of them."""
    return any(symbol.name == EPIGRAPH for symbol in program.auxiliary)


# -------------------------------------------------------------------------------------------- candidates
@dataclass(frozen=True)
class Candidate:
    """An iterate with its exact values on all rows.

    Attributes:
        epoch: after which it was judged.
        objective: of the program, which minimizes.
        residuals: of all parts, one after the other, flat.
        state: a snapshot of the decisions.
    """

    epoch: int
    objective: float
    residuals: Floats
    state: dict[str, Tensor]


@dataclass(frozen=True)
class Mixing:
    """What the linear program has to know about residuals.

    Attributes:
        equal: (m,) whether an entry is that of an equality.
        room: (m,) violations up to this are none.
        worst: (m,) whether an entry bounds the largest value that is minimized.
    """

    equal: NDArray[np.bool_]
    room: Floats
    worst: NDArray[np.bool_]


class Candidates:
    """Iterates of a run from which a mixture can be made.

    When there are too many, those that the best mixture of them needs stay, and the newest.

    Args:
        program: the moment form.
        decisions: of the run.
    """

    def __init__(self, program: Program, decisions: Decisions) -> None:
        self.program = program
        self.refused = not_mixed(program) if program.parts else "there are no constraints"
        state = sum(t.numel() * t.element_size() for t in decisions.snapshot().values())
        self.capacity = min(MOST, BYTES // max(state, 1))
        if not self.refused and self.capacity < LEAST:
            self.refused = f"an iterate has {state:,} bytes: {LEAST} of them are more than are kept"
        self.kept: list[Candidate] = []
        self._sizes: list[int] = []
        self._rooms: list[float] = []

    @property
    def mixing(self) -> Mixing | None:
        """What the linear program has to know; None before the first iterate."""
        if not self._sizes:
            return None
        parts = self.program.parts
        return Mixing(
            np.repeat([part.kind == "==" for part in parts], self._sizes),
            np.repeat(np.asarray(self._rooms, dtype=np.float64), self._sizes),
            np.repeat([part.constraint == EPIGRAPH for part in parts], self._sizes),
        )

    def add(
        self,
        epoch: int,
        objective: float,
        residuals: Sequence[Tensor | None],
        rooms: Sequence[float],
        decisions: Decisions,
    ) -> None:
        """Keeps the current iterate.

        Args:
            epoch: number of epochs so far.
            objective: of the program.
            residuals: exact, by part.
            rooms: by part the violation that is none.
            decisions: at the iterate.
        """
        if self.refused:
            return
        found = [
            np.zeros(0) if r is None else r.detach().cpu().double().numpy().reshape(-1) for r in residuals
        ]
        flat = np.concatenate([np.zeros(0), *found])
        if flat.size > ENTRIES:
            self.refused = f"{flat.size:,} entries of constraints are more than {ENTRIES:,}"
            self.kept = []
            return
        if not (math.isfinite(objective) and np.isfinite(flat).all()):
            return
        self._sizes, self._rooms = [r.size for r in found], list(rooms)
        if len(self.kept) >= self.capacity:
            self._drop()
        self.kept.append(Candidate(epoch, objective, flat, decisions.snapshot()))

    def _drop(self) -> None:
        """Half of the iterates: the oldest of those without weight in the best mixture."""
        mixing = self.mixing
        assert mixing is not None  # there are iterates
        weights, _ = best_weights(self.kept, mixing)
        order = sorted(range(len(self.kept)), key=lambda k: (weights[k] > NOTHING, self.kept[k].epoch))
        left = sorted(order[len(self.kept) - self.capacity // 2 :])
        self.kept = [self.kept[k] for k in left]

    # ---- checkpoints
    def state_dict(self) -> dict[str, Any]:
        """The iterates that are kept."""
        return {
            "refused": self.refused,
            "kept": [(c.epoch, c.objective, torch.as_tensor(c.residuals), c.state) for c in self.kept],
            "sizes": self._sizes,
            "rooms": self._rooms,
        }

    def load_state_dict(self, stored: Mapping[str, Any], device: torch.device) -> None:
        """Puts them back."""
        self.refused = stored["refused"]
        self.kept = [
            Candidate(epoch, objective, residuals.cpu().numpy(), {k: v.to(device) for k, v in state.items()})
            for epoch, objective, residuals, state in stored["kept"]
        ]
        self._sizes, self._rooms = list(stored["sizes"]), list(stored["rooms"])


# ---------------------------------------------------------------------------------------- linear program
def best_weights(candidates: Sequence[Candidate], mixing: Mixing) -> tuple[Floats, bool]:
    """Weights of the best mixture, and whether it holds every constraint within its room.

    A vertex of the linear program: at most as many members as there are entries of constraints, and one more.
    Where no mixture holds the constraints, the weights are those of the least violation.
    """
    objective = np.array([c.objective for c in candidates])
    rows = np.stack([c.residuals for c in candidates], axis=1)  # (m, candidates)
    for room in (np.where(mixing.equal, mixing.room, 0.0), mixing.room):
        found = _vertex(objective, rows, mixing, room)
        if found is not None:
            return found, True
    return _least_violation(rows, mixing), False


def _sides(rows: Floats, mixing: Mixing) -> tuple[Floats, NDArray[np.int64]]:
    """Residuals that are at most their room, an equality from both sides; and the entry that each is of."""
    signed = np.concatenate([rows, -rows[mixing.equal]])
    return signed, np.concatenate([np.arange(len(rows)), np.flatnonzero(mixing.equal)]).astype(np.int64)


def _vertex(objective: Floats, rows: Floats, mixing: Mixing, room: Floats) -> Floats | None:
    """Minimizes the objective; None where no weights hold the constraints within these rooms.

    Where a largest value is minimized, its bound moves by one more unknown, for all members alike.
    """
    sides, entry = _sides(rows, mixing)
    shift = -mixing.worst.astype(np.float64)[entry]
    size = rows.shape[1]
    found: Any = linprog(
        np.append(objective, 1.0 if mixing.worst.any() else 0.0),
        A_ub=np.column_stack([sides, shift]),
        b_ub=np.where(shift < 0, 0.0, room[entry]),
        A_eq=np.append(np.ones(size), 0.0)[None],
        b_eq=[1.0],
        bounds=[*((0.0, None) for _ in range(size)), (None, None) if mixing.worst.any() else (0.0, 0.0)],
        method="highs-ds",
    )
    return _cleaned(found.x[:size]) if found.status == 0 else None


def _least_violation(rows: Floats, mixing: Mixing) -> Floats:
    """Minimizes the largest violation, in units of the rooms."""
    sides, entry = _sides(rows, mixing)
    size = rows.shape[1]
    room = np.where(mixing.room > 0, mixing.room, 1.0)
    unit = (room / room.max())[entry]
    found: Any = linprog(
        np.append(np.zeros(size), 1.0),
        A_ub=np.column_stack([sides, -unit]),
        b_ub=np.zeros(len(sides)),
        A_eq=np.append(np.ones(size), 0.0)[None],
        b_eq=[1.0],
        bounds=[(0.0, None)] * (size + 1),
        method="highs-ds",
    )
    return _cleaned(found.x[:size]) if found.status == 0 else np.ones(size) / size


def _cleaned(weights: Any) -> Floats:
    found: Floats = np.asarray(weights, dtype=np.float64)
    kept = found * (found > NOTHING)
    return kept / float(kept.sum())
