"""What a function in Python reads and changes beside the contents of tensors: numbers, and places of tensors.

A recorded function takes for granted that these are as they were. They are put back after it was recorded,
and looked at before every replay.
"""

from __future__ import annotations

import copy
import operator
from collections import deque
from itertools import repeat
from typing import TYPE_CHECKING, Any, TypeAlias, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import torch
    from torch import Tensor, nn

__all__ = ["Surroundings", "Watched"]

_Entries: TypeAlias = "dict[Any, Any]"

_APART = frozenset({
    "lr", "foreach", "fused",  # given to a recorded step, or no part of what it does
    "_zero_grad_profile_name", "_step_supports_amp_scaling",  # set once by the class of an optimizer
    "_is_full_backward_hook",  # says of which kind hooks are, which are looked at themselves
})  # fmt: skip
"""What a recorded step need not find as it was."""


class Surroundings:
    """Attributes of modules, and options, state and attributes of an optimizer, as they are now.

    Args:
        modules: with all their children.
        optimizer: any of torch, if there is one.
    """

    def __init__(self, modules: Iterable[nn.Module], optimizer: torch.optim.Optimizer | None = None) -> None:
        own: list[_Entries] = [vars(m) for m in modules]
        if optimizer is not None:
            own += [vars(optimizer), *optimizer.param_groups]
            own += [cast("_Entries", state) for state in optimizer.state.values() if isinstance(state, dict)]
        held: list[tuple[Any, Any]] = [item for entries in own for item in entries.items()]
        own += [cast("_Entries", v) for _, v in held if isinstance(v, dict)]
        several: list[Any] = [v for _, v in held if isinstance(v, (list, set, deque))]
        self._fixed: list[_Entries] = [v for k, v in held if k == "_modules" or str(k).endswith("_hooks")]
        self._entries = [(entries, dict(entries)) for entries in own]
        self._several = [(each, copy.copy(each)) for each in several]

    def restore(self) -> None:
        """Puts back what the containers held; what is in tensors is left as it is."""
        for entries, was in self._entries:
            for key in [key for key in entries if key not in was]:
                del entries[key]
            entries.update(was)
        for each, was in self._several:
            each.clear()
            each.update(was) if isinstance(each, set) else each.extend(was)

    def watched(self, reads: Sequence[Tensor]) -> Watched:
        """Of all this the numbers, the tensors that a function reads, and modules and hooks.

        Args:
            reads: the tensors.
        """
        read = {id(t) for t in reads}
        found = [
            (entries, key, value)
            for entries, was in self._entries
            for key, value in was.items()
            if key not in _APART and (_plain(value) or id(value) in read)
        ]
        return Watched(found, self._fixed)


class Watched:
    """Entries of containers that are to stay as they are.

    Args:
        entries: container, key and value.
        fixed: dictionaries, and all that is in them.
    """

    def __init__(self, entries: list[tuple[_Entries, Any, Any]], fixed: list[_Entries]) -> None:
        self._containers = [own for own, _, _ in entries]
        self._keys = [key for _, key, _ in entries]
        self._were = [value for _, _, value in entries]
        self._empty = [own for own in fixed if not own]  # most of them: hooks
        self._full = [(own, list(own.values())) for own in fixed if own]

    @property
    def same(self) -> bool:
        """Whether all of them are as they were."""
        now = list(map(dict[Any, Any].get, self._containers, self._keys, repeat(self)))
        if not all(map(operator.is_, now, self._were)) and not all(map(_alike, now, self._were)):
            return False
        return not any(self._empty) and all(
            len(own) == len(was) and all(map(operator.is_, own.values(), was)) for own, was in self._full
        )


def _alike(now: Any, was: Any) -> bool:
    """Whether an entry is the object that it was, or an equal number or text."""
    return now is was or (_plain(was) and type(now) is type(was) and now == was)


def _plain(value: Any) -> bool:
    """Numbers, texts, None, and tuples of them."""
    if isinstance(value, tuple):
        return all(map(_plain, cast("tuple[Any, ...]", value)))
    return value is None or isinstance(value, (bool, int, float, complex, str))
