"""Nets of tests: small ones of every kind that policies are made of."""

from collections.abc import Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gen_rl.models import dit as dit_lib
from gen_rl.models.parts.layers import MaskNet, Net, TokenNet
from gen_rl.types import Array, Params

SHAPE = (4, 4, 3)


# Of nets and policies, what takes arrays alone, and what takes a number, too.
_CALLED = (
  'init', 'encode', 'apply', 'null', 'decode', 'compress', 'step', 'score',
  'hidden', 'logits', 'rollout',
)  # fmt: skip
# {name: places of the numbers}
_STATIC = dict(prefill=2, noised=3, finish=(3, 5), velocity_at=3, last_step=3)


def jitted(functions: Any) -> Any:
  """A Net, TokenNet or Policy whose functions are jitted.

  What is called one by one is then a program a call, and not hundreds; what is
  traced twice alike is traced once.
  """
  made = {
    name: jax.jit(getattr(functions, name), static_argnums=_STATIC.get(name))
    for name in (*_CALLED, 'prefill')
    if getattr(functions, name, None) is not None
  }
  if ops := getattr(functions, 'ops', None):
    made['ops'] = {
      name: jax.jit(op, static_argnums=_STATIC.get(name))
      for name, op in ops.items()
    }
  return functions._replace(**made)


def point_net(target: float) -> Net:
  """The exact velocity of data that is one point: x0 = target + params."""

  def apply(params, x, t, cond):
    return (x - (target + params)) / jnp.maximum(t, 1e-6)[:, None, None, None]

  return Net(lambda key: jnp.float32(0), apply, SHAPE, lambda c: c)


@functools.cache  # one net, whose functions are compiled once
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

  axes = (
    ('embed', ('vocab', 'embed')),
    ('up', ('embed', 'mlp')),
    ('down', ('mlp', 'embed')),
  )
  return jitted(Net(init, apply, SHAPE, null, axes=axes))


@functools.cache
def bigram(vocab: int = 6) -> TokenNet:
  """Next tokens follow from the one before and the prompt's first token.

  All there is to know of it can be enumerated. Prompts are ids below 8.
  """

  def init(key: Array) -> Params:
    keys = jax.random.split(key, 2)
    return dict(
      after=jax.random.normal(keys[0], (vocab + 1, vocab)),
      prompt=jax.random.normal(keys[1], (8, vocab)),
    )

  def logits(params: Params, cond: Mapping, before: Array) -> Array:
    return params['after'][before] + params['prompt'][cond['tokens'][:, 0]]

  def prefill(params: Params, cond: Mapping, length: int) -> tuple:
    del length
    start = jnp.full(len(cond['tokens']), vocab)
    return dict(tokens=cond['tokens']), logits(params, cond, start)

  def step(params: Params, cache: Mapping, token: Array) -> tuple:
    return cache, logits(params, cache, token)

  def score(params: Params, cond: Mapping, actions: Array) -> Array:
    start = jnp.full((len(actions), 1), vocab)
    before = jnp.concatenate([start, actions[:, :-1]], 1)
    return jax.vmap(logits, (None, None, 1), 1)(params, cond, before)

  def null(cond: Mapping) -> Mapping:
    return {**cond, 'tokens': jnp.zeros_like(cond['tokens'])}

  axes = (('after', (None, 'vocab')), ('prompt', (None, 'vocab')))
  return jitted(TokenNet(init, vocab, prefill, step, score, null, axes))


@functools.cache
def mask_table(vocab: int = 3, length: int = 4) -> MaskNet:
  """What fills a gap follows from its place, its left neighbour, the prompt.

  The first place's neighbour is the last. Prompts are ids below 8.
  """

  def init(key: Array) -> Params:
    keys = jax.random.split(key, 3)
    return dict(
      place=jax.random.normal(keys[0], (length, vocab)),
      left=jax.random.normal(keys[1], (vocab + 1, vocab)),
      prompt=jax.random.normal(keys[2], (8, vocab)),
    )

  def apply(params: Params, codes: Array, cond: Mapping) -> Array:
    prompt = params['prompt'][cond['tokens'][:, 0]]
    left = params['left'][jnp.roll(codes, 1, 1)]
    return params['place'] + left + prompt[:, None]

  def null(cond: Mapping) -> Mapping:
    return {**cond, 'tokens': jnp.zeros_like(cond['tokens'])}

  axes = (('place|left|prompt', (None, 'vocab')),)
  return jitted(MaskNet(init, vocab, length, apply, null, axes=axes))


@functools.cache
def dit(layers: int = 1, **options: Any) -> Net:
  """A transformer on [b 8 8 3], for `dit_batch`; options as of `models.dit`."""
  net = dit_lib.dit(
    image=(8, 8, 3), width=16, layers=layers, heads=2, patch=4,
    vocab=16, length=4, text_width=8, text_layers=1, **options,
  )  # fmt: skip
  return jitted(net)
