"""External solvers: one module or package each, and the only place that imports it."""
