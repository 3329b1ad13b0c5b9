"""Classes found by name, the user's own packages, and what is recorded to make an object again."""
