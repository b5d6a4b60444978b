"""Functions of tensors as one graph of torch operations, to be replayed in a straight line, or compiled.

A function that reads and changes tensors wherever they are held (buffers, columns, the state of an optimizer)
is run twice on stand-ins without data: once to see which tensors it meets, and once to record its operations,
with those tensors as inputs beside its arguments. Gradients that it takes are recorded like everything else,
so that a whole training step is one graph. Python runs only while it is recorded: numbers that it reads
become constants of the graph, and everything that changes between calls has to be a tensor.
"""

from __future__ import annotations

import operator
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

try:
    from torch._inductor import standalone_compile
except ImportError:  # torch before 2.8
    standalone_compile = None

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Replay = Callable[[Sequence[Tensor]], Any]

__all__ = ["Graph", "trace"]


@dataclass(frozen=True)
class Graph:
    """A recorded function.

    Attributes:
        module: takes the tensors of `reads`, then the arguments; changes them in place like the function.
        reads: every tensor that the function met beside its arguments.
    """

    module: fx.GraphModule
    reads: list[Tensor]

    @property
    def random(self) -> bool:
        """Whether it draws random numbers (dropout): compiled code draws others than torch."""
        targets = (node.target for node in self.module.graph.nodes)
        return any(torch.Tag.nondeterministic_seeded in getattr(target, "tags", ()) for target in targets)

    def replay(self) -> Replay:
        """The operations one after the other, as a function of the arguments alone."""
        return self._of_arguments(_straight(self.module))

    def compile(self, arguments: Sequence[Tensor]) -> Replay:
        """Machine code for it, as a function of arguments like these. Takes seconds to a minute."""
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own modules
            if standalone_compile is None:
                return self._of_arguments(torch.compile(self.module, fullgraph=True, dynamic=False))
            reads = [t.detach() for t in self.reads]
            compiled = standalone_compile(  # has no look at every argument at each call like torch.compile
                self.module,
                [*reads, *arguments],
                dynamic_shapes="from_example_inputs",
                options={"config_patches": {"size_asserts": False}},
            )
        return self._of_arguments(compiled)

    def _of_arguments(self, function: Callable[..., Any]) -> Replay:
        reads = [t.detach() for t in self.reads]

        def run(arguments: Sequence[Tensor]) -> Any:
            with torch.no_grad():
                return function(*reads, *arguments)

        return run


# ---------------------------------------------------------------------------------------------- recording
_QUOTIENTS = (Tensor.addcdiv_, Tensor.addcdiv, torch.addcdiv)


class _Replaced(TorchFunctionMode):
    """Puts other tensors in the place of those that a function meets, and keeps its numbers tensors."""

    def __init__(self, stand_in: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stand_in = stand_in

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = pytree.tree_map_only(Tensor, self.stand_in, (list(args), dict(kwargs or {})))
        given: list[Any] = found[0]
        options: dict[str, Any] = found[1]
        if func is Tensor.item:  # what optimizers compute with, such as the number of steps
            return given[0].double()
        for name in ("alpha", "value"):  # ... and use as the factor of a product that is added
            if isinstance(options.get(name), Tensor):
                first = len(given) - (func in _QUOTIENTS) - 1
                given[first] = given[first] * options.pop(name)
        return func(*given, **options)


def trace(function: Callable[..., Any], arguments: Sequence[Tensor]) -> Graph:
    """Records a function.

    Args:
        function: takes the arguments; it may read, differentiate and change in place any other tensor.
        arguments: examples; a graph holds for arguments of these shapes only.

    Raises:
        Exception: whatever torch raises for what cannot be recorded, such as a branch that depends on the
            value of a tensor.
    """
    found = _met(function, arguments)

    def replaced(*inputs: Tensor) -> Any:
        stand_ins = {id(t): own for t, own in zip(found, inputs, strict=False)}
        with _Replaced(lambda t: stand_ins.get(id(t), t)):
            return function(*inputs[len(found) :])

    module = make_fx(replaced, tracing_mode="fake")(*found, *arguments)
    _tidy(module)
    return Graph(module, found)


def _met(function: Callable[..., Any], arguments: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that a function meets beside its arguments, none of which it changes here."""
    mode = FakeTensorMode()
    found: dict[int, tuple[Tensor, Tensor]] = {}

    def stand_in(t: Tensor) -> Tensor:
        if isinstance(t, FakeTensor):
            return t
        if id(t) not in found:
            found[id(t)] = (t, mode.from_tensor(t))
        return found[id(t)][1]

    with mode, _Replaced(stand_in):
        function(*(mode.from_tensor(t) for t in arguments))
    return [t for t, _ in found.values()]


def _tidy(module: fx.GraphModule) -> None:
    """Takes out what is there for autograd and the profiler only."""
    for node in reversed(list(module.graph.nodes)):
        if node.target is torch.ops.aten.detach.default:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
        elif isinstance(node.target, OpOverload) and node.target.namespace == "profiler" and not node.users:
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()


# ----------------------------------------------------------------------------------------------- replaying
def _straight(module: fx.GraphModule) -> Callable[..., Any]:
    """The graph as one Python function that calls the operations directly.

    `GraphModule.forward` goes through torch's attribute lookups and a Python frame for every operation, which
    is a third of the time of a small model's step.
    """
    scope: dict[str, Any] = {}
    inputs: list[str] = []
    lines: list[str] = []
    last = {source: node for node in module.graph.nodes for source in node.all_input_nodes}

    def bound(value: Any) -> str:
        name = f"c{len(scope)}"
        scope[name] = value
        return name

    def shown(value: Any) -> str:
        match value:
            case fx.Node():
                return value.name
            case list() | tuple():
                items = "".join(f"{shown(x)}, " for x in cast("list[Any]", value))
                return f"[{items}]" if isinstance(value, list) else f"({items})"
            case bool() | int() | None:
                return repr(value)
            case _:
                return bound(value)

    for node in module.graph.nodes:
        match node.op:
            case "placeholder":
                inputs.append(node.name)
            case "get_attr":
                lines.append(f"{node.name} = {bound(operator.attrgetter(node.target)(module))}")
            case "output":
                lines.append(f"return {shown(node.args[0])}")
            case _:
                function = node.target
                if isinstance(function, OpOverload):
                    function = function._op  # pyright: ignore[reportPrivateUsage]
                given = [shown(x) for x in node.args] + [f"{k}={shown(v)}" for k, v in node.kwargs.items()]
                lines.append(f"{node.name} = {bound(function)}({', '.join(given)})")
                done = [x.name for x in node.all_input_nodes if last[x] is node and x.op != "placeholder"]
                if done:
                    lines.append(f"del {', '.join(done)}")
    source = f"def replayed({', '.join(inputs)}):\n" + "".join(f"    {line}\n" for line in lines)
    exec(compile(source, "<recorded step>", "exec"), scope)  # of the graph's own names and numbers
    return scope["replayed"]
