"""The solution record: signs against finite differences, names, storage, reports."""

import copy
import json
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

import constrain as cn
from constrain import E, P, forall
from constrain.diagnostics.alive import rebind
from constrain.diagnostics.judge import Facts, build_solution, judge_status
from constrain.diagnostics.kkt import kkt
from constrain.lowering.lower import lower
from constrain.runtime.decisions import Decisions, precision
from constrain.runtime.evaluator import Evaluator
from constrain.runtime.result import RawResult


def judged(
    problem, multipliers="fit", holdout=None, ending="converged", bound=None, convex=False, message=""
):
    """A solution at the current values of the problem's variables and models, with best-fit multipliers."""
    program = lower(problem)
    decisions = Decisions(program, torch.device("cpu"), torch.float64)
    evaluator = Evaluator(program, decisions, dtype=torch.float64, chunk=64)
    if multipliers == "fit":
        multipliers = kkt(evaluator).fit
    raw = RawResult(
        ending, multipliers, "by hand 1.0", seconds=0.5, iterations=3, bound=bound, message=message
    )
    raw.history.extend({"step": i, "objective": 1.0 / (i + 1), "violation": math.nan} for i in range(3))
    other = None
    if holdout is not None:
        other = Evaluator(
            program, decisions, dtype=torch.float64, data=rebind(program, holdout), reference=evaluator
        )
    return build_solution(
        program, evaluator, decisions, raw, facts=Facts(convex, "QP", "by hand"), holdout=other, seed=7
    )


def sample(name, rows=80, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 2))
    sex = ["f" if i % 3 else "m" for i in range(rows)]
    return cn.Data(name, x=x, y=(x[:, 0] > 0).astype(float), sex=sex)


def fair_problem(D, module=None):
    torch.manual_seed(0)
    f = cn.Model(module or torch.nn.Linear(2, 1, dtype=torch.float64), "f")
    s = f(D.x)[0]
    return cn.minimize(E((s - D.y) ** 2)).subject_to(
        parity=abs(E(s, by=D.sex) - E(s)) <= 0.02,
        recall=P(s > 0, given=D.y == 1) >= 0.8,
        rows=forall(D.where(D.sex == "m"), s**2 <= 4.0),
        band=cn.between(-1.0, E(s), 1.0),
    )


# ------------------------------------------------------------------------------------------- signs
def _one_sided(sense, op, b):
    """Optimum of min (x - 2)^2, or max -(x - 2)^2, subject to x op b; the bound binds below."""
    x = cn.Variable((), "x")
    x.value = float(b)
    f = (x - 2) ** 2
    relation = {"<=": x <= b, ">=": x >= b, "==": x == b}[op]
    return (cn.minimize(f) if sense == "minimize" else cn.maximize(-f)).subject_to(bound=relation)


@pytest.mark.parametrize("sense", ["minimize", "maximize"])
@pytest.mark.parametrize(("op", "b"), [("<=", 1.0), (">=", 3.0), ("==", 1.0), ("==", 3.0)])
def test_shadow_price_is_the_derivative_of_the_optimal_value(sense, op, b):
    solution = judged(_one_sided(sense, op, b))
    h = 1e-4
    up, down = (judged(_one_sided(sense, op, b + step)).objective for step in (h, -h))
    assert float(solution["bound"].shadow_price) == pytest.approx((up - down) / (2 * h), abs=1e-6)
    if op != "==":
        assert solution["bound"].multiplier >= 0
    sign = {"<=": -1.0, ">=": 1.0, "==": -1.0}[op] * (1.0 if sense == "minimize" else -1.0)
    assert solution["bound"].shadow_price == pytest.approx(sign * solution["bound"].multiplier)


