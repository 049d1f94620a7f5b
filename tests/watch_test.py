"""What ends a run that learns nothing."""

import pytest

from gen_rl import build, watch


def test_a_learner_that_cannot_learn_ends_the_run():
  counts = {}
  for share, other in ((1.0, 0.5), (float('nan'), 1.0), (1.0, 0.0)):
    logged = {
      'learner/a/skipped': share, 'learner/b/skipped': other,
      'learner/skipped': 1.0, 'optim/skipped': 1,
    }  # fmt: skip
    counts = watch.unlearned(counts, logged)
  assert counts == dict(a=2, b=0)
  watch.learned(counts, 3, 3)
  with pytest.raises(FloatingPointError, match="learner 'a' was finite"):
    watch.learned(counts, 2, 3)


def test_an_objective_without_decisions_ends_the_run():
  counts = {}
  for pg, kl in ((0.0, 3.0), (2.0, 0.0), (1.0, 0.0)):
    logged = {'pg/decisions': pg, 'kl/decisions': kl, 'pg/loss': 0.0}
    counts = watch.idle(counts, logged)
  assert counts == dict(pg=0, kl=2)
  watch.decided(counts, 3, 3)
  with pytest.raises(build.ConfigError, match='objective.kl had no decision'):
    watch.decided(counts, 2, 3)
