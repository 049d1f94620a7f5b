"""A reward that is trained against the policy, and controls that are fooled.

python experiments/adv_grpo/run.py
python experiments/adv_grpo/run.py --report
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments import study

CONFIG = 'configs/adv_grpo.py'
ARMS = {
  'adversarial': study.Arm(CONFIG, 'the head alone', study.SHORT),
  'both': study.Arm(f'{CONFIG}:both', 'the detector and the head', study.SHORT),
  'digits': study.Arm(
    f'{CONFIG}:digits',
    'the detector, and a head to which scans of digits are real',
    study.SHORT,
  ),
  'proxy': study.Arm(f'{CONFIG}:proxy', 'the detector alone', study.SHORT),
  'proxy_kl': study.Arm(
    f'{CONFIG}:proxy,kl', 'the detector, and a KL term', study.SHORT
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
)  # fmt: skip

STUDY = study.Study(
  file=__file__,
  title='Adv-GRPO: a reward that is trained',
  arms=ARMS,
  claims=CLAIMS,
  code={'Adv-GRPO': (CONFIG, 'gen_rl/rewards/adversarial.py')},
)

if __name__ == '__main__':
  study.main(STUDY)
