"""Nodes: structural equality, hashing, traversal, rebuilding, common sub-expressions."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import torch

import constrain as cn
from constrain import E, P, forall
from constrain.language import nodes as n
from constrain.language.location import Location

PINNED = n.ArraySymbol("(center)", (), 0.0)


def written(space):
    """One node of every kind that a user can write."""
    D, f, t = space.D, space.f, space.t
    return {
        n.Constant: cn.constant(2).node,
        n.Array: (D.x * space.v).node.args[1],
        n.Column: D.y.node,
        n.Codes: n.Codes(D, ("sex", "label")),
        n.Pinned: n.Pinned(PINNED),
        n.Decision: t.node,
        n.Knob: space.eps.node,
        n.Weights: cn.sum_squares(f).node.args[0],
        n.Call: f(D.x).node,
        n.Apply: cn.sum(D.x, axis=-1).node,
        n.Opaque: torch.lerp(D.y, D.q, 0.5).node,
        n.Gradient: cn.diff(D.y**2, D.y).node,
        n.Comparison: (D.y > 0).node,
        n.Logic: (~(D.y > 0)).node,
        n.Indicator: cn.indicator(D.y > 0).node,
        n.Mean: E(D.y, given=D.q > 0, by=(D.sex, D.label)).node,
        n.Rate: P(D.y > 0, given=D.q > 0, by=D.sex, surrogate="hinge").node,
        n.Between: cn.between(0, t, 1).node,
        n.ForAll: forall(D.where(D.y > 0), D.y * t >= 1).node,
        n.Relaxed: (E(D.y * t) <= 1).relax(cost=cn.squared(10.0) + cn.linear(space.eps)).node,
        n.Scaled: (E(D.y * t) <= 1).scale(100.0).node,
        n.Statistic: cn.CVaR(D.y, 0.9, given=D.q > 0, by=(D.sex, D.label)).node,
        n.Moment: n.Moment(D, D.y.node, (D.q > 0).node, (D.sex.node,)),
    }


@pytest.fixture
def nodes(space):
    return written(space)


def test_the_table_has_every_kind_of_node(nodes):
    assert set(nodes) == set(n.AnyNode.__args__)


def test_nodes_compare_by_structure_and_not_by_place(space, nodes):
    again = written(space)
    for kind, node in nodes.items():
        assert type(node) is kind
        assert node == again[kind]
        assert hash(node) == hash(again[kind])
        assert node == dataclasses.replace(node, loc=Location("elsewhere.py", 7))
        assert all((node == other) == (kind is k) for k, other in again.items())
    assert (space.D.y + 1).node != (1 + space.D.y).node
    assert nodes[n.Constant] != 2


@pytest.mark.parametrize("kind", n.AnyNode.__args__, ids=lambda kind: kind.__name__)
def test_every_field_but_the_place_counts(kind, nodes):
    node = nodes[kind]
    for field in dataclasses.fields(node):
        if not field.init or field.name == "loc":
            continue
        pairs = field.name in ("options", "keywords")
        value = (("extra", 1),) if pairs else _other(getattr(node, field.name))
        other = dataclasses.replace(node, **{field.name: value})
        assert other != node, field.name


def _other(value):
    if isinstance(value, n.Node):
        return n.Constant(99)
    if isinstance(value, tuple):
        return (*value, *value) or (n.Constant(1),)
    return 99 if not isinstance(value, str) else value + "x"


def test_equal_numbers_and_types_of_a_line_are_one_object(space):
    values = (1, 1.0, True, 0.0, -0.0, 0.5)
    found = [[(space.t + value).node.args[1] for value in values] for _ in range(2)]
    for first, second, value in zip(*found, values, strict=True):
        assert first is second
        assert repr(first.value) == repr(value)
    assert len(set(found[0])) == len(values)
    assert (space.D.y > 0).type is (space.D.q > 1).type
    here, there = (space.t + 0.5).node.args[1], \
        (space.t + 0.5).node.args[1]  # fmt: skip
    assert here == there
    assert here.loc != there.loc


def test_a_copy_through_pickle_hashes_alike():
    node = n.Apply("add", (n.Constant(1.5), n.Constant(2)), loc=Location("here.py", 7))
    known = hash(node)
    again = pickle.loads(pickle.dumps(node))
    assert again == node
    assert hash(again) == known
    assert again.loc == node.loc


def test_nodes_are_frozen(nodes):
    for node in nodes.values():
        for field in dataclasses.fields(node):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(node, field.name, None)


@pytest.mark.parametrize("kind", n.AnyNode.__args__, ids=lambda kind: kind.__name__)
def test_rebuilding_from_the_children_gives_the_node(kind, nodes):
    node = nodes[kind]
    parts = n.children(node)
    assert n.rebuild(node, parts) is node
    copies = tuple(dataclasses.replace(c) for c in parts)
    rebuilt = n.rebuild(node, copies)
    assert rebuilt == node
    assert rebuilt.loc == node.loc
    assert n.children(rebuilt) == parts
    if parts:
        assert rebuilt is not node
        changed = tuple(c if isinstance(c, n.Column) else n.Constant(5) for c in parts)
        assert n.children(n.rebuild(node, changed)) == changed


def test_children_come_in_the_order_written(space):
    D, t = space.D, space.t
    assert n.children((D.y - D.q).node) == (D.y.node, D.q.node)
    assert n.children(torch.addcmul(D.y, D.q, D.y, value=2).node) == (D.y.node, D.q.node, D.y.node)
    mean = E(D.y, given=D.q > 0, by=(D.sex, D.label)).node
    assert n.children(mean) == (D.y.node, (D.q > 0).node, D.sex.node, D.label.node)
    assert n.children(cn.between(0, t, 1).node) == (n.Constant(0), t.node, n.Constant(1))


def test_postorder_visits_each_object_once_children_first(space):
    e = cn.exp(space.D.y)
    total = (e + e) * e
    order = n.postorder(total.node)
    assert len(order) == len({id(x) for x in order}) == 4
    place = {id(x): i for i, x in enumerate(order)}
    assert all(place[id(c)] < place[id(x)] for x in order for c in n.children(x))
    assert n.postorder(e.node, total.node, e.node)[-1] is total.node


def test_fold_evaluates_each_object_once(space):
    e = space.D.y
    for _ in range(60):
        e = e + e
    seen = []
    depth = n.fold(e.node, lambda node, parts: seen.append(node) or 1 + max(parts, default=0))
    assert depth == 61
    assert len(seen) == 61
    memo: dict[int, int] = {}
    n.fold(e.node, lambda _node, parts: sum(parts) or 1, memo)
    assert memo[id(e.node)] == 2**60


def test_intern_makes_equal_expressions_one_object(space):
    D, f = space.D, space.f
    e = cn.sigmoid(f(D.x)) * cn.sigmoid(f(D.x)) + f(D.x)
    assert len(n.postorder(e.node)) == 8
    table: dict[n.Node, n.Node] = {}
    shared = n.intern(e.node, table)
    assert shared == e.node
    assert len(n.postorder(shared)) == len(table) == 5
    assert n.intern((f(D.x) + 1).node, table).args[0] is table[f(D.x).node]


def test_a_deep_expression_is_interned_and_searched(space):
    total, again = space.D.y, space.D.y
    for i in range(10_000):
        total, again = total + i, again + i
    table: dict[n.Node, n.Node] = {}
    assert n.intern(total.node, table) == again.node
    assert n.intern(again.node, table) is n.intern(total.node, table)
    assert n.mentions(total.node, n.Column)
    assert not n.mentions(total.node, n.Decision, n.Call)


def test_equality_of_shared_expressions_is_fast(space):
    def doubled():
        e = space.D.y
        for _ in range(200):
            e = e * e
        return e.node

    assert doubled() == doubled()
    assert doubled() != n.Apply("neg", (doubled(),))


def test_where_an_expression_was_written(space):
    e = space.D.y + 1
    assert e.node.loc.filename == __file__
    assert e.node.loc.source == "e = space.D.y + 1"
    assert e.node.loc.describe() == f"test_nodes.py:{e.node.loc.line}: e = space.D.y + 1"
    assert Location("nowhere.py", 3).describe() == "nowhere.py:3"


def test_problems_are_values(space):
    D, t = space.D, space.t
    p = cn.minimize(E(D.y * t))
    q = p.subject_to(a=t >= 1)
    assert not p.constraints
    assert q == cn.minimize(E(D.y * t)).subject_to(a=t >= 1)
    assert q != p
    assert q != cn.minimize(E(D.y * t)).subject_to(b=t >= 1)
    assert q.subject_to(b=t <= 2) != cn.minimize(E(D.y * t)).subject_to(b=t <= 2, a=t >= 1)
    assert cn.maximize(E(D.y * t)) != p
    assert {q: 1}[p.subject_to(a=t >= 1)] == 1
    assert q != "a problem"
    with pytest.raises(TypeError):
        q.constraints["b"] = t.node
    with pytest.raises(cn.ModelingError, match="E113"):
        q.sense = "maximize"


def test_what_a_problem_is_made_of(space):
    D, f, t, w, eps = space.D, space.f, space.t, space.w, space.eps
    other = cn.Data("other", u=[1.0, 2.0])
    p = cn.minimize(E(f(D.x)) + t).subject_to(
        a=w >= eps, b=forall(other, other.u * t >= 1), c=cn.norm(f) <= 1
    )
    assert p.variables == (t.symbol, w.symbol)
    assert p.parameters == (eps.symbol,)
    assert p.models == (f,)
    assert p.populations == (D, other)
    assert len(p.roots) == 4


def test_expressions_are_immutable(space):
    e, c = space.D.y + 1, space.t <= 1
    for target, name in (
        (e, "node"),
        (e, "type"),
        (e, "anything"),
        (c, "node"),
        (space.w, "symbol"),
        (space.w, "name"),
    ):
        with pytest.raises(cn.ModelingError, match="E113"):
            setattr(target, name, 1)
    space.t.value = 2.0
    assert space.t.value == 2.0
    space.eps.value = 0.2
    assert space.eps.value == 0.2
    with pytest.raises(cn.ModelingError, match="E112"):
        space.w.value = [1.0]


def test_a_constraint_keeps_the_sides_as_written(space):
    t, eps = space.t, space.eps
    assert (t + 1 <= eps).node == n.Comparison("<=", (t + 1).node, eps.node)
    assert (t + 1 >= eps).node == n.Comparison(">=", (t + 1).node, eps.node)
    assert (t == 1).node == n.Comparison("==", t.node, n.Constant(1))
