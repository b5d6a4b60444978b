"""Output shapes found on meta tensors, or zeros: right, and without a trace in the user's module."""

from __future__ import annotations

import copy
import gc
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import constrain as cn

D = cn.Data(
    "sample",
    x=torch.zeros(4, 3, dtype=torch.float64),
    y=torch.zeros(4),
    c=torch.tensor([0, 1, 2, 1]),
    b=torch.tensor([True, False, True, True]),
    listed=[0, 1, 2, 1],
    image=torch.zeros(4, 3, 8, 8),
    series=torch.zeros(4, 5, 6),
    words=torch.zeros(4, 6, dtype=torch.long),
    big=[[1.0] * 89] * 4,
)


def model(module):
    return cn.Model(module, "f")


class Returns(nn.Module):
    """A module out of a function, with one parameter."""

    def __init__(self, function):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.function = function

    def forward(self, *args):
        return self.function(*args)


class TwoInputs(nn.Module):
    def forward(self, x, y, scale=1.0):
        return x.sum(-1) * y * scale


def _tied():
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    return nn.Sequential(first, second)


def _slope(x):
    x = x.detach().requires_grad_()
    return torch.autograd.grad((x**2).sum(), x)[0]


def _complain(_x):
    raise ValueError("the license has expired")


BESIDE = torch.ones(1, 3)

SHAPES = {
    "linear": (lambda: nn.Linear(3, 2), ("x",), (2,)),
    "float64 data, float32 module": (lambda: nn.Linear(3, 1), ("x",), (1,)),
    "float64 module": (lambda: nn.Linear(3, 1).double(), ("x",), (1,)),
    "half module": (lambda: nn.Linear(3, 1).half(), ("x",), (1,)),
    "sequential": (
        lambda: nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1), nn.Flatten(0)),
        ("x",),
        (),
    ),
    "embedding of integers": (lambda: nn.Embedding(5, 7), ("c",), (7,)),
    "embedding of a list of integers": (lambda: nn.Embedding(5, 7), ("listed",), (7,)),
    "embedding of words": (
        lambda: nn.Sequential(nn.Embedding(5, 7), nn.Flatten(), nn.Linear(42, 2)),
        ("words",),
        (2,),
    ),
    "integers into a linear layer": (
        lambda: nn.Sequential(nn.Unflatten(0, (-1, 1)), nn.Linear(1, 2)),
        ("c",),
        (2,),
    ),
    "convolution": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(), nn.Linear(144, 2)
        ),
        ("image",),
        (2,),
    ),
    "attention": (lambda: nn.TransformerEncoderLayer(6, 2, batch_first=True), ("series",), (5, 6)),
    "two inputs": (TwoInputs, ("x", "y"), ()),
    "as many features as test rows": (lambda: nn.Linear(89, 89), ("big",), (89,)),
    "a slice of two": (lambda: Returns(lambda x: x[:, :2]), ("x",), (2,)),
    "spectral norm": (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(3, 2)), ("x",), (2,)),
    "tied weights": (_tied, ("x",), (3,)),
    "derivative in forward": (lambda: Returns(_slope), ("x",), (3,)),
    "a branch on values": (lambda: Returns(lambda x: x if x.sum() > 0 else -x), ("x",), (3,)),
    "a constant on the cpu": (lambda: Returns(lambda x: x + torch.ones(3)), ("x",), (3,)),
    "numpy inside": (lambda: Returns(lambda x: torch.as_tensor(x.numpy())), ("x",), (3,)),
    "constants, and weights kept beside": (
        lambda: Returns(lambda x: (x * BESIDE * torch.arange(3)).sum(-1, keepdim=True)),
        ("x",),
        (1,),
    ),
    "whole numbers beside a constant": (
        lambda: nn.Sequential(Returns(lambda c: c[:, None] + torch.ones(1)), nn.Linear(1, 2)),
        ("c",),
        (2,),
    ),
    "not made yet": (lambda: nn.LazyLinear(2), ("x",), None),
    "an error about something else": (lambda: Returns(_complain), ("x",), None),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shape_of_one_row(name):
    make, columns, shape = SHAPES[name]
    assert model(make())(*(D[c] for c in columns)).shape == shape


@pytest.mark.parametrize("name", SHAPES)
def test_the_module_is_as_it_was(name):
    make, columns, _ = SHAPES[name]
    module = make().train()
    before, random = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    kept = {key: dict(vars(m)) for key, m in module.named_modules()}
    parameters = list(module.parameters())
    model(module)(*(D[c] for c in columns))
    assert torch.equal(torch.get_rng_state(), random)
    assert module.training
    assert [id(p) for p in module.parameters()] == [id(p) for p in parameters]
    assert all(p.grad is None for p in parameters)
    assert kept == {key: dict(vars(m)) for key, m in module.named_modules()}
    for key, value in module.state_dict().items():
        if not isinstance(value, nn.parameter.UninitializedParameter):
            assert value.device.type == "cpu"
            assert torch.equal(value, before[key]), key


def test_what_forward_remembers_is_forgotten():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = 0
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            self.seen += x.shape[0]
            self.last = x + torch.rand(x.shape, device=x.device)
            return x

    module = Counts()
    assert model(module)(D.x).shape == (3,)
    assert module.calls == 0
    assert module.seen == 0
    assert not hasattr(module, "last")


def test_warnings_of_the_module_are_left_to_the_real_run():
    def grumble(x):
        warnings.warn("this layer is old", stacklevel=1)
        return x

    assert model(Returns(grumble))(D.x).shape == (3,)


