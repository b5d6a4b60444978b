"""Training on minibatches ends where the exact solution is, whatever the batch and however rare a group."""

import pytest

from benchmarks.estimates import gap, rare_groups


def test_an_absolute_gap_costs_the_same_at_every_batch_size():
    for batch, found in gap(rows=1500).items():
        assert found.violation < 1e-3, batch
        assert found.multiplier < 0.1, batch
        assert abs(found.objective) < 0.01, batch


@pytest.mark.parametrize("groups", [20])
def test_rare_groups_get_their_prices(groups):
    (found,) = rare_groups(rows=10_000, groups=groups, seeds=1)
    assert found.violation < 0.02
    assert found.multiplier < 0.1
    assert abs(found.objective) < 0.02
