"""The one place where modules are loaded on first use, so that `import constrain` stays light.

The front end records mathematics and never needs torch, numpy or a solver. What it hands over (solving,
printing, running a user's module once on empty tensors to learn its output shape) is reached through the
functions here.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

__all__ = [
    "attribute",
    "backend",
    "diagnostics_alive",
    "diagnostics_report",
    "driver",
    "language",
    "language_printing",
    "loaded",
    "pandas",
    "probe",
    "reports",
]


def loaded(name: str) -> Any | None:
    """The module `name` if the user's program already imported it, else None."""
    return sys.modules.get(name)


def driver() -> ModuleType:
    """`constrain.driver`: solve, compile, explain."""
    return importlib.import_module("constrain.driver")


def probe() -> ModuleType:
    """`constrain.runtime.probe`: output shapes of torch functions and modules, found on meta tensors."""
    return importlib.import_module("constrain.runtime.probe")


def language_printing() -> ModuleType:
    """`constrain.language.printing`: text, LaTeX and source of expressions."""
    return importlib.import_module("constrain.language.printing")


def backend(name: str) -> ModuleType:
    """`constrain.backends.NAME`: the module that imports the package of a backend."""
    return importlib.import_module(f"constrain.backends.{name}")


def diagnostics_alive() -> ModuleType:
    """`constrain.diagnostics.alive`: a stored solution's problem, brought back to life."""
    return importlib.import_module("constrain.diagnostics.alive")


def diagnostics_report() -> ModuleType:
    """`constrain.diagnostics.report`: the views of a solution's records."""
    return importlib.import_module("constrain.diagnostics.report")


def reports(module: str = "views") -> ModuleType:
    """A module of `constrain.reports`: files, pages, cards and plots of a solution."""
    return importlib.import_module(f"constrain.reports.{module}")


def pandas() -> ModuleType:
    """pandas, for tables that a user asks for."""
    return importlib.import_module("pandas")


def language(module: str) -> ModuleType:
    """A module of `constrain.language` that imports its caller, which so cannot import it at the top."""
    return importlib.import_module(f"constrain.language.{module}")


def attribute(path: str) -> Any:
    """A module, or with `module:name` an attribute of it."""
    module, _, name = path.partition(":")
    found = importlib.import_module(module)
    return getattr(found, name) if name else found
