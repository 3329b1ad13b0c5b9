"""A user's package with learners of its own."""
