"""Linen networks, each wrapped as pure functions."""
