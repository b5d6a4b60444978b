"""Evaluation mode and training mode: in which of them the modules of a problem run.

A problem is about its networks as they are used, in evaluation mode: every value is of that mode. Training
mode is a property of how steps on batches are taken: their gradients are of the modules as the user handed
them over, with dropout and with the statistics of the batch. Whether that makes a difference is found out by
trying both modes (`acts`), so that other networks are left alone.

Frozen models are in evaluation mode always: no step trains them.
"""

from __future__ import annotations

import random
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from constrain.language import nodes as n
from constrain.runtime.surroundings import Surroundings
from constrain.runtime.trace import undone

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from constrain.language.symbols import Model
    from constrain.runtime.compiled import Job
    from constrain.runtime.evaluator import Evaluator

__all__ = ["Modes", "acting_words", "in_evaluation", "layers_in_training", "noted"]

_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_BATCH_NORM: Any = nn.modules.batchnorm._BatchNorm  # pyright: ignore[reportPrivateUsage]
_INSTANCE_NORM: Any = nn.modules.instancenorm._InstanceNorm  # pyright: ignore[reportPrivateUsage]
TRIED = 6
"""Rows on which both modes are tried."""
_OUTSIDE = ""
"""In the place of a sample: models that are called on no rows, or what is not known yet."""
ROUNDING = 1e3
"""Differences of outputs that are none, in units of rounding: torch has faster code in evaluation mode."""


