"""A decision process with a budget, as a linear program over occupancies.

FrozenLake is a 4 x 4 grid with slippery ice, holes and a goal; its transition table is exact. The
decision `mu[s, a]` is the discounted number of times that action `a` is taken in state `s`. It satisfies
one flow equation per state. The expected discounted return is linear in it, and so is the expected
discounted number of falls into a hole, which gets a budget of 0.10 (the best policy without a budget has
0.118).

The policy is read off the occupancy: pi(a | s) = mu[s, a] / sum of mu[s, :]. The multiplier of the budget
is its price: how much return one more unit of budget would buy.

Reference values: the same linear program by HiGHS.
"""

from __future__ import annotations

import gymnasium
import numpy as np
import torch

import constrain as cn

GAMMA = 0.99
BUDGET = 0.10
TOLERANCE = 1e-6
REFERENCE = {
    "return without budget": 0.5420259320,
    "falls without budget": 0.1180506,
    "return": 0.4591470588,
    "price of falls": 4.5914705882,
}


def tables():
    """Return transitions (states, actions, states), and rewards and falls (states, actions)."""
    environment = gymnasium.make("FrozenLake-v1", map_name="4x4", is_slippery=True).unwrapped
    states, actions = environment.observation_space.n, environment.action_space.n
    holes = environment.desc.ravel() == b"H"
    transitions = np.zeros((states, actions, states))
    rewards, falls = np.zeros((states, actions)), np.zeros((states, actions))
    for state, by_action in environment.P.items():
        for action, outcomes in by_action.items():
            for probability, after, reward, _ in outcomes:
                transitions[state, action, after] += probability
                rewards[state, action] += probability * reward
                falls[state, action] += probability * (holes[after] and not holes[state])
    return torch.tensor(transitions), torch.tensor(rewards), torch.tensor(falls)


def problems():
    """Return the problem without and with the budget, and their decision."""
    T, R, C = tables()
    start = torch.zeros(len(R), dtype=torch.float64)
    start[0] = 1.0
    mu = cn.Variable(tuple(R.shape), "mu", nonneg=True)
    free = cn.maximize(cn.sum(R * mu)).subject_to(
        flow=cn.sum(mu, axis=1) - GAMMA * torch.einsum("sap,sa->p", T, mu) == start
    )
    return free, free.subject_to(budget=cn.sum(C * mu) <= BUDGET), mu, C


def run():
    """Solve both problems."""
    free, limited, mu, falls = problems()
    best = free.solve(progress=False)
    falls_of_best = float((falls.numpy() * np.asarray(mu.value)).sum())
    safe = limited.solve(progress=False)
    measured = {
        "return without budget": float(best.objective),
        "falls without budget": falls_of_best,
        "return": float(safe.objective),
        "price of falls": float(safe["budget"].shadow_price),
    }
    return measured, REFERENCE


if __name__ == "__main__":
    measured, reference = run()
    for name, value in measured.items():
        print(f"{name:24} {value:.7f}")
    _, limited, mu, _ = problems()
    print(limited.solve(progress=False))
    occupancy = np.asarray(mu.value)
    policy = occupancy / np.maximum(occupancy.sum(axis=1, keepdims=True), 1e-12)
    print("policy, one row per state (left, down, right, up):")
    print(np.array2string(policy, precision=3, suppress_small=True))
