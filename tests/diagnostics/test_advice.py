"""What reports and warnings tell a reader to do: codes that have a section, calls that exist and run."""

import ast
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

import constrain as cn
from constrain import E, P
from constrain.diagnostics.report import next_steps
from constrain.language.problem import Problem
from constrain.solution import KKT, Evaluation, Solution

SOURCE = Path(cn.__file__).parent
PAGE = (SOURCE.parent / "docs" / "errors.md").read_text(encoding="utf-8")
CODES = r"[WC][23]\d\d"
NOT_CALLS = {"json", "frames", "attr", "solver_stats"}
"""Ends of file names and attributes of other libraries, in the text of the package."""


def texts():
    """Every string of the package, pieces of formatted ones included."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield path.name, node.value


def test_every_warning_has_one_section_and_one_line_in_the_table():
    raised = {text for _, text in texts() if re.fullmatch(CODES, text)}
    assert len(raised) >= 28
    assert raised == set(re.findall(rf"^### ({CODES})$", PAGE, flags=re.M))
    assert sorted(raised) == sorted(re.findall(rf"^\| ({CODES}) \|", PAGE, flags=re.M))


def test_calls_in_messages_exist():
    known = {"solution": Solution, "problem": Problem, "evaluation": Evaluation, "record": KKT}
    have = {name: {*dir(kind), *(f.name for f in fields(kind))} if kind is not Problem else set(dir(kind))
            for name, kind in known.items()}  # fmt: skip
    have["cn"] = {*cn.__all__, *dir(cn)}
    for place, text in texts():
        for name, attribute in re.findall(r"\b(solution|problem|cn|record|evaluation)\.([a-z_]+)", text):
            assert attribute in have[name] | NOT_CALLS, (place, f"{name}.{attribute}")


# ------------------------------------------------------------------------------------------ next steps
RNG = np.random.default_rng(0)


def sample(name, rows):
    return cn.Data(name, x=RNG.normal(1.0, 1.0, rows), g=np.arange(rows) % 3)


def convex():
    D, w = sample("train", 200), cn.Variable((), "w")
    problem = cn.maximize(w).subject_to(budget=E(D.x * w) <= 1.0)
    return problem, problem.solve(holdout=sample("test", 200), progress=False)


def redundant():
    D, w = sample("train", 99), cn.Variable(3, "w")
    s = w[0] * D.x + w[1] * cn.indicator(D.g == 1) + w[2] * D.x**2
    problem = cn.minimize(cn.sum_squares(w - 1)).subject_to(
        **{f"g{k}": E(s, given=D.g == k) - E(s) == 0 for k in range(3)}
    )
    return problem, problem.solve("newton", progress=False)


def infeasible():
    x = cn.Variable((), "x")
    problem = cn.minimize(x**2).subject_to(above=x >= 2, below=x <= 1)
    return problem, problem.solve(progress=False)


def integer():
    k = cn.Variable(2, "k", integer=True)
    problem = cn.maximize(cn.sum(k)).subject_to(c=2 * k[0] + k[1] <= 3.5, d=k <= 2)
    return problem, problem.solve("cvxpy", progress=False)


def trained():
    D, w = sample("train", 200), cn.Variable((), "w", bounds=(0.0, 5.0))
    problem = cn.minimize(w).subject_to(share=P(D.x - w <= 0) >= 0.8)
    return problem, problem.solve("lagrangian", epochs=6, progress=False)


@pytest.mark.parametrize("make", [convex, redundant, infeasible, integer, trained])
def test_next_steps_run_as_they_are_written(make):
    problem, solution = make()
    names = {"problem": problem, "solution": solution, "D_test": sample("later", 50), "cn": cn}
    steps = next_steps(solution)
    assert "solution.kkt()" in steps
    for step in steps:
        assert eval(step.replace(")", ", progress=False)") if ".solve(" in step else step, names) is not None
