"""PromptEcho's reward (arXiv 2604.12652): a frozen VLM rewards the flow model.

  python -m gen_rl.main --config=configs/promptecho_flow_grpo.py

The reward of a picture is how likely the small vision-language model is to say
its prompt when asked to describe it; the oracle judges, and is never in the
reward. All else is configs/flow_grpo.py: of the paper this is one arm, its
reward on one model and one way to train it.

Rewarding the answers to a prompt's questions ("is there a red circle ?",
`rewards.judge.checklist`) is no variant: the shipped model answers them as well
as chance does, 0.517, so such a run would learn nothing that is meant.

Variants:
  tiny  two quick steps of all of it, for tests
"""

import ml_collections
from ml_collections import config_dict

from configs import base, flow_grpo, pretrain_vlm

VARIANTS = ('tiny',)


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """See the module docstring."""
  variants = base.split_variants(arg, VARIANTS)
  c = flow_grpo.get_config()
  c.name = 'promptecho_flow_grpo' + (f':{arg}' if arg else '')
  c.rewards.oracle.weight = 0.0
  c.data.reader = config_dict.create(
    tokenizer=dict(name='shapes_language'), length=16,
    texts=dict(caption='{prompt}'), truncate=False,
  )  # fmt: skip
  c.rewards.echo = config_dict.create(
    name='echo', model=pretrain_vlm.model(), weight=1.0
  )
  if 'tiny' in variants:
    base.make_tiny(c)
  return c
