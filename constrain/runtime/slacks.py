"""The slacks of relaxed averages, for methods that move multipliers.

min over z >= 0 of h(z) - lambda z is concave in lambda: with h(z) = a z + b/2 z^2 it is 0 up to a, and
-(lambda - a)^2 / (2 b) beyond (no lambda beyond a when b = 0). So a slack needs no step of its own. A step of
the multipliers is the proximal one of that concave function,

    lambda <- max(0, t - s z),   t = lambda + s c,   z >= 0 the root of  sum max(0, t - s z) = a + b z,

with the sum over the entries that share a slack (the two sides of |e| <= b, the cases of a maximum); z = 0
where sum max(0, t) <= a. It is stable for every step s; equalities are the same with signs. The slack of an
iterate is the least one that it needs, max(c, 0).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from constrain.lowering.program import Relaxation
    from constrain.runtime.evaluator import Evaluator

__all__ = ["Slacks", "Turn"]

MOST_ROUNDS = 6
"""Newton steps for a slack that several entries share; each one drops entries, few are ever needed."""


@dataclass
class _Group:
    """The slack of one constraint.

    Attributes:
        relaxation: what it costs.
        parts: positions of the parts that it enters.
        tensors: its hidden decisions; two for an equality.
    """

    relaxation: Relaxation
    parts: list[int]
    tensors: list[Tensor]

    def entries(self, shape: Sequence[int]) -> Tensor:
        """Which entry of the slack each entry of a residual of this shape has."""
        own = self.tensors[0]
        places = torch.arange(own.numel(), device=own.device)
        return places.reshape(own.shape).expand(tuple(shape)).reshape(-1)


class Slacks:
    """The hidden slacks of a program; those of constraints per row do not exist.

    Args:
        evaluator: a program with data.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        variables = evaluator.decisions.variables
        self.groups: list[_Group] = []
        relaxed = [form for form in evaluator.program.shared.singles if form.relaxation is not None]
        owners: dict[str, list[int]] = {}
        for stack in evaluator.program.stacks if relaxed else ():
            owners.setdefault(stack.part.constraint, []).append(int(stack.places[0]))
        for form in relaxed:
            if form.relaxation is not None and form.relaxation.slacks:
                parts = owners[form.name]
                tensors = [variables[symbol] for symbol in form.relaxation.slacks]
                self.groups.append(_Group(form.relaxation, parts, tensors))

    @property
    def tensors(self) -> list[Tensor]:
        """The hidden decisions."""
        return [t for group in self.groups for t in group.tensors]

    def others(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Those of the tensors that are no slacks: what an optimizer moves."""
        own = {id(t) for t in self.tensors}
        return [t for t in tensors if id(t) not in own]

    @torch.no_grad()
    def clear(self) -> None:
        """Sets every slack to 0, so that residuals are those of the constraints as written."""
        for t in self.tensors:
            t.zero_()

    @torch.no_grad()
    def settle(self, residuals: Sequence[Tensor | None]) -> None:
        """Sets every slack to the least that the constraints need.

        Args:
            residuals: by part position, at the slacks as they are now.
        """
        for group in self.groups:
            first = group.tensors[0]
            equality = len(group.tensors) == 2
            need = torch.full((first.numel(),), -torch.inf, dtype=torch.float64, device=first.device)
            for i in group.parts:
                residual = residuals[i]
                assert residual is not None  # averages only
                own = residual.detach().to(need.dtype).reshape(-1)
                need.scatter_reduce_(0, group.entries(residual.shape), own, "amax")
            now = first - group.tensors[1] if equality else first
            need = need.reshape(first.shape) + now.to(need.dtype)
            first.copy_(need.clamp(min=0))
            if equality:
                group.tensors[1].copy_((-need).clamp(min=0))

    @contextmanager
    def settled(self, residuals: Sequence[Tensor | None]) -> Generator[None]:
        """Runs a block with the least slacks that the constraints need."""
        before = [t.detach().clone() for t in self.tensors]
        self.settle(residuals)
        try:
            yield
        finally:
            with torch.no_grad():
                for t, value in zip(self.tensors, before, strict=True):
                    t.copy_(value)

    def turn(self, places: Mapping[str, tuple[slice, tuple[int, ...]]]) -> Turn | None:
        """The proximal step for multipliers in one vector; None when nothing is relaxed.

        Args:
            places: by part key its places in the vector, and its shape.
        """
        return Turn(self, places) if self.groups else None


class Turn:
    """The proximal step of multipliers: where they go from where the residuals alone would take them."""

    def __init__(self, slacks: Slacks, places: Mapping[str, tuple[slice, tuple[int, ...]]]) -> None:
        self.evaluator = slacks.evaluator
        self.groups = slacks.groups
        parts = self.evaluator.program.parts
        self.sizes = [group.tensors[0].numel() for group in self.groups]
        positions: list[Tensor] = []
        owners: list[Tensor] = []
        start = 0
        for group, size in zip(self.groups, self.sizes, strict=True):
            for i in group.parts:
                place, shape = places[parts[i].key]
                positions.append(torch.arange(place.start, place.stop, device=group.tensors[0].device))
                owners.append(group.entries(shape) + start)
            start += size
        self.position = torch.cat(positions)
        self.owner = torch.cat(owners)
        shared = torch.bincount(self.owner).max() if self.owner.device.type != "meta" else 1
        self.rounds = min(int(shared), MOST_ROUNDS)
        self._known: tuple[tuple[float, float], ...] = ()
        self._weights: tuple[Tensor, Tensor] | None = None

    def _costs(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of the linear and the squared term, per entry of all slacks."""
        found: list[tuple[float, float]] = []
        for group in self.groups:
            terms: dict[str, Any] = {"linear": 0.0, "squared": 0.0}
            for kind, weight in zip(group.relaxation.cost, group.relaxation.weights, strict=True):
                terms[kind] += self.evaluator.constant(weight)
            found.append((terms["linear"], terms["squared"]))
        if self._weights is None or tuple(found) != self._known:
            self._known = tuple(found)
            wide = [pair for pair, size in zip(found, self.sizes, strict=True) for _ in range(size)]
            both = torch.tensor(wide, dtype=like.dtype, device=like.device)
            self._weights = both[:, 0], both[:, 1]
        return self._weights

    def __call__(self, moved: Tensor, steps: Tensor) -> Tensor:
        """The multipliers after a step.

        Args:
            moved: (entries,) multipliers + steps * residuals, clipped at 0 for inequalities.
            steps: (entries,) positive.
        """
        linear, squared = self._costs(moved)
        own, step = moved[self.position], steps[self.position]
        size = left = own.abs()
        for _ in range(self.rounds):  # Newton from z = 0: the sum is convex and falls, so z only grows
            active = left > 0
            total = torch.zeros_like(linear).index_add_(0, self.owner, torch.where(active, size, 0.0))
            width = torch.zeros_like(linear).index_add_(0, self.owner, torch.where(active, step, 0.0))
            slack = (total - linear).clamp(min=0) / (squared + width).clamp(min=torch.finfo(step.dtype).tiny)
            left = (size - step * slack[self.owner]).clamp(min=0)
        return moved.index_copy(0, self.position, own.sign() * left)
