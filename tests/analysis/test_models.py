"""Which modules are affine in their trainable weights, why others are not, and that the features say so."""

import numpy as np
import pytest
import torch
from torch import nn

from constrain.analysis.models import affine_model, refusal_of


class Head(nn.Module):
    """A frozen trunk, one trainable layer, and the entry of one class."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(3, 5), nn.Tanh()).requires_grad_(False)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        hidden = self.trunk(x) * 2 + x.sum(-1, keepdim=True)
        return self.head(hidden)[..., 1]


class Branching(nn.Module):
    """Not traceable: its path depends on values."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else -self.layer(x)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return self.layer(self.layer(x))


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x):
        return self.layer(x) * self.layer.weight.sum()


class Squashed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x):
        return torch.sigmoid(self.layer(x)).squeeze(-1)


class Mixing(nn.Module):
    """Shape-only, but rows are mixed."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x).reshape(2, -1).t()


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1, bias=False)

    def forward(self, x, t):
        return self.layer(torch.cat([x, t.unsqueeze(-1)], dim=-1)).flatten()


def frozen(*layers):
    return nn.Sequential(*layers).requires_grad_(False)


def _half():
    layer = nn.Linear(3, 1)
    layer.bias.requires_grad_(False)
    return layer


AFFINE = {
    "linear": lambda: nn.Linear(3, 1),
    "no bias": lambda: nn.Linear(3, 2, bias=False),
    "flattened": lambda: nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)),
    "unflattened": lambda: nn.Sequential(nn.Linear(3, 6), nn.Unflatten(-1, (2, 3)), nn.Identity()),
    "frozen trunk": lambda: nn.Sequential(frozen(nn.Linear(3, 4), nn.ReLU()), nn.Linear(4, 2)),
    "activation first": lambda: nn.Sequential(nn.Tanh(), nn.Linear(3, 1)),
    "dropout in eval mode": lambda: nn.Sequential(nn.Linear(3, 1), nn.Dropout(0.5)).eval(),
    "batch norm in eval mode": lambda: nn.Sequential(nn.BatchNorm1d(3, affine=False), nn.Linear(3, 1)).eval(),
    "nested": lambda: nn.Sequential(nn.Sequential(nn.Linear(3, 2)), nn.Flatten(1)),
    "own module": Head,
    "own module in a sequence": lambda: nn.Sequential(nn.Identity(), Head()),
}


class Asserts(nn.Module):
    """Its forward takes tensors, and nothing else."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x):
        assert isinstance(x, torch.Tensor)
        return self.layer(x)


class Wide(nn.Module):
    """Two trainable layers side by side; its forward is never followed."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 1), nn.Linear(3, 1)

    def forward(self, *_inputs):
        raise AssertionError


REFUSED = {
    "several layers": (Wide, "2 of its layers are trainable: 'a', 'b'"),
    "several layers in a sequence": (lambda: nn.Sequential(Wide(), nn.Linear(1, 1)), "'0.a', '0.b', '1'"),
    "two layers": (
        lambda: nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1)),
        "ReLU '1' follows the trainable",
    ),
    "linear after linear": (
        lambda: nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)),
        "Linear '1' follows the trainable",
    ),
    "trainable convolution": (
        lambda: nn.Sequential(nn.Conv1d(1, 1, 2), nn.Flatten()),
        "Conv1d '0' is trainable and is no",
    ),
    "dropout": (lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 1)), "Dropout '0' is in training mode"),
    "batch norm": (lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)), "couples the rows of a batch"),
    "nothing trains": (lambda: frozen(nn.Linear(3, 1)), "no trainable parameters"),
    "half frozen": (_half, "trainable in part only"),
    "branches": (Branching, "torch.fx cannot follow its forward"),
    "asserts": (Asserts, "torch.fx cannot follow its forward (AssertionError"),
    "layer used twice": (Twice, "Linear 'layer' follows the trainable layer 'layer'"),
    "weight used beside": (Shared, "uses its trainable parameter 'layer.weight' outside"),
    "squashed": (Squashed, "sigmoid follows the trainable layer 'layer'"),
    "bilinear": (lambda: nn.Sequential(nn.Embedding(4, 2), nn.Linear(2, 1)), "Embedding '0' is trainable"),
}


def _predicted(model, features):
    parameters = dict(model.module.named_parameters())
    weight = parameters[model.weight].detach().double().numpy()
    out = features.values @ weight.T
    if model.bias is not None:
        out = out + parameters[model.bias].detach().double().numpy()
    rows = out.reshape(len(out), -1)
    moved = rows if features.moved is None else rows[:, features.moved]
    return moved.reshape(len(out), *features.row_shape)


@pytest.mark.parametrize("label", AFFINE)
def test_features_times_weights_are_the_output(label):
    torch.manual_seed(0)
    module = AFFINE[label]()
    assert refusal_of(module) is None
    x = torch.randn(7, 3, dtype=torch.float64)
    expected = module.double()(x).detach().numpy()
    module.float()
    model = affine_model(module)
    features = model.features(x)
    assert features.values.dtype == np.float64
    np.testing.assert_allclose(
        _predicted(model, features), expected.reshape(len(x), *features.row_shape), atol=1e-6
    )
    assert next(module.parameters()).dtype == torch.float32  # the user's module is left alone


@pytest.mark.parametrize("label", REFUSED)
def test_refused_with_a_reason(label):
    build, word = REFUSED[label]
    module = build()
    assert affine_model(module) is None
    assert word in refusal_of(module)


def test_several_inputs():
    model = affine_model(TwoInputs())
    x, t = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    features = model.features(x, t)
    np.testing.assert_allclose(features.values, torch.cat([x, t[:, None]], -1).numpy())
    assert features.row_shape == ()


def test_input_with_more_axes():
    model = affine_model(nn.Sequential(nn.Linear(3, 2), nn.Flatten()))
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    features = model.features(x)
    assert features.values.shape == (5, 4, 3)
    assert features.row_shape == (8,)
    expected = model.module.double()(x).detach().numpy()
    np.testing.assert_allclose(_predicted(model, features), expected, atol=1e-12)


def test_mixing_rows_is_refused_when_it_runs():
    model = affine_model(Mixing())
    with pytest.raises(ValueError, match="mixes rows"):
        model.features(torch.randn(4, 3, dtype=torch.float64))
