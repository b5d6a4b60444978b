"""The largest F-score, and the largest recall at a precision of 0.8, of a linear model on UCI Adult.

The usual way fits a logistic regression and then moves its threshold. Here the ratio itself is the
objective. With the alarm A = {f(x) > 0} and the event B = {income above 50 000 dollars},

    F1 = 2 P(A and B) / (P(A) + P(B))        precision = P(B | A)        recall = P(A | B)

Neither F1 nor precision is affine in the averages: the condition of a precision depends on the
decisions, so it is a ratio of two rates which both move, and batches estimate it through running
averages. The rates are exact shares of rows; gradients go through surrogates.

Reference: scikit-learn's logistic regression on the same 30 162 rows and its best threshold among all, by
`precision_recall_curve`, for each of the two problems. It has the same linear scores to choose from, but
chooses weights for the log-likelihood, so that training for the measure itself may do better; it may
also do worse, since the problem is not convex. The F-score on the official test split is compared as well.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, precision_recall_curve

import adult_data
import constrain as cn
from constrain import P

PRECISION = 0.8
TOLERANCE = {
    "F-score": 0.01,
    "F-score, test split": 0.01,
    "recall": 0.03,
    "precision": 0.01,
    "F-score below reference": 1e-3,
    "recall below reference": 1e-3,
    "precision below bound": 1e-3,
}


def sample(split: adult_data.Split) -> cn.Data:
    """A split as a sample with named columns."""
    return cn.Data("adult", x=torch.tensor(split.x), y=torch.tensor(split.y))


def scores(D: cn.Data) -> cn.Expr:
    """The scores of a new linear model on the rows of `D`."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(95, 1), torch.nn.Flatten(0)).double()
    return cn.Model(net, "f")(D.x)


def largest_f_score(D: cn.Data) -> cn.Problem:
    """The largest F-score: twice the share of both over the sum of the shares."""
    alarm, high = scores(D) > 0, D.y == 1
    return cn.maximize(2 * P(alarm & high) / (P(alarm) + P(high)))


def largest_recall(D: cn.Data) -> cn.Problem:
    """The largest recall with at least the given precision."""
    alarm, high = scores(D) > 0, D.y == 1
    return cn.maximize(P(alarm, given=high)).subject_to(precision=P(high, given=alarm) >= PRECISION)


def by_threshold(train: adult_data.Split, test: adult_data.Split):
    """Return largest F-score, its F-score on the test split, and largest recall at the precision."""
    regression = LogisticRegression(C=100.0, max_iter=2000).fit(train.x, train.y)
    precision, recall, threshold = precision_recall_curve(train.y, regression.decision_function(train.x))
    score = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = int(score.argmax())
    on_test = f1_score(test.y, regression.decision_function(test.x) >= threshold[best])
    return float(score[best]), float(on_test), float(recall[precision >= PRECISION].max())


def run():
    """Train for both measures and compare them with the best thresholds."""
    data = adult_data.load()
    D, D_test = sample(data.train), sample(data.test)
    best, best_on_test, best_recall = by_threshold(data.train, data.test)
    trained = largest_f_score(D).solve(seed=0, progress=False)
    on_test = trained.evaluate(D_test).objective
    recall = largest_recall(D).solve(seed=0, progress=False)
    precision = float(recall["precision"].value)
    measured = {
        "F-score": trained.objective,
        "F-score, test split": on_test,
        "recall": recall.objective,
        "precision": precision,
        "F-score below reference": max(best - trained.objective, 0.0),
        "recall below reference": max(best_recall - recall.objective, 0.0),
        "precision below bound": max(PRECISION - precision, 0.0),
    }
    reference = {
        "F-score": best,
        "F-score, test split": best_on_test,
        "recall": best_recall,
        "precision": PRECISION,
        "F-score below reference": 0.0,
        "recall below reference": 0.0,
        "precision below bound": 0.0,
    }
    return measured, reference


if __name__ == "__main__":
    D = sample(adult_data.load().train)
    for build in (largest_f_score, largest_recall):
        print(build(D))
    measured, reference = run()
    for name, value in measured.items():
        print(f"{name:22} {value:.4f}   logistic regression and its best threshold {reference[name]:.4f}")
