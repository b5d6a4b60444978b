"""TensorBoard and MLflow: what is read back is the history."""

from __future__ import annotations

import importlib
import sys
import warnings

import pytest
import torch

import constrain as cn
from constrain.integrations.loggers import MLflow, TensorBoard, scalars


def solved(callback):
    w, D = cn.Variable(2, "w"), cn.Data("rows", x=torch.linspace(-1.0, 1.0, 40, dtype=torch.float64))
    problem = cn.minimize(cn.E((D.x - w[0]) ** 2) + cn.sum_squares(w)).subject_to(
        c=cn.sum_squares(w - 1.0) <= 0.5, d=w <= 2.0
    )
    return problem.solve("lagrangian", epochs=4, progress=False, callback=callback)


def expected(history, name):
    return [pytest.approx(row[name], rel=1e-6) for row in history]


def test_tensorboard(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the package's own imports
        pytest.importorskip("tensorboard")
        reader = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
        solution = solved(TensorBoard(tmp_path, prefix="run/"))
        events = reader.EventAccumulator(str(tmp_path)).Reload()
    for name, key in (
        ("objective", "objective"),
        ("multiplier/d[1]", "multiplier:d[1]"),
        ("violation", "violation"),
    ):
        found = events.Scalars(f"run/{name}")
        assert [x.value for x in found] == expected(solution.history, key)
        assert [x.step for x in found] == [row["step"] for row in solution.history]


def test_mlflow(tmp_path, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow = pytest.importorskip("mlflow")
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        mlflow.set_tracking_uri(tmp_path.as_uri())
        experiment = mlflow.create_experiment("runs")
        mlflow.set_experiment("runs")
        solution = solved(MLflow())
        assert mlflow.active_run() is None
        client = mlflow.MlflowClient()
        (run,) = client.search_runs([experiment])
        found = client.get_metric_history(run.info.run_id, "multiplier/d_1_")
        assert [x.value for x in found] == expected(solution.history, "multiplier:d[1]")
        with mlflow.start_run() as own:  # of the user's program: it stays open
            solved(MLflow(prefix="again/"))
            assert mlflow.active_run().info.run_id == own.info.run_id
        assert client.get_metric_history(own.info.run_id, "again/objective")


@pytest.mark.parametrize(
    ("make", "module", "extra"),
    [(lambda: TensorBoard("x"), "tensorboard", "tensorboard"), (MLflow, "mlflow", "mlflow")],
)
def test_a_package_that_is_missing(make, module, extra, monkeypatch):
    for name in [x for x in sys.modules if x.partition(".")[0] == module or x == "torch.utils.tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        cn.ModelingError, match=rf"E143.*needs (TensorBoard|MLflow)\n.*constrain-lang\[{extra}\]"
    ):
        make()


def test_names_and_numbers():
    told = []
    solved(told.append)
    found = scalars(told[-1], prefix="a/")
    assert set(found) == {"a/objective", "a/violation"} | {
        f"a/{kind}/{key}" for kind in ("multiplier", "residual") for key in ("c", "d[0]", "d[1]")
    }
