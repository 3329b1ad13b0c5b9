"""What makes zoos: tasks, learning, labels, and the plan and builder that put them together."""
