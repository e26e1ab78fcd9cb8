"""Checks of arguments, random seeds, checkpoint files and small torch helpers."""
