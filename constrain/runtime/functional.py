"""Modules called with other tensors in the place of their own, and without torch's compiler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.func import functional_call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

__all__ = ["call_with", "eager"]


def call_with(module: nn.Module, tensors: Mapping[str, Tensor], args: tuple[Any, ...]) -> Any:
    """The module's result with these parameters and buffers, by the names that `named_parameters` gives.

    Tied parameters are replaced wherever they are. `functional_call` alone follows names, and leaves a module
    that is found under two of them (a network kept beside `torch.compile` of it) with the wrong tensors.
    """
    found: list[tuple[str, Tensor]] = [*module.named_parameters(), *module.named_buffers()]
    replaced = {id(t): tensors[name] for name, t in found if name in tensors}
    named: dict[str, Tensor] = {}
    modules = cast("Iterator[tuple[str, nn.Module]]", module.named_modules())  # pyright: ignore[reportUnknownMemberType]
    for prefix, each in modules:  # every module once
        own: list[tuple[str, Tensor]] = [
            *each.named_parameters(prefix, recurse=False, remove_duplicate=False),
            *each.named_buffers(prefix, recurse=False, remove_duplicate=False),
        ]
        named |= {name: replaced[id(t)] for name, t in own if id(t) in replaced}
    return functional_call(module, named, args, tie_weights=False)


def eager(module: Callable[..., Any]) -> Callable[..., Any]:
    """The module without `torch.compile`, whose functions have one gradient per call, and no second one.

    Steps of the multipliers and diagnostics take several gradients and derivatives of gradients. Training is
    compiled as a whole (`graph="compiled"`).
    """
    original = getattr(module, "_orig_mod", None)
    if original is not None:
        return eager(original)
    if not isinstance(module, nn.Module) or not any(_holds_compiled(m) for m in module.modules()):
        return module

    def run(*args: Any) -> Any:
        with torch.compiler.set_stance("force_eager"):
            return module(*args)

    return run


def _holds_compiled(module: nn.Module) -> bool:
    marks = ("_orig_mod", "_torchdynamo_orig_callable")
    return any(hasattr(x, mark) for x in [module, *vars(module).values()] for mark in marks)
