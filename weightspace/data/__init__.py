"""Batches of models for learning: which models, moved how, with which targets, within which memory."""
