r"""Text, then a picture: two policies one after the other, as one policy.

The first says tokens y given a prompt c (a plan as of T2I-R1, arXiv 2505.00703,
or a better prompt as of PromptEnhancer, arXiv 2509.04545), the second makes a
picture z of both,

  log p(y, z | c) = sum_i log p_1(y_i | c, y_<i) + sum_j log p_2(z_j | c')  (1)
  c' = the real tokens of c, then those of y before the end                (2)

where z_j are the second's decisions: codes, steps of a masked model, or noisy
denoising steps. A trajectory has the k_1 + k_2 decisions of both behind one
another, so that one reward of the picture trains both (the bi-level rollout of
T2I-R1 with one picture per text): `log_prob`, `mask`, `times` and `noise` are
[b k_1 + k_2], `states` and `actions` are a `Pair`, the distribution is
`distributions.Concat`, `sample` and media are dict(text=, image=), so that
rewards see both. Nothing flows from the second
into the first but the reward, for (2) are whole numbers.

Objectives that ask for log-probs, KL divergences or entropies of decisions
work as they are: clipped_pg, reinforce, rebel, gspo, cispo, kl, sampled_kl,
entropy. The two segments mean different things by a log-prob, though: that of a
token, a sum over codes, a mean over a latent. `objectives.segments.of_segment`
gives each its own clip range, weight and mean; without it a token and a
denoising step count alike (T2I-R1: 576 codes outweigh 60 words), and a
`kl(scale='dt')` is 0 on tokens, which take no time. Those that ask for the
likelihood, velocity or gradient of a sample are refused: matching, preference
and path-wise ones train the second policy alone.
"""

from collections.abc import Mapping
import functools
import re
from typing import Any, NamedTuple

import jax.numpy as jnp

from gen_rl import build, models, policies, types
from gen_rl.build import ConfigError
from gen_rl.distributions import Concat
from gen_rl.fields import Count
from gen_rl.models.parts.layers import PAD, TokenNet
from gen_rl.policies.speech import chosen
from gen_rl.types import (
  Array,
  Axes,
  Params,
  Policy,
  PyTree,
  Rows,
  Trajectory,
)
from gen_rl.utils import rng


class Pair(NamedTuple):
  """What each of the two policies has of its own."""

  first: PyTree
  second: PyTree


def continued(
  prompt: Array,
  said: Array,
  length: int,
  end: int | None = None,
  pad: int = PAD,
) -> Array:
  """Equation (2): prompts of the second policy, [b length] int32.

  Padding between the two is squeezed out and goes to the end; so do the end
  token and what follows it. What does not fit in `length` is cut off.

  Args:
    prompt: [b l] int, padded anywhere.
    said: [b k] int.
    length: of the result.
    end: id of the token that ends what is said; None: all of it counts.
    pad: id of padding, which no network sees.
  """
  both = jnp.concatenate([prompt, said], 1).astype(jnp.int32)
  kept = chosen(said, end)
  if end is not None:
    kept &= said != end
  real = jnp.concatenate([jnp.ones(prompt.shape, bool), kept], 1)
  both = jnp.where(real, both, pad)
  order = jnp.argsort(both == pad, axis=1, stable=True)
  both = jnp.take_along_axis(both, order, 1)[:, :length]
  room = ((0, 0), (0, length - both.shape[1]))
  return jnp.pad(both, room, constant_values=pad)


def _axes_within(name: str, axes: Axes) -> Axes:
  """Axes of parameters below the branch `name`."""
  below = rf'^(?=(.*/)?{re.escape(name)}/)'
  return tuple((rf'{below}.*(?:{p})', names) for p, names in axes)


# The return type is spelled so that a config cannot ask for this function by
# name (policies.BUILDS): it says `text_then_image`.
def compose(
  first: Policy,
  second: Policy,
  length: int,
  end: int | None = None,
  keep_prompt: bool = True,
  pad: int = PAD,
) -> types.Policy:
  """The first policy, then the second given what the first said.

  Parameters are dict(first, second); trainable='^first/' trains the text alone,
  with the second a part of the world.

  Args:
    first: of `policies.tokens`; its actions are what is said.
    second: any policy that samples, conditioned on cond["tokens"].
    length: tokens of the second's prompts, see `continued`.
    end: the first's end token.
    keep_prompt: False: the second sees what was said alone (a prompt enhancer),
      and a null prompt where nothing was.
    pad: id of padding.

  Raises:
    ConfigError: a length below 1; when called, a first policy whose actions
      are no tokens, or an objective that does not fit.
  """
  if length < 1:
    raise ConfigError(
      f'policy.length={length}: the second policy sees at least one token'
    )

  both = _Both(first, second, length, end, keep_prompt, pad)
  axes = (
    *_axes_within('first', first.axes),
    *_axes_within('second', second.axes),
  )
  shared = first.ops.keys() & second.ops.keys()
  ops = dict(dist=_dist, greedy=_greedy)
  return types.Policy(
    both.init,
    functools.partial(_rollout, both),
    both.decode,
    {k: functools.partial(op, both) for k, op in ops.items() if k in shared},
    axes=axes,
  )


