r"""PromptEcho's reward (arXiv 2604.12652): a frozen VLM rewards the flow model.

  python -m gen_rl.main --config=configs/promptecho_flow_grpo.py
  python -m gen_rl.main --config=configs/promptecho_flow_grpo.py:dense,awm
  python -m gen_rl.main --config=configs/promptecho_flow_grpo.py:search \
    --mode=search

The reward of a picture is how likely the small vision-language model is to say
its prompt when asked to describe it; the oracle judges, and is never in the
reward. All else is configs/flow_grpo.py.

A judge of one's own is --config.rewards.echo.weights=FILE, made by
configs/pretrain_vlm.py; of its variant `small` it also needs
--config.rewards.echo.model.width=48 and
--config.rewards.echo.model.vision_width=48.

Variants, joined by commas ("dense,awm"):
  dense   prompts that say all of a picture, "a red circle left of a blue
          square", as the paper's long captions do; evaluated on such with other
          pairs of colours and, as `short`, on the prompts of the default
  asked   what the paper argues against: the model is asked about the prompt,
          "is there a red circle ?", and the share of its answers that are yes
          is the reward. The shipped model answers as well as chance does,
          0.517: give --config.rewards.asked.weights=FILE, made by
          configs/pretrain_vlm.py:questions
  awm     advantage-weighted matching, which the paper trains with, in place of
          GRPO (configs/diffusion_nft.py:awm), of scores less their group's mean
          and not divided by a deviation; that is
          --config.advantage.name=grpo
  text    quoted words only; all of the sentence is echoed
  ocr     quoted words only; asked what is written, the model is to say the word
  search  best of 8 by the reward, for --mode=search and --mode=sample
  tiny    two quick steps of all of it, for tests
"""

import ml_collections
from ml_collections import config_dict

from configs import base, diffusion_nft, flow_grpo, pretrain_vlm

VARIANTS = ('dense', 'asked', 'awm', 'text', 'ocr', 'search', 'tiny')
EXCLUSIVE = (('dense', 'text', 'ocr'), ('asked', 'text', 'ocr'))


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """See the module docstring."""
  variants = base.split_variants(arg, VARIANTS, EXCLUSIVE)
  if 'awm' in variants:
    c = diffusion_nft.get_config('awm')
    c.advantage = config_dict.create(name='dr_grpo')
  else:
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
  if 'asked' in variants:
    del c.rewards.echo
    c.rewards.asked = config_dict.create(
      name='checklist', hard=True, model=pretrain_vlm.model(), weight=1.0
    )
  if 'dense' in variants:
    c.data.weights = {}
    c.data.prompts = config_dict.create(name='shapes_placed', split='train+rl')
    c.evals.short = dict(prompts=c.eval.prompts.to_dict())
    c.eval.prompts = config_dict.create(name='shapes_placed', split='heldout')
  if 'text' in variants or 'ocr' in variants:
    c.data.weights = {}
    c.data.prompts.tasks = ('text',)
  if 'ocr' in variants:
    c.data.reader.texts.caption = '{quoted}'
    c.rewards.echo.query = 'what word is written ?'
  if 'search' in variants:
    c.search = config_dict.create(name='best_of_n', n=8)
  if 'tiny' in variants:
    base.make_tiny(c)
  return c
