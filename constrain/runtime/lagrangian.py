"""The Lagrangian of a program as a `torch.nn.Module`: a scalar per batch, multipliers as its state.

    loss = lagrangian(batch); loss.backward(); optimizer.step(); lagrangian.ascend()

The primal gradient sees surrogates of rates; the multipliers see exact residuals. Multipliers follow a
proportional-integral rule (Sohrabi et al. 2024, "On PI controllers for updating Lagrange multipliers"): the
primal sees `multiplier + gain * step * running residual`, and `ascend` integrates `step * residual`. The
proportional part uses a running residual, not the batch's own: the product of a batch residual with its own
gradient would be biased.

Steps are scaled by `|grad f| / (|grad c| * spread of c)`, so that a change of units of a constraint or of the
objective changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from constrain.errors import ModelingError
from constrain.language.data import Batch

if TYPE_CHECKING:
    from constrain.lowering.program import Part
    from constrain.runtime.evaluator import Estimate, Evaluator

__all__ = ["Lagrangian"]

Batches = Batch | Mapping[str, Any] | tuple[Batch, ...] | list[Batch]


class Lagrangian(nn.Module):
    """L = f + sum multiplier * residual on minibatches.

    Args:
        evaluator: the compiled program with its data.
        rate: integral step of the multipliers, dimensionless, per call of `ascend`.
        gain: proportional gain, dimensionless; 0 gives plain gradient ascent.
        memory: decay of the running residual, in (0, 1).

    State (`state_dict`): per `Part.key` the multiplier (`multiplier:KEY`), its running residual and its step.
    Multipliers are never below float32. The models themselves are not part of this module's state.
    """

    def __init__(
        self, evaluator: Evaluator, *, rate: float = 0.03, gain: float = 0.3, memory: float = 0.95
    ) -> None:
        super().__init__()
        self.evaluator = evaluator
        self.rate = rate
        self.gain = gain
        self.memory = memory
        self.parts: list[Part] = list(evaluator.program.parts)
        self._last: Estimate | None = None
        self._index: dict[str, Tensor] = {}
        self.spreads: dict[str, float] = {}
        self.slope = 0.0
        self.slopes: dict[str, float] = {}
        for part, shape in zip(self.parts, part_shapes(evaluator), strict=True):
            dtype = torch.promote_types(evaluator.dtype, torch.float32)
            zeros = torch.zeros(shape, dtype=dtype, device=evaluator.device)
            self.register_buffer(f"multiplier:{part.key}", zeros)
            self.register_buffer(f"running:{part.key}", zeros.clone())
            self.register_buffer(f"step:{part.key}", torch.ones((), dtype=dtype, device=evaluator.device))
        self.weight: Tensor
        self.register_buffer("weight", torch.zeros((), device=evaluator.device))

    # ------------------------------------------------------------------------------------------ state
    def buffer(self, kind: str, part: Part) -> Tensor:
        """`multiplier`, `running` or `step` of a part."""
        found = self._buffers[f"{kind}:{part.key}"]
        assert found is not None  # registered in __init__
        return found

    def multipliers(self) -> dict[str, Tensor]:
        """Copies of the multipliers by part key; of constraints per row, per row of the sample."""
        result: dict[str, Tensor] = {}
        for part in self.parts:
            value = self.buffer("multiplier", part).detach().clone()
            result[part.key] = value / self._rows(part) if part.rows is not None else value
        return result

    def set_multipliers(self, values: Mapping[str, Any]) -> None:
        """Starts from these multipliers (by part key), in place."""
        with torch.no_grad():
            for part in self.parts:
                if part.key in values:
                    own = self.buffer("multiplier", part)
                    value = torch.as_tensor(values[part.key]).to(own)
                    own.copy_(value * self._rows(part) if part.rows is not None else value)

    def _rows(self, part: Part) -> int:
        assert part.rows is not None  # callers check
        return self.evaluator.populations[part.rows].rows

    # ---------------------------------------------------------------------------------------- forward
    def forward(self, batch: Batches) -> Tensor:
        """The Lagrangian on a batch.

        Args:
            batch: `D.rows(index)`; a tuple of them, or a mapping from sample name to index, when the problem
                has several samples.

        Returns:
            A scalar whose gradient is the primal gradient.
        """
        self.evaluator.follow_parameters()
        self._index = self.indices(batch)
        estimate = self.evaluator.estimate(self._index)
        self._last = estimate
        total = estimate.primal.objective
        for i, part in enumerate(self.parts):
            if part.rows is not None:
                total = total + self._row_term(i, part, estimate)
                continue
            residual = estimate.primal.residuals[i]
            assert residual is not None  # no rows
            total = total + (self._seen(part) * residual).sum()
        return total

    def _seen(self, part: Part) -> Tensor:
        """The multiplier that the primal sees: integral plus proportional part."""
        value = self.buffer("multiplier", part)
        if self.gain:
            correction = self.weight.clamp(min=1e-8).to(value.dtype)
            value = value + self.gain * self.buffer("step", part) * self.buffer("running", part) / correction
        return value.clamp(min=0) if part.kind == "<=" else value

    def _row_term(self, i: int, part: Part, estimate: Estimate) -> Tensor:
        """Mean over the batch of multiplier[row] * residual[row]: estimates the sum over rows / rows."""
        assert part.rows is not None  # callers check
        residual, _, mask = estimate.rows[i]
        index = self._index[part.rows.name]
        values = self.buffer("multiplier", part)[index] * residual
        return _masked(values, mask).sum() / index.shape[0]

    def indices(self, batch: Batches) -> dict[str, Tensor]:
        """Row indices of a batch by sample name, on the device.

        Raises:
            ModelingError: E140 when the batch has no rows of a sample of the problem.
        """
        if isinstance(batch, Batch):
            given: dict[str, Any] = {batch.data.name: batch.index}
        elif isinstance(batch, Mapping):
            given = dict(batch)
        else:
            given = {b.data.name: b.index for b in batch}
        result: dict[str, Tensor] = {}
        for data, population in self.evaluator.populations.items():
            if data.name not in given:
                raise ModelingError(
                    "E140",
                    f"the batch has no rows of {data.name!r}",
                    fix=f"lagrangian({data.name}.rows(index))",
                )
            index = given[data.name]
            if isinstance(index, (slice, range)):
                span = index if isinstance(index, range) else range(*index.indices(population.rows))
                index = torch.arange(span.start, span.stop, span.step)
            result[data.name] = torch.as_tensor(index).to(self.evaluator.device)
        return result

    # ----------------------------------------------------------------------------------------- ascent
    @torch.no_grad()
    def ascend(self) -> None:
        """One multiplier step from the exact residuals of the last `forward`. Needs no host synchronization.

        Raises:
            ModelingError: E140 when nothing was evaluated since the last call.
        """
        estimate = self._last
        if estimate is None:
            raise ModelingError(
                "E140", "ascend() without a forward before it", fix="loss = lagrangian(batch) first"
            )
        self._last = None
        self.weight.mul_(self.memory).add_(1 - self.memory)
        for i, part in enumerate(self.parts):
            value, step = self.buffer("multiplier", part), self.rate * self.buffer("step", part)
            if part.rows is not None:
                _, residual, mask = estimate.rows[i]
                index = self._index[part.rows.name]
                # a row is met once per epoch: its step is as large as an average.s together
                scale = value.shape[0] / index.shape[0]
                value.index_add_(0, index, (step * scale * _masked(residual, mask)).to(value.dtype))
            else:
                residual = estimate.exact.residuals[i]
                assert residual is not None  # no rows
                running = self.buffer("running", part)
                running.mul_(self.memory).add_(residual.to(value.dtype), alpha=1 - self.memory)
                value.add_(step * residual)
            if part.kind == "<=":
                value.clamp_(min=0)

    @torch.no_grad()
    def observe(self, residuals: Mapping[int, Tensor]) -> None:
        """Replaces the running residuals by exact full-data ones (by part position)."""
        self.weight.fill_(1.0)
        for i, residual in residuals.items():
            self.buffer("running", self.parts[i]).copy_(residual)

    # ---------------------------------------------------------------------------------------- scaling
    def calibrate(self, generator: torch.Generator | None = None, rows: int = 4096, batches: int = 8) -> None:
        """Measures the steps' scale on a sample of the data.

        `|grad f| / (|grad c| * spread)`, with the gradient of a block from one random combination of its
        entries, and the spread the standard deviation of one row's contribution to c, measured between small
        batches. Of |grad f| the largest seen so far is used: it vanishes at an unconstrained optimum,
        multipliers do not. |grad c| at most halves from one call to the next: it
        vanishes where a rate's surrogate saturates.
        """
        if self.evaluator.device.type == "meta":
            return
        sample = {
            data.name: torch.randint(p.rows, (min(rows, p.rows),), generator=generator).to(
                self.evaluator.device
            )
            for data, p in self.evaluator.populations.items()
        }
        gradients = self._gradient_norms(self.evaluator.estimate(sample), generator)
        spreads = self._spreads(sample, batches)
        self.slope = max(self.slope, gradients[0])
        objective = self.slope or 1.0
        for i, part in enumerate(self.parts):
            largest = self.slopes[part.key] = max(self.slopes.get(part.key, 0.0) / 2, gradients[i + 1])
            slope = largest or 1.0
            spread = spreads[i] or slope
            self.spreads[part.key] = spread
            with torch.no_grad():
                self.buffer("step", part).fill_(objective / (slope * spread))

    def _gradient_norms(self, estimate: Estimate, generator: torch.Generator | None) -> list[float]:
        scalars: list[Tensor] = [estimate.primal.objective]
        for i, part in enumerate(self.parts):
            residual = estimate.rows[i][0] if part.rows is not None else estimate.primal.residuals[i]
            assert residual is not None  # one of the two exists
            signs = torch.randint(2, tuple(residual.shape), generator=generator).to(residual) * 2 - 1
            scalars.append((signs * residual).sum() / max(residual.numel(), 1) ** 0.5)
        norms: list[float] = []
        tensors = self.evaluator.decisions.tensors
        for scalar in scalars:
            found: tuple[Tensor | None, ...] = ()
            if scalar.requires_grad:
                found = torch.autograd.grad(scalar, tensors, retain_graph=True, allow_unused=True)
            norms.append(sum(_square(g) for g in found) ** 0.5)
        return norms

    @torch.no_grad()
    def _spreads(self, sample: Mapping[str, Tensor], batches: int) -> list[float]:
        pieces = {name: index.chunk(batches) for name, index in sample.items()}
        count = min((len(p) for p in pieces.values()), default=1)
        found: list[list[Tensor]] = [[] for _ in self.parts]
        for b in range(count):
            estimate = self.evaluator.estimate({name: p[b] for name, p in pieces.items()})
            for i, part in enumerate(self.parts):
                value = estimate.rows[i][1] if part.rows is not None else estimate.exact.residuals[i]
                assert value is not None  # one of the two exists
                found[i].append(value.double())
        size = min((p[0].shape[0] for p in pieces.values()), default=1)
        result: list[float] = []
        for i, part in enumerate(self.parts):
            if part.rows is not None:
                result.append(float(torch.cat(found[i]).std()))
            elif count < 2:
                result.append(0.0)
            else:
                result.append(float(torch.stack(found[i]).var(0).mean().sqrt()) * size**0.5)
        return result

    def extra_repr(self) -> str:
        """Settings, for `print`."""
        return f"rate={self.rate}, gain={self.gain}, memory={self.memory}"


def _square(gradient: Tensor | None) -> float:
    return 0.0 if gradient is None else float(gradient.double().square().sum())


def _masked(values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return values
    wide = mask.reshape(-1, *(1 for _ in range(values.dim() - 1)))
    return torch.where(wide, values, values.new_zeros(()))


def part_shapes(evaluator: Evaluator) -> list[tuple[int, ...]]:
    """Shape of every part's residual: levels first; (rows, ...) for constraints per row."""
    outer = evaluator.full("exact")
    shapes: list[tuple[int, ...]] = []
    for i, part in enumerate(evaluator.program.parts):
        residual = outer.residuals[i]
        if part.rows is None and residual is not None:
            shapes.append(tuple(residual.shape))
        else:
            job = next(j for j in evaluator.jobs if j.data is part.rows)
            place = len(job.moments) + job.parts.index(i)
            with torch.no_grad():
                first = evaluator.rows(job, slice(0, 1), "exact")[place]
            shapes.append((evaluator.populations[job.data].rows, *first.shape[1:]))
    return shapes
