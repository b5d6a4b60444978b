"""Comparisons keep the order in which they were written, whatever stands on either side."""

import operator

import pytest

import constrain as cn

w, v, b = cn.Variable((), "w"), cn.Variable((), "v"), cn.Parameter("b", 1.0)
SIDES = {
    "compound, parameter": (2 * w, b),
    "parameter, compound": (b, 2 * w),
    "compound, variable": (2 * w, v),
    "variable, compound": (v, 2 * w),
    "variable, parameter": (w, b),
    "parameter, variable": (b, w),
    "variables": (w, v),
}
RELATIONS = {"<=": operator.le, ">=": operator.ge, "==": operator.eq}


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("sides", SIDES)
def test_written_order(sides, relation):
    lhs, rhs = SIDES[sides]
    node = RELATIONS[relation](lhs, rhs).node
    assert (node.op, node.lhs, node.rhs) == (relation, lhs.node, rhs.node)
