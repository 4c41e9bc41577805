"""Pellucid: see through any transformer."""

__version__ = "0.1.0"
