"""HTML, SVG and MathML elements as text. What is not `Markup` is escaped: no text of a user is markup."""

from __future__ import annotations

from html import escape

__all__ = ["Markup", "element", "joined"]

VOID = frozenset(("br", "circle", "input", "line", "meta", "mspace", "path", "polyline", "rect"))
"""Elements without content."""


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def joined(*children: str | None) -> Markup:
    """Children one after the other: markup as it is, text escaped, None left out."""
    return Markup("".join(c if isinstance(c, Markup) else escape(c) for c in children if c is not None))


def element(name: str, /, *children: str | None, **attributes: str | float | None) -> Markup:
    """One element: `element("td", "a < b", class_="name")` is `<td class="name">a &lt; b</td>`.

    Args:
        name: of the element.
        children: as in `joined`.
        attributes: their values; None leaves one out. `_` in a name becomes `-`, one at the end goes away.
    """
    written = "".join(
        f' {key.removesuffix("_").replace("_", "-")}="{escape(_value(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Markup(f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{joined(*children)}</{name}>")


def _value(value: str | float) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