class Modes:
    """The flags `training` of all modules below some models.

    Args:
        models: of a problem, with those that are frozen.
    """

    def __init__(self, models: Iterable[Model]) -> None:
        self.models = list(models)
        every: dict[int, nn.Module] = {}
        trained: set[int] = set()
        for model in self.models:
            own = {id(m): m for m in model.module.modules()}
            every |= own
            trained |= set() if model.frozen else set(own)
        self.modules = list(every.values())
        self._fixed = [m for key, m in every.items() if key not in trained]
        self._known = dict[tuple[bool, ...], frozenset[str]]()
        own = [(vars(m), key, value) for m in self.modules for key, value in vars(m).items()]
        self._rates = [(entries, key) for entries, key, value in own if isinstance(value, float)]
        self._rates_tried: list[Any] = []
        self._ready = self._trying = False

    @property
    def flags(self) -> tuple[bool, ...]:
        """Of every module, in order."""
        return tuple([m.training for m in self.modules])

    @contextmanager
    def evaluation(self) -> Generator[None]:
        """Runs a block in evaluation mode; then every module has the flag again that it had."""
        with in_evaluation(self.modules):
            yield

    @contextmanager
    def training(self) -> Generator[None]:
        """Runs a block in the modes that the user chose, with frozen models in evaluation mode."""
        with in_evaluation(self._fixed):
            yield

    # ---------------------------------------------------------------------------------- what acts
    def begin(self, evaluator: Evaluator) -> None:
        """Tries the modes on the first rows of an evaluator, which can compute from now on."""
        self._ready = True
        self.acting(evaluator)

    def acting(self, evaluator: Evaluator) -> frozenset[str]:
        """Names of the samples on which models act differently in the mode that they are in now.

        That is found out by trying, once for every choice of modes; where nothing acts once more when numbers
        of the modules change, such as a rate of dropout that is raised during the training. An empty name
        stands for models that are called outside of rows, which are in evaluation mode always.
        """
        flags = self.flags
        found = self._known.get(flags)
        if found is not None and (found or not self._rates):
            return found
        if not any(flags) or not self._ready:
            return frozenset() if found is None else found
        rates = [] if found else [entries.get(key) for entries, key in self._rates]
        if found is None or (not found and rates != self._rates_tried):
            self._known[flags], self._trying = frozenset((_OUTSIDE,)), True
            self._rates_tried = rates
            try:
                found = self._tried(evaluator)
            finally:
                self._trying = False
            self._known[flags] = found
        return found

    def _tried(self, evaluator: Evaluator) -> frozenset[str]:
        program, names = evaluator.program, set[str]()
        outside = {x for x in n.postorder(*program.roots) if isinstance(x, n.Call)}
        for job in evaluator.jobs:
            nodes = [program.moments[i].integrand for i in job.moments]
            nodes += [program.per_row[i].residual for i in job.parts]
            own = {x for x in n.postorder(*nodes) if isinstance(x, n.Call)}
            outside -= own
            models = {x.model for x in own}
            if own and (any(map(_reads_flag, models)) or self._acts_on(evaluator, job)):
                names.add(job.data.name)
        return frozenset(names | {_OUTSIDE} if outside else names)

    def _acts_on(self, evaluator: Evaluator, job: Job) -> bool:
        if evaluator.device.type == "meta":
            return False
        population = evaluator.populations[job.data]
        rows = population.take(slice(0, min(population.rows, TRIED)))
        try:
            return self.acts(lambda training: evaluator.rows(job, rows, "primal", training))
        except Exception:  # what a model raises in evaluation mode is told where it is used
            return bool(acting_words(self.models))

    def words(self, evaluator: Evaluator) -> str:
        """What acts in training steps, such as `dropout of f`; empty for nothing."""
        if self.acting(evaluator) <= {_OUTSIDE}:
            return ""
        own = [m for m in self.models if not m.frozen and any(x.training for x in m.module.modules())]
        return acting_words(own) or (f"training mode of {_listed([m.name for m in own])}" if own else "")

    def during(self, evaluator: Evaluator, *, training: bool) -> AbstractContextManager[None]:
        """The modes while a function of the models runs: of a step, or of the models as they are used."""
        if not self.acting(evaluator):
            return nullcontext()
        if training:
            return nullcontext() if self._trying else self.training()
        return self.evaluation()

    def trained(self, evaluator: Evaluator) -> dict[str, Tensor]:
        """The decisions by name; where layers act in steps, the statistics that they keep as well."""
        decisions = evaluator.decisions
        if not self.acting(evaluator):
            return {block.name: block.tensor for block in decisions.blocks}
        return {name: t for name, t in decisions.snapshot().items() if t.is_floating_point()}

    def check(self, evaluator: Evaluator, sizes: Mapping[str, int]) -> None:
        """Refuses models that take no batches of these sizes in training mode; a few rows tell of more.

        Args:
            evaluator: of the problem.
            sizes: rows per batch, by sample name.

        Raises:
            ModelingError: E122.
        """
        for job in evaluator.jobs:
            if job.data.name in self.acting(evaluator):
                population = evaluator.populations[job.data]
                size = min(sizes.get(job.data.name, TRIED), population.rows, TRIED)
                rows = population.take(slice(0, size))
                run = partial(evaluator.rows, job, rows, "primal")
                try:
                    self.undone(run)
                except Exception:  # told where it is used
                    continue
                self.undone(partial(run, training=True))

    def acts(self, values: Callable[[bool], Sequence[Any]]) -> bool:
        """Whether a function of the modules does something else in training mode, found out by trying.

        It does where its values differ, or what it leaves in buffers, or what it draws of random numbers.
        Nothing of it stays.

        Args:
            values: the function, of whether it is to run in training mode.

        Raises:
            Exception: whatever it raises in evaluation mode.
        """
        expected = self._outcome(values, training=False)
        try:
            found = self._outcome(values, training=True)
        except Exception:  # of layers that take no such batch in training mode
            return True
        return found[1:] != expected[1:] or not all(map(_alike, found[0], expected[0]))

    def _outcome(self, values: Callable[[bool], Sequence[Any]], *, training: bool) -> tuple[Any, ...]:
        """Values; and what is in the buffers and in the random generators afterwards."""
        found: list[Any] = []

        def run() -> None:
            with torch.no_grad():
                own = [v.detach().clone() for v in values(training) if isinstance(v, Tensor)]
            left = [_bytes(t) for m in self.modules for t in m.buffers(recurse=False)]
            found.extend((own, left, _generators()))

        self.undone(run)
        return tuple(found)

    def undone(self, function: Callable[[], Any]) -> None:
        """Runs a function of the modules, and puts back all that it changed of them and of random numbers."""
        around = Surroundings(self.modules)
        try:
            undone(function)
        finally:
            around.restore()


