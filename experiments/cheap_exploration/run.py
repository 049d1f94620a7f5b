"""Cheap exploration: more candidates a prompt, of which the ends are trained.

python experiments/cheap_exploration/run.py
python experiments/cheap_exploration/run.py --seeds=0
python experiments/cheap_exploration/run.py --report

How well draws rank that are cheap is measured by ways.py.
"""

import pathlib
import statistics
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments import study
from gen_rl import metrics

HALF = study.SHORT | {
  'data.prompts_per_step': 21, 'steps': 40, 'checkpoint.every': 40,
}  # fmt: skip
POOL = 36  # of 12 that are trained on
ARMS = {
  'plain': study.Arm(
    'configs/flow_grpo.py', 'Flow-GRPO: 12 candidates, all trained on', HALF
  ),
  'exact': study.Arm(
    'configs/flow_grpo.py',
    'the best and the worst 6 of 36 that are drawn as ever',
    HALF | {'explore.size': POOL},
  ),
  'cheap': study.Arm(
    'configs/flow_grpo.py',
    'of 36 that take one step after the window; those 12 are drawn again',
    HALF | {'explore.size': POOL, 'explore.policy.tail': 0.01},
  ),
}
# Network calls of a candidate of the pool, and of one that is drawn again.
CALLS = dict(plain=(0, 8), exact=(8, 0), cheap=(5, 8))
SAID = ('rank_corr', 'pool_corr', 'slope')


def extra(workdir: pathlib.Path, arm: str, seed: str) -> dict[str, Any]:
  """Network calls of a run, in forward passes of a picture, and agreement.

  An update takes three of every decision, one forward and twice as much
  backward, and one of the copy that the KL term compares with.
  """
  del seed
  c = study.load_config(workdir)
  pool, again = CALLS[arm]
  prompts, group = c.data.prompts_per_step, c.data.group_size
  drawn = prompts * (c.explore.size * pool + group * again)
  trained = prompts * group * c.policy.window * 4
  out = dict(drawn_calls=c.steps * drawn, calls=c.steps * (drawn + trained))
  lines = metrics.read(workdir / metrics.FILE)
  for name in SAID:
    values = [line.get(f'explore/{name}') for line in lines]
    values = [x for x in values if x is not None]
    if values:
      out[name] = statistics.mean(values)
  return out


STUDY = study.Study(
  file=__file__,
  title='Cheap exploration: draw many, train on the ends',
  arms=ARMS,
  extra=extra,
  columns=dict(
    drawn_calls='calls that draw',
    calls='calls, with the update',
    rank_corr='rank correlation of the chosen',
    pool_corr='correlation in the pool, estimate',
    slope='slope',
  ),
  claims=(
    study.Claim(
      'more candidates, of which the ends are trained on, teach more in as '
      'many updates',
      'held-out strict accuracy',
      'plain.strict',
      'exact.strict',
    ),
    study.Claim(
      'cheap draws of them do as well',
      'held-out strict accuracy',
      'exact.strict',
      'cheap.strict',
      margin=0.02,
    ),
  ),
  code={
    'Sol-RL': (
      'gen_rl/step/explore.py',
      'gen_rl/step/sample.py:sample',
      'gen_rl/setups.py:pool',
    )
  },
)

if __name__ == '__main__':
  study.main(STUDY)
