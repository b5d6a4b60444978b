"""What torch or a module raises on a batch is said with the expression, the rows and torch's words (E112)."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import constrain as cn
from constrain import E

ROWS, BAD = 1000, 700
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(ROWS, 4, generator=GENERATOR)
Y = torch.randint(0, 3, (ROWS,), generator=GENERATOR)
Y[BAD] = 7
FEW = "the labels y go up to 7 while {} has 3 outputs; a label is the position of its class, from 0"


class Refuses(nn.Module):
    """A linear score that raises where a feature is too large."""

    def __init__(self, error=None):
        super().__init__()
        self.linear = nn.Linear(4, 1)
        self.error = error or ValueError("too large\nand more of it")

    def forward(self, x):
        if bool((x > 50).any()):
            raise self.error
        return self.linear(x)[..., 0]


def loss(D, name):
    """An objective that fails in the row of the bad label."""
    score, embedding = cn.Model(nn.Linear(4, 3), "f")(D.x), cn.Model(nn.Embedding(3, 2), "e")
    log_p = torch.log_softmax(score, -1)
    return {
        "cross_entropy": lambda: E(F.cross_entropy(score, D.y, reduction="none")),
        "nll_loss": lambda: E(F.nll_loss(log_p, D.y, reduction="none")),
        "gather": lambda: -E(torch.gather(log_p, -1, D.y[..., None])[..., 0]),
        "embedding": lambda: E(cn.sum_squares(embedding(D.y))),
    }[name]()


def refusal(problem, **options):
    with pytest.raises(cn.ModelingError) as caught:
        problem.solve("lagrangian", batch=64, epochs=2, progress=False, **options)
    assert caught.value.code == "E112"
    assert caught.value.at.filename == __file__
    assert caught.value.fix
    return str(caught.value).splitlines()[0].removeprefix("[E112] "), caught.value.__cause__


SAID = {
    "cross_entropy": FEW.format("f(x)"),
    "nll_loss": FEW.format("log_softmax(f(x))"),
    "gather": "gather(log_softmax(f(x)), -1, y[..., None]) fails on row 700 of d (y = 7): RuntimeError: ",
    "embedding": "e(y) fails on row 700 of d (y = 7): IndexError: index out of range in self",
}


@pytest.mark.parametrize("name", SAID)
def test_a_label_that_only_a_later_batch_has(name):
    said, _ = refusal(cn.minimize(loss(cn.Data("d", x=X, y=Y), name)))
    assert said.startswith(SAID[name])


@pytest.mark.parametrize("name", SAID)
def test_a_label_in_a_stream(name):
    S = cn.Data.from_loader("d", DataLoader(TensorDataset(X, Y), batch_size=64), columns=("x", "y"))
    said, cause = refusal(cn.minimize(loss(S, name)).subject_to(c=E(S.x[..., 0]) <= 1))
    row = "row 60 of a batch of 64 rows of d"
    expected = SAID[name].replace("row 700 of d", row)
    assert said.startswith(f"{expected} ({row})" if "loss" in name or "entropy" in name else expected)
    assert isinstance(cause, (IndexError, RuntimeError))


@pytest.mark.parametrize(
    ("bad", "where"),
    [
        ([BAD], "row 700 of d"),
        ([300, BAD], "rows 300 and 700 of d"),
        ([30, 31, 32, 600, BAD], "rows 30, 31, 32 and maybe others of d"),
        (range(ROWS), "rows of d"),
    ],
)
@pytest.mark.parametrize("method", ["lagrangian", "augmented"])
def test_a_model_that_raises_for_some_rows(bad, where, method):
    x = X.clone()
    x[list(bad), 1] = 99.0
    D, m = cn.Data("d", x=x, y=X[:, 0]), cn.Model(Refuses(), "m")
    with pytest.raises(cn.ModelingError) as caught:
        cn.minimize(E((m(D.x) - D.y) ** 2)).solve(method, progress=False)
    assert f"[E112] m(x) fails on {where}: ValueError: too large\n" in str(caught.value)
    assert isinstance(caught.value.__cause__, ValueError)


def test_rows_that_fail_together_only_are_not_named():
    class Crowded(Refuses):
        def forward(self, x):
            if len(x) > 900:
                raise RuntimeError("too many rows")
            return self.linear(x)[..., 0]

    D, m = cn.Data("d", x=X, y=X[:, 0]), cn.Model(Crowded(), "m")
    with pytest.raises(
        cn.ModelingError, match=r"E112. m\(x\) fails on rows of d: RuntimeError: too many rows"
    ):
        cn.minimize(E((m(D.x) - D.y) ** 2)).evaluate()


def test_the_values_of_the_row_are_shown_in_the_columns_of_the_expression():
    kind = ["new" if i % 7 == 0 else "old" for i in range(ROWS)]
    D = cn.Data("d", x=X, y=Y, kind=kind, other=X[:, 0])
    chosen = cn.where(D.kind == "new", D.y, 2 * D.y)
    score = torch.gather(cn.Model(nn.Linear(4, 5), "f")(D.x), -1, torch.narrow(chosen[..., None], -1, 0, 1))
    said, _ = refusal(cn.minimize(E(score[..., 0] * D.other)))
    assert " fails on row 700 of d (kind = 'new', y = 7): RuntimeError: index 7 is out of bounds" in said


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), torch.OutOfMemoryError("no memory left"), MemoryError("none"), UserWarning("w")],
)
def test_what_is_no_fault_of_the_rows_passes_unchanged(error):
    x = X.clone()
    x[BAD] = 99.0
    D, m = cn.Data("d", x=x, y=X[:, 0]), cn.Model(Refuses(error), "m")
    with pytest.raises(type(error)) as caught:
        cn.minimize(E((m(D.x) - D.y) ** 2)).evaluate()
    assert caught.value is error


def test_a_function_of_averages_that_fails():
    x = X.double()
    x[:, 0] = 0.0
    D, w = cn.Data("d", x=x), cn.Variable((), "w")
    inverse = torch.linalg.inv(E(D.x[..., :, None] * D.x[..., None, :]))
    with pytest.raises(cn.ModelingError) as caught:
        cn.minimize(w**2 + w * cn.sum(inverse)).evaluate()
    assert "[E112] inv(mean[" in str(caught.value)
    assert " fails on the averages: " in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize("graph", ["off", "recorded"])
def test_rows_that_fail_in_a_step_of_ones_own_loop(graph):
    D, f = cn.Data("d", x=X, y=Y.clamp(max=2)), cn.Model(nn.Linear(4, 3), "f")
    log_p = torch.log_softmax(f(D.x), -1)
    problem = cn.minimize(-E(torch.gather(log_p, -1, D.y[..., None])[..., 0]))
    lagrangian = problem.compile()
    step = lagrangian.training_step(torch.optim.SGD(f.module.parameters(), lr=0.1), graph)
    lagrangian.refresh()
    for start in range(0, 320, 64):
        step(D.rows({"x": X[start : start + 64], "y": Y[start : start + 64]}))
    assert graph == "off" or step.graph.used
    with pytest.raises(
        cn.ModelingError, match=r"E112.*fails on row 60 of a batch of 64 rows of d \(y = 7\): "
    ):
        step(D.rows({"x": X[640:704], "y": Y[640:704]}))
