"""Configs: one file per method, deltas on base."""
