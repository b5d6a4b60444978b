r"""MathML from the LaTeX that `constrain.language.latex` writes, for browsers without any script or font.

One notation decides how mathematics looks, and this module reads its output: groups, scripts, `\frac`,
`\sqrt`, `\left ... \right`, upright words, symbols. It reads no other LaTeX; a command that it does not know
is shown by its name, and nothing is ever refused.

Source: MathML Core, W3C, which browsers draw by themselves.
"""

from __future__ import annotations

import re

from constrain.reports.elements import Markup, element, joined

__all__ = ["mathml"]

TOKEN = re.compile(r"\\[A-Za-z]+\*?|\\.|[A-Za-z]|\d+(?:\.\d+)?(?:e[+-]?\d+)?|\s+|.", re.DOTALL)
LONGEST = 6_000
"""Characters beyond which a relation is shown as plain text."""
DEEPEST = 60
"""Nested groups beyond which the rest is shown as plain text."""

_SMALL = (
    *("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"),
    *(
        "nu",
        "xi",
        "omicron",
        "pi",
        "rho",
        "varsigma",
        "sigma",
        "tau",
        "upsilon",
        "phi",
        "chi",
        "psi",
        "omega",
    ),
)
_CAPITAL = ("Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Upsilon", "Phi", "Psi", "Omega")
_LETTERS = {
    **{name: chr(0x3B1 + i) for i, name in enumerate(_SMALL)},
    **dict(zip(_CAPITAL, "ΓΔΘΛΞΠΣΥΦΨΩ", strict=True)),
    **{"infty": "∞", "partial": "∂", "nabla": "∇", "top": "\N{DOWN TACK}", "ell": "ℓ"},
}
_OPERATORS = {
    **{"le": "≤", "ge": "≥", "ne": "≠", "cdot": "·", "times": "×", "mid": "∣", "pm": "±", "to": "→"},
    **{"land": "∧", "lor": "\N{LOGICAL OR}", "neg": "¬", "ldots": "…", "in": "∈"},
    **{"sum": "∑", "prod": "∏", "int": "∫", "{": "{", "}": "}", "|": "‖"},
    **{"lfloor": "⌊", "rfloor": "⌋", "lceil": "⌈", "rceil": "⌉", "langle": "⟨", "rangle": "⟩"},
}
_WORDS = frozenset(("exp", "log", "ln", "sin", "cos", "tan", "tanh", "max", "min", "det", "arg", "sup"))
_SPACES = {"quad": "1em", "qquad": "2em", ",": "0.17em", ";": "0.28em", ":": "0.22em", " ": "0.25em"}
_BOARD = {"E": "𝔼", "P": "ℙ", "R": "ℝ"}
_UPRIGHT = ("operatorname", "operatorname*", "mathrm", "text", "mathbf", "mathsf", "mathit", "texttt")
_BREAKS = {element("mo", sign): element("mo", sign, form="infix") for sign in "+−≤≥=≠<>"}
_IGNORED = frozenset(("left", "right", "displaystyle", "limits", "nolimits", "!", "big", "Big"))


def mathml(latex: str) -> Markup:
    """`<math>` elements, one up to each sign on which a line may break; browsers break no line inside of one.

    Args:
        latex: one expression, without dollar signs and without line breaks. One that is very long or very
            deep comes back as plain text.
    """
    if len(latex) > LONGEST:
        return element("code", latex)
    try:
        atoms = _Reader(latex).atoms(stop="")
    except RecursionError:
        return element("code", latex)
    lines: list[list[Markup]] = [[]]
    for atom in atoms:
        if atom in _BREAKS and lines[-1]:
            lines.append([])
            atom = _BREAKS[atom]  # noqa: PLW2901  # at the start of an element it would be a prefix
        lines[-1].append(atom)
    return joined(*(element("math", element("mrow", joined(*line))) for line in lines))


