"""Everything that is drawn on a terminal or printed as lines."""
