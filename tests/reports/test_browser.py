"""The page in a real browser: it complains about nothing, is not blank, and fits a phone, light and dark."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

import constrain as cn

from .browser import browser, executable
from .conftest import conflicting, with_margins

NO_BROWSER = "no Chromium on the path (Debian: apt-get install chromium)"
pytestmark = pytest.mark.skipif(executable() is None, reason=NO_BROWSER)

WIDTHS = (1280, 400)
SCHEMES = ("light", "dark")


@pytest.fixture(scope="module")
def chromium():
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def pages(rich, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    x, hours = cn.Variable(2, "x", nonneg=True), cn.Parameter("hours", 12.0)
    problem = cn.maximize(3 * x[0] + 5 * x[1]).subject_to(
        first=x[0] <= 4, second=2 * x[1] <= hours, third=3 * x[0] + 2 * x[1] <= 18
    )
    linear = problem.solve(progress=False)
    linear.path("hours", [4, 8, 12, 16, 20])
    for name, solution in (("rich", rich), ("linear", linear), ("margins", with_margins())):
        solution.report(folder / f"{name}.html")
    conflict = conflicting()
    conflict.infeasibility().report(folder / "diagnosis.html")
    conflict.report(folder / "conflict.html")
    return folder


def pixels(png):
    """(height, width, 3) of an 8-bit RGB or RGBA picture."""
    width, height, _, kind = struct.unpack(">IIBB", png[16:26])
    at, data = 8, b""
    while at < len(png):
        (size,) = struct.unpack(">I", png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            data += png[at + 8 : at + 8 + size]
        at += size + 12
    depth = 4 if kind == 6 else 3
    rows = np.frombuffer(zlib.decompress(data), dtype=np.uint8).reshape(height, 1 + width * depth)
    image = np.zeros((height, width, depth), dtype=np.int64)
    above = np.zeros((width, depth), dtype=np.int64)
    for y, row in enumerate(rows):
        above = image[y] = unfiltered(row[0], row[1:].reshape(width, depth).astype(np.int64), above)
    return image[..., :3]


def unfiltered(kind, line, above):
    """One line of a PNG; filters 3 and 4 go pixel by pixel."""
    if kind in (0, 2):
        return (line + (above if kind == 2 else 0)) % 256
    if kind == 1:
        return np.cumsum(line, axis=0) % 256
    out = np.zeros_like(line)
    left = corner = np.zeros(line.shape[1], dtype=np.int64)
    for x in range(len(line)):
        up = above[x]
        if kind == 3:
            guess = (left + up) // 2
        else:
            p = left + up - corner
            a, b, c = abs(p - left), abs(p - up), abs(p - corner)
            guess = np.where((a <= b) & (a <= c), left, np.where(b <= c, up, corner))
        left, corner = (line[x] + guess) % 256, up
        out[x] = left
    return out


@pytest.mark.parametrize("name", ["rich", "linear", "margins", "conflict", "diagnosis"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_page_is_drawn(chromium, pages, name, width, scheme):
    chromium.show((pages / f"{name}.html").as_uri(), width, scheme)
    assert chromium.errors() == []
    assert chromium.run("document.documentElement.scrollWidth <= window.innerWidth")
    wide = chromium.run(
        "Array.from(document.querySelectorAll('main *')).filter(e => !e.closest('dd, pre, svg, math') &&"
        " e.getBoundingClientRect().right > window.innerWidth + 1).map(e => e.tagName + '.' + e.className)"
    )
    assert wide == []
    image = pixels(chromium.picture(scale=0.2))
    paper = np.bincount(image.mean(axis=2).astype(int).ravel(), minlength=256)
    brightest = int(paper.argmax())
    assert brightest > 240 if scheme == "light" else brightest < 40
    drawn = (abs(image - image[0, 0]).sum(axis=2) > 60).mean()
    assert 0.02 < drawn < 0.5


@pytest.mark.parametrize("scheme", SCHEMES)
def test_text_has_contrast(chromium, pages, scheme):
    """WCAG 2 AA for the colors of the style sheet: 4.5 to 1 against the page."""
    chromium.show((pages / "rich.html").as_uri(), 1280, scheme)
    names = ["ink", "quiet", "good", "open", "bad", "accent", "paper", "card"]
    style = "getComputedStyle(document.documentElement)"
    found = chromium.run(f"{names}.map(n => {style}.getPropertyValue('--' + n).trim())")
    colors = dict(zip(names, found, strict=True))

    def light(color):
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    for ground in ("paper", "card"):
        for name in names[:6]:
            low, high = sorted((light(colors[name]), light(colors[ground])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (name, ground)


def test_the_slider_moves_every_number(chromium, pages):
    chromium.show((pages / "linear.html").as_uri(), 400, "light")
    shown = "Array.from(document.querySelectorAll('[data-show]'), e => e.textContent).join('|')"
    assert not chromium.run("document.querySelector('.slider').hidden")
    assert chromium.run(shown).startswith("12|36.0000")
    chromium.run("(() => { const s = document.querySelector('input'); s.value = 4;"
                 " s.dispatchEvent(new Event('input')); })()")  # fmt: skip
    assert chromium.run(shown).startswith("20|45.0000")
    assert chromium.run("document.querySelectorAll('line.cursor').length") == 2
    assert chromium.errors() == []


def test_mathematics_is_drawn_as_mathematics(chromium, pages):
    chromium.show((pages / "rich.html").as_uri(), 1280, "light")
    script = "Array.from(document.querySelectorAll('math'), e => e.getBoundingClientRect().height)"
    heights = chromium.run(script)
    assert len(heights) >= 5
    assert min(heights) > 8
