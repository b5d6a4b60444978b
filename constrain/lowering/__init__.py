"""Rewriting of problems into the moment form, and what the analysis says about the result."""
