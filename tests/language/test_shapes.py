"""Shape rules: every atom of the table against torch on a real batch, with and without an axis of rows."""

from __future__ import annotations

import pytest
import torch

import constrain as cn
from constrain import E, P, forall
from constrain.language.atoms import ATOMS, ShapeProblem, broadcast
from constrain.language.functions import OVER_LEVELS
from constrain.language.types import Level
from constrain.runtime import rowwise

ROWS = 5
ELEMENTWISE = [((3,),), ((),), ((2, 3),)]
PAIRS = [((3,), (3,)), ((), ()), ((2, 3), (3,)), ((2, 1), (1, 3)), ((3,), ())]
REDUCTIONS = [
    (((2, 3),), {"axis": axis, "keepdims": keep})
    for axis in (None, (-1,), (-2,), (-2, -1))
    for keep in (False, True)
]
REDUCTIONS += [(((3,),), {"axis": None, "keepdims": False}), (((),), {"axis": None, "keepdims": False})]

UNARY = (
    *("abs", "square", "exp", "expm1", "log", "log1p", "sqrt", "reciprocal", "entr", "relu", "softplus"),
    *("logsigmoid", "sigmoid", "tanh", "sin", "cos", "erf", "gelu", "silu", "elu", "sign", "floor", "neg"),
)
BINARY = (
    "add",
    "sub",
    "mul",
    "div",
    "pow",
    "maximum",
    "minimum",
    "kl_div",
    "rel_entr",
    "mse_loss",
    "l1_loss",
)
REDUCE = ("sum", "mean", "max", "min", "logsumexp", "sum_squares", "count_nonzero")

# atom -> cases of (row shapes, options)
TABLE = {
    **{name: [(shapes, {}) for shapes in ELEMENTWISE] for name in UNARY},
    **{name: [(shapes, {}) for shapes in PAIRS] for name in BINARY},
    **{
        name: [(shapes, {}) for shapes in (((3,), (3,)), ((), ()), ((2, 3), (2, 3)))]
        for name in ("binary_cross_entropy", "binary_cross_entropy_with_logits")
    },
    **{name: REDUCTIONS for name in REDUCE},
    "norm": [(s, {**o, "ord": p}) for s, o in REDUCTIONS for p in (1.0, 2.0, float("inf"))],
    "huber": [(shapes, {"delta": 0.3}) for shapes in ELEMENTWISE],
    "softmax": [(((3,),), {"axis": (-1,)}), (((2, 3),), {"axis": (-2,)})],
    "log_softmax": [(((3,),), {"axis": (-1,)}), (((2, 3),), {"axis": (-2,)})],
    "cross_entropy": [(((3,), ()), {}), (((3,), (3,)), {})],
    "matmul": [(shapes, {}) for shapes in (((3,), (3,)), ((2, 3), (3,)), ((3,), (3, 2)), ((2, 3), (3, 2)))],
    "linear": [(((3,), (2, 3)), {}), (((3,), (2, 3), (2,)), {}), (((4, 3), (2, 3)), {}), (((3,), (3,)), {})],
    "einsum": [
        (((2, 3), (3, 4)), {"equation": "ij,jk->ik"}),
        (((2, 3),), {"equation": "ij->"}),
        (((2, 3), (2,)), {"equation": "ij,i->j"}),
        (((3, 3),), {"equation": "ii->i"}),
    ],
    "index": [
        (((2, 3),), {"key": key})
        for key in (
            (0,),
            (-1, 2),
            ("...", 0),
            (0, "..."),
            (None, 1),
            (("slice", 0, 1, None),),
            ("...", ("slice", None, None, 2)),
            (("list", (1, 0, 1)),),
            ("...", None),
            (("slice", None, None, None), ("list", (2, 0))),
            (("slice", -1, None, None), 0),
        )
    ],
    "reshape": [(((2, 3),), {"shape": shape}) for shape in ((6,), (3, 2), (-1,), (1, 6), (2, -1, 1))],
    "transpose": [(((2, 3),), {}), (((3,),), {}), (((2, 3, 4),), {})],
    "stack": [(((3,), (3,)), {}), (((), (), ()), {}), (((2, 3), (2, 3)), {})],
    "where": [(((3,), (3,), (3,)), {}), (((), (), ()), {}), (((2, 3), (3,), ()), {})],
    "quad_form": [(((3,), (3, 3)), {})],
    **{name: [(((3, 3),), {})] for name in ("trace", "matrix_exp", "logdet", "symmetric_part")},
    **{name: [(((3, 3),), {})] for name in ("lambda_max", "lambda_min")},
    **{name: [(((2, 3),), {})] for name in ("spectral_norm", "nuclear_norm")},
    **{f"{name}_levels": [(((),), {}), (((3,),), {})] for name in OVER_LEVELS if name != "norm"},
    "norm_levels": [(s, {"ord": p}) for s in (((),), ((3,),)) for p in (1.0, 2.0, float("inf"))],
    "take": [(((4,), ()), {}), (((4, 3), ()), {})],
    "pick_levels": [(((),), {"place": 1}), (((3,),), {"place": 0})],
    **{name: [(((), ()), {}), (((3,), (3,)), {})] for name in ("variance", "deviation")},
    "entropy_logits": [(((3,),), {}), (((2, 3),), {})],
    "kl_logits": [(((3,), (3,)), {}), (((2, 3), (2, 3)), {})],
}
CASES = [(name, shapes, options) for name, cases in TABLE.items() for shapes, options in cases]
NEEDS_A_LEAD = ("pick_levels", *(f"{name}_levels" for name in OVER_LEVELS))


