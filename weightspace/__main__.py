"""`python -m weightspace`."""

from weightspace.cli import main

main()
