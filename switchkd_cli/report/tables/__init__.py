"""Tables of scores, ablations and comparisons, whatever they are printed on."""