@pytest.mark.parametrize("sense", ["minimize", "maximize"])
@pytest.mark.parametrize("target", [2.0, -2.0])
def test_between_and_abs_pull_their_sides_back(sense, target):
    def at(low, high, form):
        x = cn.Variable((), "x")
        x.value = min(max(target, low), high)
        f = (x - target) ** 2
        relation = cn.between(low, x, high) if form == "between" else abs(x) <= high
        return judged((cn.minimize(f) if sense == "minimize" else cn.maximize(-f)).subject_to(c=relation))

    h = 1e-4
    both = (at(-1 + h, 1 + h, "between").objective - at(-1 - h, 1 - h, "between").objective) / (2 * h)
    solution = at(-1.0, 1.0, "between")
    assert float(solution["c"].shadow_price) == pytest.approx(both, abs=1e-6)
    assert [part.side for part in solution["c"].parts] == ["upper", "lower"]
    size = (at(-1 - h, 1 + h, "abs").objective - at(-1 + h, 1 - h, "abs").objective) / (2 * h)
    absolute = at(-1.0, 1.0, "abs")["c"]
    assert float(absolute.shadow_price) == pytest.approx(size, abs=1e-6)
    assert absolute.multiplier == pytest.approx(2.0)
    assert absolute.value == 1.0


def test_a_worst_case_has_one_multiplier():
    x = cn.Variable(2, "x")
    x.value = np.array([1.0, 1.0])
    solution = judged(cn.minimize(cn.sum_squares(x - np.array([2.0, 3.0]))).subject_to(top=cn.max(x) <= 1.0))
    assert solution["top"].multiplier == pytest.approx(6.0)  # 2 + 4
    assert np.shape(solution["top"].parts[0].multiplier) == (2,)
    assert solution["top"].shadow_price == pytest.approx(-6.0)


def test_values_slacks_and_violations_are_as_written():
    x = cn.Variable(2, "x")
    x.value = np.array([1.0, 4.0])
    problem = cn.minimize(cn.sum_squares(x)).subject_to(
        low=x >= np.array([2.0, 2.0]), high=cn.sum(x) <= 4, same=x[0] == 3, band=cn.between(0.0, x[1], 3.5)
    )
    solution = judged(problem, multipliers=None, ending="limit")
    assert solution["low"].value.tolist() == [1.0, 4.0]
    assert solution["low"].slack.tolist() == [-1.0, 2.0]
    assert solution["low"].violation.tolist() == [1.0, 0.0]
    assert (solution["high"].slack, solution["high"].violation) == (-1.0, 1.0)
    assert (solution["same"].slack, solution["same"].violation) == (2.0, 2.0)
    assert solution["band"].bound == (0.0, 3.5)
    assert (solution["band"].slack, solution["band"].violation) == (-0.5, 0.5)
    assert solution["low"].labels == ["low[0]", "low[1]"]
    assert solution["low"].worst(1) == [("low[0]", -1.0)]
    assert solution["low"].share_violated == 0.5
    assert float(solution["high"].value) == 5.0


# ------------------------------------------------------------------------------------------- names
def test_unknown_names_are_met_with_a_suggestion():
    solution = judged(_one_sided("minimize", "<=", 1.0))
    with pytest.raises(cn.ModelingError, match="did you mean 'bound'"):
        solution["bond"]


def test_missing_multipliers_say_why():
    solution = judged(
        _one_sided("minimize", "<=", 1.0), multipliers=None, message="integer programs have none"
    )
    with pytest.raises(cn.NoDualsError, match="integer programs have none"):
        _ = solution["bound"].multiplier
    with pytest.raises(cn.NoDualsError):
        _ = solution["bound"].shadow_price
    assert solution.kkt().origin == "best fit"
    assert solution.kkt().fit["bound"] == pytest.approx(2.0)
    assert "-" in str(solution)


def test_blocks_have_levels_and_rows_have_numbers():
    solution = judged(fair_problem(sample("people")), ending="limit")
    assert list(solution["parity"].levels) == ["f", "m"]
    assert solution["parity"].labels == ["parity[sex=f]", "parity[sex=m]"]
    assert solution["rows"].rows.tolist() == list(range(0, 80, 3))
    assert len(solution["rows"].multiplier) == len(solution["rows"].rows) == len(solution["rows"].value)
    assert solution["rows"].labels[1] == "rows[row 3]"
    assert [row["constraint"] for row in solution.rows()][:2] == ["parity[sex=f]", "parity[sex=m]"]


