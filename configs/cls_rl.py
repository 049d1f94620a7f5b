r"""CLS-RL on ShapesWorld (arXiv 2503.16188): which class is a picture of?

  python -m gen_rl.main --config=configs/pretrain_vlm.py:classes \
    --workdir=runs/classes
  python -m gen_rl.main --config=configs/cls_rl.py \
    --config.init=runs/classes/shapes_classes.safetensors

Few-shot classification by GRPO (arXiv 2402.03300). Its question lists the names
of all classes; there are four pictures of each of the base classes, half of
all, and it is evaluated on others of these and, as `new`, of the classes of the
other half (`worlds.classes`). It is No-Thinking-CLS-RL: the model is asked for
the answer, and rewarded where it says the name and nothing else. As published:
groups of 4, one update of a rollout, the deviation of a group, a mean over the
tokens of a row and then over rows, k3 with weight 0.04. Every update sees one
picture of each class, so that 200 go 50 times through them.

The base is that of configs/pretrain_vlm.py:classes, which names pictures well
and has seen few such questions.

Variants, joined by commas:
  think   CLS-RL: it is asked to think first, thought and answer between tags,
          and rewarded for the answer and for the format, 1 each
  sft     supervised training on the names of the same pictures, as often
  things  trained on the first of the three sets of classes alone, for what
          training on one gives to others; evaluated on all
  tiny    two quick steps of all of it, for tests
"""

import ml_collections
from ml_collections import config_dict

from configs import base, pretrain_vlm
from gen_rl.worlds import classes

VARIANTS = ('think', 'sft', 'things', 'tiny')
EXCLUSIVE = (('think', 'sft'),)
SHOTS = 4


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """See the module docstring."""
  variants = base.split_variants(arg, VARIANTS, EXCLUSIVE)
  think = 'think' in variants
  c = base.get_config()
  c.name = 'cls_rl' + (f':{arg}' if arg else '')
  c.steps = 200
  pretrain_vlm.of_classes(c, think)
  c.data.prompts = config_dict.create(
    name='world_prompts', split='base',
    world=dict(name='shapes_classes', think=think),
    tasks=classes.SETS[:1] if 'things' in variants else classes.SETS,
  )  # fmt: skip
  # All classes, each once.
  c.data.update(
    prompts_per_step=8 if 'things' in variants else 19, group_size=4,
    answer_length=classes.MAX_NAME, balance=False,
  )  # fmt: skip
  c.data.view = config_dict.create(
    name='world_pictures', world='shapes', shared=True, shots=SHOTS,
    shots_seed=c.get_ref('seed'),
  )  # fmt: skip
  c.eval.view = config_dict.create(shots=0, shared=False)
  c.eval.every = 50
  c.policy = config_dict.create(name='tokens', length=16 if think else 8)
  c.aggregate = 'seq_mean_token_mean'
  c.optimizer.update(lr=5e-4, decay='linear', warmup=10)
  c.ema = 0.9
  c.checkpoint.every = 100
  if 'sft' in variants:
    c.data.group_size = 1
    c.rollout = config_dict.create(name='answers')
    c.objective.nll = config_dict.create(name='nll', weight=1.0)
  else:
    _by_rules(c, think)
  if 'tiny' in variants:
    base.make_tiny(c)
  return c


def _by_rules(c: ml_collections.ConfigDict, think: bool) -> None:
  """GRPO, and what is rewarded."""
  c.rewards.exact = config_dict.create(name='exact_match', weight=1.0)
  if think:
    begin, close = pretrain_vlm.token_ids(classes.ANSWER)
    thought = pretrain_vlm.token_ids(classes.THOUGHT)
    c.rewards = config_dict.create(
      answer=dict(
        name='tagged_answer', begin=begin, close=close, whole=True, weight=1.0
      ),
      format=dict(
        name='tag_format', tags=(*thought, begin, close), weight=1.0
      ),
    )  # fmt: skip
  c.advantage = config_dict.create(
    name='grpo', std='group', ddof=1, clip=None, drop_zero=False
  )
  c.objective.pg = config_dict.create(name='clipped_pg', clip=0.2, weight=1.0)
  c.objective.kl = config_dict.create(
    name='sampled_kl', ref='ref', estimator='k3', weight=0.04
  )
  # -L / most of an answer of L tokens, the end among them.
  most = c.policy.length
  c.monitors.length = config_dict.create(
    name='length_shaping', longest=most, buffer=most
  )