class _Both(NamedTuple):
  """Two policies, and what the second sees of what the first said."""

  first: Policy
  second: Policy
  length: int
  end: int | None
  keep_prompt: bool
  pad: int

  def init(self, key: Array) -> Params:
    return dict(
      first=self.first.init(rng.stream_keys(key, 'first')),
      second=self.second.init(rng.stream_keys(key, 'second')),
    )

  def decode(self, params: Params, sample: PyTree) -> PyTree:
    shown = self.second.decode(params['second'], sample['image'])
    return dict(text=sample['text'], image=shown)

  def seen(self, cond: PyTree, said: Array) -> PyTree:
    """Cond of the second policy."""
    prompt = cond['tokens'] if self.keep_prompt else cond['tokens'][:, :0]
    rest = {k: v for k, v in cond.items() if k != 'forced'}
    tokens = continued(prompt, said, self.length, self.end, self.pad)
    return {**rest, 'tokens': tokens}

  def follow(self, rows: Rows, said: Array) -> Rows:
    """Rows of the second policy, which draws numbers of its own."""
    keys = {
      name: rng.stream_keys(getattr(rows, name), 'second')
      for name in ('keys', 'group_keys', 'key')
    }
    return rows.replace(cond=self.seen(rows.cond, said), **keys)


def _rollout(
  both: _Both, params: Params, rows: Rows, step: Array
) -> Trajectory:
  """Says, then draws."""
  said = both.first.rollout(params['first'], rows, step)
  words = said.actions
  if words.ndim != 2 or not jnp.issubdtype(words.dtype, jnp.integer):
    raise ConfigError(
      f'the first policy decides on {words.dtype}{list(words.shape)}: it has '
      'to say tokens, as policies.tokens does'
    )
  follow = both.follow(rows, words)
  drawn = both.second.rollout(params['second'], follow, step)

  def along(name: str) -> Array:
    pair = getattr(said, name), getattr(drawn, name)
    return jnp.concatenate(pair, 1)

  return Trajectory(
    cond=rows.cond,
    states=Pair(said.states, drawn.states),
    actions=Pair(words, drawn.actions),
    times=along('times'),
    noise=along('noise'),
    log_prob=along('log_prob'),
    mask=along('mask'),
    sample=dict(text=words, image=drawn.sample),
    group=rows.group,
    reused=drawn.reused,
  )


def _split(both: _Both, traj: Trajectory) -> Pair:
  """The trajectories of both policies."""
  k = traj.actions.first.shape[1]

  def part(name: str, where: slice, **own: PyTree) -> Trajectory:
    fields = {
      field: getattr(traj, field)[:, where]
      for field in ('times', 'noise', 'log_prob', 'mask')
    }
    return traj.replace(
      states=getattr(traj.states, name),
      actions=getattr(traj.actions, name),
      **fields,
      **own,
    )

  said = traj.actions.first
  return Pair(
    part('first', slice(None, k), sample=said),
    part(
      'second',
      slice(k, None),
      cond=both.seen(traj.cond, said),
      sample=traj.sample['image'],
    ),
  )


def _dist(both: _Both, params: Params, traj: Trajectory) -> Concat:
  parts = _split(both, traj)
  return Concat(
    (
      both.first.ops['dist'](params['first'], parts.first),
      both.second.ops['dist'](params['second'], parts.second),
    )
  )


def _greedy(both: _Both, params: Params, rows: Rows) -> PyTree:
  said = both.first.ops['greedy'](params['first'], rows)
  follow = both.follow(rows, said)
  shown = both.second.ops['greedy'](params['second'], follow)
  return dict(text=said, image=shown)


def text_then_image(
  net: TokenNet,
  first: Mapping[str, Any],
  second: Mapping[str, Any],
  model: Mapping[str, Any],
  length: Count,
  end: int | None = None,
  keep_prompt: bool = True,
  pad: int = PAD,
) -> Policy:
  """`compose` from specs: the config's model says text, another one pictures.

  The two networks share nothing, where T2I-R1 has one for both. A base for one
  of them is a file of parameters named first/... or second/....

  Tested, not measured.

  Args:
    net: of the first policy; its vocabulary is that of both prompts.
    first: spec of `policies.tokens`.
    second: spec of the policy of pictures.
    model: spec of the second's network; vocab and length are filled in.
    length: tokens of the second's prompts, see `continued`.
    end: id of the tokenizer's end token.
    keep_prompt: see `compose`.
    pad: the tokenizer's id of padding.

  Raises:
    ConfigError: as of `compose`; an unknown name or key in a spec.
  """
  own = {} if 'pad' in model else dict(pad=pad)
  shown = build.build(models, model, vocab=net.vocab, length=length, **own)
  return compose(
    build.build(policies, first, net=net, end=end, pad=pad),
    build.build(policies, second, net=shown),
    length,
    end,
    keep_prompt,
    pad,
  )
