"""The degree of an outer expression in the averages: what decides how a minibatch may estimate it."""

from __future__ import annotations

from constrain.language import nodes as n
from constrain.language.atoms import ATOMS

__all__ = ["degree"]

_SQUARES = frozenset(("square", "sum_squares", "sum_squares_levels"))
_DIVISIONS = frozenset(("div",))


def degree(root: n.Node) -> int | None:
    """Degree of an outer expression as a polynomial of its moments.

    Returns:
        0 (no moment occurs), 1 (affine), 2, or None for anything that is no polynomial of degree at most two.
        Decisions, parameters and constants count as coefficients.
    """

    def step(node: n.Node, parts: tuple[int | None, ...]) -> int | None:
        if isinstance(node, n.Moment):
            return 1
        if not any(p != 0 for p in parts):
            return 0
        known = [p for p in parts if p is not None]
        if len(known) < len(parts) or not isinstance(node, n.Apply):
            return None
        found = _apply(node, known)
        return found if found is not None and found <= 2 else None

    return n.fold(root, step)


def _apply(node: n.Apply, parts: list[int]) -> int | None:  # noqa: PLR0911  # one case per kind of atom
    atom = node.atom
    if ATOMS[atom].curvature == "affine":
        return max(parts)
    if atom in _SQUARES:
        return 2 * parts[0]
    if atom == "mse_loss":
        return 2 * max(parts)
    if atom == "where":
        return max(parts[1:]) if parts[0] == 0 else None
    if atom in _DIVISIONS:
        return parts[0] if parts[1] == 0 else None
    if atom == "pow":
        exponent = node.args[1]
        powers: dict[float, int] = {0: 0, 1: parts[0], 2: 2 * parts[0]}
        return powers.get(exponent.value) if isinstance(exponent, n.Constant) else None
    if atom == "variance":  # second moment minus the square of the first
        return max(parts[0], 2 * parts[1])
    if atom == "quad_form":
        return 2 * parts[0] + parts[1]
    if atom == "linear":
        return max(parts[0] + parts[1], *parts[2:], 0)
    if ATOMS[atom].curvature == "multilinear":
        return sum(parts)
    return None
