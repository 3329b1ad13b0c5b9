"""From a family's Python step to a program of tile operations."""
