"""Networks that are trained beside the policy: `types.Learner`s by name."""

BUILDS = ('Learner',)
