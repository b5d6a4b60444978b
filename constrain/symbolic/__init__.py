"""The symbolic side: Lagrangian and KKT system as SymPy objects, and closed forms of small problems."""
