"""A function, a backend, a solver, an estimator and a report for constrain, each in a module of its own."""
