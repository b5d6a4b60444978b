"""A function of tensors as a list of torch operations: replayed one after the other, or compiled.

`trace.py` makes such lists. Values are numbers that stand for tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch._ops import OpOverload

__all__ = ["Graph", "Operation", "Replay", "Value", "values"]

Replay = Callable[[Sequence[Tensor]], Any]


class Value(int):
    """A tensor of a recording, by number.

    Attributes:
        shape: of the tensor.
        strides: of its axes in memory.
        dtype: of its entries.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, number: int, t: Tensor) -> Self:
        """That number, of this tensor."""
        made = cls(number)
        made.shape, made.strides, made.dtype = tuple(t.shape), tuple(t.stride()), t.dtype
        return made


@dataclass(frozen=True)
class Operation:
    """A call of a torch operation; `made` is its result, or for several results a tuple."""

    function: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    made: Value | tuple[Value | None, ...] | None

    @property
    def results(self) -> tuple[Value | None, ...]:
        """What it makes, one entry for each; None for what it was given and changed."""
        return self.made if isinstance(self.made, tuple) else (self.made,)

    @property
    def changes(self) -> bool:
        """Whether it writes to a tensor that it was given."""
        return self.function._schema.is_mutable  # pyright: ignore[reportPrivateUsage]

    @property
    def random(self) -> bool:
        """Whether it draws random numbers."""
        return torch.Tag.nondeterministic_seeded in self.function.tags

    @property
    def on_host(self) -> bool:
        """Whether it makes a tensor on the CPU, whatever it is made of."""
        schema = self.function._schema  # pyright: ignore[reportPrivateUsage]
        if not any(a.name == "device" for a in schema.arguments):
            return False
        device = self.kwargs.get("device")
        if device is None:  # that of what it is made of
            return next(values([self.args, self.kwargs]), None) is None
        return torch.device(device).type == "cpu"

    @property
    def acts(self) -> bool:
        """Whether it does something even where nobody needs its results (those that check have none)."""
        return self.changes or self.random or self.made is None


@dataclass(frozen=True)
class Graph:
    """A recorded function.

    Attributes:
        operations: in order.
        inputs: the arguments, then the tensors of `reads`.
        result: what the function returns, with values for tensors.
        reads: every tensor that the function met beside its arguments.
    """

    operations: list[Operation]
    inputs: list[Value]
    result: Any
    reads: list[Tensor]

    def replay(self) -> Replay:
        """The operations one after the other, as a function of the arguments alone."""
        return self.of_arguments(straight(self))

    def of_arguments(self, function: Callable[..., Any]) -> Replay:
        """A function of all inputs as one of the arguments alone."""
        reads = [t.detach() for t in self.reads]

        def run(arguments: Sequence[Tensor]) -> Any:
            with torch.no_grad():
                return function(*arguments, *reads)

        return run


def values(given: Any) -> Iterator[Value]:
    """The values in the arguments of an operation."""
    match given:
        case Value():
            yield given
        case list() | tuple():
            for x in cast("Sequence[Any]", given):
                yield from values(x)
        case dict():
            yield from values(list(cast("dict[str, Any]", given).values()))
        case _:
            pass


def straight(graph: Graph) -> Callable[..., Any]:
    """A graph as one Python function that calls the operations directly."""
    scope: dict[str, Any] = {}
    lines: list[str] = []
    last = {v: x for x in graph.operations for v in values([x.args, x.kwargs])}
    kept = {*graph.inputs, *values(graph.result)}

    def bound(value: Any) -> str:
        name = f"c{len(scope)}"
        scope[name] = value
        return name

    def shown(value: Any) -> str:
        match value:
            case Value():
                return f"v{int(value)}"
            case list() | tuple():
                items = "".join(f"{shown(x)}, " for x in cast("Sequence[Any]", value))
                return f"[{items}]" if isinstance(value, list) else f"({items})"
            case bool() | int() | None:
                return repr(value)
            case _:
                return bound(value)

    for x in graph.operations:
        given = [shown(a) for a in x.args] + [f"{k}={shown(v)}" for k, v in x.kwargs.items()]
        call = f"{bound(x.function._op)}({', '.join(given)})"  # pyright: ignore[reportPrivateUsage]
        names = ["_" if v is None else shown(v) for v in x.results]
        comma = "," if isinstance(x.made, tuple) else ""
        lines.append(f"{', '.join(names)}{comma} = {call}" if x.made else call)
        done = {v for v in values([x.args, x.kwargs, x.made]) if last.get(v, x) is x} - kept
        if done:
            lines.append("del " + ", ".join(map(shown, sorted(done))))
    lines.append(f"return {shown(graph.result)}")
    inputs = ", ".join(map(shown, graph.inputs))
    source = f"def replayed({inputs}):\n" + "".join(f"    {line}\n" for line in lines)
    exec(compile(source, "<recorded step>", "exec"), scope)  # of the graph's own names and numbers
    return scope["replayed"]
