"""From a batch of prompts to rows, and from rows to trajectories.

A row is one sample of one prompt. Its key is folded from (seed, step, prompt
id, member), so what it draws does not depend on the other rows of the batch,
their order, or the number of devices.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp

from gen_rl.data.pictures.given import Shared
from gen_rl.diffusion import process
from gen_rl.types import Array, Params, Policy, PyTree, Rows, Trajectory
from gen_rl.utils import rng


# Called by itself, too: a program, and not an operation at a time.
@functools.partial(jax.jit, static_argnames=('group_size', 'view'))
def make_rows(
  batch: Mapping[str, Any],
  group_size: int,
  seed_key: Array,
  step: Array,
  view: Callable[[Rows], tuple[PyTree, PyTree]] | None = None,
  members: Array | None = None,
) -> Rows:
  """Repeats every prompt `group_size` times, prompt-major.

  Args:
    batch: {"tokens": [P l], "prompt_id": [P], "info": {name: [P ...]}} and
      optionally "media" [P h w c], "cond" {name: [P ...]}, features, and
      "source_id" [P], what rewards are told the prompt's id is.
    group_size: G, samples per prompt.
    seed_key: typed key of the run.
    step: [] int32.
    view: a function of `data.pictures`: the policy sees what it gives of the
      rows, as `cond["image"]` in [0, 1], which is also their `media`.
    members: [P G] int32, of a larger group; None: the first G.

  Returns:
    Rows with b = P * G; row p * G + g is member g of prompt p, or
    members[p, g].
  """

  def repeat(x: Array) -> Array:
    return jnp.repeat(jnp.asarray(x), group_size, axis=0)

  key = jax.random.fold_in(seed_key, step)
  ids = batch['prompt_id']
  in_order = members is None
  if members is None:
    members = jnp.tile(jnp.arange(group_size), (len(ids), 1))
  media = batch.get('media')
  rows = Rows(
    cond={
      'tokens': repeat(batch['tokens']),
      **jax.tree.map(repeat, dict(batch.get('cond', {}))),
    },
    info=jax.tree.map(repeat, dict(batch['info'])),
    group=repeat(ids),
    keys=rng.row_keys(seed_key, step, ids, group_size, members),
    group_keys=repeat(rng.group_keys(seed_key, step, ids)),
    key=rng.stream_keys(key, 'shared'),
    media=None if media is None else repeat(media),
    member=members.reshape(-1),
    ids=repeat(batch['source_id']) if 'source_id' in batch else None,
    alike=group_size,
    in_order=in_order,
  )
  if view is None:
    return rows
  latents, cond = view(rows)
  image = (latents + 1.0) / 2.0
  alike = group_size if isinstance(view, Shared) else 1
  return rows.replace(
    cond={**cond, 'image': image},
    media=image,
    alike=alike,
    in_order=in_order and alike > 1,
  )


def policy_rollout(policy: Policy) -> Callable[..., Trajectory]:
  """The policy samples: (params, rows, step) -> Trajectory."""
  return policy.rollout


def media_of(data: Array, samples: Array) -> Array:
  """Data as what is decoded from samples: in [0, 1], and of its size.

  Args:
    data: of a function of `data.pictures`, pictures [b h w c] in [-1, 1]; other
      data are left as they are.
    samples: media [b ...] of the policy.
  """
  if jnp.issubdtype(data.dtype, jnp.integer):
    return data
  data = process.clip((data + 1.0) / 2.0)
  if data.ndim != 4 or samples.ndim != 4:
    return data
  return process.resized(data, samples.shape[1:3])


def data_rollout(
  encode: Callable[[Rows], tuple[PyTree, PyTree]],
  compress: Callable[[Params, Array], Array] | None = None,
) -> Callable[..., Trajectory]:
  """The identity rollout: data in place of samples, no decisions (k = 0).

  Args:
    encode: rows -> (pictures [b h w c] in [-1, 1] or tokens [b k], cond);
      renders or normalises the data. `cond` is that of the rows, or holds what
      is to be learned (labels).
    compress: of policies whose samples are no pictures, see
      `gen_rl.capabilities`: the trajectory's samples are what the policy's own
      would be.
  """

  def rollout(params: Params, rows: Rows, step: Array) -> Trajectory:
    del step
    sample, cond = encode(rows)
    if compress and jnp.issubdtype(sample.dtype, jnp.floating):
      sample = compress(params, (sample + 1.0) / 2.0)
    return given(sample, cond, rows.group)

  return rollout


def given(sample: PyTree, cond: PyTree, group: Array) -> Trajectory:
  """Samples [b ...] that nobody decided on: k = 0."""
  b = group.shape[0]
  none = jnp.zeros((b, 0), jnp.float32)
  return Trajectory(
    cond=cond,
    states=(),
    actions=none,
    times=jnp.zeros((b, 0, 2), jnp.float32),
    noise=none,
    log_prob=none,
    mask=none,
    sample=sample,
    group=group,
  )
