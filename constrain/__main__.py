"""`python -m constrain` is the command line."""

from constrain.cli import main

main()
