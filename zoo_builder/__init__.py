"""The builder of zoos: tasks, learners, labels, plans, and the workers that make shards."""
