"""Surfaces of other libraries behind which this package solves: import one to register it.

`import constrain.integrations.cvxpy` makes `prob.solve(method="constrain")` work,
`import constrain.integrations.pyomo` makes `SolverFactory("constrain")` work.
"""
