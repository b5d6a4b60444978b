"""Models that are affine in their trainable weights, and how to compute their features.

A module is certified when its graph (`torch.fx`) consists of parts without trainable parameters, one
trainable `nn.Linear`, and after it only operations that move entries (flatten, squeeze, indexing ...). Its
output is then `features(x) @ weight.T + bias`, entries moved. Anything else gets a reason in words.
"""

from __future__ import annotations

import copy
import math
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, fx, nn

from constrain.analysis.once import once

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

__all__ = [
    "AffineModel",
    "Features",
    "affine_model",
    "last_layer",
    "on_host",
    "output_bounds",
    "refusal_of",
    "trainable",
]

_MOVING_MODULES = (nn.Flatten, nn.Unflatten, nn.Identity)
_MOVING_METHODS = frozenset(
    {
        "flatten",
        "view",
        "reshape",
        "squeeze",
        "unsqueeze",
        "contiguous",
        "t",
        "transpose",
        "permute",
        "unflatten",
    }
)
_MOVING_FUNCTIONS = frozenset(
    (
        operator.getitem,
        torch.flatten,
        torch.reshape,
        torch.squeeze,
        torch.unsqueeze,
        torch.transpose,
        torch.permute,
    )
)
_RANDOM = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_COUPLED = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def trainable(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Names and tensors of the parameters that are decisions."""
    return [(name, p) for name, p in module.named_parameters() if p.requires_grad]


def on_host(module: nn.Module) -> nn.Module:
    """A copy in float64 on the CPU, in evaluation mode; the module itself is left alone."""
    return copy.deepcopy(module).to("cpu", torch.float64).eval()


@dataclass(frozen=True)
class Features:
    """A certified model on given inputs.

    The output of row i is `(values[i] @ weight.T + bias).ravel()[moved]` in the shape `row_shape`.

    Attributes:
        values: (rows, ..., d) inputs of the trainable layer, float64; without a row axis when the model was
            called on a constant.
        moved: positions of the entries of one row's layer output, in the order of the model's output;
            None when nothing moves.
        row_shape: shape of one row of the model's output.
    """

    values: NDArray[Any]
    moved: NDArray[Any] | None
    row_shape: tuple[int, ...]


@dataclass(frozen=True)
class AffineModel:
    """A module certified to be affine in its trainable weights.

    Attributes:
        module: the whole module.
        layer: path of its trainable `nn.Linear` (empty when it is the module itself).
        weight: name of the (out, d) weight among the module's parameters.
        bias: name of the (out,) bias, None without one.
    """

    module: nn.Module
    layer: str
    weight: str
    bias: str | None

    @property
    def linear(self) -> nn.Linear:
        """The trainable layer."""
        found = self.module.get_submodule(self.layer)
        assert isinstance(found, nn.Linear)  # certified by affine_model
        return found

    def features(self, *inputs: Tensor, per_row: bool = True) -> Features:
        """Runs the frozen part in float64 on a copy; the module itself is left alone.

        Args:
            inputs: tensors on the CPU, as the module takes them, rows first when `per_row`.
            per_row: whether the first axis of the inputs is the axis of rows.

        Raises:
            ValueError: when what follows the layer mixes rows.
        """
        double = on_host(self.module)
        layer = double.get_submodule(self.layer)
        caught: list[Tensor] = []
        hook = layer.register_forward_pre_hook(lambda _module, args: caught.append(args[0]))
        with torch.no_grad():
            double(*inputs)
        hook.remove()
        values = caught[0]
        moved, row_shape = self._tail(double, layer, inputs, values, per_row)
        return Features(values.detach().numpy(), moved, row_shape)

    def _tail(
        self, double: nn.Module, layer: nn.Module, inputs: Sequence[Tensor], values: Tensor, per_row: bool
    ) -> tuple[NDArray[Any] | None, tuple[int, ...]]:
        """Numbers the layer's outputs and sees where the rest of the module puts them."""
        if per_row:
            inputs, values = [x[:3] for x in inputs], values[:3]
        out = self.linear.out_features
        numbers = torch.arange(math.prod(values.shape[:-1]) * out, dtype=torch.float64).reshape(
            *values.shape[:-1], out
        )
        hook = layer.register_forward_hook(lambda _module, _args, _output: numbers)
        with torch.no_grad():
            result = double(*inputs)
        hook.remove()
        if not per_row:
            order = result.reshape(-1).long().numpy()
            return (None if (order == range(numbers.numel())).all() else order), tuple(result.shape)
        rows, size = len(values), numbers[0].numel()
        own = (
            result.reshape(rows, -1).long() - size * torch.arange(rows)[:, None]
            if len(result) == rows
            else None
        )
        if own is None or bool((own != own[0]).any()) or int(own.min()) < 0 or int(own.max()) >= size:
            raise ValueError(f"what follows the layer {self.layer!r} mixes rows")
        order = own[0].numpy()
        return (None if order.tolist() == list(range(size)) else order), tuple(result.shape[1:])


# --------------------------------------------------------------------------------------- certification
class _Tracer(fx.Tracer):
    """Keeps torch's own layers and everything without trainable parameters as one step."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a submodule is one step of the graph."""
        return not trainable(m) or super().is_leaf_module(m, module_qualified_name)


def _named(module: nn.Module, path: str) -> str:
    """`ReLU '1'`."""
    return f"{type(module).__name__} {path!r}" if path else f"this {type(module).__name__}"


def _modes(module: nn.Module) -> str | None:
    """The reason when a submodule is random or couples rows in its present mode."""
    named = cast("Iterator[tuple[str, nn.Module]]", module.named_modules())
    for path, part in named:
        if part.training and isinstance(part, _RANDOM) and part.p > 0:
            return f"{_named(part, path)} is in training mode and draws at random, until eval()"
        if part.training and isinstance(part, _COUPLED):
            return f"{_named(part, path)} is in training mode and couples the rows of a batch, until eval()"
    return None


class _Walk:
    """One pass over the graph; `fed` are the steps that depend on the trainable layer."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.layer: str | None = None
        self.fed: set[fx.Node] = set()

    def step(self, node: fx.Node) -> str | None:
        """Takes one step; a sentence when it breaks affinity."""
        after = any(arg in self.fed for arg in node.all_input_nodes)
        if node.op == "get_attr":
            return self._attribute(str(node.target))
        if node.op == "call_module":
            return self._module(node, str(node.target), after)
        if after:
            self.fed.add(node)
            moves = node.op == "output" or self._moves(node)
            return None if moves else f"{self._operation(node)} follows the trainable layer {self.layer!r}"
        return None

    def _attribute(self, path: str) -> str | None:
        owner, _, name = path.rpartition(".")
        value = getattr(self.module.get_submodule(owner), name)
        if isinstance(value, nn.Parameter) and value.requires_grad:
            return f"it uses its trainable parameter {path!r} outside of an nn.Linear"
        return None

    def _module(self, node: fx.Node, path: str, after: bool) -> str | None:
        part = self.module.get_submodule(path)
        if after:
            self.fed.add(node)
            idle = isinstance(part, _RANDOM)  # in eval mode: _modes refused the other
            moves = isinstance(part, _MOVING_MODULES) or idle
            return None if moves else f"{_named(part, path)} follows the trainable layer {self.layer!r}"
        if not trainable(part):
            return None
        if not isinstance(part, nn.Linear):
            return f"{_named(part, path)} is trainable and is no nn.Linear"
        if self.layer is not None:
            return f"two trainable layers meet: {self.layer!r} and {path!r}"
        self.layer = path
        self.fed.add(node)
        return None

    @staticmethod
    def _moves(node: fx.Node) -> bool:
        if node.op == "call_method":
            return node.target in _MOVING_METHODS
        return node.op == "call_function" and node.target in _MOVING_FUNCTIONS

    @staticmethod
    def _operation(node: fx.Node) -> str:
        target: Any = node.target
        return str(target) if isinstance(target, str) else str(getattr(target, "__name__", target))


def _several_layers(module: nn.Module) -> str | None:
    """The reason when several layers are trainable; plain sequences are left to tracing, which says more."""
    found = cast("Iterator[tuple[str, nn.Module]]", module.named_modules())
    owners = [path for path, part in found if any(p.requires_grad for p in part.parameters(recurse=False))]
    built_in = all(type(part).__module__.startswith("torch.nn") for part in module.children())
    plain = isinstance(module, nn.Sequential) and built_in
    if len(owners) < 2 or plain:
        return None
    listed = ", ".join(map(repr, owners[:3])) + ", …" * (len(owners) > 3)
    return f"{len(owners)} of its layers are trainable: {listed}"


@once
def _graph(module: nn.Module, _state: tuple[tuple[bool, ...], tuple[bool, ...]]) -> fx.Graph:
    """The graph of a module that trains these of its parameters, with its parts in these modes."""
    return _Tracer().trace(module)


def _examine(module: nn.Module) -> AffineModel | str:
    """The certificate, or the reason against it."""
    if not trainable(module):
        return "it has no trainable parameters; declare it with frozen=True"
    refused = _modes(module)
    if refused is not None:
        return refused
    if type(module) is nn.Linear:
        return _certified(module, "")
    several = _several_layers(module)
    if several is not None:
        return several
    state = tuple(p.requires_grad for p in module.parameters()), tuple(m.training for m in module.modules())
    try:
        graph = _graph(module, state)
    except Exception as error:  # torch.fx calls forward with what is no tensor: it may raise anything
        words = str(error).split("\n", 1)[0][:80]
        return f"torch.fx cannot follow its forward ({type(error).__name__}: {words})"
    walk = _Walk(module)
    for node in graph.nodes:
        refused = walk.step(node)
        if refused is not None:
            return refused
    if walk.layer is None:
        return "no trainable nn.Linear takes part in its output"
    return _certified(module, walk.layer)


def _certified(module: nn.Module, layer: str) -> AffineModel | str:
    found = module.get_submodule(layer)
    prefix = f"{layer}." if layer else ""
    weight, bias = getattr(found, "weight", None), getattr(found, "bias", None)
    names = dict(trainable(module))
    if f"{prefix}weight" not in names or (bias is not None and f"{prefix}bias" not in names):
        return f"the layer {layer!r} is trainable in part only"
    if type(found) is not nn.Linear or weight is None:
        return f"{_named(found, layer)} is no plain nn.Linear"
    return AffineModel(module, layer, f"{prefix}weight", None if bias is None else f"{prefix}bias")


def affine_model(module: Any) -> AffineModel | None:
    """The certificate of a module that is affine in its trainable weights, or None: see `refusal_of`."""
    found = _examine(module)
    return None if isinstance(found, str) else found


def refusal_of(module: Any) -> str | None:
    """Why a module is not known to be affine in its trainable weights; None when it is."""
    found = _examine(module)
    return found if isinstance(found, str) else None


# ------------------------------------------------------------------------------------ bounded outputs
_INFINITE = math.inf
_BOUNDED: dict[type[nn.Module], tuple[float, float]] = {
    nn.Sigmoid: (0.0, 1.0),
    nn.Hardsigmoid: (0.0, 1.0),
    nn.Softmax: (0.0, 1.0),
    nn.Tanh: (-1.0, 1.0),
    nn.Softsign: (-1.0, 1.0),
    nn.ReLU6: (0.0, 6.0),
    nn.ReLU: (0.0, _INFINITE),
    nn.Softplus: (0.0, _INFINITE),
    nn.LogSigmoid: (-_INFINITE, 0.0),
    nn.LogSoftmax: (-_INFINITE, 0.0),
}


def output_bounds(module: Any) -> tuple[float, float]:
    """Least and largest entry of a module's output that its last layer allows; unbounded when not known.

    Only plain `nn.Sequential` modules (nested ones too) are looked into, past layers that move entries.
    """
    last = last_layer(module)
    if type(last) is nn.Hardtanh:
        return float(last.min_val), float(last.max_val)
    kind: type[nn.Module] = cast("type[nn.Module]", type(last))
    return _BOUNDED.get(kind, (-_INFINITE, _INFINITE))


def last_layer(module: Any) -> Any:
    """The layer that makes the entries of a module's output; None when it is not known."""
    if module._forward_hooks or module._forward_pre_hooks:
        return None
    if type(module) is nn.Sequential:
        last = next((part for part in reversed(list(module)) if not isinstance(part, _MOVING_MODULES)), None)
        return None if last is None else last_layer(last)
    return module
