"""Rows of tokens: what is sampled of them, what is scored.

`policies.tokens` says what such a policy is; here are the functions of it.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from gen_rl.build import ConfigError
from gen_rl.distributions import Categorical, HeadCategorical
from gen_rl.models.parts.layers import TokenNet
from gen_rl.policies import guidance
from gen_rl.types import Array, Params, PyTree, Rows, Trajectory
from gen_rl.utils import rng, tree


class Speech(NamedTuple):
  """What the functions below share; see `tokens.tokens`."""

  net: TokenNet
  length: int
  end: int | None
  pad: int
  temperature: float
  top_k: int
  top_p: float
  scale: float  # w of guidance
  gradient: Literal['both', 'conditional']
  as_sampled: bool  # whether what is scored is guided, too
  null_prob: float
  drop_truncated: bool
  greedy_first: bool
  head_chunk: int

  @property
  def guided(self) -> bool:
    """Whether there are logits given no prompt."""
    return self.scale != 1

  def mix(self, with_prompt: Array, without: Array | None = None) -> Array:
    """(1) of `policies.tokens`, of logits."""
    if without is None:
      return with_prompt
    return without + self.scale * (with_prompt - without)


def chosen(tokens: Array, end: int | None) -> Array:
  """Bool [b k]: what was said up to and including the first end token.

  Args:
    tokens: [b k] int.
    end: None: all of it.
  """
  if end is None:
    return jnp.ones(tokens.shape, bool)
  ended = jnp.cumsum(tokens == end, 1)
  return (ended == 0) | ((ended == 1) & (tokens == end))


def truncated(logits: Array, top_k: int = 0, top_p: float = 1.0) -> Array:
  """Logits with what is not to be sampled at -inf.

  Args:
    logits: [... v], divided by the temperature.
    top_k: keeps the k largest (and those equal to the k-th); 0 keeps all.
    top_p: keeps the fewest tokens whose probabilities sum to at least this
      (arXiv 1904.09751), at least one; of what top_k left.
  """
  v = logits.shape[-1]
  if 0 < top_k < v:
    least = jax.lax.top_k(logits, top_k)[0][..., -1:]
    logits = jnp.where(logits < least, -jnp.inf, logits)
  if top_p < 1:
    ordered = jnp.sort(logits, -1, descending=True)
    p = jax.nn.softmax(ordered, -1)
    before = jnp.cumsum(p, -1) - p  # of the likelier ones
    least = jnp.where(before < top_p, ordered, jnp.inf).min(-1, keepdims=True)
    logits = jnp.where(logits < least, -jnp.inf, logits)
  return logits


def rollout(
  speech: Speech, params: Params, rows: Rows, step: Array
) -> Trajectory:
  """Says rows of tokens."""
  del step
  first = rows.member == 0 if speech.greedy_first else None

  def pick(logits: Array, i: Array) -> Array:
    keys = rng.step_keys(rows.keys, i)[:, None]
    kept = truncated(logits, speech.top_k, speech.top_p)
    drawn = Categorical(kept[:, None]).sample(keys)[:, 0]
    if speech.greedy_first:
      drawn = jnp.where(first, logits.argmax(-1), drawn)
    return drawn

  said, log_prob, mask = _generate(speech, params, rows, pick)
  if speech.drop_truncated:
    mask *= (said == speech.end).any(1, keepdims=True)
  if speech.greedy_first:
    mask *= ~first[:, None]
  zeros = jnp.zeros_like(log_prob)
  return Trajectory(
    cond=rows.cond,
    states=(),
    actions=said,
    times=jnp.zeros((*said.shape, 2)),
    noise=zeros,
    log_prob=log_prob,
    mask=mask,
    sample=said,
    group=rows.group,
  )


def greedy(speech: Speech, params: Params, rows: Rows) -> Array:
  """The likeliest token at every place, [b k]."""
  pick = lambda logits, _: logits.argmax(-1)
  return _generate(speech, params, rows, pick)[0]


def _generate(
  speech: Speech,
  params: Params,
  rows: Rows,
  pick: Callable[[Array, Array], Array],
) -> tuple[Array, Array, Array]:
  """(tokens, log-probs of what is scored, mask), all [b k].

  Args:
    speech: of the policy.
    params: of the net.
    rows: what is asked.
    pick: (logits g / tau [b v], position) -> tokens [b].
  """
  net, length, end = speech.net, speech.length, speech.end
  b = rows.group.shape[0]
  forced = rows.cond.get('forced')
  if forced is not None and forced.shape[1] != length:
    raise ConfigError(
      f'cond["forced"] says {forced.shape[1]} tokens, policy.length is {length}'
    )
  conds = [rows.cond] + ([net.null(rows.cond)] if speech.guided else [])
  ready = [net.prefill(params, cond, length) for cond in conds]

  def say(i, alive, said, logits):
    g = speech.mix(*logits) / speech.temperature
    token = pick(g, i)
    mask = alive
    if forced is not None:
      given = forced[:, i]
      token = jnp.where(given >= 0, given, token)
      mask &= given < 0
    token = jnp.where(alive, token, speech.pad).astype(jnp.int32)
    kept = g if speech.as_sampled else logits[0] / speech.temperature
    log_prob = Categorical(kept[:, None]).log_prob(token[:, None])[:, 0]
    new = token, jnp.where(mask, log_prob, 0.0), mask.astype(jnp.float32)
    said = tuple(x.at[:, i].set(y) for x, y in zip(said, new, strict=True))
    if end is not None:
      alive &= token != end
    return alive, said, token

  def going(carry) -> Array:
    i, alive, *_ = carry
    return (i < length) & alive.any()

  def body(carry):
    i, alive, said, caches, token = carry
    ready = [net.step(params, cache, token) for cache in caches]
    caches, logits = zip(*ready, strict=True)
    alive, said, token = say(i, alive, said, logits)
    return i + 1, alive, said, caches, token

  zeros = jnp.zeros((b, length))
  said = zeros.astype(jnp.int32), zeros, zeros
  caches, logits = zip(*ready, strict=True)
  alive, said, token = say(0, jnp.ones(b, bool), said, logits)
  carry = jnp.int32(1), alive, said, caches, token
  if length > 1:
    carry = jax.lax.while_loop(going, body, carry)
  return carry[2]


def dist(
  speech: Speech, params: Params, traj: Trajectory
) -> Categorical | HeadCategorical:
  """Of the stored tokens, [b k]."""
  asked = [(params, traj.cond)]
  if speech.guided and speech.as_sampled:
    free = guidance.unconditional(params, speech.gradient)
    asked += [(free, speech.net.null(traj.cond))]

  return _scores(speech, asked, traj.actions, _Read(speech, plain=False))


def nll(speech: Speech, params: Params, traj: Trajectory, keys: Array) -> Array:
  """Mean over what a row says of -log p, [b], without temperature."""
  x, cond = traj.sample, traj.cond
  if speech.null_prob > 0:
    drop_keys = rng.stream_keys(keys, 'null')
    drop = jax.vmap(jax.random.bernoulli, (0, None))(
      drop_keys, speech.null_prob
    )
    cond = tree.where(drop, speech.net.null(cond), cond)
  read = _Read(speech, plain=True)
  log_prob = _scores(speech, [(params, cond)], x, read).log_prob(x)
  said = chosen(x, speech.end) & (x >= 0)
  total = jnp.where(said, -log_prob, 0.0).sum(1)
  return total / jnp.maximum(said.sum(1), 1)


class _Read(NamedTuple):
  """Logits of each prompt -> those that are scored; equal where all is."""

  speech: Speech
  plain: bool  # without guidance and temperature

  def logits(self, *given: Array) -> Array:
    if self.plain:
      return given[0]
    mixed = self.speech.mix(*given)
    return mixed.astype(jnp.float32) / self.speech.temperature

  def __call__(self, owners: PyTree, hidden: PyTree) -> Array:
    """Of the vectors before the heads of these parameters."""
    return self.logits(
      *(self.speech.net.logits(p, h) for p, h in zip(owners, hidden))
    )


def _scores(
  speech: Speech,
  asked: list[tuple[Params, PyTree]],
  actions: Array,
  read: _Read,
) -> Categorical | HeadCategorical:
  """Of logits given prompts.

  Args:
    speech: of the policy.
    asked: (parameters, cond) of each logits.
    actions: [b k].
    read: which of them are scored.
  """
  net = speech.net
  if not speech.head_chunk:
    return Categorical(read.logits(*(net.score(*a, actions) for a in asked)))
  hidden = tuple(net.hidden(*a, actions) for a in asked)
  owners = tuple(params for params, _ in asked)
  return HeadCategorical(hidden, owners, read, speech.head_chunk)
