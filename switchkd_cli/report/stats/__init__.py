"""Intervals, significance and baselines: which difference is more than chance."""
