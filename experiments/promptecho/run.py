"""PromptEcho: a frozen vision-language model rewards the flow model.

python experiments/promptecho/run.py
python experiments/promptecho/run.py --report
"""

import pathlib
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments import study

CONFIG, JUDGE = 'configs/promptecho_flow_grpo.py', 'configs/pretrain_vlm.py'
NARROW = {
  f'rewards.echo.model.{name}': 48 for name in ('width', 'vision_width')
}
ORACLE = {'rewards.oracle.weight': 1.0, 'rewards.echo.weight': 0.0}


def arm(variants: str, about: str, *changes: dict, **more: Any) -> study.Arm:
  overrides = dict(study.SHORT)
  for change in changes:
    overrides |= change
  return study.Arm(f'{CONFIG}:{variants}', about, overrides, **more)


def by(judge: str, label: str = 'echo') -> dict[str, Any]:
  """Whose weights the reward has."""
  return dict(uses={f'rewards.{label}.weights': judge})


ARMS = {
  'echo': study.Arm(CONFIG, 'log-likelihood of the prompt'),
  'large': study.Arm(
    f'{JUDGE}:questions', 'a judge that describes pictures and answers'
  ),
  'small': study.Arm(f'{JUDGE}:questions,small', 'one half as wide'),
  'dense': arm(
    'dense', 'likelihood of prompts that say it all', **by('large')
  ),
  'dense_small': arm('dense', 'the same, half as wide', NARROW, **by('small')),
  'dense_asked': arm(
    'dense,asked', 'share of questions answered by yes', **by('large', 'asked')
  ),
  'dense_oracle': arm('dense', 'the oracle in its place', ORACLE),
  'dense_awm': arm(
    'dense,awm', 'AWM, of scores less their mean', **by('large')
  ),
  'dense_awm_std': arm(
    'dense,awm', 'AWM, divided by the deviation of a group',
    {'advantage.name': 'grpo'}, **by('large'),
  ),
  'text': arm('text', 'words: likelihood of the sentence'),
  'ocr': arm('ocr', 'words: likelihood of the word'),
  'text_oracle': arm('text', 'words: the oracle in its place', ORACLE),
}  # fmt: skip
GOLD = 'held-out strict accuracy'
DENSE, TEXT = f'{GOLD}, dense prompts', f'{GOLD}, words'
TAU = "Kendall's tau with the oracle within a prompt"
NET = 'wins less losses against the base, dense prompts'
CLAIMS = (
  study.Claim(
    'the likelihood of the prompt teaches what the oracle calls correct',
    GOLD, 'echo.base_strict', 'echo.strict',
  ),
  study.Claim(
    'a larger judge orders pictures better', TAU, 'small.tau', 'large.tau'
  ),
  study.Claim(
    'the likelihood orders them better than answers of the same judge',
    TAU, 'large.tau_asked', 'large.tau',
  ),
  study.Claim(
    'the likeliest of 8 pictures is right more often than one',
    DENSE, 'large.best1', 'large.best8',
  ),
  study.Claim(
    'a larger judge chooses better among them', DENSE, 'small.best8',
    'large.best8',
  ),
  study.Claim(
    'the likelihood of dense prompts teaches what they say',
    DENSE, 'dense.base_strict', 'dense.strict',
  ),
  study.Claim(
    'its pictures win more often than they lose', NET, 'dense.base_net_wins',
    'dense.net_wins',
  ),
  study.Claim(
    'so they do on prompts of other kinds, without training on them',
    f'{GOLD}, short prompts', 'dense.base_short', 'dense.short',
  ),
  study.Claim(
    'a larger judge teaches more', DENSE, 'dense_small.strict', 'dense.strict'
  ),
  study.Claim(
    'the likelihood teaches more than answers of the same judge',
    DENSE, 'dense_asked.strict', 'dense.strict',
  ),
  study.Claim(
    'AWM learns from it, too', DENSE, 'dense_awm.base_strict',
    'dense_awm.strict',
  ),
  study.Claim(
    'without the deviation AWM learns as well', DENSE, 'dense_awm_std.strict',
    'dense_awm.strict', margin=0.02,
  ),
  study.Claim(
    'the likelihood of a sentence teaches its word', TEXT, 'text.base_strict',
    'text.strict',
  ),
  study.Claim(
    'the likelihood of the word does', TEXT, 'ocr.base_strict', 'ocr.strict'
  ),
  study.Claim(
    'and as well as the oracle', TEXT, 'text_oracle.strict', 'ocr.strict',
    margin=0.02,
  ),
)  # fmt: skip


def columns(workdir: pathlib.Path, name: str, seed: str) -> dict[str, Any]:
  """What a judge is worth without training, or what training won."""
  from experiments.promptecho import worth

  if name in ('large', 'small'):
    weights = workdir / f'{study.EXPORT}.safetensors'
    return worth.of_judge(weights, name == 'small', int(seed))
  return worth.of_training(study.load_config(workdir), workdir)


STUDY = study.Study(
  file=__file__,
  title="PromptEcho's reward: a frozen vision-language model judges",
  arms=ARMS,
  extra=columns,
  columns=dict(
    net_wins='net wins',
    base_short='short prompts: base',
    short='short prompts: trained',
    tau='tau',
    tau_asked='tau of answers',
    best1='one picture',
    best8='best of 8 by it',
  ),
  claims=CLAIMS,
  code={'PromptEcho': (CONFIG, 'gen_rl/rewards/judge.py:echo')},
)

if __name__ == '__main__':
  study.main(STUDY)
