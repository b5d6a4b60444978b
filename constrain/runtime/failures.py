"""What torch or a module of the user raises on a batch, in the user's words: which expression, which rows.

Nothing here runs unless an evaluation has failed. The expression is that of the line of generated code which
raised the error; the rows are found by halving the batch.
"""

from __future__ import annotations

import re
from traceback import walk_tb
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import (
    _get_current_dispatch_mode,  # pyright: ignore[reportPrivateUsage]  # there is no public one
)

from constrain._lazy import language_printing
from constrain.errors import ConstrainError, ModelingError
from constrain.language import nodes as n
from constrain.runtime.checks import labels_of, refuse_labels
from constrain.runtime.modes import layers_in_training

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from constrain.language.symbols import Model
    from constrain.runtime.binding import Population
    from constrain.runtime.codegen import Generated
    from constrain.runtime.rows import Index

__all__ = ["explain", "refuse_training"]

LISTED = 3
"""Rows that are named."""
LOOKS = 100
"""Most evaluations that look for them."""
SHOWN = 3
"""Columns whose values are shown."""
_PASSED = (ConstrainError, torch.OutOfMemoryError, MemoryError, Warning)


def explain(
    error: Exception,
    generated: Generated,
    known: Sequence[Any],
    columns: Mapping[str, Tensor],
    population: Population | None,
    index: Index | None,
) -> None:
    """Says which expression failed on which rows; returns where that is known already, or cannot be found.

    Args:
        error: what was raised.
        generated: the function that failed.
        known: what it takes after the columns.
        columns: the rows that it failed on, by column.
        population: the sample; None for functions of averages.
        index: positions of the rows; None for rows without.

    Raises:
        ModelingError: E112 with the words of torch.
    """
    if isinstance(error, _PASSED) or _get_current_dispatch_mode() is not None:  # a step that is recorded
        return
    if "CUDA error" in str(error):  # nothing can be computed on the device any more
        raise _of_device(error, population) from error
    failing = _failing(error, generated)
    if failing is None:
        return
    if population is None:
        where, fix = "the averages", "arguments that the function takes"
    else:
        search = _Search(error, lambda rows: generated.function(rows, *known), columns)
        with torch.no_grad():
            places = search.failing()
        where = _rows_text(population, index, places, search.count, more=search.more)
        labels = labels_of(failing)
        if labels is not None and labels.name in columns:
            try:
                refuse_labels(failing, columns[labels.name], f" ({where})")
            except ModelingError as told:
                raise told from error
        if len(places) == 1:
            where += _values_text(failing, search.part(places[0], places[0] + 1), population)
        fix = "arguments that the function takes, for every row"
    text = f"{language_printing().text(failing, limit=80)} fails on {where}: {_words(error)}"
    raise ModelingError("E112", text, at=failing.loc, fix=fix) from error


def refuse_training(
    error: Exception, generated: Generated, columns: Mapping[str, Tensor], models: Sequence[Model]
) -> None:
    """Says that a model takes no such batch in training mode; returns where that is known already.

    Args:
        error: what was raised in training mode.
        generated: the function that failed.
        columns: the rows that it failed on, by column.
        models: of the problem.

    Raises:
        ModelingError: E122 with the words of torch.
    """
    failing = None if isinstance(error, _PASSED) else _failing(error, generated)
    if failing is None:
        return
    own = {x.model.name: x.model for x in n.postorder(failing) if isinstance(x, n.Call)}
    name = next(iter(own), models[0].name)
    words = layers_in_training(own.get(name, models[0]))
    count = len(next(iter(columns.values()), ()))
    what = "a batch of 1 row" if count == 1 else f"a batch of {count} rows"
    layers = f"{' and '.join(words)} of {name}" if words else f"{name} in training mode"
    fix = f"{name}.module.eval() before, which trains it without"
    if count == 1:
        fix = "batch= of two rows or more (drop_last=True of a loader), or " + fix
    text = f"{layers} cannot take a training step on {what}: {_words(error)}"
    raise ModelingError("E122", text, at=failing.loc, fix=fix) from error


