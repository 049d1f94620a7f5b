"""Linen networks, each wrapped as pure functions."""

BUILDS = ('Net', 'TokenNet', 'Detector', 'Codec')