class _Reader:
    """A recursive descent over tokens; groups, scripts and fractions nest, everything else is flat."""

    def __init__(self, latex: str) -> None:
        self.tokens: list[str] = TOKEN.findall(latex)
        self.at = 0
        self.depth = 0

    def row(self, stop: str) -> Markup:
        """Atoms with their scripts up to the token `stop`, which is consumed."""
        return joined(*self.atoms(stop))

    def atoms(self, stop: str) -> list[Markup]:
        """The same one by one."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise RecursionError
        found: list[Markup] = []
        while self.at < len(self.tokens):
            token = self.tokens[self.at]
            if token == stop:
                self.at += 1
                break
            if token == "}":  # without its opening brace
                self.at += 1
                continue
            found.append(self.scripted())
        self.depth -= 1
        return found

    def scripted(self) -> Markup:
        """An atom, with what stands below and above it."""
        base = self.atom()
        below: Markup | None = None
        above: Markup | None = None
        while self.at < len(self.tokens) and self.tokens[self.at] in ("_", "^"):
            mark = self.tokens[self.at]
            self.at += 1
            if mark == "_":
                below = self.group()
            else:
                above = self.group()
        if below is not None and above is not None:
            return element("msubsup", base or element("mrow"), below, above)
        if below is not None:
            return element("msub", base or element("mrow"), below)
        return base if above is None else element("msup", base or element("mrow"), above)

    def group(self) -> Markup:
        """A group in braces, or a single atom, as one element."""
        self.spaces()
        if self.at < len(self.tokens) and self.tokens[self.at] == "{":
            self.at += 1
            return element("mrow", self.row(stop="}"))
        return element("mrow", self.atom())

    def spaces(self) -> None:
        """Skips white space, which means nothing in mathematics."""
        while self.at < len(self.tokens) and self.tokens[self.at].isspace():
            self.at += 1

    def raw(self) -> str:
        """The text of a group in braces, without its backslashes."""
        self.spaces()
        if self.at >= len(self.tokens) or self.tokens[self.at] != "{":
            return ""
        self.at += 1
        depth, found = 1, ""
        while self.at < len(self.tokens):
            token = self.tokens[self.at]
            self.at += 1
            depth += {"{": 1, "}": -1}.get(token, 0)
            if not depth:
                break
            found += token if not token.startswith("\\") else token[1:]
        return found

    def atom(self) -> Markup:  # one return per kind of token
        """One symbol, number, word, fraction, root or group."""
        if self.at >= len(self.tokens):
            return Markup("")
        token = self.tokens[self.at]
        self.at += 1
        if token.startswith("\\") and len(token) > 1:
            return self.command(token[1:])
        if token == "{":
            return element("mrow", self.row(stop="}"))
        if token.isspace() or token == "&":
            return Markup("")
        if token[0].isdigit():
            return element("mn", token)
        if token.isalpha():
            return element("mi", token)
        if token in "([{)]}|":
            form = "prefix" if token in "([{" else "postfix" if token in ")]}" else None
            return element("mo", token, form=form, stretchy="true" if form else "false")
        return element("mo", {"-": "−", "*": "∗", "'": "′"}.get(token, token))

    def command(self, name: str) -> Markup:  # one return per kind of command
        """What a command stands for."""
        if name == "frac":
            return element("mfrac", self.group(), self.group())
        if name == "sqrt":
            return element("msqrt", self.group())
        if name == "mathbb":
            letter = self.raw()
            return element("mi", _BOARD.get(letter, letter), mathvariant="normal")
        if name in _UPRIGHT:
            return self.upright(name)
        if name == "left":
            opening = self.fence("prefix")
            inside = self.row(stop="\\right")
            return element("mrow", opening, inside, self.fence("postfix"))
        if name in _LETTERS:
            return element("mi", _LETTERS[name], mathvariant="normal" if name[0].isupper() else None)
        if name in _OPERATORS:
            return element("mo", _OPERATORS[name])
        if name in _SPACES:
            return element("mspace", width=_SPACES[name])
        if name in _IGNORED:
            return Markup("")
        return element("mi", name, mathvariant="normal") if name in _WORDS else element("mtext", name)

    def upright(self, name: str) -> Markup:
        """A word, or text with its spaces."""
        word = self.raw()
        if name in ("text", "texttt"):
            return element("mtext", word.replace(" ", "\N{NO-BREAK SPACE}"))
        return element("mi", word, mathvariant="normal", class_="bold" if name == "mathbf" else None)

    def fence(self, form: str) -> Markup:
        r"""The bracket after `\left` or `\right`; `.` draws none."""
        if self.at >= len(self.tokens):
            return Markup("")
        token = self.tokens[self.at]
        self.at += 1
        sign = _OPERATORS.get(token[1:], token[1:]) if len(token) > 1 else token
        return Markup("") if sign == "." else element("mo", sign, form=form, fence="true", stretchy="true")
