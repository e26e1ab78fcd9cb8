"""Measurements: the demo, and one module a figure."""
