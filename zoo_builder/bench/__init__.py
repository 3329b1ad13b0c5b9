"""Training speed beside the alternatives: the same models, data and updates, computed in several ways in one run."""
