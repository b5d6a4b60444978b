"""Entry points: a package that adds everything is found without an import, and used."""

from __future__ import annotations

import csv
import importlib
import io
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

import constrain as cn
from constrain import E, plugins
from constrain.cli import app
from constrain.testing import CONVEX, FULL_DATA, check, known_problem, known_problems

PACKAGE = Path(__file__).parent / "plugin_package"
ROOT = Path(__file__).parents[1]
ADDED = {
    "atoms": ["demo_log_cosh"],
    "backends": ["linprog"],
    "solvers": ["trust-constr"],
    "estimators": ["second-order"],
    "reporters": ["csv"],
}


def install(folder, declared, modules=None):
    """What an installer leaves behind: the modules, and a dist-info folder."""
    project = tomllib.loads(declared)["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    head = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(head)
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in entries.items())
        for group, entries in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups))
    if modules is not None:
        shutil.copytree(modules, folder / modules.name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder on the path that has the demonstration package."""
    where = tmp_path_factory.mktemp("site")
    install(where, (PACKAGE / "pyproject.toml").read_text(), PACKAGE / "constrain_demo")
    sys.path.insert(0, str(where))
    importlib.invalidate_caches()
    yield where
    sys.path.remove(str(where))
    for name in [m for m in sys.modules if m.partition(".")[0] == "constrain_demo"]:
        del sys.modules[name]


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Installs a package whose entry points are given by group."""

    def make(name="constrain-broken", **entries):
        points = "".join(
            f'[project.entry-points."constrain.{group}"]\n{line}\n' for group, line in entries.items()
        )
        install(tmp_path, f'[project]\nname = "{name}"\nversion = "0.2"\n{points}')
        monkeypatch.syspath_prepend(str(tmp_path))
        importlib.invalidate_caches()

    return make


def fresh(program, folder):
    """What a program prints in a new interpreter that sees the folder."""
    text = f"import sys; sys.path[:0] = [{str(folder)!r}]\n{program}"
    done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip().splitlines()


# --------------------------------------------------------------------------------------------- listing
def test_listing_finds_every_group_and_imports_nothing(folder):
    own = [p for p in plugins.available() if p.package == "constrain-demo"]
    assert {group: [p.name for p in own if p.group == group] for group in plugins.GROUPS} == ADDED
    assert str(own[1]) == "linprog (constrain_demo.linprog, from constrain-demo 0.1.0)"
    printed = fresh(
        "import constrain\nfrom constrain import plugins\n"
        "print(len(plugins.available('backends')))\n"
        "print([m for m in ('constrain_demo', 'torch', 'numpy', 'scipy') if m in sys.modules])",
        folder,
    )
    assert printed == ["1", "[]"]


def test_the_command_line_lists_them(folder, capsys):
    assert app(["plugins"], standalone_mode=False) is None
    lines = capsys.readouterr().out.splitlines()
    assert "  linprog  constrain_demo.linprog  constrain-demo 0.1.0" in lines
    assert lines[0].startswith("constrain.atoms: functions")


# ----------------------------------------------------------------------------------------------- using
def test_a_function_and_a_backend_of_a_package_solve_a_problem(folder):
    log_cosh = cn.op("demo_log_cosh")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(80, 3, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) + torch.randn(80, generator=generator)
    D, w = cn.Data("sample", x=x, y=y), cn.Variable(3, "w")
    problem = cn.minimize(E(log_cosh(D.x @ w - D.y))).subject_to(total=cn.sum(w) <= -1)
    assert "log_cosh(x @ w - y)" in str(problem)
    assert r"\log\cosh\left(" in problem._repr_latex_()
    exact = problem.solve("cvxpy", progress=False)
    newton = problem.solve("newton", progress=False)
    assert exact.status.value == newton.status.value == "optimal"
    assert exact.objective == pytest.approx(newton.objective, rel=1e-7)
    assert exact["total"].multiplier == pytest.approx(newton["total"].multiplier, rel=1e-4)
    r = x.numpy() @ w.value - y.numpy()
    assert newton.objective == pytest.approx(np.mean(np.log(np.cosh(r))), rel=1e-12)


SAMPLE = [known for known in known_problems() if "cvxpy" in known.routes and not known.needs]


def test_a_backend_passes_the_conformance_suite_where_it_takes_the_problem(folder):
    taken = []
    for known in SAMPLE:
        route = next(r for r in known.build().explain().routes if r.method == "linprog")
        assert "constrain-demo 0.1.0" in route.reason
        if route.open:
            taken.append(known.name)
            findings = check(known, "linprog", expected=CONVEX)
            assert not findings, "\n".join(map(str, findings))
    assert {"worst-of-three"} <= set(taken)


def test_a_backend_refuses_and_knows_its_options(folder):
    curved = known_problem("allocation").build()
    with pytest.raises(
        cn.RouteError, match=r"\[E125\] linprog cannot take the problem: linprog takes linear"
    ):
        curved.solve("linprog", progress=False)
    linear = known_problem("worst-of-three").build()
    assert linear.solve("linprog", presolve=False, progress=False).status.value == "optimal"
    with pytest.raises(cn.ModelingError, match=r"no option 'presolv'; did you mean 'presolve'\?"):
        linear.solve("linprog", presolv=True, progress=False)


def test_an_infeasible_program_ends_without_a_point(folder):
    u = cn.Variable(2, "u", nonneg=True)
    problem = cn.minimize(cn.sum(u)).subject_to(most=u[0] + u[1] <= -1)
    assert problem.solve("linprog", progress=False).status.value in ("infeasible", "likely_infeasible")


@pytest.mark.parametrize("name", ["hs10", "hs12", "hs28", "hs43", "allocation", "trust-region-kl"])
def test_a_solver_passes_the_conformance_suite(folder, name):
    findings = check(known_problem(name), "trust-constr", expected=FULL_DATA)
    assert not findings, "\n".join(map(str, findings))


def test_a_solver_knows_its_options_and_auto_never_takes_a_plug_in(folder):
    problem = known_problem("hs22").build()
    explanation = problem.explain()
    assert explanation.method not in ("linprog", "trust-constr")
    assert "a solver of constrain-demo 0.1.0" in str(explanation)
    assert problem.solve("trust-constr", iterations=900, progress=False).status.solved
    with pytest.raises(cn.ModelingError, match=r"no option 'iteration'; did you mean 'iterations'\?"):
        problem.solve("trust-constr", iteration=3, progress=False)


def test_an_estimator_is_less_biased_than_the_plain_function(folder):
    """E[x]^4 from batches of 8 of 64: its mean over 50 epochs is near the truth, the plain one is not."""
    x = torch.linspace(0.0, 2.0, 64, dtype=torch.float64)
    D, w = cn.Data("sample", x=x), cn.Variable((), "w")
    w.value = 1.0
    problem = cn.minimize(E(D.x * w) ** 4)
    generator = np.random.default_rng(0)
    batches = [D.rows(part) for _ in range(50) for part in generator.permutation(64).reshape(8, 8)]
    truth = float(x.mean() ** 4)

    def error(kind):
        lagrangian = problem.compile(estimator=kind)
        found = np.mean([float(lagrangian(batch).detach()) for batch in batches])
        return abs(found - truth)

    assert error("second-order") < 0.35 * error("batch")
    with pytest.raises(cn.ModelingError, match="no estimator is called 'third-order'"):
        problem.compile(estimator="third-order")


def test_a_report_of_a_package(folder):
    solution = known_problem("worst-of-three").build().solve(progress=False)
    rows = list(csv.DictReader(io.StringIO(solution.report(format="csv"))))
    assert [row["constraint"] for row in rows] == ["total", "rows[0]", "rows[1]", "rows[2]"]
    with pytest.raises(cn.ModelingError, match=r"\[E142\] .*did you mean 'csv'\?"):
        solution.report(format="cvs")


def test_a_document_names_a_function_that_a_package_declares(folder):
    """A program that never imported the package reads a problem with its function."""
    u = cn.Variable((), "u")
    text = cn.minimize(cn.op("demo_log_cosh")(u - 1.0)).to_json()
    program = (
        f"import constrain as cn\np = cn.from_json({text!r})\nprint(p)\n"
        "print('cvxpy' in sys.modules, 'constrain_demo.atoms' in sys.modules)"
    )
    assert fresh(program, folder) == ["minimize   demo_log_cosh(u - 1.0)", "False True"]
    with pytest.raises(cn.ModelingError, match=r"\[E177\] the language has no function 'no_one', and nobody"):
        cn.from_json(text.replace("demo_log_cosh", "no_one"))


# -------------------------------------------------------------------------------------------- failures
def test_a_module_that_is_missing_is_named_and_breaks_nothing_else(broken):
    broken(backends='gone = "constrain_nowhere.backend"')
    problem = known_problem("worst-of-three").build()
    message = (
        r"\[E202\] the plug-in gone \(constrain_nowhere.backend, from constrain-broken 0.2\) of "
        r"constrain.backends cannot be loaded: ModuleNotFoundError: No module named 'constrain_nowhere'"
    )
    with pytest.raises(cn.RouteError, match=message):
        problem.solve("gone", progress=False)
    route = next(r for r in problem.explain().routes if r.method == "gone")
    assert not route.open
    assert "cannot be loaded" in route.reason
    assert problem.solve(progress=False).status.value == "optimal"


def test_an_object_of_the_wrong_kind_is_refused(broken):
    broken(backends='json = "json"', solvers='pi = "math:pi"', atoms='dumps = "json:dumps"')
    problem = known_problem("worst-of-three").build()
    with pytest.raises(cn.RouteError, match=r"\[E202\] .* of constrain.backends is without 'support'"):
        problem.solve("json", progress=False)
    with pytest.raises(cn.RouteError, match=r"\[E202\] .* is a float that cannot be called"):
        problem.solve("pi", progress=False)
    with pytest.raises(cn.ModelingError, match=r"\[E203\] .*declares no function of that name"):
        cn.op("dumps")


def test_a_name_that_nobody_declares(folder):
    with pytest.raises(cn.RouteError, match=r"\[E201\] .*'demo_log_cos'; did you mean 'demo_log_cosh'\?"):
        cn.op("demo_log_cos")
    with pytest.raises(
        cn.RouteError, match=r"\[E125\] there is no method 'linprg'; did you mean 'linprog'\?"
    ):
        known_problem("worst-of-three").build().solve("linprg", progress=False)
    with pytest.raises(cn.RouteError, match=r"\[E201\] there is no group of plug-ins 'atom'"):
        plugins.available("atom")


def test_two_packages_under_one_name(folder, broken):
    broken(reporters='csv = "json:dumps"')
    solution = known_problem("worst-of-three").build().solve(progress=False)
    with pytest.raises(cn.RouteError, match=r"\[E202\] two packages declare the plug-in 'csv'"):
        solution.report(format="csv")
