"""From a recipe to a plan: cohorts of models, their sizes, and what they will cost."""
