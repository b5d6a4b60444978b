"""`constrain report --html` and `constrain diagnose`."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from constrain.cli import Exit, app

SPEC = """
import numpy as np
import constrain as cn
from constrain import E

generator = np.random.default_rng(0)
D = cn.Data("train", y=generator.normal(size=200))
later = cn.Data("later", y=np.zeros(50))
w = cn.Variable((), "w")
problem = cn.minimize(E((D.y - w) ** 2)).subject_to(low=E(D.y) + w >= 0.2)
other = cn.minimize(w**2).subject_to(high=w <= 1)
"""


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    (folder / "spec.py").write_text(SPEC)
    np.savez(folder / "later.npz", y=np.zeros(50))
    (folder / "later.csv").write_text("y\n" + "0.0\n" * 50)
    assert call("solve", folder / "spec.py", "-q", "--save", folder / "run").exit_code == Exit.SOLVED
    return folder / "run"


def test_the_page_of_a_stored_run(run):
    result = call("report", run, "--html", run / "page.html")
    assert (result.exit_code, result.stdout) == (0, "")
    page = (run / "page.html").read_text()
    assert page.startswith("<!doctype html>")
    assert page == call("report", run, "--format", "html").stdout.removesuffix("\n")


def test_diagnose_computes_the_conditions_again(run):
    result = call("diagnose", run, "--order", "2")
    assert result.exit_code == 0
    assert "stationarity" in result.stdout
    assert "second order sufficient" in result.stdout


@pytest.mark.parametrize("data", ["spec.py:later", "later.npz", "later.csv"])
def test_diagnose_judges_on_other_data(run, data):
    result = call("diagnose", run, "--data", run.parent / data, "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert set(found) == {"kkt", "evaluation"}
    assert found["evaluation"]["rows"] == [50]
    with np.load(run / "arrays.npz") as arrays:
        w = float(arrays["variable:w"])
    assert found["evaluation"]["estimates"]["low"]["value"] == pytest.approx(w)  # y is 0 there
    assert found["evaluation"]["objective"] == pytest.approx(w**2)
    assert found["kkt"]["stationarity"] <= 1e-6


def test_what_cannot_be_diagnosed(run, tmp_path):
    other = run.parent / "spec.py"
    assert call("diagnose", run, "--spec", f"{other}:other").exit_code == Exit.REFUSED
    assert "no sample" in call("diagnose", run, "--data", "nothing.py:D").output
    assert "no .npz, .csv or .parquet" in call("diagnose", run, "--data", other).output
    result = call("diagnose", tmp_path)
    assert result.exit_code == Exit.USAGE
    assert "does not say what was solved" in result.output
