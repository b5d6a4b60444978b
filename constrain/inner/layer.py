"""Optimal values and solutions of inner problems as differentiable functions of their parameters."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import grad, jacrev

from constrain.errors import ModelingError, ModelingWarning, RouteError
from constrain.inner.closed import Closed, closed_form
from constrain.inner.curved import Curved
from constrain.inner.failure import reason_of, shown_parameters
from constrain.inner.functions import Functions
from constrain.inner.kkt import weak
from constrain.inner.quadratic import Quadratic, Solved, solve
from constrain.inner.structure import Structure, structure
from constrain.language.types import type_of
from constrain.runtime.binding import as_array

if TYPE_CHECKING:
    from collections.abc import Sequence

    from constrain.language import nodes as n
    from constrain.language.problem import Problem

__all__ = ["Inner", "Layer", "compiled", "layer"]


@lru_cache(maxsize=128)
def compiled(problem: Problem, *, solution: bool = True) -> Inner:
    """The compiled inner problem, kept: equal problems share it."""
    return Inner(problem, solution=solution)


@dataclass
class Answer:
    """Solutions of a batch, with gradients: x (B, n), z (B, m), y (B, p), or those of a formula."""

    x: Tensor
    z: Tensor | None
    y: Tensor | None
    closed: Closed | None = None


class Inner:
    """An inner problem that is solved on batches.

    Args:
        problem: over variables and parameters.
        solution: the solution is wanted, not only the optimal value.

    Attributes:
        structure: what kind of problem it is.
        route: how it is solved, in words.

    Raises:
        ModelingError: E190, E191.
    """

    def __init__(self, problem: Problem, *, solution: bool = True) -> None:
        self.problem = problem
        self.structure: Structure = structure(problem, solution=solution)
        self.functions = Functions(self.structure)
        self.closed = closed_form(self.structure, self.functions)
        self.curved = Curved(self.structure, self.functions)
        self.iterations = 0
        self._constant: dict[tuple[str, torch.device], Tensor] = {}

    @property
    def route(self) -> str:
        """How it is solved, in words."""
        if self.closed is not None:
            return f"closed form: {self.closed.name}"
        if self.structure.integer:
            return f"{self.structure.described}: HiGHS per row, then the program with the integers fixed"
        ways = {
            "quadratic": "batched interior point",
            "cone": "CVXPY per row, Newton's method on the batch",
            "nonlinear": "solvers of the package per row, Newton's method on the batch",
        }
        return f"{self.structure.described}: {ways[self.structure.kind]}"

    # ---- numbers
    def solutions(self, parameters: Sequence[Tensor], batched: Sequence[bool], batch: int) -> Answer:
        """Solves the batch; what comes back carries gradients to the parameters.

        Args:
            parameters: float64, in the order of the problem's parameters.
            batched: whether each has an axis of rows in front.
            batch: number of rows.

        Raises:
            RouteError: E192 (no solution), E193 (the solver stopped short of one).
        """
        if parameters:
            self.functions.place(parameters[0].device)
        for t in parameters:
            if not bool(torch.isfinite(t).all()):
                raise self._error("E193", 0, "a parameter is infinite or NaN", parameters, batched)
        if self.closed is not None:
            found = self.closed(parameters, batched, batch)
            self._refuse(~found.feasible, "infeasible", parameters, batched)
            if torch.is_grad_enabled() and any(t.requires_grad for t in parameters):
                self._warn_kinks(found.kinked)
            return Answer(found.x, None, None, found)
        x, z, y = _Solution.apply(self, tuple(batched), batch, *parameters)
        return Answer(x, z, y)

    def solve(self, parameters: Sequence[Tensor], batched: Sequence[bool], batch: int) -> Solved:
        """Solves the batch without a formula; no gradients."""
        with torch.no_grad():
            if self.structure.kind != "quadratic":
                return self._solve_curved(parameters, batched, batch)
            qp = self._quadratic(parameters, batched, batch)
            if self.structure.integer:
                qp = self._fixed(qp, parameters, batched, batch)
            if not self.structure.facts.convex and self._bent(qp):
                return self._solve_curved(parameters, batched, batch)
            found = solve(qp)
            self.iterations = found.iterations
            for i in (~found.ok).nonzero()[:, 0].tolist():
                reason = reason_of(qp.take(torch.tensor([i], device=qp.q.device)))
                raise self._error("E192" if reason else "E193", i, reason or _SHORT, parameters, batched)
            return found

    def _solve_curved(self, parameters: Sequence[Tensor], batched: Sequence[bool], batch: int) -> Solved:
        found = self.curved.solve(parameters, batched, batch)
        for i, reason in self.curved.failures.items():
            none = reason.startswith(("infeasible", "unbounded"))
            raise self._error("E192" if none else "E193", i, reason, parameters, batched)
        for i in (~found.ok).nonzero()[:, 0].tolist():
            warnings.warn(_inexact(i), stacklevel=2)
        return found

    def _bent(self, qp: Quadratic) -> bool:
        """Whether some quadratic form is not positive semidefinite."""
        least = torch.linalg.eigvalsh(qp.P)[:, 0]
        return bool((least < -1e-10 * (1 + qp.P.abs().amax((-2, -1)))).any())

    def _kept(self, name: str, make: Any, device: torch.device) -> Tensor:
        key = (name, device)
        if key not in self._constant:
            self._constant[key] = make()
        return self._constant[key]

    def _quadratic(self, parameters: Sequence[Tensor], batched: Sequence[bool], batch: int) -> Quadratic:
        """The matrices of the batch; those that no parameter moves are made once."""
        functions, known = self.functions, self.structure
        device = parameters[0].device if parameters else torch.device("cpu")
        zero = torch.zeros(batch, functions.size, dtype=torch.float64, device=device)
        one = [t[0] if many else t for t, many in zip(parameters, batched, strict=True)]
        assert known.terms is not None  # quadratic
        if not known.terms.get(2, False):
            P = self._kept("P", lambda: jacrev(grad(functions.objective))(zero[0], *one)[None], device)
        else:
            P = functions.batch(jacrev(grad(functions.objective)), batched)(zero, *parameters)
        moving = any(
            t.terms is None or t.terms.get(1, False) for t in (*known.inequalities, *known.equalities)
        )
        if moving:
            G, A = functions.slopes(batched)(zero, *parameters)
        else:
            slopes = jacrev(functions.residuals)
            G = self._kept("G", lambda: slopes(zero[0], *one)[0][None], device)
            A = self._kept("A", lambda: slopes(zero[0], *one)[1][None], device)
        q = functions.batch(grad(functions.objective), batched)(zero, *parameters)
        below, equal = functions.batch(functions.residuals, batched)(zero, *parameters)
        return Quadratic((P + P.mT) / 2, q, G, -below, A, -equal)

    def _fixed(
        self, qp: Quadratic, parameters: Sequence[Tensor], batched: Sequence[bool], batch: int
    ) -> Quadratic:
        """The program with its integers at the optimum of the integer program: equalities at the end of A."""
        whole = torch.zeros(self.functions.size, dtype=torch.bool)
        rows: list[Tensor] = []
        for i in range(batch):
            own = {
                symbol.name: (t[i] if many else t).detach().cpu().numpy()
                for symbol, t, many in zip(self.functions.parameters, parameters, batched, strict=True)
            }
            values, failure = self.curved.integers(own)
            if failure:
                none = failure.startswith(("infeasible", "unbounded"))
                raise self._error("E192" if none else "E193", i, failure, parameters, batched)
            rows.append(self.functions.join(values))
        for symbol, mask in self.functions.split(whole).items():
            if symbol in self.structure.integer:
                mask.fill_(True)
        places = whole.nonzero()[:, 0]
        eye = torch.eye(self.functions.size, dtype=torch.float64)[places].to(qp.q.device)
        at = torch.stack(rows)[:, places].to(qp.q.device)
        # a bound of an integer that is met would be an active constraint beside the equality that fixes it
        G, h = qp.G.clone(), qp.h.clone()
        idle = self.functions.bounds_of(places)
        G[:, idle], h[:, idle] = 0.0, 1.0
        A = torch.cat([qp.A, eye.expand(qp.A.shape[0], -1, -1)], 1)
        return Quadratic(qp.P, qp.q, G, h, A, torch.cat([qp.b, at], 1))

    # ---- messages
    def _refuse(
        self, bad: Tensor, reason: str, parameters: Sequence[Tensor], batched: Sequence[bool]
    ) -> None:
        for i in bad.nonzero()[:, 0].tolist():
            raise self._error("E192", i, reason, parameters, batched)

    def _error(
        self, code: str, row: int, reason: str, parameters: Sequence[Tensor], batched: Sequence[bool]
    ) -> RouteError:
        shown = shown_parameters(self.functions.parameters, parameters, batched, row)
        what = "has no solution" if code == "E192" else "was not solved"
        return RouteError(
            code,
            f"the inner problem {what} in row {row} of the batch ({reason}){shown}",
            at=None if self.problem.objective is None else self.problem.objective.loc,
            fix="a slack with a cost in the constraint that can fail, bounds on the variables, or parameters in a range",
        )

    def warn(self, found: Solved, *, solution: bool) -> None:
        """W220, W221: what has no gradient, or one that is not unique, in these rows."""
        system = found.system
        assert system is not None  # a solved batch has one
        if solution:
            self._warn_kinks(weak(found.z, found.slack).any(1) if found.z.shape[1] else found.ok & False)
        if not bool(system.singular.any()):
            return
        moving = self.functions.moving.to(found.x.device)
        extra = found.y.shape[1] - self.functions.equalities  # those that fix integers
        dependent = system.dependent(torch.cat([moving, moving.new_zeros(extra)]))
        if bool(dependent.any()):
            self._warn_duals(dependent)
        flat = system.flat(self.functions.own) if solution else dependent
        if solution and bool(flat.any()):
            rows = flat.nonzero()[:, 0].tolist()
            _warn(
                "W221",
                f"the solution of the inner problem is not unique in {_rows(rows)}: its gradient is that of "
                "one of many",
                "a strictly convex term in the objective, such as 1e-3 * cn.sum_squares(x)",
            )

    @staticmethod
    def _warn_duals(dependent: Tensor) -> None:
        rows = dependent.nonzero()[:, 0].tolist()
        _warn(
            "W220",
            f"the multipliers of the inner problem are not unique in {_rows(rows)}: more constraints are "
            "active than their gradients are independent, and the optimal value has a kink there; the gradient "
            "is one of several one-sided ones",
            "a quadratic cost on a slack of the constraint (the value is smooth then), or parameters that differ",
        )

    @staticmethod
    def _warn_kinks(kinked: Tensor) -> None:
        if bool(kinked.any()):
            rows = kinked.nonzero()[:, 0].tolist()
            _warn(
                "W222",
                f"an active constraint of the inner problem has multiplier zero in {_rows(rows)}: strict "
                "complementarity fails, the solution has a kink there and the gradient is one-sided",
                None,
            )


_SHORT = "the interior-point method stopped short of its tolerance"


def _rows(rows: Sequence[int]) -> str:
    listed = ", ".join(map(str, rows[:5]))
    return f"row {listed}" if len(rows) == 1 else f"rows {listed}{' …' if len(rows) > 5 else ''}"


def _warn(code: str, message: str, fix: str | None) -> None:
    warnings.warn(ModelingWarning(code, message, fix=fix), stacklevel=2)


def _inexact(row: int) -> ModelingWarning:
    return ModelingWarning(
        "W223",
        f"the optimality conditions of the inner problem could not be solved exactly in row {row}: its "
        "gradient has the accuracy of the solver's point",
        fix="a smooth objective and constraints around the solution; bounds that are met exactly",
    )


# ------------------------------------------------------------------------------------------- gradients
class _Solution(torch.autograd.Function):
    """Parameters -> x, z, y, with gradients by the implicit function theorem."""

    @staticmethod
    def forward(ctx: Any, inner: Inner, batched: tuple[bool, ...], batch: int, *parameters: Tensor) -> Any:
        found = inner.solve(parameters, batched, batch)
        ctx.inner, ctx.batched, ctx.found = inner, batched, found
        ctx.save_for_backward(*parameters)
        ctx.warned = False
        return found.x.clone(), found.z.clone(), found.y.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dx: Tensor, dz: Tensor, dy: Tensor) -> Any:
        inner, found = ctx.inner, ctx.found
        parameters = ctx.saved_tensors
        if not ctx.warned:
            inner.warn(found, solution=True)
            ctx.warned = True
        u, w, v = found.system.solve(dx, dz, dy)
        functions = inner.functions
        p = functions.equalities  # equalities that fix integers stand behind these and hold no parameter
        with torch.enable_grad():
            own = [
                t.detach().requires_grad_(need)
                for t, need in zip(parameters, ctx.needs_input_grad[3:], strict=True)
            ]
            x = found.x.detach().requires_grad_(True)
            value, below, equal = functions.batch(functions.everything, ctx.batched)(x, *own)
            lagrangian = value.sum() + (found.z * below).sum() + (found.y[:, :p] * equal).sum()
            (slope,) = torch.autograd.grad(lagrangian, x, create_graph=True)
            total = (slope * u).sum() + (w * below).sum() + (v[:, :p] * equal).sum()
            wanted = [t for t in own if t.requires_grad]
            grads = iter(_gradients(total, wanted))
        return (None, None, None, *(-next(grads) if t.requires_grad else None for t in own))


def _gradients(total: Tensor, wanted: Sequence[Tensor], *, graph: bool = False) -> list[Tensor]:
    if not total.requires_grad:
        return [torch.zeros_like(t) for t in wanted]
    found = torch.autograd.grad(total, wanted, allow_unused=True, create_graph=graph)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, found, strict=True)]


class _Value(torch.autograd.Function):
    """Optimal value, whose gradient is that of the Lagrangian in the parameters (envelope theorem).

    The gradient is written in x, z and y with their own gradients, so that second derivatives are exact, too.
    """

    @staticmethod
    def forward(ctx: Any, inner: Inner, batched: tuple[bool, ...], count: int, *tensors: Tensor) -> Tensor:
        ctx.inner, ctx.batched, ctx.count = inner, batched, count
        ctx.save_for_backward(*tensors)
        functions = inner.functions
        return functions.batch(functions.objective, batched)(tensors[0], *tensors[count:])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        x, z, y = ctx.saved_tensors[: ctx.count]
        functions = ctx.inner.functions
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            given = ctx.saved_tensors[ctx.count :]
            needed = ctx.needs_input_grad[3 + ctx.count :]
            own = [
                t if again and t.requires_grad else t.detach().requires_grad_(need)
                for t, need in zip(given, needed, strict=True)
            ]
            points = (x, z, y) if again else (x.detach(), z.detach(), y.detach())
            value, below, equal = functions.batch(functions.everything, ctx.batched)(points[0], *own)
            each = value + (points[1] * below).sum(1) + (points[2][:, : equal.shape[1]] * equal).sum(1)
            wanted = [t for t in own if t.requires_grad]
            grads = iter(_gradients((each * upstream).sum(), wanted, graph=again))
        return (
            None,
            None,
            None,
            *(None for _ in range(ctx.count)),
            *(next(grads) if t.requires_grad else None for t in own),
        )


# ---------------------------------------------------------------------------------------------- layers
Wanted = "n.VariableSymbol | str"


@dataclass(frozen=True)
class Call:
    """An inner problem as a function of some of its parameters: what an expression records, and a layer runs.

    Attributes:
        problem: the inner problem.
        inputs: the parameters that are arguments, in order; the others have their own values.
        outputs: variables, names of constraints (their multipliers), or `"value"`.
        name: for printing.
    """

    problem: Problem
    inputs: tuple[n.ParameterSymbol, ...]
    outputs: tuple[Any, ...]
    name: Literal["value", "argmin", "layer"] = "layer"

    def __call__(self, *tensors: Any) -> Any:
        """One tensor per input, each with the same leading axes in front of its shape, or none.

        Raises:
            ModelingError: E112 (shapes), E127 (a parameter without value).
            RouteError: E192, E193.
        """
        given = [t if isinstance(t, Tensor) else torch.as_tensor(as_array(t).copy()) for t in tensors]
        lead = self._lead(given)
        kind = torch.get_default_dtype() if not given else given[0].dtype
        for t in given:
            kind = torch.promote_types(kind, t.dtype)
        kind = kind if kind.is_floating_point else torch.get_default_dtype()
        device = given[0].device if given else torch.device("cpu")
        if any(t.device.type == "meta" for t in given):
            return self._packed([torch.empty((*lead, *s), dtype=kind, device="meta") for s in self._shapes()])
        home = torch.device("cpu") if device.type == "mps" else device
        inner = compiled(self.problem, solution=self.outputs != ("value",))
        parameters, batched, batch = self._parameters(inner, given, lead, home)
        found = self._outputs(inner, parameters, batched, batch)
        shaped = [v.reshape((*lead, *s)) for v, s in zip(found, self._shapes(), strict=True)]
        return self._packed([v.to(device=device, dtype=kind) for v in shaped])

    @staticmethod
    def _packed(found: list[Tensor]) -> Any:
        return found[0] if len(found) == 1 else tuple(found)

    def _lead(self, given: Sequence[Tensor]) -> tuple[int, ...]:
        """The axes in front of the shapes of the inputs, which have to broadcast."""
        if len(given) != len(self.inputs):
            names = ", ".join(symbol.name for symbol in self.inputs)
            raise ModelingError(
                "E112", f"the {self.name} takes {len(self.inputs)} tensors ({names}), got {len(given)}"
            )
        leads: list[tuple[int, ...]] = []
        for symbol, t in zip(self.inputs, given, strict=True):
            cut = t.dim() - len(symbol.shape)
            if cut < 0 or tuple(t.shape[cut:]) != symbol.shape:
                raise ModelingError(
                    "E112",
                    f"Parameter {symbol.name!r} of the inner problem has shape {symbol.shape}, its tensor {tuple(t.shape)}",
                    fix=f"a tensor of shape {symbol.shape}, or (rows, *{symbol.shape})",
                )
            leads.append(tuple(t.shape[:cut]))
        try:
            return tuple(torch.broadcast_shapes(*leads))
        except RuntimeError:
            listed = ", ".join(f"{s.name} {lead}" for s, lead in zip(self.inputs, leads, strict=True))
            raise ModelingError("E112", f"the rows of the inputs differ in number: {listed}") from None

    def _parameters(
        self, inner: Inner, given: Sequence[Tensor], lead: tuple[int, ...], home: torch.device
    ) -> tuple[list[Tensor], list[bool], int]:
        """All parameters of the problem in float64, those with rows flattened to one axis."""
        batch = 1
        for size in lead:
            batch *= size
        own = dict(zip(self.inputs, given, strict=True))
        tensors: list[Tensor] = []
        batched: list[bool] = []
        for symbol in inner.functions.parameters:
            t = own.get(symbol)
            if t is None:
                if symbol.value is None:
                    raise ModelingError(
                        "E127",
                        f"Parameter {symbol.name!r} of the inner problem has no value and is no input",
                        fix=f"{symbol.name}.value = ..., or an input: at={{{symbol.name}: ...}}",
                    )
                t = torch.as_tensor(as_array(symbol.value).copy())
            t = t.to(device=home, dtype=torch.float64)
            many = t.dim() > len(symbol.shape)
            tensors.append(t.expand((*lead, *symbol.shape)).reshape((batch, *symbol.shape)) if many else t)
            batched.append(many)
        return tensors, batched, batch

    def _outputs(
        self, inner: Inner, parameters: list[Tensor], batched: list[bool], batch: int
    ) -> list[Tensor]:
        answer = inner.solutions(parameters, batched, batch)
        split = inner.functions.split(answer.x)
        found: list[Tensor] = []
        for wanted in self.outputs:
            if not isinstance(wanted, str):
                found.append(split[wanted])
            elif wanted == "value":
                found.append(inner.structure.program.sign * _value(inner, answer, batched, parameters))
            else:
                found.append(_multiplier(inner, answer, wanted))
        return found

    def _shapes(self) -> list[tuple[int, ...]]:
        shapes: list[tuple[int, ...]] = []
        for wanted in self.outputs:
            if not isinstance(wanted, str):
                shapes.append(wanted.shape)
            elif wanted == "value":
                shapes.append(())
            else:
                shapes.append(_shape_of(self.problem, wanted))
        return shapes


def _value(inner: Inner, answer: Answer, batched: list[bool], parameters: list[Tensor]) -> Tensor:
    functions = inner.functions
    if answer.closed is not None:
        return functions.batch(functions.objective, batched)(answer.x, *parameters)
    assert answer.z is not None and answer.y is not None  # both or a formula
    found: Tensor = _Value.apply(inner, tuple(batched), 3, answer.x, answer.z, answer.y, *parameters)
    return found


def _multiplier(inner: Inner, answer: Answer, name: str) -> Tensor:
    """Multipliers of a user's constraint: the sum over its parts; of `abs(e) <= b` upper minus lower."""
    pieces: list[Tensor] = []
    form = next(form for form in inner.structure.program.forms if form.name == name)
    for part in form.parts:
        if answer.closed is not None:
            pieces.append(answer.closed.multipliers[part.key])
            continue
        assert answer.z is not None and answer.y is not None  # both or a formula
        source, group = (
            (answer.y, inner.structure.equalities)
            if part.kind == "=="
            else (answer.z, inner.structure.inequalities)
        )
        start = 0
        for term in group:
            if term.key == part.key:
                pieces.append(source[:, start : start + term.size])
                break
            start += term.size
    return torch.stack(pieces).sum(0)


def _shape_of(problem: Problem, name: str) -> tuple[int, ...]:
    form = next(f for f in compiled(problem).structure.program.forms if f.name == name)
    return type_of(form.parts[0].residual).shape or ()


class Layer(nn.Module):
    """The solution of an inner problem as a layer of a torch model. It has no weights.

    `forward` takes one tensor per input, with any number of axes of rows in front of the parameter's shape
    (the same for all inputs, or none), and returns one tensor per output, in the type and on the device of
    the inputs. It computes in float64.

    Attributes:
        route: how the problem is solved, in words.
    """

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call
        self.inner = compiled(call.problem, solution=call.outputs != ("value",))

    @property
    def route(self) -> str:
        """How the problem is solved, in words."""
        return self.inner.route

    def forward(self, *tensors: Tensor) -> Any:
        """Solves the problem in every row."""
        return self.call(*tensors)

    def extra_repr(self) -> str:
        """Inputs, outputs and route."""
        inputs = ", ".join(symbol.name for symbol in self.call.inputs)
        outputs = ", ".join(o if isinstance(o, str) else o.name for o in self.call.outputs)
        return f"({inputs}) -> ({outputs}), {self.route}"


def layer(call: Call) -> Layer:
    """The layer of a call."""
    return Layer(call)
