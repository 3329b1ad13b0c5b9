"""Probes: what frozen embeddings know of a zoo's labels, beside baselines and controls."""
