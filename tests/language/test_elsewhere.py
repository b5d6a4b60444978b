"""Names that people bring along from CVXPY, NumPy and torch."""

from __future__ import annotations

import pytest
import torch

import constrain as cn
from constrain.language import elsewhere


def test_what_is_named_is_missing_here_and_there_in_torch():
    assert not {*elsewhere._WRITTEN, *elsewhere._TORCH} & set(dir(cn))
    assert all(callable(getattr(torch, name)) for name in elsewhere._TORCH)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("multiply", "; write a * b"),
        ("sin", "; write torch.sin(x): torch functions of expressions are recorded"),
        ("minimized", "; did you mean 'minimize'?"),
        ("nothing_like_it", ""),
    ],
)
def test_the_error_says_what_to_write(name, said):
    with pytest.raises(AttributeError) as caught:
        getattr(cn, name)
    assert str(caught.value) == f"module 'constrain' has no attribute {name!r}{said}"


def test_huber_of_cvxpy():
    x = cn.Variable(3, "x")
    x.value = [0.2, -1.0, 3.0]
    loss = 2 * torch.nn.functional.huber_loss(x, 0 * x, reduction="none", delta=0.5)
    assert cn.minimize(cn.sum(loss)).evaluate().objective == pytest.approx(0.04 + 0.75 + 2.75)
