"""The report of several recipes: what the paper finds, what our runs say, and how they were made."""
