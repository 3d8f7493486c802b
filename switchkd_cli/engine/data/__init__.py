"""Data sources, one a file: each returns rows ready to be batched."""