@contextmanager
def in_evaluation(modules: Iterable[nn.Module]) -> Generator[None]:
    """Runs a block with these modules (not their children) in evaluation mode, and puts back their flags."""
    moved = [m for m in modules if m.training]
    try:
        for m in moved:
            m.training = False
        yield
    finally:
        for m in moved:
            m.training = True


def _bytes(t: Tensor) -> bytes:
    return b"" if t.is_meta else t.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()


def _generators() -> list[Any]:
    """The states of the random generators that modules draw from."""
    kind, keys, *rest = cast("tuple[Any, ...]", np.random.get_state())  # noqa: NPY002  # the global one
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    own = [state.numpy().tobytes() for state in (torch.get_rng_state(), *cuda)]
    return [own, kind, keys.tobytes(), rest, random.getstate()]


def _alike(a: Tensor, b: Tensor) -> bool:
    """Whether two outputs are the same but for rounding."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    room = ROUNDING * torch.finfo(a.dtype).eps
    size = float(b.nan_to_num().abs().max()) if b.numel() else 0.0
    return torch.allclose(a, b, rtol=room, atol=room * size, equal_nan=True)


# ------------------------------------------------------------------------------------------------ words
def _kind(layer: Any) -> str:
    """What a layer does in training mode, in words; empty where it is not known to do anything else."""
    if isinstance(layer, _DROPOUT):
        return "dropout" if layer.p > 0 else ""
    if isinstance(layer, _BATCH_NORM):
        return "batch normalization"
    if isinstance(layer, _INSTANCE_NORM):
        return "instance normalization" if layer.track_running_stats else ""
    if isinstance(layer, nn.RReLU):
        return "RReLU"
    if type(layer).__name__ == "_SpectralNorm":  # of torch.nn.utils.parametrizations
        return "spectral normalization"
    if isinstance(layer, (nn.MultiheadAttention, nn.RNNBase)):
        return "dropout" if float(layer.dropout) > 0 else ""
    if type(layer).__module__.startswith("torch."):
        return ""
    return type(layer).__name__ if _names_flag(type(layer)) else ""


def _names_flag(kind: Any) -> bool:
    """Whether `forward` of a class of modules names `training`."""
    code = getattr(kind.forward, "__code__", None)
    return code is not None and "training" in code.co_names


def _reads_flag(model: Model) -> bool:
    """Whether a layer of the user's in a trained model reads its flag: some act later, or on some rows."""
    own = () if model.frozen else model.module.modules()
    return any(
        m.training and not type(m).__module__.startswith("torch.") and _names_flag(type(m)) for m in own
    )


def layers_in_training(model: Model) -> list[str]:
    """What layers of a trained model are in training mode and may act differently there, in words."""
    if model.frozen:
        return []
    return list(dict.fromkeys(word for m in model.module.modules() if m.training and (word := _kind(m))))


def acting_words(models: Iterable[Model]) -> str:
    """`dropout and batch normalization of f`; empty where no layer in training mode is known to act."""
    known = {model.name: layers_in_training(model) for model in models}
    return _listed([f"{_listed(words)} of {name}" for name, words in known.items() if words])


def noted(words: str) -> str:
    """The sentence about what acts in training steps; empty for nothing."""
    if not words:
        return ""
    verb = "act" if " and " in words else "acts"
    return f"{words} {verb} in training steps; values and multipliers are of evaluation mode"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
