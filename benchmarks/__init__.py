"""Measurements of this project; `make bench` runs them all and prints a table."""
