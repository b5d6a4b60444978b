"""The tables of the benchmarks against other libraries: their text, their page, and one small case."""

import importlib.util

import numpy as np
import pytest
import torch

from benchmarks.closed import alignment, policies
from benchmarks.peers import steps
from benchmarks.peers.__main__ import cases
from benchmarks.peers.loops import Evaluated, cooper_step, human_step
from benchmarks.peers.policies import _dual, _judge
from benchmarks.peers.programs import by_slsqp, off, polynomial
from benchmarks.peers.table import PAGE, Table, accurate, machine, milliseconds, ratio, replaced
from benchmarks.timing import Ratio


def test_a_table_is_markdown(capsys):
    table = Table("small", ("who", "time"))
    table.add("ours", "1 ms")
    assert str(table).splitlines() == ["| who | time |", "| --- | --- |", "| ours | 1 ms |"]
    assert "ours" in capsys.readouterr().out


def test_a_peer_that_is_not_installed_gets_a_row():
    table = Table("small", ("who", "time", "error"))
    assert table.absent("no-such-distribution", "nobody")
    assert not table.absent("torch", "torch")
    assert table.rows == [("nobody", "not installed", "")]


def test_numbers_are_written_with_their_spread():
    assert ratio(Ratio(1.234, 1.0, 2.0)) == "1.23 (1.00 to 2.00)"
    assert ratio(Ratio(217.4, 200.2, 250.9)) == "217 (200 to 251)"
    assert milliseconds(0.01234) == "12.3 ms"
    assert milliseconds(12.34) == "12.3 s"
    assert accurate(1.2e-9) == "1e-09"
    assert accurate(0.0) == "0"


def test_only_the_named_table_of_a_page_is_replaced():
    page = "a\n<!-- measured: x -->\n\nold\n\n<!-- end -->\nb\n<!-- measured: y -->\n\n<!-- end -->\nc\n"
    written = replaced(page, "x", "new")
    assert written == page.replace("old", "new")
    assert replaced(written, "x", "new") == written
    with pytest.raises(ValueError, match="no place"):
        replaced(page, "z", "new")


def test_the_page_has_a_place_for_every_case():
    page = PAGE.read_text(encoding="utf-8")
    for name in ("machine", *cases(1)):
        assert "\n| " in replaced(page, name, "\n| ")
    assert "torch" in machine()


def test_a_small_case(capsys):
    ours, cooper = "ours, one by one, in Python", "Cooper, one vector, in Python"
    table = steps.few(rounds=1, repeats=2, chosen=(ours, cooper))
    assert [row[:2] for row in table.rows[2:]] == [(ours, "1"), (cooper, "1"), (ours, "5"), (cooper, "5")]
    for row in table.rows:
        assert float(row[2].split()[0]) > 0
        assert float(row[4]) < 0.8


def peers():
    found = [cooper_step]
    if importlib.util.find_spec("humancompatible") is not None:
        found.append(human_step)
    return found


@pytest.mark.parametrize("make", peers())
def test_the_loops_of_the_peers_find_a_known_price(make):
    """min (x - 2)^2 s.t. x <= 1, y == 3: the prices are 2 and 0."""
    x = torch.zeros(2, dtype=torch.float64, requires_grad=True)

    def evaluate():
        return Evaluated((x[0] - 2) ** 2 + (x[1] - 3) ** 2, [x[:1] - 1, x[1:] - 3])

    optimizer = torch.optim.SGD([x], lr=0.1)
    step = make(evaluate, [1, 1], optimizer, dual_lr=0.5, penalty=1.0, equal=[False, True])
    for _ in range(300):
        step()
    assert x.detach().numpy() == pytest.approx([1.0, 3.0], abs=1e-6)
    assert step.multipliers().numpy() == pytest.approx([2.0, 0.0], abs=1e-6)


def test_the_hand_written_dual_meets_the_proven_bound():
    value, violation = _judge(policies(), _dual(policies()))
    assert value == pytest.approx(alignment().solve("closed", progress=False).bound, abs=1e-8)
    assert violation < 1e-7


def test_a_book_problem_by_slsqp():
    chosen = next(s for s in polynomial() if s.number == 11)
    assert off(chosen, by_slsqp(chosen)[1]) < 1e-6
    assert off(chosen, np.zeros(2)) > 1e-2
