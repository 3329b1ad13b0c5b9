"""Batches of models for learning: sampling, augmentation, targets, bounds on memory."""
