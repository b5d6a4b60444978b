"""The command line: outputs, exit codes, and what it loads."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from constrain.cli import CODES, Exit, app
from constrain.solution import Status

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

SPEC = """
import constrain as cn

print("a word from the specification")
x = cn.Variable(2, "x", nonneg=True)
problem = cn.maximize(3 * x[0] + 5 * x[1]).subject_to(
    first=x[0] <= 4, second=2 * x[1] <= 12, third=3 * x[0] + 2 * x[1] <= 18
)
smallest = cn.minimize(x[0]).subject_to(low=x[0] >= 1)
impossible = cn.minimize(x[0]).subject_to(low=x[0] >= 1, high=x[0] <= 0)
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "spec.py"
    path.write_text(SPEC)
    return path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def write(folder: Path, text: str) -> Path:
    path = folder / "other.py"
    path.write_text(text)
    return path


# ------------------------------------------------------------------------------------------ solving
def test_solve_prints_the_solution(spec: Path) -> None:
    result = call("solve", spec, "--quiet")
    assert result.exit_code == Exit.SOLVED
    assert "optimal" in result.stdout
    assert "third" in result.stdout


def test_json_is_one_object_and_nothing_else(spec: Path) -> None:
    result = call("solve", spec, "--json", "--quiet")
    assert result.exit_code == Exit.SOLVED
    shown = json.loads(result.stdout)
    assert shown["status"] == "optimal"
    assert shown["objective"] == pytest.approx(36.0)
    assert "a word from the specification" in result.stderr


def test_another_name_in_the_file(spec: Path) -> None:
    result = call("solve", f"{spec}:smallest", "--json", "--quiet")
    assert json.loads(result.stdout)["objective"] == pytest.approx(1.0)


def test_holdout_of_the_file_is_judged(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
import numpy as np
import constrain as cn

train, holdout = (cn.Data("d", y=np.array([1.0, 2.0, v])) for v in (3.0, 4.0))
m = cn.Variable((), "m")
problem = cn.minimize(cn.E((train.y - m) ** 2)).subject_to(low=m >= cn.E(train.y))
""",
    )
    shown = json.loads(call("solve", path, "--json", "--quiet").stdout)
    assert shown["holdout"]["rows"] == [3]


def test_options_reach_the_method(spec: Path) -> None:
    result = call("solve", spec, "--quiet", "--json", "-o", "solver=SCS", "--tolerance", "1e-4")
    assert "scs" in json.loads(result.stdout)["provenance"]["solver"].lower()


def test_save_and_report(spec: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert call("solve", spec, "--save", run, "--quiet").exit_code == Exit.SOLVED
    assert "optimal" in call("report", run).stdout
    assert call("report", run, "--format", "markdown").stdout.startswith("#")
    assert json.loads(call("report", run, "--format", "json").stdout)["status"] == "optimal"


# ------------------------------------------------------------------------------------------ explaining
def test_explain(spec: Path) -> None:
    assert "-> cvxpy" in call("explain", spec).stdout
    assert json.loads(call("explain", spec, "--json").stdout)["method"] == "cvxpy"


# ------------------------------------------------------------------------------------------ checking
def test_check(spec: Path) -> None:
    result = call("check", spec, "--batch", 8)
    assert result.exit_code == Exit.SOLVED
    assert "findings   0 errors, 0 warnings" in result.stdout
    found = call("check", f"{spec}:impossible", "--json")
    assert found.exit_code == Exit.REFUSED
    assert json.loads(found.stdout)["findings"][0]["code"] == "W202"


# ------------------------------------------------------------------------------------------ exit codes
def test_every_status_has_its_code() -> None:
    assert set(CODES) == {status.value for status in Status}
    assert {s for s in Status if CODES[s.value] in (Exit.SOLVED, Exit.FEASIBLE)} == {
        s for s in Status if s.solved
    }


def test_infeasible(spec: Path) -> None:
    result = call("solve", f"{spec}:impossible", "--quiet")
    assert result.exit_code == Exit.INFEASIBLE
    assert "infeasible" in result.stdout


def test_a_refusal_is_text_without_traceback(tmp_path: Path) -> None:
    path = write(tmp_path, 'import constrain as cn\nx = cn.Variable(2, "x")\nif x[0] <= 3:\n    pass\n')
    result = call("solve", path)
    assert result.exit_code == Exit.REFUSED
    assert "E103" in result.stderr
    assert "other.py:3" in result.stderr
    assert "Traceback" not in result.stderr
    assert json.loads(call("solve", path, "--json").stdout)["error"]["code"] == "E103"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("solve", "missing.py"), "there is no file missing.py"),
        (("solve", "{spec}:nothing"), "defines no 'nothing'; write {spec}:problem"),
        (("solve", "{spec}:cn"), "has a module and not a problem as 'cn'"),
        (("solve", "{spec}", "-o", "lr"), "'lr' is not KEY=VALUE"),
        (("solve", "{spec}", "--epochs", "0"), "--epochs"),
    ],
)
def test_wrong_use(spec: Path, arguments: tuple[str, ...], words: str) -> None:
    result = call(*(a.format(spec=spec) for a in arguments))
    assert result.exit_code == Exit.USAGE
    assert words.format(spec=spec) in result.stderr


def test_a_folder_without_solution(tmp_path: Path) -> None:
    result = call("report", tmp_path)
    assert result.exit_code == Exit.REFUSED
    assert "E144" in result.stderr


# ------------------------------------------------------------------------------------------ processes
def test_help_loads_no_torch() -> None:
    code = (
        "import sys, typer.testing, constrain.cli as c\n"
        "result = typer.testing.CliRunner().invoke(c.app, ['--help'])\n"
        "assert 'Exit codes' in result.stdout, result.stdout\n"
        "print(sorted({'torch', 'numpy', 'cvxpy', 'cooper', 'pyomo', 'sympy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_specification_s_own_exception_points_into_its_file(tmp_path: Path) -> None:
    path = write(tmp_path, "def ratio():\n    return 1 / 0\n\n\nproblem = ratio()\n")
    command = [sys.executable, "-m", "constrain", "solve", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[1].strip().startswith(f'File "{path}", line 5')
    assert lines[-1] == "ZeroDivisionError: division by zero"
