"""Numbers of a whole set of samples, which no row has: `eval.sets` by name."""

BUILDS = ('Measure',)
