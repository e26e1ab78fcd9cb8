"""Data-loading middleware that makes strong data augmentation affordable."""

__version__ = "0.1.0"
