"""Adv-GRPO on ShapesWorld (arXiv 2511.20256): the reward is trained, too.

  python -m gen_rl.main --config=configs/adv_grpo.py

A copy of the detector with another head learns to tell renders of the prompts
from samples, one step on every rollout, and what it thinks of a sample
is its reward. All parameters are trained, and the detector is the reward of the
controls: it can be fooled (configs/flow_grpo.py:proxy). The oracle judges.

Real may be pictures of another style, too: `style` shows the head the same
prompts outlined in ink on paper (worlds/inked.py), which no reward names. The
oracle still reads those, so that its verdict stays gold; the detector has never
seen any, and the oracle's reward takes its place. Every evaluation measures how
far samples are from fresh renders of either style (`sets`), and the share that
is in the new one (`monitors`), by what no reward here is trained on.

Variants, joined by commas:
  both    the detector's reward and the head's
  digits  the same, but real are scans of handwritten digits, for any prompt
  proxy   the detector's reward only
  oracle  the oracle's reward and the head's: the control of the next one
  style   the same, but real are renders in another style
  sft     no reward: the matching loss on real pictures (of either style:
          "sft,style"); monitors, which go beside rewards, are off
  frozen  the head on the detector's features as they are
  preference  the detector itself is trained: its last layer learns to prefer
          renders while it likes samples better, and the policy waits
  kl      with a KL term to the base
  tiny    two quick steps of all of it, for tests

Real pictures may be files, too, several of a prompt (README.md, Prompt files):
critic.reals.name=references.
"""

import ml_collections
from ml_collections import config_dict

from configs import base, flow_grpo

VARIANTS = (
  'both', 'digits', 'proxy', 'oracle', 'style', 'sft', 'frozen', 'preference',
  'kl', 'tiny',
)  # fmt: skip
_REWARDED = 'both', 'digits', 'proxy', 'oracle', 'preference'
EXCLUSIVE = (
  (*_REWARDED, 'sft'), (*_REWARDED, 'style'),
  ('proxy', 'frozen', 'preference', 'sft'), ('kl', 'sft'),
)  # fmt: skip


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """See the module docstring."""
  variants = base.split_variants(arg, VARIANTS, EXCLUSIVE)
  c = flow_grpo.get_config('proxy,kl' if 'kl' in variants else 'proxy')
  c.name = 'adv_grpo' + (f':{arg}' if arg else '')
  styles = dict(plain='shapes_pictures', inked='shapes_inked')
  for label, real in styles.items():
    c.eval.sets[label] = config_dict.create(
      name='frechet', features='shapes_vlm', real=real
    )
  for part in ('both', 'paper', 'outline'):
    label = 'inked' if part == 'both' else part
    c.monitors[label] = config_dict.create(name='shapes_inked', of=part)
  if 'proxy' not in variants:
    c.rewards.real = config_dict.create(name='adversarial', weight=0.3)
  if 'frozen' in variants:
    c.rewards.real.frozen = True
  if 'preference' in variants:
    # Within a group its scores differ by a tenth or so.
    c.rewards.real = config_dict.create(
      name='adversarial_preference', reward=c.rewards.detector,
      trained='^head/', scale=10.0, weight=1.0,
    )  # fmt: skip
    del c.rewards.real.reward.weight
  if 'digits' in variants:
    c.critic.reals = dict(name='digit_scans')
  if 'style' in variants:
    c.critic.reals = dict(name='shapes_inked')
  if {'oracle', 'style'} & set(variants):
    c.rewards.oracle.weight = 1.0
  if not {'proxy', 'both', 'digits'} & set(variants):
    del c.rewards.detector
    c.rewards.real.weight = 1.0
  if 'sft' in variants:
    c.rollout = config_dict.create(name=c.critic.reals.name)
    c.rewards, c.monitors = config_dict.ConfigDict(), config_dict.ConfigDict()
    c.objective = config_dict.ConfigDict()
    c.objective.fm = config_dict.create(name='flow_matching', weight=1.0)
  if 'tiny' in variants:
    base.make_tiny(c)
  return c
