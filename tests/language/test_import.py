"""`import constrain` is light: no optional package, and fast."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import constrain as cn

ROOT = Path(__file__).parents[2]
HEAVY = (
    "torch",
    "numpy",
    "scipy",
    "pandas",
    "polars",
    "pyarrow",
    "narwhals",
    "cvxpy",
    "pyomo",
    "cooper",
    "sympy",
    "rich",
    "typer",
    "matplotlib",
)
LIMIT = 0.15  # seconds


def fresh(program: str) -> str:
    """What a program prints in a new interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_importing_loads_no_optional_package():
    loaded = fresh(f"import sys, constrain; print([m for m in {HEAVY!r} if m in sys.modules])")
    assert loaded == "[]"


def test_importing_is_fast():
    """In seconds of this process alone: what else the machine does is not the package's doing."""
    program = "import time; t = time.process_time(); import constrain; print(time.process_time() - t)"
    assert min(float(fresh(program)) for _ in range(5)) <= LIMIT


PROGRAMS = {
    "a linear program": (
        "w = cn.Variable(2, 'w')\n"
        "p = cn.minimize(cn.sum(w)).subject_to(c=w >= [1.0, 2.0])\n"
        "print(p)\n"
        "assert eval(repr(p), p.symbols()) == p"
    ),
    "statistics of lists": (
        "D = cn.Data('people', x=[[1.0, 2.0]] * 3, sex=['F', 'M', 'F'])\n"
        "w = cn.Variable(2, 'w')\n"
        "gap = cn.sigmoid(D.x @ w)\n"
        "p = cn.minimize(cn.E(gap)).subject_to(c=abs(cn.E(gap, by=D.sex) - cn.E(gap)) <= 0.1)\n"
        "print(p._repr_latex_())\n"
        "assert eval(repr(p), p.symbols()) == p"
    ),
    "an error": (
        "w = cn.Variable(2, 'w')\n"
        "try:\n    0 <= cn.sum(w) <= 1\n"
        "except cn.ModelingError as error:\n    print(error)"
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_writing_and_printing_needs_no_optional_package(name):
    check = f"import sys\nprint([m for m in {HEAVY!r} if m in sys.modules])"
    printed = fresh(f"import constrain as cn\n{PROGRAMS[name]}\n{check}")
    assert printed.splitlines()[-1] == "[]"


def test_the_words_of_the_language_are_there():
    for name in (
        "minimize",
        "maximize",
        "find",
        "E",
        "P",
        "forall",
        "Data",
        "Model",
        "Variable",
        "Parameter",
        "between",
    ):
        assert callable(getattr(cn, name))
    with pytest.raises(AttributeError):
        cn.nothing  # noqa: B018
