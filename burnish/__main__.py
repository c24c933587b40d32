"""`python -m burnish`: the command line."""

from burnish.cli.main import main

main()
