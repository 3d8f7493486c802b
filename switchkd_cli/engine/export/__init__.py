"""A finished student for others: its model card, and its files for runtimes other than transformers."""
