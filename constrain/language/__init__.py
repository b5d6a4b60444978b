"""The language: nodes, operators, statistics, problems and their printing. Standard library only."""
