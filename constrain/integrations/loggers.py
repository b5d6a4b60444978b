"""Callbacks that log a run: `solve(callback=TensorBoard("runs/a"))`, `solve(callback=MLflow())`.

Both log the objective, the largest violation, and multipliers and residuals by constraint, once per round,
at the step that the run has come to. A run that is continued from a checkpoint goes on at its step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from constrain._lazy import attribute
from constrain.errors import ModelingError

if TYPE_CHECKING:
    from pathlib import Path

    from constrain.solvers.progress import Round

__all__ = ["MLflow", "TensorBoard", "scalars"]


def scalars(told: Round, *, prefix: str = "", separator: str = "/") -> dict[str, float]:
    """The numbers of a round by name: `objective`, `violation`, `multiplier/KEY`, `residual/KEY`."""
    found = {"objective": told.objective, "violation": told.violation}
    for kind, values in (("multiplier", told.multipliers), ("residual", told.residuals)):
        found.update({f"{kind}{separator}{key}": value for key, value in values.items()})
    return {prefix + name: value for name, value in found.items()}


def _package(path: str, package: str, extra: str) -> Any:
    """A module of an optional package.

    Raises:
        ModelingError: E143 without it.
    """
    try:
        return attribute(path)
    except ImportError:
        raise ModelingError(
            "E143", f"this callback needs {package}", fix=f'pip install "constrain-lang[{extra}]"'
        ) from None


class TensorBoard:
    """Writes event files for TensorBoard.

    Args:
        folder: of the run; `tensorboard --logdir` shows it.
        prefix: of all names.

    Raises:
        ModelingError: E143 without the package `tensorboard`.
    """

    def __init__(self, folder: str | Path, *, prefix: str = "") -> None:
        writer = _package("torch.utils.tensorboard:SummaryWriter", "TensorBoard", "tensorboard")
        self.prefix = prefix
        self._writer: Any = writer(str(folder))

    def __call__(self, told: Round) -> None:
        """Logs a round."""
        for name, value in scalars(told, prefix=self.prefix).items():
            self._writer.add_scalar(name, value, told.step)

    def close(self) -> None:
        """Writes what is left; `solve` calls it at the end of the run. Logging again opens a new file."""
        self._writer.close()


class MLflow:
    """Logs metrics to the active run of MLflow, which is started if there is none.

    Names have no brackets there, so that the multiplier of `parity[a]` is `multiplier/parity_a_`.

    Args:
        prefix: of all names.

    Raises:
        ModelingError: E143 without the package `mlflow` or `mlflow-skinny`.
    """

    def __init__(self, *, prefix: str = "") -> None:
        self.prefix = prefix
        self._mlflow: Any = _package("mlflow", "MLflow", "mlflow")
        self._own = False

    def __call__(self, told: Round) -> None:
        """Logs a round."""
        if self._mlflow.active_run() is None:
            self._mlflow.start_run()
            self._own = True
        metrics = {_allowed(name): value for name, value in scalars(told, prefix=self.prefix).items()}
        self._mlflow.log_metrics(metrics, step=told.step)

    def close(self) -> None:
        """Ends the run if this callback has started it; `solve` calls it at the end."""
        if self._own:
            self._mlflow.end_run()
            self._own = False


def _allowed(name: str) -> str:
    """A name of letters, digits and `_-./ ` only, as MLflow takes it."""
    return "".join(c if c.isalnum() or c in "_-./ " else "_" for c in name)
