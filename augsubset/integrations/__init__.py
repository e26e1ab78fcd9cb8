"""Adapters for other frameworks, each in a module to import explicitly."""
