"""What a Lagrangian remembers: multipliers, running residuals and steps, and where those of a part are.

One vector holds the numbers of all averages, in the order of the terms; a constraint per row has a table.
State dicts have them under the names of the parts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from constrain.runtime.multipliers import part_shapes
from constrain.runtime.rows import Rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from constrain.lowering.families import Stack
    from constrain.lowering.program import Part
    from constrain.runtime.estimates import Estimate, Estimator
    from constrain.runtime.evaluator import Evaluator
    from constrain.runtime.multipliers import MultiplierFunction

__all__ = ["MultiplierState", "Places", "Seen"]


@dataclass
class Seen:
    """What the last `forward` saw, and how much of the running residuals has been seen.

    No attributes of the module: these are slow to set.
    """

    estimate: Estimate | None = None
    batches: dict[str, Rows] = field(default_factory=dict[str, Rows])
    weight: float = 0.0


class Places(Mapping[str, "tuple[slice, tuple[int, ...]]"]):
    """By part key its places in the vector of multipliers, and its shape; found when they are asked for.

    Args:
        stacks: of the program.
        shapes: of all parts.
        places: by position of a stack, from 1, the places of its entries among all terms.
    """

    def __init__(
        self,
        stacks: Sequence[Stack],
        shapes: Sequence[tuple[int, ...]],
        places: Mapping[int, NDArray[np.int64]],
    ) -> None:
        self._stacks = stacks
        self._shapes = shapes
        self._places = places

    @cached_property
    def _found(self) -> dict[str, tuple[int, int]]:
        """By key the place of the first entry, and the position of the part."""
        found: list[tuple[int, str, int]] = []
        for k, stack in enumerate(self._stacks, start=1):
            own = self._places.get(k)
            firsts = [1] if own is None or not len(own) else own.tolist()
            found += zip(stack.places.tolist(), stack.keys, firsts[: len(stack.places)], strict=True)
        return {key: (first, part) for part, key, first in sorted(found)}

    def __getitem__(self, key: str) -> tuple[slice, tuple[int, ...]]:
        first, part = self._found[key]
        shape = self._shapes[part]
        count = 0 if part in self._per_row else math.prod(shape)
        return slice(first - 1, first - 1 + count), shape

    @cached_property
    def _per_row(self) -> frozenset[int]:
        return frozenset(int(s.places[0]) for s in self._stacks if s.part.rows is not None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._shapes)


class MultiplierState(nn.Module):
    """Multipliers with their running residuals and steps.

    Args:
        evaluator: the compiled program with its data.
        estimator: of its terms.
        functions: by constraint name, the function that gives the multipliers of a constraint per row.
    """

    values: Tensor
    running: Tensor
    scales: Tensor
    limits: Tensor
    pace: Tensor
    before: Tensor
    low: Tensor
    spread: Tensor
    most: Tensor
    one: Tensor
    row_scales: Tensor
    row_spreads: Tensor

    def __init__(
        self, evaluator: Evaluator, estimator: Estimator, functions: Mapping[str, MultiplierFunction]
    ) -> None:
        super().__init__()
        self.evaluator = evaluator
        self.parts: Sequence[Part] = evaluator.program.parts
        self.estimator = estimator
        self.functions = nn.ModuleDict(dict(functions))
        self.seen = Seen()
        self._layout(part_shapes(evaluator))

    def _layout(self, shapes: list[tuple[int, ...]]) -> None:
        """One vector holds the multipliers of all averages; each constraint per row has a table."""
        dtype = torch.promote_types(self.evaluator.dtype, torch.float32)
        device = self.evaluator.device
        stacks, places = self.estimator.layout.stacks, self.estimator.layout.places
        self._place = Places(stacks, shapes, places)
        low = np.full(self.estimator.layout.size - 1, -np.inf)
        per_row = self.evaluator.program.per_row
        self._tables: list[int] = list(per_row)
        self._row_parts = {part.key: part for part in per_row.values()}
        self._positions = {part.key: i for i, part in per_row.items()}
        for k, stack in enumerate(stacks, start=1):
            if k in places and stack.part.kind == "<=":
                low[places[k] - 1] = 0.0
        for i, part in per_row.items():
            if part.constraint not in self.functions:
                self.register_buffer(f"table:{i}", torch.zeros(shapes[i], dtype=dtype, device=device))
        count = len(low)
        starts = {
            "values": torch.zeros(count),
            "running": torch.zeros(count),
            "scales": torch.ones(count),
            "limits": torch.ones(count),
            "pace": torch.ones(count),  # factor of the scales that an entry has found
            "before": torch.zeros(count),  # exact residuals at the last pass
            "low": torch.from_numpy(low),
            "spread": torch.ones(count),  # standard deviations of one row's contributions
            "most": torch.ones(count),  # how much faster than together with others an entry may be by itself
            "one": torch.ones(1),
            "row_scales": torch.ones(len(self.parts)),
            "row_spreads": torch.ones(len(self.parts)),  # of constraints per row
        }
        for name, start in starts.items():
            self.register_buffer(name, start.to(dtype=dtype, device=device))

    @property
    def numbers(self) -> dict[str, Tensor]:
        """All buffers by name, which torch looks for in several places when they are asked for one by one."""
        return cast("dict[str, Tensor]", self._buffers)

    def table(self, part: Part) -> Tensor:
        """The multipliers of a constraint per row, times the number of rows."""
        found = self._buffers[f"table:{self._at(part)}"]
        assert found is not None  # registered in _layout
        return found

    def _at(self, part: Part) -> int:
        """The position of a part that is a constraint per row."""
        return self._positions[part.key]

    def _row_part(self, i: int) -> Part:
        """A part that is a constraint per row, by its position."""
        return self.evaluator.program.per_row[i]

    def step(self, part: Part) -> Tensor:
        """The scale of the steps of a part's multipliers, a number."""
        if part.rows is not None:
            return self.row_scales[self._at(part)]
        return self.scales[self._place[part.key][0]][:1].reshape(())

    def steps(self, part: Part) -> Tensor:
        """The scales of the steps of all entries of a part, of its shape; a number for one per row."""
        if part.rows is not None:
            return self.step(part)
        place, shape = self._place[part.key]
        return self.scales[place].view(shape)

    # ------------------------------------------------------------------------------------- state dicts
    def _save_to_state_dict(
        self,
        destination: dict[str, Any],
        prefix: str,
        keep_vars: bool,  # noqa: ARG002  # torch's signature
    ) -> None:
        named = {name: flat.detach().clone() for name, flat in self._named().items()}  # a snapshot is a copy
        for key, (place, shape) in self._place.items():
            part = self._row_parts.get(key)
            if part is None:
                for name, flat in named.items():
                    destination[f"{prefix}{name}:{key}"] = flat[place].reshape(shape)
            else:
                destination[f"{prefix}step:{part.key}"] = self.step(part).clone()
                if part.constraint not in self.functions:
                    destination[f"{prefix}multiplier:{part.key}"] = self.table(part).detach().clone()
        destination[f"{prefix}weight"] = torch.tensor(
            self.seen.weight, dtype=torch.float32, device=self.values.device
        )

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,  # noqa: ARG002  # torch's signature
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        current: dict[str, Any] = {}
        self._save_to_state_dict(current, prefix, keep_vars=False)
        for key, own in current.items():
            if key not in state_dict:
                missing_keys.append(key)
            elif tuple(state_dict[key].shape) != tuple(own.shape):
                error_msgs.append(f"{key} has shape {tuple(state_dict[key].shape)}, not {tuple(own.shape)}")
            else:
                self._restore(key.removeprefix(prefix), state_dict[key])
        if strict:
            children = tuple(f"{prefix}{name}." for name, _ in self.named_children())
            unexpected_keys += [
                k
                for k in state_dict
                if k.startswith(prefix) and k not in current and not k.startswith(children)
            ]

    def _named(self) -> dict[str, Tensor]:
        """What of the state has one number per entry of an average, by its name in a state dict."""
        return {
            "multiplier": self.values,
            "running": self.running,
            "step": self.scales,
            "pace": self.pace,
            "before": self.before,
        }

    @torch.no_grad()
    def _restore(self, key: str, value: Tensor) -> None:
        """Puts one entry of a state dict back."""
        if key == "weight":
            self.seen.weight = float(value)
            return
        name, _, part_key = key.partition(":")
        part = self._row_parts.get(part_key)
        if part is not None:
            if name == "step":
                self.row_scales[self._at(part)] = float(value)
            else:
                self.table(part).copy_(value)
            return
        flat = self._named()[name]
        flat[self._place[part_key][0]].copy_(value.reshape(-1))