def _of_device(error: Exception, population: Population | None) -> ModelingError:
    where = "the averages were" if population is None else f"rows of {population.data.name} were"
    return ModelingError(
        "E112",
        f"the device stopped while {where} computed: {_words(error)}; most often a label or an index is out "
        "of range",
        fix='solve(device="cpu"), in a new process, names the expression and the rows',
    )


def _words(error: Exception) -> str:
    """`IndexError: Target 7 is out of bounds.`, its first line."""
    text = str(error).strip().split("\n", 1)[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


# ------------------------------------------------------------------------------------------------- rows
class _Search:
    """Finds rows on which a function fails as it did on all of them.

    Attributes:
        count: of all rows.
        more: there may be others than those that were found.
    """

    def __init__(
        self,
        error: Exception,
        compute: Callable[[Mapping[str, Tensor]], Any],
        columns: Mapping[str, Tensor],
    ) -> None:
        self.kind = _kind(error)
        self.compute = compute
        self.columns = columns
        self.count = len(next(iter(columns.values()), ()))
        self.looks = 0
        self.more = False

    def part(self, start: int, stop: int) -> dict[str, Tensor]:
        """Some of the rows."""
        return {name: column[start:stop] for name, column in self.columns.items()}

    def failing(self) -> list[int]:
        """The first rows that fail alone; none where all do, or where rows fail together only."""
        count = self.count
        if count < 2 or not self._fails(0, count):
            return []
        if all(self._fails(i, i + 1) for i in {0, count // 2, count - 1}):
            return []
        found: list[int] = []
        for row in self._in(0, count):
            if len(found) == LISTED:
                self.more = True
                break
            found.append(row)
        return found

    def _in(self, start: int, stop: int) -> Iterator[int]:
        """Rows that fail among some that do."""
        if stop - start == 1:
            yield start
            return
        middle = (start + stop) // 2
        for low, high in ((start, middle), (middle, stop)):
            if self.looks >= LOOKS:
                self.more = True
                return
            if self._fails(low, high):
                yield from self._in(low, high)

    def _fails(self, start: int, stop: int) -> bool:
        self.looks += 1
        try:
            self.compute(self.part(start, stop))
        except Exception as error:  # whatever a function of the user raises
            return _kind(error) == self.kind
        return False


def _kind(error: Exception) -> tuple[type, str]:
    """What an error is about, without the numbers in its words."""
    return type(error), re.sub(r"-?\d+", "#", _words(error))


def _rows_text(
    population: Population, index: Index | None, places: list[int], count: int, *, more: bool
) -> str:
    """`row 700 of people`, `rows 3, 5 and 9 of people`, `row 13 of a batch of 64 rows of people`."""
    name = population.data.name
    if not places:
        return f"rows of {name}"
    if index is None:
        own, name = places, f"a batch of {count} rows of {name}"
    elif isinstance(index, slice):
        every = range(*index.indices(population.rows))
        own = [every[place] for place in places]
    else:
        own = [int(index[place]) for place in places]
    listed = ", ".join(map(str, own[:-1])) + (", " if more else " and ") * (len(own) > 1) + str(own[-1])
    word = "row" if len(own) == 1 and not more else "rows"
    return f"{word} {listed}{' and maybe others' if more else ''} of {name}"


def _values_text(failing: n.Node, row: Mapping[str, Tensor], population: Population) -> str:
    """` (y = 7)`: what the row has in the columns of one number that the expression uses."""
    names = dict.fromkeys(x.name for x in n.postorder(failing) if isinstance(x, n.Column))
    shown: list[str] = []
    for name in names:
        if name in row and row[name].dim() == 1:
            value = row[name][0].item()
            texts = population.levels.get(name)
            shown.append(f"{name} = {texts[int(value)]!r}" if texts is not None else f"{name} = {value:.6g}")
    return f" ({', '.join(shown[:SHOWN])})" if shown else ""


# ------------------------------------------------------------------------------------------- expression
def _failing(error: Exception, generated: Generated) -> n.Node | None:
    """The expression of the line of a generated function that an error came from."""
    code = generated.function.__code__
    places = [line for frame, line in walk_tb(error.__traceback__) if frame.f_code is code]
    return generated.node_at(places[0]) if places else None
