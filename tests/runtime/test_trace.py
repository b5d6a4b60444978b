"""Recorded functions do what the functions do, and recording leaves nothing behind."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from constrain.runtime.trace import NotRecorded, _close, record, undone


class Step:
    """A training step on a batch, with all that it changes; each subclass does something more."""

    def __init__(self):
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 5), *self.layers(), nn.Linear(5, 1)).double()
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.05)
        self.numbers = torch.Generator().manual_seed(3)
        self.count = torch.zeros((), dtype=torch.int64)
        self(torch.ones(6, 4, dtype=torch.float64))  # the optimizer has its state

    def layers(self):
        return [nn.Tanh()]

    def score(self, x):
        return self.net(x).squeeze(-1)

    def __call__(self, x):
        loss = (self.score(x) - x[:, 0]).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.count += 1
        return loss.detach()

    def state(self):
        found = {**self.net.state_dict(), "count": self.count, "numbers": self.numbers.get_state()}
        found["global"] = torch.get_rng_state()
        for i, p in enumerate(self.net.parameters()):
            found |= {f"{name}{i}": t for name, t in self.optimizer.state[p].items()}
        return {k: v.detach().clone() for k, v in found.items()}


class Dropped(Step):
    def layers(self):
        return [nn.Dropout(0.4), nn.Tanh()]


class Normed(Step):
    """Batch norms change their averages without a word in the schema."""

    def layers(self):
        return [nn.Tanh(), nn.BatchNorm1d(5)]


class Noisy(Step):
    """Random numbers of a generator of its own."""

    def score(self, x):
        return super().score(x + 0.1 * torch.rand(x.shape, generator=self.numbers, dtype=x.dtype))


class Viewed(Step):
    """Changes a part of a tensor by a view of it, and reads it again."""

    def score(self, x):
        with torch.no_grad():
            self.net[0].weight[1:3].view(-1)[::2].mul_(0.99)
        return super().score(x)


class Curved(Step):
    """A derivative inside the loss."""

    def score(self, x):
        x = x.clone().requires_grad_()
        found = super().score(x)
        (slope,) = torch.autograd.grad(found.sum(), x, create_graph=True)
        return found + 0.1 * slope.square().sum(-1)


class Mapped(Step):
    """Functional transforms."""

    def score(self, x):
        def f(row):
            return torch.func.functional_call(self.net, dict(self.net.named_parameters()), (row,)).squeeze()

        return torch.func.vmap(f)(x) + 0.1 * torch.func.vmap(torch.func.grad(f))(x).square().sum(-1)


class Several(Step):
    """Operations with several results, some of them not used, and constants made on the way."""

    def score(self, x):
        top, _ = torch.topk(super().score(x), len(x))
        low, high = torch.aminmax(top.detach())
        return top * torch.tensor(0.5, dtype=x.dtype) + low + 0.0 * high + torch.stack(x.unbind(1))[0]


class Scaled(Step):
    """Numbers of tensors have no gradient."""

    def score(self, x):
        found = super().score(x)
        return found / (1.0 + found.abs().max().item())


class Reshaped(Step):
    """Other shapes in place, of a result and of a weight under another name."""

    def score(self, x):
        found = self.net(x)
        found.squeeze_(-1)
        return found + (x @ self.net[0].weight.detach().t_()).sum(-1)


class Wasteful(Step):
    """Random numbers that nobody needs."""

    def score(self, x):
        torch.rand(3)
        return super().score(x + 0.1 * torch.rand_like(x))


class Joint(Step):
    """An optimizer with operations for lists of tensors, and a complex weight."""

    def __init__(self):
        torch.manual_seed(1)
        self.wave = torch.randn(4, dtype=torch.complex128, requires_grad=True)
        super().__init__()
        self.wave.grad = None
        self.optimizer.zero_grad = lambda: None
        self.optimizer.step = self.step

    def score(self, x):
        return super().score(x) + (x * self.wave).sum(-1).abs()

    @torch.no_grad()
    def step(self):
        own = [p for p in [*self.net.parameters(), self.wave] if p.grad is not None]
        torch._foreach_add_(own, [p.grad for p in own], alpha=-torch.tensor(0.1).double().item())
        for p in own:
            p.grad = None


STEPS = [
    Step, Dropped, Normed, Noisy, Viewed, Curved, Mapped, Several, Scaled, Reshaped, Wasteful, Joint,
]  # fmt: skip


def batches(count):
    return list(torch.randn(count, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key, value in a.items():
        torch.testing.assert_close(value, b[key], rtol=1e-12, atol=1e-12, msg=key)


@pytest.mark.parametrize("training", [True, False])
def test_batch_normalization_says_what_it_changes(training):
    """The compiler drops changes that the schema of an operation does not have."""
    torch.manual_seed(0)
    own = Normed()
    own.net.train(training)
    operations = {str(x.function): x for x in record(own, batches(1)).graph.operations}
    name = "aten._native_batch_norm_legit.default" if training else "aten.native_batch_norm.default"
    assert operations[name].changes is training


@pytest.mark.parametrize("make", STEPS)
def test_a_replay_does_what_the_function_does(make):
    torch.manual_seed(0)
    plain = make()
    seed = torch.get_rng_state()
    own = make()
    found = [plain(x) for x in batches(4)]
    end = plain.state()

    torch.set_rng_state(seed)
    first, *others = batches(4)
    before = own.state()
    recording = record(own, [first])
    assert_same(before, own.state())
    replay = recording.graph.replay()
    results = [replay([first])]
    for x in others:
        recording.confirm(replay, own, [x])
        results.append(replay([x]))
    torch.testing.assert_close(results, found, rtol=1e-12, atol=1e-12)
    assert_same(end, own.state())


def test_recording_copies_no_gradient():
    """Autograd takes a gradient over where nobody else holds it."""
    own = Step()
    names = [str(x.function) for x in record(own, batches(1)).graph.operations]
    assert not [name for name in names if "clone" in name]


class Hidden(Step):
    """Writes to a tensor where torch does not see it."""

    def __init__(self):
        self.shift = torch.zeros((), dtype=torch.float64)
        self.door = self.shift.numpy()
        super().__init__()

    def score(self, x):
        self.door[...] = self.door + 1.0
        return super().score(x) + self.shift


class Counted(Step):
    """A number that is another one in every call."""

    def __init__(self):
        self.calls = 0
        super().__init__()

    def score(self, x):
        self.calls += 1
        return super().score(x) / self.calls


@pytest.mark.parametrize("make", [Hidden, Counted])
def test_what_torch_does_not_see_makes_a_difference(make):
    own = make()
    first, second = batches(2)
    recording = record(own, [first])
    before = own.state()
    with pytest.raises(NotRecorded, match="replayed, it does something else"):
        recording.confirm(recording.graph.replay(), own, [second])
    assert_same(before, own.state())


REFUSED = {
    "float": lambda t: t + float(t.detach().sum()),
    "branch": lambda t: t if t.sum() > 0 else -t,
    "rows": lambda t: t[t > 0].sum() + t,
    "nonzero": lambda t: t + len(torch.nonzero(t)),
    "list": lambda t: t + t.tolist()[0],
    "numpy": lambda t: t + torch.from_numpy(t.detach().numpy() * 2.0),
    "array": lambda t: t + float(__import__("numpy").asarray(t.detach())[0]),
    "option": lambda t: F.elu(t, alpha=t.detach().abs().mean()),
    "pointer": lambda t: t + 0.0 * t.data_ptr(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_depends_on_values_is_refused(name):
    own = Step()
    score = own.score
    own.score = lambda x: REFUSED[name](score(x))
    before = copy.deepcopy(own.state())
    with pytest.raises(NotRecorded, match=r"it depends on the values|it reads the memory"):
        record(own, batches(1))
    assert_same(before, own.state())


class Swapped(Step):
    """Puts other memory in the place of a weight."""

    def score(self, x):
        self.net[0].weight.data = self.net[0].weight.data * 0.5
        return super().score(x)


class Drawn(Step):
    """Layers that are left out at random: mostly the step is the same one."""

    def score(self, x):
        return super().score(x) * (1.0 if random.random() < 0.99 else 0.0)


class DrawnByNumPy(Step):
    def score(self, x):
        return super().score(x) * (1.0 if np.random.rand() < 0.99 else 0.0)  # noqa: NPY002


@pytest.mark.parametrize("make", [Swapped, Drawn, DrawnByNumPy])
def test_what_is_seen_once_is_refused_and_undone(make):
    own = make()
    weight = own.net[0].weight
    before, place = own.state(), weight.data_ptr()
    python, numpy = random.getstate(), np.random.get_state()[2]  # noqa: NPY002
    with pytest.raises(NotRecorded, match=r"puts another tensor|draws random numbers from Python or NumPy"):
        record(own, batches(1))
    assert_same(before, own.state())
    assert weight.data_ptr() == place
    assert (random.getstate(), np.random.get_state()[2]) == (python, numpy)  # noqa: NPY002


def test_interrupts_are_undone():
    own = Step()

    def interrupted():
        with torch.no_grad():
            own.net[0].weight.mul_(2.0)
        raise KeyboardInterrupt

    before = own.state()
    with pytest.raises(KeyboardInterrupt):
        record(interrupted, [])
    assert_same(before, own.state())
    undone(lambda: own(batches(1)[0]))
    assert_same(before, own.state())


@pytest.mark.parametrize(
    ("a", "b", "before", "close"),
    [
        ([1.0, 2.0], [1.0, 2.0 + 1e-15], [0.0, 0.0], True),
        ([1.0, 2.0], [1.0, 2.01], [0.0, 0.0], False),
        ([1.0, 2.0], [1.0, 2.0 + 1e-6], [1.0, 2.0 - 1e-5], False),
        ([float("nan"), 2.0], [float("nan"), 2.0], [0.0, 0.0], True),
        ([float("nan"), 2.0], [1.0, 2.0], [0.0, 0.0], False),
        ([float("inf"), 2.0], [float("inf"), 3.0], [0.0, 0.0], False),
        ([float("inf"), 2.0], [-float("inf"), 2.0], [0.0, 0.0], False),
        ([1.0 + 1.0j], [1.0 + (1.0 + 1e-15) * 1j], [0.0j], True),
        ([1.0 + 1.0j], [1.0 + 2.0j], [0.0j], False),
    ],
)
def test_what_is_close(a, b, before, close):
    def tensor(values):
        return torch.tensor(values, dtype=torch.complex128 if isinstance(a[0], complex) else torch.float64)

    assert _close(tensor(a), tensor(b), tensor(before)) is close


def test_errors_of_the_function_are_its_own():
    own = Step()
    own.score = lambda x: x @ x
    before = own.state()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        record(own, batches(1))
    assert_same(before, own.state())
