"""Figures of finished runs as PNG and SVG, drawn without a screen from the numbers in run folders."""