# ------------------------------------------------------------------------------------------ status
def _status(ending="converged", convex=True, tolerance=1e-6, bound=None, multipliers=None, **changes):
    record = judged(_one_sided("minimize", "<=", 1.0), convex=convex).kkt()
    values = {**vars(record), "gap_kind": "certified", **changes}
    raw = RawResult(ending, multipliers, "", bound=bound)
    return judge_status(type(record)(**values), raw, convex, tolerance)


@pytest.mark.parametrize(
    ("expected", "options"),
    [
        ("optimal", {}),
        ("optimal", {"ending": "limit"}),
        ("stationary", {"convex": False}),
        ("optimal", {"convex": False, "bound": 1.0, "stationarity": 1.0, "stationarity_scaled": 0.1}),
        ("feasible", {"bound": 1.0, "multipliers": {}, "dual_feasibility": -1.0}),
        ("feasible", {"bound": 1.0, "multipliers": {}, "complementarity_scaled": 0.1}),
        ("optimal", {"bound": 1.0, "dual_feasibility": -1.0}),
        ("stationary", {"bound": 1.0, "gap_scaled": 0.1}),
        ("stationary", {"gap_kind": "estimate, not a bound"}),
        ("feasible", {"surrogate": True}),
        ("feasible", {"stationarity": 1.0, "stationarity_scaled": 0.1}),
        ("feasible", {"complementarity_scaled": 0.1}),
        ("feasible", {"dual_feasibility": -1.0}),
        ("limit", {"feasibility_scaled": 0.1}),
        ("limit", {"feasibility_scaled": 0.1, "ending": "limit"}),
        ("infeasible", {"feasibility_scaled": 0.1, "ending": "infeasible"}),
        ("likely_infeasible", {"feasibility_scaled": 0.1, "ending": "likely_infeasible"}),
        ("optimal", {"ending": "likely_infeasible"}),
        ("diverged", {"ending": "diverged"}),
        ("diverged", {"ending": "unbounded"}),
        ("diverged", {"feasibility_scaled": math.nan}),
    ],
)
def test_the_judge_has_the_last_word(expected, options):
    status = _status(**options)
    assert status == expected
    assert status.solved == (expected in ("optimal", "stationary", "feasible"))
    assert status.meaning


def test_an_infeasible_point_is_never_solved():
    x = cn.Variable((), "x")
    x.value = 2.0
    solution = judged(cn.minimize(x**2).subject_to(cap=x <= 1, floor=x >= 2), ending="converged")
    assert not solution.status.solved
    assert solution.record.worst == "cap"


# ----------------------------------------------------------------------------------------- storage
def same(a, b):
    """Equality with NaN and arrays."""
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


def test_a_stored_solution_reads_back_without_its_problem(tmp_path):
    solution = judged(fair_problem(sample("people")), holdout=sample("later", seed=1), ending="limit")
    folder = solution.save(tmp_path / "run")
    assert sorted(file.name for file in folder.iterdir()) == ["arrays.npz", "problem.json", "solution.json"]
    loaded = cn.load(folder)
    assert str(loaded) == str(solution)
    assert str(loaded.kkt()) == str(solution.kkt())
    assert same(loaded.to_dict(), solution.to_dict())
    assert loaded["rows"].rows.dtype == solution["rows"].rows.dtype
    assert math.isnan(loaded.history[0]["violation"])
    assert loaded.weights["f.weight"].shape == (1, 2)
    with pytest.raises(cn.ModelingError, match=r"cn\.load"):
        loaded.evaluate(sample("later"))
    with np.load(folder / "arrays.npz", allow_pickle=False) as archive:
        assert {"weight:f.weight", "weight:f.bias", "multiplier:recall"} <= set(archive.files)


