"""Small parts with which tests build a whole training step in a second.

The net is a two-layer perceptron on 4x4 pictures, the prompts ask for one of
three colours, and the reward is how much of it there is.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gen_rl.models.layers import Net
from gen_rl.types import Array, Params, Reward, RewardInputs, RewardOut

SHAPE = (4, 4, 3)


def perceptron(width: int = 16, dtype: Any = jnp.float32) -> Net:
  """A velocity net on [b 4 4 3] for prompts of token ids below 8.

  Args:
    width: of the hidden layer.
    dtype: of its arithmetic and of the velocity; parameters are float32.
  """
  size = int(np.prod(SHAPE))

  def init(key: Array) -> Params:
    keys = jax.random.split(key, 3)
    return dict(
      embed=jax.random.normal(keys[0], (8, width)),
      up=jax.random.normal(keys[1], (size + 1, width)) / size**0.5,
      down=jax.random.normal(keys[2], (width, size)) / width**0.5,
    )

  def apply(params: Params, x: Array, t: Array, cond: Mapping) -> Array:
    params = jax.tree.map(lambda p: p.astype(dtype), params)
    flat = jnp.concatenate([x.reshape(len(x), -1), t[:, None]], -1)
    hidden = flat.astype(dtype) @ params['up']
    hidden += params['embed'][cond['tokens']].mean(1)
    return (jnp.tanh(hidden) @ params['down']).reshape(x.shape)

  def null(cond: Mapping) -> Mapping:
    return {**cond, 'tokens': jnp.zeros_like(cond['tokens'])}

  return Net(init, apply, SHAPE, null)


def batch(prompt_ids: Sequence[int] = (0, 1, 2, 3)) -> dict[str, Any]:
  """Prompts as the pipeline yields them; what a prompt is follows its id."""
  ids = np.asarray(prompt_ids, np.int32)
  tokens = np.stack([ids % 7 + 1, ids // 7 % 8], -1).astype(np.int32)
  return dict(tokens=tokens, prompt_id=ids, info=dict(channel=ids % 3))


def color_reward(
  spoil: Callable[[Array, Array], Array] | None = None, where: str = 'device'
) -> Reward:
  """Mean of the channel asked for, minus that of all.

  Args:
    spoil: (score [b], channel [b]) -> score [b], to break some of them.
    where: 'device' or 'host'.
  """

  def score(params: Params, inputs: RewardInputs, key: Array) -> RewardOut:
    del params, key
    mean = inputs.media.mean((1, 2))
    channel = inputs.info['channel']
    out = mean[np.arange(len(mean)), channel] - mean.mean(-1)
    if spoil is not None:
      out = spoil(out, channel)
    return RewardOut(out, dict(red=mean[:, 0]), jnp.ones(len(mean), bool))

  return Reward('color', (), score, where=where)


def result() -> dict[str, Any]:
  """A result.json as a good run leaves it; see `results`."""
  return dict(
    schema_version=1,
    config_name='flow_grpo:tiny',
    seed=3,
    steps=150,
    base=dict(
      strict=0.62,
      strict_per_task={'counting': 0.5, 'two_object': 0.74},
      proxy=0.7,
      diversity=0.2,
    ),
    trained=dict(
      strict=np.float32(0.914),
      strict_per_task={'counting': 0.9, 'two_object': 0.93},
      proxy=0.95,
      diversity=0.19,
    ),
    kl=0.03,
    wall_seconds=461.2,
    seconds_to_first_metric=31.0,
    samples_per_second=42.5,
    peak_rss_bytes=2 * 2**30,
    updates_skipped=0,
    device='cpu',
    jax_version='0.10.2',
    git_commit=None,
  )
