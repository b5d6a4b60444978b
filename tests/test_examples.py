"""Every example states numbers that are known from elsewhere, and reproduces them.

An example is a module of `examples/` with a function `run() -> (measured, reference)`, two mappings from
the same names to numbers or arrays, and `TOLERANCE`: how far apart they may be, relative to the reference
or, where that is smaller than 1, absolute. A mapping of tolerances gives one per name.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import runpy
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parent.parent / "examples"
MODULES = sorted(FOLDER.glob("*.py"))


def defines_run(path: Path) -> bool:
    """Whether a module defines `run`; what does not is a data loader that examples import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return any(isinstance(node, ast.FunctionDef) and node.name == "run" for node in tree.body)


EXAMPLES = [path.stem for path in MODULES if defines_run(path)]


def test_only_the_data_loader_is_not_an_example():
    assert {path.stem for path in MODULES} - set(EXAMPLES) == {"adult_data"}


def outcome(name: str):
    """What an example measures, its references and tolerance: run as a script, or in its short form."""
    module = importlib.import_module(name)
    if "quick" in inspect.signature(module.run).parameters:
        # A long example has a short form, with the same claims and looser tolerances.
        return *module.run(quick=True), module.TOLERANCE
    script = runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    return script["measured"], script["reference"], script["TOLERANCE"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_reproduces_its_reference(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch = pytest.importorskip("torch", reason="the examples need torch")
    torch.manual_seed(0)
    measured, reference, tolerances = outcome(name)
    assert measured.keys() == reference.keys()
    assert reference, "an example must measure something"
    for key, expected in reference.items():
        tolerance = tolerances[key] if isinstance(tolerances, dict) else tolerances
        got, want = np.asarray(measured[key], dtype=float), np.asarray(expected, dtype=float)
        assert got.shape == want.shape, f"{key}: shape {got.shape} instead of {want.shape}"
        error = np.max(np.abs(got - want) / np.maximum(1.0, np.abs(want)))
        assert error <= tolerance, f"{key}: {got} instead of {want} (error {error:.3g} > {tolerance:.3g})"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_example_has_a_docstring_and_can_be_run_as_a_script(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    if path.stem in EXAMPLES:
        guards = [node for node in tree.body if isinstance(node, ast.If)]
        assert any(ast.unparse(guard.test) == "__name__ == '__main__'" for guard in guards)
