"""RL on the few steps of a consistency model, distilled first.

python experiments/rlcm/run.py
python experiments/rlcm/run.py --report
"""

import json
import pathlib
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments import study

CONFIG, DDPO = 'configs/rlcm.py', 'configs/ddpo.py'


def arm(config: str, about: str) -> study.Arm:
  return study.Arm(config, about, study.SHORT)


ARMS = {
  'two': arm(f'{CONFIG}:two', 'two network calls'),
  'four': arm(f'{CONFIG}:sweep', 'four'),
  'eight': arm(f'{CONFIG}:eight', 'eight'),
  'rebel': arm(f'{CONFIG}:rebel', 'four, REBEL'),
  'ddpo': study.Arm(
    DDPO, 'DDPO of the base, eight calls', study.SHORT, shared='ddpo/ddpo'
  ),
  'flow_grpo': study.FLOW_GRPO,
  'jpeg': arm(f'{CONFIG}:jpeg', 'four, small files'),
  'ddpo_jpeg': arm(f'{DDPO}:jpeg', 'DDPO of the base, small files'),
  'saturation': arm(f'{CONFIG}:saturation', 'four, colourful pictures'),
  'ddpo_saturation': arm(
    f'{DDPO}:saturation', 'DDPO of the base, colourful pictures'
  ),
}
GOLD = 'held-out strict accuracy'
CLAIMS = (
  study.Claim(
    'two calls, trained, beat the base with eight', GOLD,
    'flow_grpo.base_strict', 'two.strict',
  ),
  study.Claim(
    'four calls reach what Flow-GRPO reaches with eight', GOLD,
    'flow_grpo.strict', 'four.strict',
  ),
  study.Claim(
    'and are above DDPO of the base with eight', GOLD, 'ddpo.strict',
    'four.strict',
  ),
  study.Claim(
    'RLCM makes smaller files than DDPO in as many updates',
    'reward: kilobytes, negative', 'ddpo_jpeg.proxy', 'jpeg.proxy',
  ),
  study.Claim(
    'and more colourful pictures', 'reward: saturation',
    'ddpo_saturation.proxy', 'saturation.proxy',
  ),
  study.Claim(
    'what four calls learn holds with two', GOLD, 'four.base_calls_2',
    'four.calls_2',
  ),
  study.Claim(
    'and with sixteen', GOLD, 'four.base_calls_16', 'four.calls_16'
  ),
  study.Claim(
    'REBEL does as well as clipped ratios', GOLD, 'four.strict',
    'rebel.strict',
    margin=0.02,
  ),
)  # fmt: skip


def columns(workdir: pathlib.Path, arm: str, seed: str) -> dict[str, Any]:
  """Accuracies with other numbers of calls, `calls_1` to `calls_16`."""
  del seed
  found = json.loads((workdir / 'result.json').read_text('utf-8'))
  return {
    f'{prefix}{label}': part[key]['strict']
    for prefix, key in (('base_', 'base'), ('', 'trained'))
    for label, part in (found.get('evals') or {}).items()
    if arm == 'four'
  }


STUDY = study.Study(
  file=__file__,
  title='RLCM: RL of a consistency model',
  arms=ARMS,
  claims=CLAIMS,
  extra=columns,
  code={
    'RLCM': (CONFIG, 'gen_rl/objectives/consistency.py'),
    'REBEL': ('gen_rl/objectives/policy_gradient.py:rebel',),
  },
)

if __name__ == '__main__':
  study.main(STUDY)