def test_loading_with_the_problem_brings_the_point_back(tmp_path):
    module = torch.nn.Linear(2, 1, dtype=torch.float64)
    solution = judged(fair_problem(sample("people"), module), ending="limit")
    trained = module.weight.detach().clone()
    expected = solution.evaluate(sample("later", seed=1))
    solution.save(tmp_path)
    other = torch.nn.Linear(2, 1, dtype=torch.float64)
    loaded = cn.load(tmp_path, problem=fair_problem(sample("people"), other))
    assert torch.equal(other.weight.detach(), trained)
    assert str(loaded.evaluate(sample("later", seed=1))) == str(expected)
    again = loaded.kkt(tolerance=1e-3)
    assert again.stationarity == pytest.approx(solution.kkt().stationarity)


def test_variables_come_back_too(tmp_path):
    judged(_one_sided("minimize", "<=", 1.0)).save(tmp_path)
    x = cn.Variable((), "x")
    cn.load(tmp_path, problem=cn.minimize((x - 2) ** 2).subject_to(bound=x <= 1.0))
    assert float(x.value) == 1.0
    with pytest.raises(cn.ModelingError, match="E145"):
        cn.load(tmp_path, problem=cn.minimize((x - 2) ** 2).subject_to(other=x <= 1.0))
    y = cn.Variable(2, "y")
    with pytest.raises(cn.ModelingError, match="E137"):
        cn.load(tmp_path, problem=cn.minimize(cn.sum_squares(y)).subject_to(bound=y[0] <= 1.0))


def test_a_folder_without_a_solution_is_refused(tmp_path):
    with pytest.raises(cn.DataError, match="E144"):
        cn.load(tmp_path)
    judged(_one_sided("minimize", "<=", 1.0)).save(tmp_path)
    document = json.loads((tmp_path / "solution.json").read_text())
    (tmp_path / "solution.json").write_text(json.dumps({**document, "schema": 99}))
    with pytest.raises(cn.DataError, match="99"):
        cn.load(tmp_path)


# ------------------------------------------------------------------------------------- evaluation
def test_a_solution_stays_what_it_is_when_training_goes_on():
    module = torch.nn.Linear(2, 1, dtype=torch.float64)
    solution = judged(fair_problem(sample("people"), module), ending="limit")
    before = str(solution.evaluate(sample("later", seed=1)))
    with torch.no_grad():
        module.weight.add_(1.0)
    changed = module.weight.detach().clone()
    assert str(solution.evaluate(sample("later", seed=1))) == before
    assert torch.equal(module.weight.detach(), changed)


def test_parameters_are_those_of_the_solve(tmp_path):
    b = cn.Parameter("b", 1.0)

    def problem():
        x = cn.Variable((), "x")
        x.value = 1.0
        D = cn.Data("d", z=np.ones(5))
        return cn.minimize(E(D.z) * (x - 2) ** 2).subject_to(cap=x <= b)

    solution = judged(problem())
    b.value = 0.25
    assert solution.kkt(tolerance=1e-7).feasible
    assert solution.evaluate(cn.Data("d", z=np.ones(3)))["cap"].bound == 1.0
    solution.save(tmp_path)
    assert cn.load(tmp_path, problem=problem()).kkt(tolerance=1e-7).feasible


def test_single_precision_models_are_judged_in_the_precision_of_the_solve(tmp_path):
    module = torch.nn.Linear(2, 1)
    problem = fair_problem(sample("people"), module)
    program = lower(problem)
    with precision(program, torch.float64):
        solution = judged(problem, ending="limit")
    assert module.weight.dtype == torch.float32
    assert solution.evaluate(sample("people")).objective == pytest.approx(solution.objective, abs=1e-12)
    solution.save(tmp_path)
    other = torch.nn.Linear(2, 1)
    loaded = cn.load(tmp_path, problem=fair_problem(sample("people"), other))
    assert torch.equal(other.weight, module.weight)
    assert loaded.evaluate(sample("people")).objective == pytest.approx(solution.objective, abs=1e-12)


