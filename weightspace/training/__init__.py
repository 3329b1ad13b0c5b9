"""Learning encoders with Lightning: module, checkpoints, command line, embeddings, predictions."""