def batch(atom, shapes, leads):
    generator = torch.Generator().manual_seed(1)
    values = [
        torch.rand((ROWS, *s) if lead else s, generator=generator, dtype=torch.float64)
        for s, lead in zip(shapes, leads, strict=True)
    ]
    if atom == "where":
        values[0] = values[0] > 0.5
    if atom == "cross_entropy" and shapes[1] == ():
        values[1] = (3 * values[1]).long()
    if atom == "take":
        values[1] = (4 * values[1]).long()
    if atom == "logdet":
        values[0] = values[0] + 3 * torch.eye(3, dtype=torch.float64)
    return values


def run(atom, values, options, leads):
    path = ATOMS[atom].torch
    if path.startswith("rowwise."):
        return getattr(rowwise, path.removeprefix("rowwise."))(*values, **options, lead=leads)
    found = torch
    for part in path.split(".")[1:]:
        found = getattr(found, part)
    return found(*values, **options)


def lead_patterns(atom, shapes):
    """Which arguments carry rows: all, or the first only where the others are constants; then none."""
    if atom == "take":
        return [(0, 1)]
    patterns = [(1,) * len(shapes)]
    if atom in ("linear", "matmul", "quad_form", "einsum") or len(shapes) == 1:
        patterns = [(1,) + (0,) * (len(shapes) - 1)]
    if atom == "matmul":
        patterns += [(1, 1), (0, 1)]
    return patterns if atom in NEEDS_A_LEAD else [*patterns, (0,) * len(shapes)]


def test_the_table_of_tests_covers_the_table_of_atoms():
    assert set(TABLE) == {name for name, atom in ATOMS.items() if atom.declared is None}


@pytest.mark.parametrize(
    ("atom", "shapes", "options"), CASES, ids=lambda v: str(v) if isinstance(v, (str, tuple)) else ""
)
def test_a_shape_rule_says_what_torch_returns(atom, shapes, options):
    said = ATOMS[atom].shape(shapes, options)
    for leads in lead_patterns(atom, shapes):
        ranks = {len(s) for s, lead in zip(shapes, leads, strict=True) if lead}
        if ATOMS[atom].shape is broadcast and len(ranks) > 1:
            continue  # refused by the language: the shape trap
        result = run(atom, batch(atom, shapes, leads), options, leads)
        lead = int(any(leads)) if atom not in NEEDS_A_LEAD else 0
        assert tuple(result.shape[lead:]) == said, leads
        assert not lead or result.shape[0] == ROWS


def test_one_entry_becomes_a_number():
    assert rowwise.reshape(torch.ones(1), shape=(), lead=(0,)).shape == ()


BAD = [
    ("matmul", ((), (3,)), {}),
    ("matmul", ((3,), (4,)), {}),
    ("matmul", ((2, 3), (2, 3)), {}),
    ("linear", ((4,), (2, 3)), {}),
    ("cross_entropy", ((), ()), {}),
    ("cross_entropy", ((3,), (2,)), {}),
    ("quad_form", ((3,), (3, 2)), {}),
    ("kl_logits", ((3,), (4,)), {}),
    ("matrix_exp", ((3,),), {}),
    ("logdet", ((2, 3),), {}),
    ("add", ((3,), (2,)), {}),
    ("stack", ((3,), (2,)), {}),
    ("sum", ((3,),), {"axis": (-2,), "keepdims": False}),
    ("index", ((3,),), {"key": (3,)}),
    ("index", ((3,),), {"key": (("list", (0, 5)),)}),
    ("index", ((3,),), {"key": (0, 0)}),
    ("reshape", ((3,),), {"shape": (2,)}),
    ("reshape", ((3,),), {"shape": (2, -1)}),
    ("einsum", ((3,), (3,)), {"equation": "ij,j->i"}),
    ("einsum", ((3,), (4,)), {"equation": "i,i->"}),
    ("einsum", ((3,),), {"equation": "i,i->"}),
    ("einsum", ((3,),), {"equation": "i->j"}),
]


