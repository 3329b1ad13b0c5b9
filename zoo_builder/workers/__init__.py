"""Processes and machines that make shards."""
