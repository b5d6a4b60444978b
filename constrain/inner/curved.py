"""Inner problems that are no quadratic programs: solved row by row, finished by Newton's method on all rows.

Convex ones go to CVXPY, whose solvers certify infeasibility; others to the solvers of the package. What comes
back is correct to about 1e-8 and without an active set. Newton's method on the optimality conditions of all
rows at once, with the active set that passes the test of multipliers and slacks, brings it to the precision
of a linear system, which implicit differentiation needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import grad

from constrain._lazy import backend, driver
from constrain.inner.kkt import System, repaired, system
from constrain.inner.products import Products
from constrain.inner.quadratic import Solved

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from constrain.inner.functions import Functions
    from constrain.inner.structure import Structure

__all__ = ["Curved"]

_NEAR = (1e-5, 1e-3)
_NEWTON = 12


class Curved:
    """Solver of one inner problem that is no quadratic program.

    Args:
        structure: the inner problem.
        functions: its functions.
        large: optimality conditions are applied to vectors and never made as a matrix.

    Attributes:
        failures: of the last call, per row that has no solution, the reason in words.
    """

    def __init__(self, structure: Structure, functions: Functions, *, large: bool = False) -> None:
        self.structure = structure
        self.functions = functions
        self.large = large
        self.failures: dict[int, str] = {}
        self._built: Any = None
        self._last: Tensor | None = None

    def solve(self, parameters: Sequence[Tensor], batched: Sequence[bool], batch: int) -> Solved:
        """The solutions of a batch; rows with a reason in `failures` have none."""
        self.failures = {}
        warm = self._warm(parameters, batched, batch)
        if warm is not None:
            return warm
        rows: list[Tensor] = []
        for i in range(batch):
            own = {
                symbol.name: (t[i] if many else t).detach().cpu().numpy()
                for symbol, t, many in zip(self.functions.parameters, parameters, batched, strict=True)
            }
            values, failure = self._convex(own) if self.structure.facts.convex else self._general(own)
            if failure:
                self.failures[i] = failure
            rows.append(self.functions.join(values))
        x = torch.stack(rows).to(parameters[0].device if parameters else "cpu")
        x = self._with_corners(x, parameters, batched)
        solved = self._finished(x, parameters, batched)
        for i in self.failures:
            solved.ok[i] = False
        if not self.failures:
            self._last = solved.x.detach()
        return solved

    def _warm(self, parameters: Sequence[Tensor], batched: Sequence[bool], batch: int) -> Solved | None:
        """From the solutions of the last call, where Newton's method alone is enough for all rows."""
        if self._last is None or len(self._last) != batch or self.structure.kind != "cone":
            return None
        last = self._last.to(parameters[0].device) if parameters else self._last
        found = self._finished(last, parameters, batched)
        if not bool(found.ok.all()):
            return None
        self._last = found.x.detach()
        return found

    # ---- one row
    def integers(self, parameters: Mapping[str, Any]) -> tuple[dict[Any, Any], str]:
        """A solution of one row with its integers, or why there is none."""
        return self._convex(parameters)

    def _convex(self, parameters: Mapping[str, Any]) -> tuple[dict[Any, Any], str]:
        cvxpy = backend("cvxpy")
        program, facts = self.structure.program, self.structure.facts
        if self._built is not None and self._built.parameters:
            for symbol, variable in self._built.parameters.items():
                variable.value = parameters[symbol.name]
            built = self._built
        else:
            built = cvxpy.build(program, None, parameters, symbolic_parameters=True)
            self._built = built
        raw = cvxpy.solve(built, facts)
        good = raw.status in ("optimal", "inaccurate") and raw.objective is not None
        return dict(raw.values), "" if good else f"{raw.status}: {raw.message}"

    def _general(self, parameters: Mapping[str, Any]) -> tuple[dict[Any, Any], str]:
        """By the solvers of the package; what the variables of the user hold stays as it was."""
        problem = self.structure.problem
        before = [(symbol, symbol.value) for symbol in problem.variables]
        try:
            with torch.enable_grad():
                solution = driver().solve(problem, params=dict(parameters), progress=False)
            status = str(solution.status)
            values = {symbol: symbol.value for symbol in problem.variables}
        finally:
            for symbol, value in before:
                symbol.value = value
        good = status in ("optimal", "stationary") and all(v is not None for v in values.values())
        return values if good else {}, "" if good else status

    def _with_corners(self, x: Tensor, parameters: Sequence[Tensor], batched: Sequence[bool]) -> Tensor:
        """The point with the variables that replace corners at the values of their corners."""
        corners = self.structure.corners
        if not corners:
            return x
        evaluate = self.functions.of(*corners.values())
        self.functions.place(x.device)

        def values(row: Tensor, *theta: Tensor) -> tuple[Tensor, ...]:
            return tuple(evaluate(row, theta))

        found: tuple[Tensor, ...] = self.functions.batch(values, batched)(x, *parameters)
        pieces = [v.reshape(len(x), -1) for v in found]
        return torch.cat([x[:, : x.shape[1] - sum(v.shape[1] for v in pieces)], *pieces], 1)

    # ---- all rows
    def _finished(self, x: Tensor, parameters: Sequence[Tensor], batched: Sequence[bool]) -> Solved:
        """Newton's method on the optimality conditions, with the first active set that is right."""
        best: Solved | None = None
        for near in _NEAR:
            found = self._newton(x, near, parameters, batched)
            if best is None:
                best = found
            else:
                rows = found.ok & ~best.ok
                for name in ("x", "z", "y", "slack", "active", "ok"):
                    old, new = getattr(best, name), getattr(found, name)
                    pick = rows.reshape((-1, *(1 for _ in range(old.dim() - 1))))
                    setattr(best, name, torch.where(pick, new, old))
            if bool(best.ok.all()):
                break
        assert best is not None  # there is at least one tolerance
        best.system = self._conditions(best.x, best.z, best.y, best.active, parameters, batched)
        return best

    def _conditions(
        self,
        x: Tensor,
        z: Tensor,
        y: Tensor,
        active: Tensor,
        parameters: Sequence[Tensor],
        batched: Sequence[bool],
    ) -> System | Products:
        if self.large:
            return Products(self.functions, (x, z, y), active, parameters, batched)
        below, equal = self.functions.slopes(batched)(x, *parameters)
        curvature = self.functions.curvature(batched)(x, z, y, *parameters)
        return system(curvature.nan_to_num(), below.nan_to_num(), equal.nan_to_num(), active)

    def _newton(
        self, start: Tensor, near: float, parameters: Sequence[Tensor], batched: Sequence[bool]
    ) -> Solved:
        functions = self.functions
        values = functions.batch(functions.residuals, batched)
        x = start
        below, equal = values(x, *parameters)
        active = (
            -below <= near * (1 + below.abs().amax(-1, keepdim=True).clamp_max(1e3))
            if below.shape[1]
            else below > 0
        )
        z, y, active = self._fitted(x, active, parameters, batched)
        gradient = functions.batch(grad(functions.lagrangian), batched, 3)
        error = torch.full_like(x[:, 0], torch.inf)
        for _ in range(_NEWTON):
            slope = gradient(x, z, y, *parameters)
            parts: list[Tensor] = [slope.abs().amax(-1) / (1 + z.abs().amax(-1) if z.shape[1] else 1)]
            parts += (
                [torch.where(active, below, torch.zeros_like(below)).abs().amax(-1)] if z.shape[1] else []
            )
            parts += [equal.abs().amax(-1)] if y.shape[1] else []
            error = torch.stack(parts).amax(0)
            if bool((error <= 1e-13).all()) or not bool(torch.isfinite(error).any()):
                break
            conditions = self._conditions(x, z, y, active, parameters, batched)
            dx, dz, dy = conditions.solve(-slope, -below, -equal)
            x, z, y = x + dx, torch.where(active, z + dz, torch.zeros_like(z)), y + dy
            below, equal = values(x, *parameters)
        _, same = repaired(active, z, -below)
        close = (x - start).abs().amax(-1) <= 1e-2 * (1 + start.abs().amax(-1))
        ok = (error <= 1e-8) & same & close & torch.isfinite(x).all(-1)
        x = torch.where(ok[:, None], x, start)
        below, _ = values(x, *parameters)
        return Solved(x, z.clamp_min(0), y, -below, active, ok, 0)

    def _fitted(
        self, x: Tensor, active: Tensor, parameters: Sequence[Tensor], batched: Sequence[bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Multipliers that fit the stationarity of a point best, and the active set without negative ones."""
        functions = self.functions
        slope = functions.batch(grad(functions.objective), batched)(x, *parameters)
        zeros = x.new_zeros(active.shape), x.new_zeros(len(x), functions.equalities)
        z, y = zeros

        def nearest(active: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            if self.large:
                conditions: System | Products = Products(
                    functions, (x, *zeros), active, parameters, batched, metric=True
                )
            else:
                conditions = system(eye, below.nan_to_num(), equal.nan_to_num(), active)
            return conditions.solve(-slope.nan_to_num(), *zeros)

        if not self.large:
            below, equal = functions.slopes(batched)(x, *parameters)
            eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)[None]
        for _ in range(1 + active.shape[1]):
            _, z, y = nearest(active)
            scale = 1e-6 * (1 + z.abs().amax(-1, keepdim=True)) if z.shape[1] else z
            negative = active & (z < -scale)
            if not bool(negative.any()):
                break
            worst = z.argmin(-1, keepdim=True)  # one at a time: others may turn positive without it
            active = active & ~(negative & torch.zeros_like(active).scatter(1, worst, True))
        return torch.where(active, z, torch.zeros_like(z)), y, active
