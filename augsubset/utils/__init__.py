"""Argument checks, random seeds, checkpoint files, progress bars and small torch helpers."""
