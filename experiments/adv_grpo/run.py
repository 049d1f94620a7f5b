"""A reward that is trained against the policy, and controls that are fooled.

python experiments/adv_grpo/run.py
python experiments/adv_grpo/run.py --report

Columns say how near samples are to fresh renders, plain or in another style,
and how many are in that style, see `of_samples`.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments import study

CONFIG = 'configs/adv_grpo.py'
ARMS = {
  'adversarial': study.Arm(CONFIG, 'the head alone', study.SHORT),
  'frozen': study.Arm(
    f'{CONFIG}:frozen', 'the same on features as they are', study.SHORT
  ),
  'both': study.Arm(f'{CONFIG}:both', 'the detector and the head', study.SHORT),
  'digits': study.Arm(
    f'{CONFIG}:digits',
    'the detector, and a head to which scans of digits are real',
    study.SHORT,
  ),
  'preference': study.Arm(
    f'{CONFIG}:preference',
    'the detector alone, whose last layer is trained where it likes samples '
    'better than renders, while the policy waits',
    study.SHORT,
  ),
  'proxy': study.Arm(f'{CONFIG}:proxy', 'the detector alone', study.SHORT),
  'proxy_kl': study.Arm(
    f'{CONFIG}:proxy,kl', 'the detector, and a KL term', study.SHORT
  ),
  'oracle': study.Arm(
    f'{CONFIG}:oracle', 'the oracle and the head', study.SHORT
  ),
  'style': study.Arm(
    f'{CONFIG}:style',
    'the same, but real are renders outlined in ink on paper',
    study.SHORT,
  ),
  'sft_style': study.Arm(
    f'{CONFIG}:sft,style',
    'no reward: supervised training on those renders',
    study.SHORT,
  ),
}
CLAIMS = (
  study.Claim(
    'a trained reward keeps a proxy from being fooled',
    'held-out strict accuracy', 'proxy.strict', 'both.strict',
  ),
  study.Claim(
    'it does so better than a KL term',
    'held-out strict accuracy', 'proxy_kl.strict', 'both.strict',
  ),
  study.Claim(
    'it keeps samples near to renders',
    'minus the Frechet distance', 'proxy.near_plain', 'both.near_plain',
  ),
  study.Claim(
    'a proxy that is trained itself is not fooled',
    'held-out strict accuracy', 'proxy.strict', 'preference.strict',
  ),
  study.Claim(
    'the head does better on features that are frozen',
    'held-out strict accuracy', 'adversarial.strict', 'frozen.strict',
  ),
  study.Claim(
    'references in another style teach it',
    'share of samples in that style', 'oracle.inked', 'style.inked',
  ),
  study.Claim(
    'they bring samples nearer to renders in that style',
    'minus the Frechet distance', 'oracle.near_inked', 'style.near_inked',
  ),
  study.Claim(
    'with them, what is shown is right as often',
    'held-out strict accuracy', 'oracle.strict', 'style.strict',
    margin=0.02,
  ),
)  # fmt: skip


def of_samples(workdir: pathlib.Path, arm: str, seed: str) -> dict[str, float]:
  """Of the held-out samples of the trained policy, and of its base.

  near_plain and near_inked are minus the Frechet distances from fresh renders
  of the prompts in the two styles; inked, paper and outline the shares of
  samples in the second one, with its light background, with its outlines, of
  runs with rewards.
  """
  del arm, seed
  result = json.loads((workdir / 'result.json').read_text('utf-8'))
  out = {}
  for prefix, part in (('base_', result['base']), ('', result['trained'])):
    for style, distance in part['sets'].items():
      out[f'{prefix}near_{style}'] = -distance
    for name in ('inked', 'paper', 'outline'):
      if name in part['parts']:
        out[f'{prefix}{name}'] = part['parts'][name]
  return out


STUDY = study.Study(
  file=__file__,
  title='Adv-GRPO: a reward that is trained',
  arms=ARMS,
  extra=of_samples,
  columns=dict(
    near_plain='nearness to renders',
    near_inked='to those in ink',
    inked='in that style',
    paper='on its paper',
    outline='with its outlines',
  ),
  claims=CLAIMS,
  code={'Adv-GRPO': (CONFIG, 'gen_rl/rewards/adversarial.py')},
)

if __name__ == '__main__':
  study.main(STUDY)