def test_no_memory_is_kept():
    module = nn.Linear(3, 2)
    model(module)(D.x)
    gc.collect()
    tensors = [o for o in gc.get_objects() if type(o) in (torch.Tensor, nn.Parameter)]
    assert not [t for t in tensors if t.device.type == "meta"]


def test_arguments_without_rows_are_passed_without_rows():
    seen = []

    def note(x, w):
        seen.append((tuple(x.shape), tuple(w.shape)))
        return x @ w

    w = cn.Variable((3, 2), "w")
    assert model(Returns(note))(D.x, w).shape == (2,)
    (rows, *row), constant = seen[0]
    assert row == [3]
    assert rows > 1
    assert constant == (3, 2)
    assert model(Returns(lambda x: x[None]))(w).shape == (1, 3, 2)


def test_group_levels_are_passed_like_rows():
    by_class = cn.E(D.x, by=D.c)
    e = model(nn.Linear(3, 2))(by_class)
    assert e.shape == (2,)
    assert e.type.levels is not None


BAD_SHAPES = {
    "too few features": (
        lambda: nn.Linear(4, 1),
        "x",
        r"f\(x\) does not take rows of shape \(3,\); .* torch says: ",
    ),
    "a scalar per row": (lambda: nn.Linear(3, 1), "y", r"f\(y\) does not take rows of shape \(\); "),
    "an image": (lambda: nn.Conv2d(4, 2, 3), "image", r"rows of shape \(3, 8, 8\)"),
    "no channels": (lambda: nn.BatchNorm1d(3), "y", "expected 2D or 3D input"),
    "a fixed view": (lambda: Returns(lambda x: x.reshape(5)), "x", "shape '.5.' is invalid"),
    "a tuple": (lambda: nn.LSTM(3, 2), "x", r"f\(x\) returns a tuple, not one tensor"),
    "a number": (lambda: Returns(lambda _x: 1.0), "x", "returns a float, not one tensor"),
    "a constant of another size": (lambda: Returns(lambda x: x * torch.arange(4)), "x", "torch says: "),
    "every row with every row": (lambda: Returns(lambda x: x @ x.T), "x", "pairs every row with every row"),
}


@pytest.mark.parametrize("name", BAD_SHAPES)
def test_shapes_that_do_not_fit_are_refused_with_the_words_of_torch(name):
    make, column, words = BAD_SHAPES[name]
    with pytest.raises(cn.ModelingError, match="E112") as caught:
        model(make())(D[column])
    assert caught.match(words)
    assert caught.value.fix
    assert caught.value.at.filename == __file__


def test_a_wrong_number_of_arguments_is_refused():
    with pytest.raises(cn.ModelingError, match="cannot be called with 2 arguments") as caught:
        model(nn.Linear(3, 1))(D.x, D.y)
    assert caught.value.code == "E112"
    assert caught.value.fix == "f(input)"


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.mean(),
        lambda x: x.mean(0),
        lambda x: x.flatten(),
        lambda x: x[:1],
        lambda x: x.T,
        lambda x: F.mse_loss(x, x),
        lambda x: x[None],
    ],
)
def test_a_module_that_loses_the_rows_is_refused(function):
    with pytest.raises(cn.ModelingError, match=r"E120.*has no axis of rows left"):
        model(Returns(function))(D.x)


FUNCTIONS = {
    "F.hardtanh(D.x)": (3,),
    "torch.atan2(D.x, torch.ones(3))": (3,),
    "torch.var(D.x, -1)": (),
    "torch.cdist(D.x, torch.ones(5, 3))": (5,),
    "F.one_hot(D.c, 3)": (3,),
    "F.embedding(D.c, torch.ones(3, 7))": (7,),
    "F.conv2d(D.image, torch.ones(2, 3, 3, 3))": (2, 6, 6),
    "F.nll_loss(D.x, D.c, reduction='none')": (),
    "F.nll_loss(D.x, D.listed, reduction='none')": (),
    "torch.logical_xor(D.b, D.b)": (),
    "torch.gather(D.x, -1, D.c[..., None])": (1,),
    "torch.gather(D.series, -1, torch.stack([D.c, D.c], -1)[..., None, :])": (1, 2),
    "torch.flatten(D.image, 1)": (192,),
    "torch.hypot(w, w)": (3,),
    "torch.outer(w, w)": (3, 3),
    "torch.nonzero(D.c)": None,
    "F.gaussian_nll_loss(D.y, D.y, D.y, reduction='none')": None,
    "F.dropout(D.x, 0.5)": (3,),
}


@pytest.mark.parametrize("written", FUNCTIONS)
def test_shape_of_a_function_outside_the_table(written):
    random = torch.get_rng_state()
    names = {"torch": torch, "F": F, "D": D, "w": cn.Variable(3, "w")}
    assert eval(written, names).shape == FUNCTIONS[written]
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("torch.hypot(D.x, D.y)", r"E112.*hypot\(x, y\) does not take rows of shape \(3,\), \(\)"),
        ("torch.hypot(D.x, torch.ones(4))", "E112.*does not take"),
        ("torch.outer(D.y, D.y)", "E112.*pairs every row with every row"),
        ("torch.topk(D.x, 2)", "E112.*not one tensor"),
        ("torch.transpose(D.x, 0, 1)", "E120.*has no axis of rows left"),
        ("torch.dist(D.x, D.x)", "E120.*has no axis of rows left"),
    ],
)
def test_functions_outside_the_table_are_checked(written, message):
    with pytest.raises(cn.ModelingError, match=message) as caught:
        eval(written, {"torch": torch, "D": D})
    assert caught.value.fix
