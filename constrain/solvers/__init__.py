"""Solver loops for compiled programs: they see decisions, values and gradients, nothing else."""
