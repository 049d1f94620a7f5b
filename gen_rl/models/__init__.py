"""Linen networks, each wrapped as pure functions."""

BUILDS = ('Net', 'TokenNet', 'MaskNet', 'Detector', 'Codec', 'VAE')
