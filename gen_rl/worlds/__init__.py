"""Embedded worlds: sentences, renderers and exact oracles (`world.World`)."""

BUILDS = ('World',)