def test_evaluation_of_the_training_data_is_the_training_record():
    D = sample("people")
    solution = judged(fair_problem(D), ending="limit")
    again = solution.evaluate(D)
    assert again.objective == pytest.approx(solution.objective)
    np.testing.assert_allclose(again["parity"].value, solution["parity"].value)
    np.testing.assert_allclose(again["parity"].interval, solution["parity"].interval)
    with pytest.raises(cn.ModelingError, match="E146"):
        solution.evaluate({"nobody": D})


def test_the_fingerprint_follows_the_used_columns():
    x = sample("people").values("x")
    base = judged(fair_problem(sample("people"))).provenance.data["train:people"]
    same_again = judged(fair_problem(sample("people"))).provenance.data["train:people"]
    assert base == same_again
    other = cn.Data("people", x=x + 1e-9, y=sample("p").values("y"), sex=sample("p").values("sex"))
    assert judged(fair_problem(other)).provenance.data["train:people"]["sha256"] != base["sha256"]
    unused = cn.Data("people", x=x, y=sample("p").values("y"), sex=sample("p").values("sex"), z=x)
    assert judged(fair_problem(unused)).provenance.data["train:people"] == base


# ----------------------------------------------------------------------------------------- reports
def test_the_text_report_is_aligned_and_narrow():
    solution = judged(fair_problem(sample("people")), holdout=sample("later", seed=1), ending="limit")
    text = str(solution)
    assert max(map(len, text.splitlines())) <= 110
    for word in ("status", "objective", "parity[sex=f]", "recall", "rows (27 rows)", "hold-out", "KKT", "±"):
        assert word in text
    header = next(line for line in text.splitlines() if line.startswith("constraint"))
    row = next(line for line in text.splitlines() if line.startswith("parity[sex=f]"))
    assert header.index("as written") == row.index("|E[")
    assert solution.status in text
    assert "seed 7" in text


def test_long_blocks_show_the_worst():
    x = cn.Variable(30, "x")
    x.value = np.arange(30.0)
    solution = judged(
        cn.minimize(cn.sum_squares(x)).subject_to(cap=x <= 28.0), multipliers=None, ending="limit"
    )
    lines = str(solution).splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("cap"))
    assert lines[first].startswith("cap[29]")
    assert "... and 24 more" in "\n".join(lines)


def test_other_formats(tmp_path):
    solution = judged(fair_problem(sample("people")), ending="limit")
    assert "| constraint | as written |" in solution.report(format="markdown")
    assert solution.report(tmp_path / "a.md") == (tmp_path / "a.md").read_text()
    record = json.loads(solution.report(tmp_path / "a.json"))
    assert record["status"] == solution.status
    assert record["history"][0]["violation"] == "NaN"
    assert record["constraints"]["parity"]["levels"] == ["f", "m"]
    with pytest.raises(cn.ModelingError, match="did you mean 'html'"):
        solution.report(format="htm")


def test_frames():
    pytest.importorskip("pandas")
    solution = judged(fair_problem(sample("people")), ending="limit")
    frame = solution.to_frame()
    assert len(frame) == 2 + 1 + 27 + 1
    assert {"constraint", "value", "bound", "slack", "verdict", "multiplier"} <= set(frame.columns)
    assert solution.history.to_frame()["step"].tolist() == [0, 1, 2]


def test_the_record_is_imported_when_it_is_asked_for():
    code = "import sys, constrain as c; m = sys.modules; assert not {'numpy', 'torch'} & set(m); c.Status"
    code += "; assert 'torch' not in m"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError):
        cn.Solutoin  # noqa: B018


def test_a_solution_can_be_pickled_without_its_problem():
    w = cn.Variable(2, "w")
    found = cn.minimize(cn.sum_squares(w)).subject_to(low=cn.sum(w) >= 1).solve(progress=False)
    again = pickle.loads(pickle.dumps(found))
    assert str(again.to_dict()) == str(found.to_dict())  # NaN is there as well
    assert again.variables["w"] == pytest.approx(found.variables["w"])
    assert str(again) == str(found)
    with pytest.raises(cn.ModelingError, match="E129"):
        again.evaluate(cn.Data("d", x=np.ones(3)))
    assert copy.copy(found).live is found.live is not None
