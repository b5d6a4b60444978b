"""What is wrong with data, groups or models is said before any solve, in the user's words."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import constrain as cn
from constrain import E, P


@pytest.fixture(autouse=True)
def no_solver(monkeypatch):
    """Nothing here may reach a solver."""

    def reached(*args, **options):
        raise AssertionError("a solver was reached")

    monkeypatch.setattr("constrain.solvers.primal_dual.PrimalDual.solve", reached)
    monkeypatch.setattr("constrain.solvers.augmented.AugmentedLagrangian.solve", reached)
    monkeypatch.setattr("constrain.backends.cvxpy.solve", reached)


def linear():
    return cn.Model(torch.nn.Linear(3, 1, dtype=torch.float64), "f")


def check_refused(problem, message, kind=cn.DataError, **options):
    with pytest.raises(kind, match=re.escape(message)):
        problem.solve(progress=False, **options)


def test_nan_in_a_column(kit):
    D = kit.sample()
    D.values("x")[[4, 90], 1] = float("nan")
    check_refused(cn.minimize(E(linear()(D.x).reshape(()) ** 2)),
            "[E124] sample.x has 2 missing or infinite values (rows 4, 90)")  # fmt: skip


def test_infinity_and_missing_text():
    D = cn.Data("credit", x=torch.tensor([[1.0], [float("inf")]]), g=np.asarray(["a", None], dtype=object))
    w = cn.Variable(1, "w")
    check_refused(cn.minimize(E((D.x @ w) ** 2)), "[E124] credit.x has 1 missing or infinite value (rows 1)")
    D = cn.Data("credit", x=torch.ones(2, 1), g=np.asarray(["a", None], dtype=object))
    check_refused(cn.minimize(cn.max(E((D.x @ w) ** 2, by=D.g))), "[E124]")


def test_a_condition_that_no_row_meets(kit):
    D = kit.sample()
    s = linear()(D.x).reshape(())
    check_refused(cn.minimize(E(s**2)).subject_to(c=E(s, given=D.y == 7) <= 1),
            "[E124] no row of 'sample' satisfies the condition of")  # fmt: skip


def test_a_group_without_rows_under_a_condition(kit):
    D = cn.Data(
        "sample", x=torch.randn(6, 3, dtype=torch.float64), group=list("aabbcc"), y=[1, 1, 1, 0, 0, 0]
    )
    s = linear()(D.x).reshape(())
    check_refused(cn.minimize(E(s**2)).subject_to(c=E(s, given=D.y == 1, by=D.group) <= 1),
            "[E124] the group group='c' of 'sample' has no row for")  # fmt: skip


def test_an_unknown_text_level(kit):
    D = kit.sample()
    s = linear()(D.x).reshape(())
    check_refused(cn.minimize(E(s**2)).subject_to(c=E(s, given=D.group == "gg1") <= 1),
            "[E106] sample.group has no level 'gg1'; did you mean 'g1'?")  # fmt: skip


def test_text_compared_with_a_numeric_column(kit):
    D = kit.sample()
    s = linear()(D.x).reshape(())
    check_refused(cn.minimize(E(s**2)).subject_to(c=E(s, given=D.y == "yes") <= 1),
            "[E106] sample.y is numeric and is compared with the text 'yes'")  # fmt: skip


def test_a_hold_out_with_an_unknown_level_or_column(kit):
    D = kit.sample()
    s = linear()(D.x).reshape(())
    evaluator = kit.compiled(cn.minimize(E(s**2)).subject_to(c=E(s, by=D.group) <= 1)).evaluator

    def on(test):
        return type(evaluator)(evaluator.program, evaluator.decisions, dtype=torch.float64,
                               data={"sample": test}, reference=evaluator)  # fmt: skip

    with pytest.raises(
        cn.DataError, match=re.escape("[E135] test.group has the level 'g9', which the training")
    ):
        on(cn.Data("test", x=torch.ones(2, 3), group=["g0", "g9"]))
    with pytest.raises(
        cn.DataError, match=re.escape("[E106] data 'test' has no column 'group'; did you mean")
    ):
        on(cn.Data("test", x=torch.ones(2, 3), groups=["g0", "g1"]))


def test_a_hold_out_may_lack_a_group(kit):
    D = kit.sample()
    s = linear()(D.x).reshape(())
    evaluator = kit.compiled(cn.minimize(E(s**2)).subject_to(c=E(s, by=D.group) <= 1)).evaluator
    test = type(evaluator)(
        evaluator.program, evaluator.decisions, dtype=torch.float64, reference=evaluator,
        data={"sample": cn.Data("test", x=torch.ones(3, 3), group=["g1", "g1", "g3"])},
    )  # fmt: skip
    assert torch.isfinite(test.full().residuals[0]).all()


class Centered(torch.nn.Linear):
    """Takes the mean over the rows of its batch."""

    def forward(self, x):
        return super().forward(x - x.mean(0))


class Attending(torch.nn.Linear):
    """Every row attends to all rows of its batch."""

    def forward(self, x):
        return super().forward(torch.softmax(x @ x.T, -1) @ x)


class Noisy(torch.nn.Linear):
    """Draws in evaluation mode as well."""

    def forward(self, x):
        return super().forward(torch.nn.functional.dropout(x, 0.5))


COUPLED = {
    "no running statistics": (
        lambda: torch.nn.BatchNorm1d(3, track_running_stats=False),
        "BatchNorm1d '1' of the model f has no running statistics",
    ),
    "mean over rows": (lambda: Centered(3, 3), "along the row axis"),
    "attention over rows": (lambda: Attending(3, 3), "attention between rows"),
    "noise in every call": (lambda: Noisy(3, 3), "or noise in every call"),
}


@pytest.mark.parametrize("name", COUPLED)
def test_rows_that_depend_on_each_other_in_evaluation_mode(kit, name):
    make, said = COUPLED[name]
    torch.manual_seed(0)
    D = kit.sample()
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), make(), torch.nn.Linear(3, 1)).double()
    problem = cn.minimize(E(cn.Model(module, "f")(D.x).reshape(()) ** 2))
    check_refused(problem, "[E122]", cn.ModelingError)
    with pytest.raises(cn.ModelingError, match=rf"\[E122\].*in evaluation mode too.*{said}"):
        problem.compile()
    assert all(m.training for m in module.modules())


@pytest.mark.parametrize("layer", [Centered, Noisy])
def test_exact_methods_refuse_such_a_model_too(kit, layer):
    """With the last layer alone to train it is affine in the weights, and a cone solver takes it."""
    D = kit.sample()
    module = torch.nn.Sequential(layer(3, 3).requires_grad_(False), torch.nn.Linear(3, 1)).double()
    model = cn.Model(module, "f")
    problem = cn.minimize(E((model(D.x)[..., 0] - D.y) ** 2))
    assert problem.explain().method == "cvxpy"
    check_refused(problem, "[E122]", cn.ModelingError)


class Picky(torch.nn.Linear):
    """Takes no zeros, so that the shape of its output is not known before it sees data."""

    def forward(self, x):
        if x.abs().min() == 0:
            raise ValueError("a row of zeros")
        return super().forward(x)


def test_a_column_vector_of_a_model_whose_shape_is_not_known(kit):
    D = kit.sample()
    score = cn.Model(Picky(3, 1, dtype=torch.float64), "f")(D.x)
    assert score.shape is None
    said = "[E112] (f(x) - y)² pairs every row with every row: its shape is (6, 6)"
    check_refused(cn.minimize(E((score - D.y) ** 2)), said, cn.ModelingError)


LABELS = {
    "classes that are no whole numbers": (
        F.cross_entropy, 3, [0.0, 1.5, 2.0], "the labels y have the value 1.5", "mse_loss"
    ),
    "signs": (F.binary_cross_entropy_with_logits, 1, [-1, 1, 1], "go from -1 to 1 in", "(d.y + 1) / 2"),
    "classes 1 and 2": (F.binary_cross_entropy_with_logits, 1, [1, 2, 1], "go from 1 to 2", "labels 0 and 1"),
    "probabilities": (F.binary_cross_entropy_with_logits, 1, [0.0, 0.3, 1.0], "", ""),
    "classes as floating numbers": (F.cross_entropy, 3, [0.0, 1.0, 2.0], "", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("streamed", [False, True])
def test_labels_that_a_loss_takes_without_a_word(name, streamed):
    """Positions would be cut to whole numbers, and losses without a lower bound be minimized."""
    loss, outputs, labels, said, fix = LABELS[name]
    D = cn.Data("d", x=torch.ones(3, 2), y=labels)
    if streamed:
        D = cn.Data.from_loader("d", [{"x": torch.ones(1, 2), "y": torch.tensor([y])} for y in labels])
    score = cn.Model(torch.nn.Linear(2, outputs), "f")(D.x)
    problem = cn.minimize(E(loss(score if outputs > 1 else score[..., 0], D.y, reduction="none")))
    if not said:
        assert problem.check().ok
        return
    for run in (problem.solve, problem.compile, problem.evaluate):
        with pytest.raises(cn.ModelingError) as caught:
            run()
        assert caught.value.code == "E112"
        assert said in str(caught.value)
        assert fix in str(caught.value.fix)
    assert "E112" in [finding.code for finding in problem.check().findings]


def test_a_parameter_without_a_value(kit):
    w, limit = cn.Variable(2, "w"), cn.Parameter("limit", shape=())
    problem = cn.minimize(cn.sum_squares(w)).subject_to(c=cn.sum(w) >= limit)
    check_refused(problem, "[E127] Parameter 'limit' has no value", cn.ModelingError)
    check_refused(problem, "[E127] no Parameter is named 'limmit'; did you mean 'limit'?", cn.ModelingError,
            params={"limmit": 1.0})  # fmt: skip


def test_the_event_of_an_exact_value_has_no_surrogate(kit):
    D = kit.sample()
    s = linear()(D.x).reshape(())
    check_refused(cn.minimize(P(s == 0.5)), "[E133]", cn.ModelingError)


def test_two_symbols_with_one_name():
    a, b = cn.Variable(2, "w"), cn.Variable(3, "w")
    problem = cn.minimize(cn.sum_squares(a) + cn.sum_squares(b))
    check_refused(problem, "[E131] two Variable objects are named 'w'", cn.ModelingError)


def test_a_problem_without_decisions(kit):
    D = kit.sample()
    f = cn.Model(kit.network(), "f", frozen=True)
    check_refused(
        cn.minimize(E(f(D.x) ** 2)),
        "[E126] the problem has no decisions",
        cn.ModelingError,
        method="augmented",
    )
