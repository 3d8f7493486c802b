"""Recipes: what a run is, as data. `load` reads a YAML file into frozen, checked runs."""
