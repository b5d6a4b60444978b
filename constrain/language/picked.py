"""Averages over levels that a problem lists, and the plain average that one of them is.

Lowering writes the averages `E(g, given=D.c == k)` of several k as one average by the levels of `D.c`
(`nodes.Among`). Messages, printing and the checks speak of the plain ones.
"""

from __future__ import annotations

from constrain.language import nodes as n

__all__ = ["place_of", "plain"]


def place_of(node: n.Node) -> tuple[n.Moment, int] | None:
    """The average over all listed levels and the place of one, of a node that picks it; else None."""
    match node:
        case n.Apply(atom="pick_levels", args=(n.Moment() as whole,)):
            place = node.option("place")
            return (whole, place) if isinstance(place, int) else None
        case _:
            return None


def plain(pick: n.Apply) -> n.Node:
    """The average that is picked, with its own condition; of any other axis, what it is picked from."""
    whole, place = place_of(pick) or (None, 0)
    group = whole.by[0] if whole is not None and whole.by else None
    if whole is None or not isinstance(group, n.Among):
        return pick.args[0]
    event: n.Node = group.events[place]
    given = event if whole.given is None else n.Logic("and", (whole.given, event), loc=event.loc)
    return n.Moment(whole.data, whole.integrand, given, loc=pick.loc)
