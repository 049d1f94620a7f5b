"""Rewards: pure functions from media and what was asked for to scores."""

BUILDS = ('Reward',)
