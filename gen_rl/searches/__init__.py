"""Searches at inference: `config.search` and `eval.search` by name."""

BUILDS = ('Search',)
