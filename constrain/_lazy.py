"""The one place where modules are loaded on first use, so that `import constrain` stays light.

The front end records mathematics and never needs torch, numpy or a solver. What it hands over (solving,
printing a table, running a user's module once on empty tensors to learn its output shape) is reached through
the functions here.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["driver", "language_printing", "loaded", "probe"]


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
