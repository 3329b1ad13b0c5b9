"""Plans of zoos from recipes: cohorts of models, their sizes and their cost."""
