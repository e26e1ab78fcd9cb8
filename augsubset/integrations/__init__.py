"""Helpers for frameworks, each imported by who uses it."""
