"""The vendored Adult data and its features: counts, rates, scaling, and an optimum found independently."""

import numpy as np
import pytest

import adult_data


@pytest.fixture(scope="module")
def adult():
    return adult_data.load()


def test_the_splits_have_the_official_sizes(adult):
    assert len(adult.train) == 30162
    assert len(adult.test) == 15060
    assert adult.train.x.shape == (30162, 95)
    assert adult.test.x.shape == (15060, 95)
    assert adult.train.x.dtype == adult.test.x.dtype == np.float64


def test_both_splits_have_the_same_named_columns(adult):
    assert adult.train.columns == adult.test.columns
    assert len(set(adult.train.columns)) == 95
    assert adult.train.columns[:5] == adult_data.NUMERIC
    assert "sex=Male" in adult.train.columns
    assert "sex=Female" not in adult.train.columns  # the first level in sorted order is the reference


@pytest.mark.parametrize(("sex", "positives", "rows"), [("Female", 1112, 9782), ("Male", 6396, 20380)])
def test_positive_rate_by_sex(adult, sex, positives, rows):
    chosen = adult.train.sex == sex
    assert chosen.sum() == rows
    assert adult.train.y[chosen].sum() == positives


def test_numbers_are_standardized_by_the_training_split(adult):
    np.testing.assert_allclose(adult.train.x[:, :5].mean(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(adult.train.x[:, :5].std(axis=0), 1.0, rtol=1e-12)
    # The test split uses the moments of the training split, so it is close to standard and not exactly so.
    assert np.all(np.abs(adult.test.x[:, :5].mean(axis=0)) < 0.05)
    assert np.all(np.abs(adult.test.x[:, :5].mean(axis=0)) > 1e-12)


def test_indicators_encode_the_text(adult):
    for split in (adult.train, adult.test):
        for name, column in zip(split.columns[5:], split.x[:, 5:].T, strict=True):
            field, level = name.split("=", maxsplit=1)
            np.testing.assert_array_equal(column == 1.0, split.categories[field] == level)
            assert set(np.unique(column)) <= {0.0, 1.0}


def test_labels_are_zero_or_one_in_both_splits(adult):
    assert adult.train.y.sum() == 7508
    assert adult.test.y.sum() == 3700


def test_the_features_give_the_published_constrained_optimum(adult):
    """Ridge logistic regression with two mean-score gaps, by Newton's method on the KKT equations.

    The problem is convex and the gaps are linear in the weights, so a point with zero KKT residual,
    nonnegative multipliers and both gaps at their bounds is the optimum of the problem with inequalities.
    """
    x, y, male = adult.train.x, adult.train.y, adult.train.sex == "Male"
    design = np.column_stack([x, np.ones(len(y))])
    ridge = np.append(np.full(x.shape[1], 1e-3), 0.0)  # the intercept is not regularized

    def gap(rows):
        return design[rows & male].mean(axis=0) - design[rows & ~male].mean(axis=0)

    # Male - Female <= 0.1 over all rows; Female - Male <= 0.1 over the positives. Both are active.
    rows = np.vstack([gap(np.ones(len(y), dtype=bool)), -gap(y == 1.0)])
    bounds = np.array([0.1, 0.1])

    w, multipliers = np.zeros(design.shape[1]), np.zeros(2)
    for _ in range(30):
        score = design @ w
        probability = 1.0 / (1.0 + np.exp(-score))
        gradient = design.T @ (probability - y) / len(y) + ridge * w
        weight = probability * (1.0 - probability) / len(y)
        hessian = (design * weight[:, None]).T @ design + np.diag(ridge)
        system = np.block([[hessian, rows.T], [rows, np.zeros((2, 2))]])
        step = np.linalg.solve(system, -np.concatenate([gradient, rows @ w - bounds]))
        w, multipliers = w + step[:-2], step[-2:]
        if np.abs(step[:-2]).max() < 1e-13:
            break

    score = design @ w
    gradient = design.T @ (1.0 / (1.0 + np.exp(-score)) - y) / len(y) + ridge * w
    np.testing.assert_allclose(gradient + rows.T @ multipliers, 0.0, atol=1e-12)
    np.testing.assert_allclose(rows @ w, bounds, atol=1e-12)
    objective = np.mean(np.logaddexp(0.0, score) - y * score) + 0.5 * np.sum(ridge * w**2)
    assert objective == pytest.approx(0.370862905358, abs=1e-11)
    np.testing.assert_allclose(multipliers, [0.04180455, 0.01251126], atol=1e-8)
