"""Operators, torch functions and NumPy arithmetic are recorded with their arguments in the order written."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import constrain as cn
from constrain import E, P
from constrain.language import nodes as n

# Each line is evaluated twice: on tensors, by torch itself; and on columns, recorded and then evaluated.
# a, b: one value per row; x, z: three per row; m: matrices; c: class numbers; t: a tensor of three; M: 3 x 3.
SPELLINGS = """
a + b ; a - b ; a * b ; a / b ; a ** b ; 2 + a ; 2 - a ; 2 * a ; 2 / a ; 2 ** a ; a + 2 ; a - 2 ; a / 8
a ** 2 ; -a ; +a ; abs(a - b) ; True * a ; x + t ; t + x ; x - t ; t - x ; x * t ; t * x ; x / t ; t / x
x ** t ; t ** x ; x @ t ; x @ M ; torch.div(a, 8) ; torch.div(a, b)
torch.true_divide(x, t) ; torch.divide(t, x) ; torch.sub(a, b) ; torch.sub(a, b, alpha=2)
torch.sub(t, x, alpha=3) ; torch.rsub(a, b) ; torch.subtract(a, b) ; torch.add(a, b, alpha=2)
torch.add(x, t) ; torch.mul(t, x) ; torch.multiply(a, b) ; torch.pow(2, a) ; torch.pow(a, 2)
torch.pow(t, x) ; torch.neg(a) ; torch.negative(a) ; torch.absolute(-a) ; torch.reciprocal(a)
torch.maximum(a, b) ; torch.minimum(t, x) ; torch.max(a, b) ; torch.min(a, b) ; torch.clamp(a, 0.7, 0.9)
torch.clamp(a, min=0.9) ; torch.clamp(a, max=0.9) ; torch.clip(a, 0.9) ; a.clamp(0.6, 1.1) ; t.sub(x)
t.div(x) ; t.mul(x) ; t.pow(x) ; t.add(x, alpha=2) ; x.sub(t) ; a.div(b) ; a.pow(2) ; a.exp() ; a.log()
a.sigmoid() ; torch.exp(a) ; torch.expm1(a) ; torch.log(a) ; torch.log1p(a) ; torch.sqrt(a)
torch.square(a) ; torch.sigmoid(a) ; torch.sigmoid(input=a) ; torch.maximum(input=a, other=b)
torch.tanh(a) ; torch.sin(a) ; torch.cos(a) ; torch.erf(a) ; torch.sign(a - b) ; torch.floor(3 * a)
torch.relu(a - 1) ; F.relu(a - 1) ; F.softplus(a) ; F.logsigmoid(a) ; F.gelu(a) ; F.silu(a) ; F.elu(a - 1)
F.gelu(a, approximate="tanh") ; F.elu(a - 1, alpha=2.0) ; F.softplus(a, beta=2) ; torch.special.expit(a)
torch.special.entr(a) ; torch.special.xlogy(a, b) ; torch.atan2(a, b) ; torch.hypot(b, a)
torch.lerp(a, b, 0.25) ; torch.copysign(a, b) ; F.hardtanh(a, 0.6, 0.9) ; F.leaky_relu(a - 1, 0.3)
torch.exp2(a) ; torch.remainder(a, b) ; torch.fmod(b, a) ; torch.float_power(a, 2) ; torch.cumsum(x, -1)
torch.cumsum(x, dim=1) ; torch.div(a, b, rounding_mode="floor") ; torch.addcmul(a, a, b, value=2)
torch.where(a > b, a, b) ; torch.where(a > b, a, 0.0) ; torch.where(~(a > b), 1.0, b) ; torch.sum(x, -1)
torch.sum(x, 1) ; x.sum(-1) ; x.sum(dim=1) ; torch.sum(x, dim=-1, keepdim=True) ; torch.mean(x, -1)
torch.amax(x, 1) ; torch.amin(x, -1) ; torch.sum(m, (1, 2)) ; torch.sum(m, dim=(-1, -2))
torch.logsumexp(x, 1) ; torch.norm(x, dim=-1) ; torch.norm(x, 1, dim=1)
torch.norm(x, p=float("inf"), dim=-1) ; torch.linalg.vector_norm(x, dim=-1)
torch.linalg.vector_norm(x, 1, -1) ; torch.softmax(x, -1) ; torch.softmax(x, 1) ; F.softmax(x, dim=1)
x.softmax(-1) ; F.log_softmax(x, dim=-1) ; torch.log_softmax(x, 1) ; torch.count_nonzero(x, -1)
torch.std(x, -1) ; torch.var(x, dim=1) ; torch.prod(x, 1) ; torch.squeeze(x.sum(-1, keepdim=True), -1)
torch.unsqueeze(a, -1) ; torch.unsqueeze(x, 1) ; torch.stack([a, b], -1) ; torch.stack([a, b], dim=1)
torch.stack([x, z], 1) ; torch.stack([x, z], -1) ; torch.flatten(m, 1) ; torch.flip(x, [-1])
F.normalize(x, dim=-1) ; F.cosine_similarity(x, z) ; torch.matmul(x, M) ; F.linear(x, M)
F.linear(x, M, t) ; F.linear(x, t) ; torch.matrix_exp(m) ; torch.logdet(m)
F.mse_loss(a, b, reduction="none") ; F.l1_loss(a, b, reduction="none")
F.huber_loss(a, b, reduction="none") ; F.huber_loss(a, b, reduction="none", delta=0.1)
F.smooth_l1_loss(a, b, reduction="none", beta=0.1) ; F.smooth_l1_loss(a, 3 * b, reduction="none")
nn.SmoothL1Loss(reduction="none")(a, b) ; torch.linalg.norm(x, dim=-1) ; torch.linalg.norm(x, 1, 1)
torch.linalg.norm(x, ord=float("inf"), dim=-1, keepdim=True) ; torch.linalg.norm(m, dim=(1, 2))
torch.linalg.norm(m, ord="fro", dim=(-2, -1)) ; torch.linalg.norm(m, 2, dim=(1, 2))
torch.linalg.norm(m, "nuc", (1, 2)) ; torch.linalg.norm(m, 1, (1, 2)) ; torch.linalg.norm(x * 2, 3, -1)
F.binary_cross_entropy_with_logits(a, b / 2, reduction="none")
F.binary_cross_entropy(a / 2, b / 2, reduction="none")
F.binary_cross_entropy_with_logits(x, z / 2, reduction="none", pos_weight=t)
F.cross_entropy(x, c, reduction="none") ; F.cross_entropy(x, c, reduction="none", label_smoothing=0.1)
F.cross_entropy(x, c, weight=t, reduction="none") ; F.nll_loss(F.log_softmax(x, -1), c, reduction="none")
F.kl_div(x, z, reduction="none") ; F.one_hot(c, 3) * x ; F.poisson_nll_loss(a, b, reduction="none")
nn.BCEWithLogitsLoss(reduction="none")(a, b / 2) ; nn.Sigmoid()(a) ; nn.Softplus()(a) ; nn.Flatten()(m)
x[..., 0] ; m[..., 1, :] ; m[..., 0:2] ; m[..., [2, 0]] ; x[..., -1] ; x[..., None, :]
"""


def split(text):
    return [s.strip() for s in text.replace("\n", ";").split(";") if s.strip()]


@pytest.mark.parametrize("spelling", split(SPELLINGS))
def test_what_is_recorded_is_what_torch_computes(spelling, space, evaluate):
    D = space.D
    common = {"torch": torch, "F": F, "nn": nn, "np": np, "t": space.v, "M": space.A}
    columns = {"a": "y", "b": "q", "x": "x", "z": "z", "m": "m", "c": "label"}
    symbolic = eval(spelling, {**common, "u": space.V, **{k: D[v] for k, v in columns.items()}})
    exact = eval(spelling, {**common, "u": space.v, **{k: D.values(v) for k, v in columns.items()}})
    assert_same(evaluate(symbolic), exact)
    assert symbolic.shape == tuple(exact.shape[1:])


def assert_same(value, exact):
    value, exact = torch.as_tensor(value), torch.as_tensor(exact)
    torch.testing.assert_close(value.to(torch.float64), exact.to(torch.float64), equal_nan=True)


NUMPY = """
u + x ; x + u ; u - x ; x - u ; u * x ; u / x ; x / u ; u ** x ; x ** u ; x @ u ; x @ M
np.float64(2.0) - a ; np.float32(0.5) * a ; np.int64(3) - a ; np.subtract(u, x) ; np.divide(u, x)
np.power(u, x) ; np.maximum(u, x) ; np.multiply(u, x) ; np.minimum(x, u) ; np.add(u, x)
np.float64(1.5) ** a ; np.float64(1.5) / a ; np.matmul(x, M)
"""


@pytest.mark.parametrize("spelling", split(NUMPY))
def test_numpy_arithmetic_keeps_its_order(spelling, space, evaluate):
    D = space.D
    common = {"np": np, "u": space.V, "M": space.A.numpy()}
    symbolic = eval(spelling, {**common, "a": D.y, "x": D.x})
    exact = eval(spelling, {**common, "a": D.values("y").numpy(), "x": D.values("x").numpy()})
    assert_same(evaluate(symbolic), exact)


COMPARISONS = """
a > b ; a >= b ; a < b ; a <= b ; a == b ; a != b ; 1 > a ; 1 <= a ; x > t ; t > x ; t <= x ; t == x
torch.gt(a, b) ; torch.ge(t, x) ; torch.lt(t, x) ; torch.le(a, 1) ; torch.eq(c, 1) ; torch.ne(c, 1)
torch.less(a, b) ; a.gt(b) ; (a > b) & (b > 1) ; (a > b) | (b > 1) ; ~(a > b)
torch.logical_and(a > b, b > 1) ; torch.logical_not(a > b) ; torch.logical_or(a > b, b > 1)
torch.greater_equal(a, b) ; torch.not_equal(c, 0)
"""


@pytest.mark.parametrize("spelling", split(COMPARISONS))
def test_comparisons_keep_their_sides(spelling, space, evaluate):
    D = space.D
    names = {"a": "y", "b": "q", "x": "x", "c": "label"}
    symbolic = eval(spelling, {"torch": torch, "t": space.v, **{k: D[v] for k, v in names.items()}})
    exact = eval(spelling, {"torch": torch, "t": space.v, **{k: D.values(v) for k, v in names.items()}})
    assert torch.equal(torch.as_tensor(evaluate(symbolic)), exact)
    assert symbolic.type.event


def test_division_is_not_turned_around(space):
    y = space.D.y.node
    assert torch.div(space.D.y, 8).node == n.Apply("div", (y, n.Constant(8)))
    assert (8 / space.D.y).node == n.Apply("div", (n.Constant(8), y))
    tensor_first = (space.v - space.D.x).node
    assert isinstance(tensor_first, n.Apply)
    assert isinstance(tensor_first.args[0], n.Array)


@pytest.mark.parametrize("name", ["hardtanh", "hardswish", "mish", "celu", "tanhshrink", "softsign"])
def test_a_function_outside_the_table_is_recorded_as_it_is(name, space):
    e = getattr(F, name)(space.D.x)
    assert isinstance(e.node, n.Opaque)
    assert e.node.arguments == (space.D.x.node,)
    assert e.node.function is getattr(F, name)
    assert e.shape == (3,)


def test_arguments_of_an_unknown_function_stay_in_order(space):
    D = space.D
    assert torch.hypot(D.y, D.q).node.arguments == (D.y.node, D.q.node)
    assert torch.hypot(D.q, D.y).node.arguments == (D.q.node, D.y.node)
    e = torch.addcmul(D.y, D.q, 2 * D.y, value=3)
    assert e.node.arguments == (D.y.node, D.q.node, (2 * D.y).node)
    assert e.node.keywords == (("value", 3),)
    assert torch.lerp(D.y, D.q, 1).node != torch.lerp(D.y, D.q, 1.0).node


def test_an_empty_tensor_argument_of_an_unknown_function_stays_a_tensor(space):
    weight = torch.tensor(0.25, dtype=torch.float64)
    node = torch.lerp(space.D.y, space.D.q, weight).node
    assert node.arguments[2].symbol.value is weight


REDUCING = sorted(
    name
    for name in dir(F)
    if not name.startswith("_")
    and inspect.isfunction(getattr(F, name))
    and "reduction" in inspect.signature(getattr(F, name)).parameters
)


@pytest.mark.parametrize("name", REDUCING)
@pytest.mark.parametrize("reduction", ["mean", "sum", None])
def test_every_reducing_loss_of_torch_is_refused(name, reduction, space):
    """E120, for each loss of torch.nn.functional, with the default reduction and with the others."""
    D = space.D
    loss = getattr(F, name)
    required = [p for p in inspect.signature(loss).parameters.values() if p.default is p.empty]
    words = {} if reduction is None else {"reduction": reduction}
    arguments = [D.x] * len(required)
    with pytest.raises(cn.ModelingError, match="E120") as caught:
        loss(*arguments, **words)
    assert 'reduction="none"' in caught.value.fix


ROW_TRAPS = """
torch.sum(x) ; torch.sum(a) ; torch.sum(x, 0) ; torch.sum(x, dim=0) ; torch.sum(x, -2)
torch.sum(x, (0, 1)) ; x.sum() ; x.mean(0) ; torch.mean(a) ; torch.mean(x, dim=[0]) ; torch.amax(x, 0)
torch.amin(a, -1) ; torch.max(x) ; torch.min(a) ; torch.logsumexp(x, 0) ; torch.logsumexp(a, 0)
torch.norm(x) ; torch.norm(a) ; torch.linalg.vector_norm(x) ; torch.norm(x, dim=0)
torch.count_nonzero(x) ; torch.softmax(x, 0) ; torch.softmax(a, -1) ; torch.softmax(x, -2)
torch.log_softmax(x, 0) ; F.softmax(x) ; torch.std(x) ; torch.var(x, 0) ; torch.var(a, dim=0)
torch.cumsum(x, 0) ; torch.cumsum(a, -1) ; torch.cumprod(x, dim=0) ; torch.flip(x, [0]) ; torch.sort(x, 0)
torch.prod(x) ; torch.median(a) ; torch.roll(x, 1, 0) ; torch.diff(x, 1, 0) ; torch.reshape(x, (15,))
torch.t(x) ; torch.unsqueeze(x, 0) ; torch.stack([a, b]) ; torch.stack([x, z], 0) ; torch.all(x, 0)
torch.argmax(x) ; torch.quantile(x, 0.5) ; torch.max(x, 1) ; torch.min(x, dim=1)
"""


@pytest.mark.parametrize("spelling", split(ROW_TRAPS))
def test_what_would_run_over_the_rows_is_refused(spelling, space):
    D = space.D
    with pytest.raises(cn.ModelingError, match="E115"):
        eval(spelling, {"torch": torch, "F": F, "a": D.y, "b": D.q, "x": D.x, "z": D.z})


@pytest.mark.parametrize(
    "spelling", split("torch.mean(e) ; torch.sum(e) ; torch.max(e) ; torch.softmax(e, 0) ; torch.norm(e)")
)
def test_what_would_run_over_the_levels_is_refused(spelling, space):
    by_sex = E(space.D.y, by=space.D.sex)
    with pytest.raises(cn.ModelingError, match=r"E115.*levels"):
        eval(spelling, {"torch": torch, "e": by_sex})


def test_functions_of_torch_without_rows_follow_torch(space, evaluate):
    """On variables there is no axis of rows: dims are those of the tensor itself."""
    value = space.A
    for spelling in split(
        "torch.sum(M) ; torch.sum(M, 0) ; M.mean(1) ; torch.norm(M, dim=0) ; torch.softmax(M, 0) ; torch.t(M)"
    ):
        symbolic = eval(spelling, {"torch": torch, "M": space.M})
        assert_same(evaluate(symbolic, M=value), eval(spelling, {"torch": torch, "M": value}))


def test_einsum_without_an_arrow_means_what_torch_means(space, evaluate):
    assert_same(
        evaluate(torch.einsum("ji,jk", space.M, space.A), M=space.A), torch.einsum("ji,jk", space.A, space.A)
    )
    assert_same(evaluate(torch.einsum("ii", space.M), M=space.A), torch.einsum("ii", space.A))
    assert torch.einsum("i, ij -> j", space.D.x, space.A).shape == (3,)


def test_a_frozen_linear_layer_is_recorded_with_its_weights(space):
    layer = nn.Linear(3, 2, dtype=torch.float64).requires_grad_(False)
    e = layer(space.D.x)
    assert e.node.atom == "linear"
    assert e.node.args[1].symbol.value is layer.weight
    assert e.shape == (2,)


def test_in_place_arithmetic_makes_a_new_expression(space):
    before = space.v.clone()
    tensor = space.v
    tensor += space.D.x
    assert isinstance(tensor, cn.Expr)
    e = kept = space.D.y
    e += 1
    assert kept.node == space.D.y.node
    assert torch.equal(space.v, before)


def test_the_same_array_is_the_same_constant(space):
    assert (space.D.x * space.v).node == (space.D.x * space.v).node
    assert (space.D.x * space.v).node != (space.D.x * space.v.clone()).node
    assert (space.D.sex == "F").node == (space.D.sex == "".join(["F"])).node
    assert (space.D.sex == "F").node != (space.D.sex == "M").node


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (np.float64(2), float),
        (np.int32(2), int),
        (np.bool_(True), bool),
        (torch.tensor(2), int),
        (np.array(2.5), float),
    ],
)
def test_numbers_of_other_libraries_become_plain(value, kind, space):
    constant = (space.D.y + value).node.args[1]
    assert type(constant.value) is kind


def test_unknown_shapes_may_be_squeezed(space):
    class Odd(nn.Module):
        def forward(self, x):
            return x / (1 // int(x.any()))  # takes no rows of zeros

    e = cn.Model(Odd(), "odd")(space.D.x)
    assert e.shape is None
    assert e.squeeze(-1).node == e[..., 0].node
    assert torch.squeeze(e, -2).node == e[..., 0, :].node
    assert torch.unsqueeze(e, -1).node == e[..., None].node
    assert cn.sum(e).shape == ()
    assert cn.norm(e, axis=-1).shape is None


def test_a_rate_keeps_the_order_of_a_joined_event(space):
    D = space.D
    first, second = D.y > 1, D.q > 1
    assert P(first & second).node != P(second & first).node


@pytest.mark.parametrize(
    ("spelling", "atom"),
    [
        ("torch.linalg.norm(M)", "norm"),
        ("torch.linalg.norm(w, 1)", "norm"),
        ("torch.linalg.norm(M, 'fro')", "norm"),
        ("torch.linalg.norm(D.m, dim=(-2, -1))", "norm"),
        ("torch.linalg.norm(M, 1, dim=0)", "norm"),
        ("torch.linalg.norm(M, 2)", None),
        ("torch.linalg.norm(M, float('inf'))", None),
        ("torch.linalg.norm(D.m, 2, (-2, -1))", None),
        ("torch.linalg.norm(D.m, 'nuc', (-2, -1))", None),
        ("F.smooth_l1_loss(D.y, D.q, reduction='none')", "huber"),
        ("F.smooth_l1_loss(D.y, D.q, reduction='none', beta=0.5)", None),
    ],
)
def test_norms_and_smooth_losses_are_in_the_table_where_they_mean_the_same(space, spelling, atom):
    e = eval(spelling, {"torch": torch, "F": F, **vars(space)})
    assert (e.node.atom if isinstance(e.node, n.Apply) else None) == atom
    if atom is None:
        assert isinstance(e.node, n.Opaque)


def test_a_linalg_norm_does_not_run_over_the_rows(space):
    with pytest.raises(cn.ModelingError, match="E115"):
        torch.linalg.norm(space.D.x)
    with pytest.raises(cn.ModelingError, match="E120"):
        F.smooth_l1_loss(space.D.y, space.D.q)
