"""Recipes: a run as data. `load` reads a YAML file, checks it, and returns frozen runs."""
