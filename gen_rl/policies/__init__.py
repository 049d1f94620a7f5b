"""Policies: pure functions that sample, score and decode."""

BUILDS = ('Policy',)
