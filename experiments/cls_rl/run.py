"""CLS-RL: few-shot classification by rules, with a thought and without.

python experiments/cls_rl/run.py
python experiments/cls_rl/run.py --report
"""

import pathlib
import statistics
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments import study
from gen_rl import metrics
from gen_rl.worlds import classes

CONFIG = 'configs/cls_rl.py'


def arm(about: str, *variants: str) -> study.Arm:
  config = ':'.join(filter(None, (CONFIG, ','.join(variants))))
  return study.Arm(config, about, after='base:0')


ARMS = {
  'base': study.Arm('configs/pretrain_vlm.py:classes', 'the base'),
  'sft': arm('supervised, on the names', 'sft'),
  'think': arm('CLS-RL: a thought, then the answer', 'think'),
  'direct': arm('No-Thinking-CLS-RL: the answer alone'),
  'sft_things': arm('as sft, on one set of classes', 'sft', 'things'),
  'think_things': arm('as think, on one set', 'think', 'things'),
  'direct_things': arm('as direct, on one set', 'things'),
}
BASE, NEW = 'accuracy on base classes', 'accuracy on new classes'
MEAN = 'harmonic mean of base and new'
OTHERS = 'accuracy on sets that were not trained'
CLAIMS = (
  study.Claim(
    'four pictures of a class teach it, by rewards', BASE,
    'direct.base_strict', 'direct.strict',
  ),
  study.Claim(
    'RL helps with new classes, too', NEW, 'direct.base_new', 'direct.new'
  ),
  study.Claim(
    'and with a thought', NEW, 'think.base_new', 'think.new'
  ),
  study.Claim(
    'supervised training makes new classes worse', NEW, 'sft.new',
    'sft.base_new',
  ),
  study.Claim('RL is above it', MEAN, 'sft.harmonic', 'direct.harmonic'),
  study.Claim(
    'RL with a thought is above it', MEAN, 'sft.harmonic', 'think.harmonic'
  ),
  study.Claim(
    'no thought is better than one', MEAN, 'think.harmonic', 'direct.harmonic'
  ),
  study.Claim(
    'RL on one set helps with the others', OTHERS, 'direct_things.base_others',
    'direct_things.others',
  ),
  study.Claim(
    'supervised training on one set makes the others worse', OTHERS,
    'sft_things.others', 'sft_things.base_others',
  ),
)  # fmt: skip


def columns(workdir: pathlib.Path, arm: str, seed: str) -> dict[str, Any]:
  """New classes, the harmonic mean, the sets that are not trained, tokens.

  `others` is a mean over the sets but the first one, base and new classes.
  """
  import json

  del seed
  if arm == 'base':
    return {}
  found = json.loads((workdir / 'result.json').read_text('utf-8'))
  out = {}
  for prefix, key in (('base_', 'base'), ('', 'trained')):
    base, new = found[key], found['evals']['new'][key]
    out[f'{prefix}new'] = new['strict']
    out[f'{prefix}harmonic'] = statistics.harmonic_mean(
      [base['strict'], new['strict']]
    )
    out[f'{prefix}others'] = statistics.mean(
      half['strict_per_task'][name]
      for half in (base, new)
      for name in classes.SETS[1:]
    )
  # The monitor is -L / most of an answer of L tokens, the end among them.
  most = study.load_config(workdir).policy.length
  lines = metrics.read(workdir / metrics.FILE)
  said = [line.get('eval/monitor/length') for line in lines]
  said = [-most * x for x in said if x is not None]
  if said:
    out['tokens_first'], out['tokens'] = said[0], said[-1]
  return out


STUDY = study.Study(
  file=__file__,
  title='CLS-RL: few-shot classification by rules',
  arms=ARMS,
  extra=columns,
  columns=dict(
    base_new='new classes: base',
    new='new classes: trained',
    harmonic='harmonic mean',
    base_others='other sets: base',
    others='other sets: trained',
    tokens='tokens an answer',
  ),
  gold='accuracy on other pictures of the classes (gold oracle)',
  claims=CLAIMS,
  code={
    'CLS-RL': (
      CONFIG,
      'gen_rl/worlds/classes.py',
      'gen_rl/rewards/rules.py:exact_match',
      'gen_rl/rewards/rules.py:tagged_answer',
      'gen_rl/rewards/rules.py:tag_format',
    ),
  },
)

if __name__ == '__main__':
  study.main(STUDY)