@pytest.mark.parametrize(("atom", "shapes", "options"), BAD)
def test_what_torch_refuses_is_refused(atom, shapes, options):
    with pytest.raises(ShapeProblem):
        ATOMS[atom].shape(shapes, options)
    with pytest.raises((RuntimeError, IndexError, ValueError)):
        run(atom, batch(atom, shapes, (0,) * len(shapes)), options, (0,) * len(shapes))


def test_one_value_has_no_categories():
    with pytest.raises(ShapeProblem, match="one value per category"):
        ATOMS["entropy_logits"].shape(((),), {})


# ------------------------------------------------------------------------------------------ the language
def test_a_column_of_scores_against_labels_is_refused(space):
    """The shape trap: torch would broadcast (rows, 1) and (rows,) to rows x rows."""
    score, label = space.g(space.D.x), space.D.y
    assert score.shape == (1,)
    for make in (
        lambda: score - label,
        lambda: label * score,
        lambda: score > label,
        lambda: torch.nn.functional.binary_cross_entropy_with_logits(score, label, reduction="none"),
        lambda: torch.maximum(label, score),
        lambda: cn.where(label > 0, score, label),
        lambda: (score > 0) & (label > 0),
        lambda: forall(space.D, cn.between(0, score, label)),
    ):
        with pytest.raises(cn.ModelingError, match="every row against every row"):
            make()
    with pytest.raises(cn.ModelingError, match="every row against every row") as caught:
        _ = score - label
    assert caught.value.fix.startswith("g(adult.x)[..., 0], ")
    assert (score[..., 0] - label).shape == ()


def test_levels_do_not_broadcast_either(space):
    D = space.D
    with pytest.raises(cn.ModelingError, match="every level against every level"):
        _ = E(space.g(D.x), by=D.sex) - E(D.y, by=D.sex)
    with pytest.raises(cn.ModelingError, match=r"has shape \(3,\) but the other side"):
        _ = E(D.y, by=D.sex) - space.v


@pytest.mark.parametrize(
    ("source", "shape"),
    [
        ("D.x", (3,)),
        ("D.y", ()),
        ("D.x @ w", ()),
        ("D.x @ M", (3,)),
        ("E(D.x)", (3,)),
        ("E(D.m)", (3, 3)),
        ("P(D.x > 0)", (3,)),
        ("E(D.y, by=D.sex)", ()),
        ("f(D.x)", ()),
        ("g(D.x)", (1,)),
        ("g(D.x)[..., 0]", ()),
        ("cn.sum(D.x)", ()),
        ("cn.sum(D.m, axis=0)", (3,)),
        ("cn.sum(D.m, axis=0, keepdims=True)", (1, 3)),
        ("cn.stack(D.y, D.q)", (2,)),
        ("cn.max(E(D.y, by=D.sex))", ()),
        ("cn.sum_squares(f)", ()),
        ("cn.norm(f)", ()),
        ("D.m.T", (3, 3)),
        ("E(D.x) @ w", ()),
        ("cn.indicator(D.y > 0)", ()),
        ("cn.indicator(D.x > 0)", (3,)),
    ],
)
def test_shapes_are_those_of_one_row(source, shape, space):
    names = {"cn": cn, "E": E, "P": P, **vars(space)}
    assert eval(source, names).shape == shape


def test_axes_of_an_expression(space):
    D = space.D
    by_sex, by_both = E(D.y, by=D.sex), E(D.y, by=(D.sex, D.label))
    assert D.y.type.rows is D
    assert D.y.type.lead == 1
    assert E(D.y).type.lead == 0
    assert by_sex.type.levels == Level(D, ("sex",))
    assert by_both.type.levels == Level(D, ("sex", "label"))
    assert by_both.type.levels.describe() == "adult.(sex, label)"
    assert (by_sex - E(D.y)).type.levels == by_sex.type.levels
    assert cn.max(by_sex).type.levels is None
    assert (D.y > 0).type.event
    assert not E(D.y).type.random
